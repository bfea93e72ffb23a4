//! What the gateway costs: CPU per request beside a bare Pingora proxy. `make bench`, or `make bench QUICK=1` for a rough look.
//!
//! Both are release builds of one profile with one thread, before one upstream, under one load generator; each part is a
//! process of its own, this binary run again with an argument. The gateway has everything on: keys, credit, holds, metering,
//! journal, database, metrics, a log line a request. They are measured in turn, several rounds, from the process's own
//! accounting (`/proc/PID/stat`, all threads), half a second of rest after each load included, so that what is written later
//! counts. Wall time is not looked at: it says more of the machine than of the program.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a bench that cannot measure stops")]
#![expect(clippy::print_stdout, reason = "the report")]
#![expect(clippy::disallowed_methods, reason = "deadlines of start-up, by the real clock")]

#[path = "whole/bare.rs"]
mod bare;
#[path = "whole/gateway.rs"]
mod gateway;
#[path = "whole/load.rs"]
mod load;
#[path = "whole/upstream.rs"]
mod upstream;

use gateway::{Part, free_address, gateway, wait_until_accepted};
use load::Kind;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;
// Its allocator, for all the parts.
use weir as _;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["upstream"] => upstream::run(),
        ["bare", listen, upstream] => bare::run(listen, upstream),
        ["load", address, kind, count, key] => {
            load::run(address.parse().unwrap(), Kind::parse(kind), count.parse().unwrap(), key);
        }
        // `cargo bench` adds `--bench`.
        options => compare(options.contains(&"--quick")),
    }
}

fn again(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("our own path"));
    command.args(arguments);
    command
}

fn compare(quick: bool) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut upstream = Part::start(again(&["upstream"]).stdout(Stdio::piped()));
    let mut line = String::new();
    BufReader::new(upstream.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let provider: SocketAddr = line.trim().parse().expect("the upstream tells its address");

    let listen = free_address();
    let bare = Part::start(&mut again(&["bare", &listen.to_string(), &provider.to_string()]));
    let (weir, weir_address, key) = gateway(directory.path(), &format!("http://{provider}"), None);
    wait_until_accepted(listen);

    let rounds = if quick { 3 } else { 9 };
    println!(
        "CPU microseconds per request, bare Pingora and Weir in turn, one thread each, {rounds} rounds."
    );
    println!("Ratio: the median of the rounds, and the lowest and highest.\n");
    println!("{:<24}{:>9}{:>10}{:>10}{:>9}   spread", "", "requests", "bare", "weir", "ratio");
    for kind in Kind::ALL {
        let count = kind.requests() / if quick { 4 } else { 1 };
        let bare_side = Side { part: &bare, address: listen, key: &key };
        let weir_side = Side { part: &weir, address: weir_address, key: &key };
        bare_side.measure(kind, count / 4);
        weir_side.measure(kind, count / 4);
        let pairs: Vec<(f64, f64)> =
            (0..rounds).map(|_| (bare_side.measure(kind, count), weir_side.measure(kind, count))).collect();
        report(kind, count, &pairs);
    }
}

struct Side<'a> {
    part: &'a Part,
    address: SocketAddr,
    key: &'a str,
}

impl Side<'_> {
    /// CPU microseconds per request of one load.
    fn measure(&self, kind: Kind, count: u32) -> f64 {
        let before = cpu_us(self.part);
        let arguments = ["load", &self.address.to_string(), kind.name(), &count.to_string(), self.key];
        let loaded = again(&arguments).status().expect("the load generator runs");
        assert!(loaded.success(), "the load generator failed");
        std::thread::sleep(Duration::from_millis(500));
        let used = u32::try_from(cpu_us(self.part) - before).expect("less than an hour of CPU");
        f64::from(used) / f64::from(count)
    }
}

/// CPU microseconds so far, user and system, of all threads, ended ones included.
fn cpu_us(part: &Part) -> u64 {
    // The kernel tells in ticks of a hundredth of a second, whatever its own rate (USER_HZ).
    const TICK_US: u64 = 10_000;
    let stat = fs::read_to_string(format!("/proc/{}/stat", part.0.id())).expect("the part runs");
    // The name in parentheses may contain anything; what follows it is plain.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks = |index: usize| fields[index].parse::<u64>().unwrap();
    (ticks(11) + ticks(12)) * TICK_US
}

fn report(kind: Kind, count: u32, pairs: &[(f64, f64)]) {
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        (values[values.len() / 2], values[0], values[values.len() - 1])
    };
    let (bare, ..) = median(pairs.iter().map(|(bare, _)| *bare).collect());
    let (weir, ..) = median(pairs.iter().map(|(_, weir)| *weir).collect());
    let (ratio, low, high) = median(pairs.iter().map(|(bare, weir)| weir / bare).collect());
    println!("{:<24}{count:>9}{bare:>10.1}{weir:>10.1}{ratio:>9.2}   {low:.2} to {high:.2}", kind.title());
}
