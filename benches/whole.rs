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
#[path = "whole/load.rs"]
mod load;
#[path = "whole/upstream.rs"]
mod upstream;

use load::Kind;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

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

/// A child process that ends with us.
struct Part(Child);

impl Part {
    fn start(command: &mut Command) -> Part {
        Part(command.stdin(Stdio::null()).spawn().expect("the part starts"))
    }

    /// CPU microseconds so far, user and system, of all threads, ended ones included.
    fn cpu_us(&self) -> u64 {
        // The kernel tells in ticks of a hundredth of a second, whatever its own rate (USER_HZ).
        const TICK_US: u64 = 10_000;
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id())).expect("the part runs");
        // The name in parentheses may contain anything; what follows it is plain.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks = |index: usize| fields[index].parse::<u64>().unwrap();
        (ticks(11) + ticks(12)) * TICK_US
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
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
    let (weir, weir_address, key) = gateway(directory.path(), provider);
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
        let before = self.part.cpu_us();
        let arguments = ["load", &self.address.to_string(), kind.name(), &count.to_string(), self.key];
        let loaded = again(&arguments).status().expect("the load generator runs");
        assert!(loaded.success(), "the load generator failed");
        std::thread::sleep(Duration::from_millis(500));
        let used = u32::try_from(self.part.cpu_us() - before).expect("less than an hour of CPU");
        f64::from(used) / f64::from(count)
    }
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

/// Weir with everything on, before this provider; its process, its address, and the key of a funded account.
fn gateway(directory: &Path, provider: SocketAddr) -> (Part, SocketAddr, String) {
    let (listen, admin) = (free_address(), free_address());
    let config = format!(
        "[server]\nlisten = [\"{listen}\"]\nthreads = 1\n\n[admin]\nlisten = \"{admin}\"\n\n\
         [store]\nurl = \"sqlite:data/weir.db\"\n\n[auth]\npepper = \"file:data/pepper\"\n\n\
         [journal]\ndir = \"data/journal\"\n\n\
         [[provider]]\nname = \"up\"\ndialect = \"openai\"\nbase_url = \"http://{provider}/v1\"\napi_key = \"env:BENCH_KEY\"\n\n\
         [[model]]\nname = \"bench\"\ncontext_tokens = 1000000\nmax_output_tokens = 4096\n\
         routes = [{{ provider = \"up\", model = \"upstream-model\", weight = 1 }}]\n\n\
         [[tier]]\nname = \"default\"\nrequests_per_minute = 100000000\ntokens_per_minute = 1000000000000\n\
         concurrent_requests = 1000\n"
    );
    fs::write(directory.join("weir.toml"), config).unwrap();
    fs::write(
        directory.join("prices.toml"),
        "[[price]]\nmodel = \"bench\"\ninput = \"0.15\"\noutput = \"0.60\"\n",
    )
    .unwrap();
    let command = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
        command
            .args(arguments)
            .args(["--config", "weir.toml"])
            .current_dir(directory)
            .env("BENCH_KEY", "sk-bench");
        command
    };
    let json = |arguments: &[&str]| -> Value {
        let output = command(arguments).arg("--json").output().expect("weir runs");
        assert!(output.status.success(), "weir {arguments:?}: {output:?}");
        serde_json::from_slice(&output.stdout).expect("one JSON value")
    };
    json(&["price", "import", "prices.toml"]);
    let made = json(&["account", "create", "--email", "bench@example.com"]);
    let account = made["account_id"].as_str().unwrap();
    json(&["credit", "add", "--account", account, "--usd", "100000", "--reason", "bench"]);
    let made = json(&["key", "create", "--account", account]);
    let log = fs::File::create(directory.join("weir.log")).unwrap();
    let weir = Part::start(command(&["serve"]).stdout(log.try_clone().unwrap()).stderr(log));
    wait_until_accepted(listen);
    (weir, listen, made["key"].as_str().unwrap().to_owned())
}

fn free_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

fn wait_until_accepted(address: SocketAddr) {
    let end = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < end, "nobody listens on {address}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
