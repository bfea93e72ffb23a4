//! The start and the stop of the process, as whoever supervises it sees them.

use crate::support::gateway::{hello, hello_stream};
use crate::support::http::is_ready;
use crate::support::upstream::{chunk, last_chunk, usage, usage_chunk};
use crate::support::{Answer, Connection, Gateway, Reply, Request, Upstream, ms, number, signal, wait_for};
use serde_json::{Value, json};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};
use weir::clock::Clock;
use weir::money::Micros;
use weir::store::{LotKind, NewCredit, Opened, Store};

const BRIEF: Duration = Duration::from_secs(10);

fn gateway(upstream: &Upstream, server: &str) -> Gateway {
    Gateway::builder().provider("main", upstream).standard_models("main").server(server).start()
}

fn stream_of(text: &str) -> Value {
    let mut body = hello_stream();
    body["messages"][0]["content"] = json!(text);
    body
}

#[test]
fn a_stop_under_many_streams_lets_those_end_that_do_and_ends_the_others_with_an_error_and_a_bill() {
    let half = usize::try_from(number("WEIR_STOP_STREAMS", 500) / 2).unwrap();
    let upstream = Upstream::start();
    let gate = crate::support::upstream::Gate::new();
    let end = |answer: Answer| answer.event(&last_chunk()).event(&usage_chunk(&usage(9, 1))).done();
    upstream.when("it ends", end(Answer::stream().event(&chunk("Hello")).gate(&gate)));
    upstream.when("it goes on", Answer::stream().event(&chunk("Hello")).wait_for_end());
    let mut gateway = gateway(&upstream, "drain_timeout_ms = 6000");
    gateway.add_credit(&gateway.account.id, "1000");
    let (address, key) = (gateway.address(), gateway.account.key.clone());
    let ask = |text: &str| Request::post("/v1/chat/completions", stream_of(text).to_string()).key(&key);
    let (ending, lasting) = (ask("it ends"), ask("it goes on"));
    let read = |request: Request| -> thread::JoinHandle<Reply> {
        let mut connection = Connection::open(address);
        let head = connection.begin(&request);
        thread::spawn(move || connection.finish(head).unwrap())
    };
    let ends: Vec<_> = (0..half).map(|_| read(ending.clone())).collect();
    let lasts: Vec<_> = (0..half).map(|_| read(lasting.clone())).collect();
    let begun = Instant::now();
    signal("TERM", gateway.process_id());
    wait_for("the listeners to close", BRIEF, || TcpStream::connect(address).is_err().then_some(()));
    assert!(!is_ready(gateway.admin()));
    gate.open();
    let ends: Vec<Reply> = ends.into_iter().map(|reading| reading.join().unwrap()).collect();
    let lasts: Vec<Reply> = lasts.into_iter().map(|reading| reading.join().unwrap()).collect();
    let status = gateway.ended(BRIEF);
    let took = begun.elapsed();
    assert!(status.success(), "{status}");
    assert!(ends.iter().all(Reply::done));
    for reply in &lasts {
        assert!(reply.whole && !reply.done() && reply.text().contains("\"error\""), "{}", reply.text());
    }
    ends.iter().chain(&lasts).for_each(|reply| gateway.note(reply));
    let rows = gateway.rows_when(half * 2);
    let ended_so = |outcome: &str| rows.iter().filter(|row| row["outcome"] == outcome).count();
    assert_eq!((ended_so("completed"), ended_so("shutdown")), (half, half));
    let audit = gateway.cli.json(&["ledger", "audit"]);
    assert_eq!((&audit["live_sessions"], &audit["leased_micro_usd"]), (&json!(0), &json!(0)), "{audit}");
    eprintln!(
        "SIGTERM under {} streams, {half} of which end within the 6 s: stopped after {took:?}",
        half * 2
    );
}

#[test]
fn a_stop_takes_no_longer_than_what_is_under_way() {
    let upstream = Upstream::start();
    let mut gateway = gateway(&upstream, "");
    let mut kept = gateway.connect();
    let request = Request::post("/v1/chat/completions", hello().to_string()).key(&gateway.account.key);
    gateway.note(&kept.ask(&request).ok());
    let begun = Instant::now();
    assert!(gateway.stop().unwrap().success());
    assert!(begun.elapsed() < BRIEF, "{:?}", begun.elapsed());
}

#[test]
fn a_second_sigterm_ends_what_is_under_way_at_once() {
    let upstream = Upstream::start();
    upstream.always(Answer::stream().event(&chunk("Hello")).wait_for_end());
    let mut gateway = gateway(&upstream, "");
    let (connection, head) = gateway.begin(&hello_stream());
    signal("TERM", gateway.process_id());
    wait_for("the stop", BRIEF, || gateway.log().contains("\"stopping\"").then_some(()));
    signal("TERM", gateway.process_id());
    let reply = connection.finish(head).unwrap();
    gateway.note(&reply);
    assert!(!reply.done() && reply.text().contains("\"error\""), "{}", reply.text());
    assert!(gateway.ended(BRIEF).success());
}

#[test]
fn a_load_balancer_has_time_to_see_that_a_process_stops_before_its_listeners_close() {
    let upstream = Upstream::start();
    let mut gateway = gateway(&upstream, "stop_delay_ms = 3000");
    signal("TERM", gateway.process_id());
    wait_for("not ready", ms(2_000), || (!is_ready(gateway.admin())).then_some(()));
    let why = Connection::open(gateway.admin()).ask(&Request::get("/readyz"));
    assert_eq!(why.status, 503);
    assert!(why.text().starts_with("not ready: "), "{}", why.text());
    gateway.hello().ok();
    assert!(gateway.ended(BRIEF).success());
}

#[test]
fn a_start_takes_no_longer_with_many_accounts() {
    let accounts = number("WEIR_ACCOUNTS", 200);
    let upstream = Upstream::start();
    let mut gateway = gateway(&upstream, "");
    assert!(gateway.stop().unwrap().success());
    let few = start_of(&mut gateway);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let url = format!("sqlite:{}", gateway.database().display());
        let (store, clock) = (Store::open(&url, Opened::ByCommand).await.unwrap(), Clock::system());
        for number in 0..accounts {
            let email = format!("many-{number}@example.com");
            let account_id = store.create_account(&email, None, clock.wall()).await.unwrap();
            let credit = NewCredit {
                account_id,
                amount: Micros(1_000_000),
                kind: LotKind::Paid,
                reason: "test".into(),
                idempotency_key: None,
            };
            store.add_credit(&credit, clock.wall()).await.unwrap();
        }
        store.close().await;
    });
    let many = start_of(&mut gateway);
    eprintln!("start to ready: {few:?} with 1 account, {many:?} with {accounts} more (median of 5)");
    assert!(many < few + Duration::from_secs(2), "{few:?}, {many:?}");
    gateway.serve();
}

/// From the start of the process to the first 200 of `/readyz`, the median of five.
fn start_of(gateway: &mut Gateway) -> Duration {
    let mut starts: Vec<Duration> = (0..5)
        .map(|_| {
            let begun = Instant::now();
            gateway.serve();
            let took = begun.elapsed();
            assert!(gateway.stop().unwrap().success());
            took
        })
        .collect();
    starts.sort();
    starts[2]
}
