//! The promises of the gateway, held against the built binary: each test starts its own `weir serve` between a raw HTTP
//! client and scripted providers, and ends with an audit of the books.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a broken assumption fails the test"
)]
#![expect(clippy::print_stderr, reason = "what a test measured or left out is told to who runs it")]
#![expect(clippy::disallowed_methods, reason = "tests wait for other processes, by the real clock")]

mod support;

mod accounts;
mod architecture;
mod billing;
mod bodies;
mod cli;
mod crash;
mod doctor;
mod e2e;
mod edge;
mod errors;
mod exhausted;
mod faults;
mod gone;
mod headers;
mod hostile;
mod idempotency;
mod keys;
mod locks;
mod manual;
mod matrix;
mod memory;
mod mistakes;
mod models;
mod package;
mod policy;
mod protocol;
mod readme;
mod reload;
mod routing;
mod sdk_errors;
mod simulation;
mod stops;
mod streams;
mod systemd;
mod top;
mod upgrade;
mod watch;
