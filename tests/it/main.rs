//! The promises of the gateway, held from outside.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a broken assumption fails the test"
)]
#![expect(clippy::disallowed_methods, reason = "tests own their tasks, and wait by the real clock")]

mod matrix;
