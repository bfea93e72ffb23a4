//! What every test stands on: a gateway of its own whose end is an audit, providers that follow a script, and a client that
//! sends exactly what it is told.

mod audit;
pub(crate) mod cli;
pub(crate) mod gateway;
pub(crate) mod http;
pub(crate) mod ports;
pub(crate) mod prices;
pub(crate) mod upstream;

pub(crate) use gateway::Gateway;
pub(crate) use http::{Connection, Reply, Request};
pub(crate) use upstream::{Answer, Upstream};

use std::process::Command;
use std::time::{Duration, Instant};

/// Asks again and again until there is an answer, or fails after `limit` with what was waited for.
pub(crate) fn wait_for<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "waited {limit:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Milliseconds, as most waits here are said.
pub(crate) const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// How many tokens a text has, by the tokenizer with which the gateway counts where a provider is silent.
pub(crate) fn tokens(text: &str) -> u64 {
    u64::try_from(bpe_openai::o200k_base().count(text)).unwrap()
}

/// A number that whoever runs the tests may set.
pub(crate) fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect(variable))
}

/// Sends a signal to a process.
pub(crate) fn signal(name: &str, process_id: u32) {
    let sent = Command::new("kill").args([&format!("-{name}"), &process_id.to_string()]).status();
    assert!(sent.is_ok_and(|status| status.success()), "SIG{name} is sent");
}
