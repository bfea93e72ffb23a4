//! The journal has no room: nothing new is begun, what is under way ends as it should.

use super::{WriteLock, audited};
use crate::support::gateway::{Gateway, hello, hello_stream};
use crate::support::upstream::{Gate, chunk, last_chunk, usage, usage_chunk};
use crate::support::{Answer, Connection, Request, Upstream, ms, wait_for};
use std::process::Command;
use std::time::{Duration, Instant};

/// A stream that is in its middle until its gate opens.
fn begin_stream(gateway: &Gateway, upstream: &Upstream) -> (Connection, std::sync::Arc<Gate>) {
    let gate = Gate::new();
    upstream.next(
        Answer::stream()
            .event(&chunk("Hello"))
            .gate(&gate)
            .event(&last_chunk())
            .event(&usage_chunk(&usage(7_000, 8)))
            .done(),
    );
    let (connection, _) = gateway.begin(&hello_stream());
    (connection, gate)
}

/// Reads it to its end, which it must have.
fn end_stream(mut connection: Connection, gate: &Gate) {
    gate.open();
    let mut text = String::new();
    while let Some(piece) = connection.chunk().unwrap() {
        text.push_str(&String::from_utf8(piece).unwrap());
    }
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
}

/// Asks on one connection until something is refused, and tells how many answers came before.
fn ask_until_refused(gateway: &Gateway, most: Duration) -> usize {
    let end = Instant::now() + most;
    let mut connection = gateway.connect();
    let request = Request::post("/v1/chat/completions", hello().to_string()).key(&gateway.account.key);
    let mut count = 0;
    while Instant::now() < end {
        let reply = connection.ask(&request);
        gateway.note(&reply);
        if reply.status != 200 {
            reply.refused(503, "no_capacity");
            assert!(reply.header("retry-after").is_some(), "{:?}", reply.head);
            return count;
        }
        count += 1;
    }
    panic!("nothing was refused in {most:?}, {count} answers");
}

/// The value of a metric without labels.
fn metric(gateway: &Gateway, name: &str) -> f64 {
    let metrics = gateway.metrics();
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name} in {metrics}")).parse().unwrap()
}

#[track_caller]
fn served_again(gateway: &Gateway) {
    wait_for("the service to come back", Duration::from_secs(10), || {
        Some(gateway.hello()).filter(|reply| reply.status == 200)
    });
}

#[test]
fn a_full_journal_stops_admission_and_nothing_else() {
    let upstream = Upstream::start();
    let gateway = Gateway::builder()
        .provider("main", &upstream)
        .standard_models("main")
        .journal("max_bytes = 1048576\ndurability = \"os\"")
        .start();
    gateway.hello().ok();
    let (connection, gate) = begin_stream(&gateway, &upstream);
    let lock = WriteLock::take(&gateway);
    // While the disk is slow to give the next piece of its room, requests are refused, too.
    let mut count = 0;
    wait_for("all its room to be taken", Duration::from_secs(40), || {
        count += ask_until_refused(&gateway, Duration::from_secs(40));
        (metric(&gateway, "weir_ledger_journal_bytes") == 1_048_576.0).then_some(())
    });
    count += ask_until_refused(&gateway, Duration::from_secs(5));
    assert!(count > 500, "{count}");
    end_stream(connection, &gate);
    // What the stream had kept is free, and at most a segment with it; then it is full again.
    let more = ask_until_refused(&gateway, Duration::from_secs(5));
    assert!(more < 250, "{more}");
    lock.release();
    served_again(&gateway);
    let rows = wait_for("every row", Duration::from_secs(5), || {
        Some(gateway.rows()).filter(|rows| rows.len() == count + more + 3)
    });
    assert!(rows.iter().any(|row| row["usage"]["input"] == 7_000));
    eprintln!("the journal was full after {count} requests");
}

/// Lets no file of the process grow beyond this size; without one, to any size.
fn limit_files(gateway: &Gateway, bytes: Option<u64>) {
    let limit = bytes.map_or("unlimited".to_owned(), |bytes| bytes.to_string());
    let told = Command::new("prlimit")
        .args(["--pid", &gateway.process_id().to_string(), &format!("--fsize={limit}:")])
        .status();
    assert!(told.is_ok_and(|status| status.success()), "prlimit of util-linux");
}

#[test]
fn files_that_may_not_grow_lose_nothing_of_what_is_under_way() {
    let upstream = Upstream::start();
    let mut gateway = Gateway::before(&upstream);
    gateway.hello().ok();
    gateway.rows_when(1);
    let (connection, gate) = begin_stream(&gateway, &upstream);
    // Neither the journal nor the database can be written to.
    limit_files(&gateway, Some(4_096));
    let count = ask_until_refused(&gateway, Duration::from_secs(10));
    end_stream(connection, &gate);
    std::thread::sleep(ms(500));
    gateway.hello().refused(503, "no_capacity");
    let ready = || Connection::open(gateway.admin()).ask(&Request::get("/readyz"));
    let said = wait_for("the process to say that it is not ready", Duration::from_secs(5), || {
        Some(ready()).filter(|said| said.status == 503)
    });
    assert_eq!(said.text(), "not ready: the journal cannot be written\n");
    gateway.cli.fails(1, &["ready"]);
    limit_files(&gateway, None);
    served_again(&gateway);
    wait_for("the process to be ready again", Duration::from_secs(10), || {
        (ready().status == 200).then_some(())
    });
    // Also what the database had refused, without a start anew.
    gateway.rows_when(count + 3);
    gateway.kill();
    gateway.serve();
    audited(&gateway);
    let rows = gateway.rows_when(count + 3);
    assert!(rows.iter().all(|row| row["outcome"] == "completed"), "{rows:?}");
    assert!(rows.iter().any(|row| row["usage"]["input"] == 7_000));
}
