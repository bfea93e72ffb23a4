//! Two sessions on one store: as in an upgrade, and as on two machines.

use super::sibling::Sibling;
use super::{audited, signal};
use crate::support::gateway::{Gateway, hello, hello_stream};
use crate::support::upstream::{Gate, chat, chunk, last_chunk, usage, usage_chunk};
use crate::support::{Answer, Connection, Request, Upstream, ms, wait_for};
use serde_json::json;
use std::time::{Duration, Instant};

/// Reads until this text has come.
fn read_until(connection: &mut Connection, text: &str) {
    let mut read = String::new();
    while !read.contains(text) {
        read.push_str(&String::from_utf8(connection.chunk().unwrap().unwrap()).unwrap());
    }
}

#[test]
fn a_killed_session_is_recovered_by_its_sibling_within_ten_seconds() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let mut sibling = Sibling::start(&gateway, "data/journal");
    for _ in 0..5 {
        gateway.hello().ok();
        gateway.note(&sibling.chat(&hello()).ok());
    }
    assert_eq!(audited(&gateway)["live_sessions"], 2);
    upstream.next(Answer::stream().event(&chunk("Hello")).wait_for_end());
    let mut stream = sibling.connect();
    let head = stream.begin(&sibling.request(&hello_stream()));
    read_until(&mut stream, "Hello");
    gateway.note(&sibling.chat(&hello()).ok());
    sibling.kill();
    let killed = Instant::now();
    gateway.hello().ok();
    wait_for("the dead session to be recovered", Duration::from_secs(10), || {
        (audited(&gateway)["live_sessions"] == 1).then_some(())
    });
    eprintln!("recovered after {:?}", killed.elapsed());
    let rows = gateway.rows_when(13);
    let died: Vec<_> = rows.iter().filter(|row| row["outcome"] == "gateway_died").collect();
    assert_eq!(died.len(), 1, "{rows:?}");
    assert_eq!(died[0]["request_id"], head.header("x-request-id").unwrap());
    // What it had of the account's credit is back.
    let leases = audited(&gateway)["leased_micro_usd"].as_i64().unwrap();
    assert!(leases <= 5_000_000, "{leases}");
}

#[test]
fn credit_that_one_session_does_not_use_is_there_for_the_other() {
    let upstream = Upstream::start();
    let gateway =
        Gateway::builder().provider("main", &upstream).standard_models("main").credit("1.00").start();
    let mut dear = hello();
    dear["model"] = json!("dear");
    gateway.chat(&dear).ok();
    gateway.rows_when(1);
    let sibling = Sibling::start(&gateway, "data/journal");
    let leased = audited(&gateway)["leased_micro_usd"].as_i64().unwrap();
    assert!(leased > 200_000, "{leased}");
    // Holds 0.84 dollars: more than the account has left, less than all of its credit.
    dear["max_tokens"] = json!(1_350);
    let begun = Instant::now();
    let reply = sibling.chat(&dear).ok();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    gateway.note(&reply);
    // And back.
    gateway.chat(&dear).ok();
    sibling.stop();
    gateway.rows_when(3);
}

#[test]
fn a_session_that_stood_still_past_its_deadline_is_billed_all_the_same() {
    let upstream = Upstream::start();
    let mut gateway = Gateway::builder()
        .provider("main", &upstream)
        .standard_models("main")
        .server("max_stale_ms = 3000\nmax_stream_time_ms = 1000")
        .start();
    // With a journal of its own, as on another machine: it cannot know whether the other is dead.
    let sibling = Sibling::start(&gateway, "data/other-journal");
    gateway.note(&sibling.chat(&hello()).ok());
    gateway.hello().ok();
    let gate = Gate::new();
    upstream.next(
        Answer::stream()
            .event(&chunk("Hello"))
            .gate(&gate)
            .event(&last_chunk())
            .event(&usage_chunk(&usage(9_000, 8)))
            .done(),
    );
    let (mut stream, head) = gateway.begin(&hello_stream());
    read_until(&mut stream, "Hello");
    for _ in 0..5 {
        gateway.hello().ok();
    }
    signal("STOP", gateway.process_id());
    let stopped = Instant::now();
    wait_for("the silent session to be given up", Duration::from_secs(20), || {
        (audited(&gateway)["live_sessions"] == 1).then_some(())
    });
    let waited = stopped.elapsed();
    assert!(waited > Duration::from_secs(4), "{waited:?}: not before the longest stream has ended");
    gateway.note(&sibling.chat(&hello()).ok());
    gate.open();
    signal("CONT", gateway.process_id());
    // Two of the sibling, six before, and the stream: however it ended, it is billed.
    let rows = wait_for("the late debits", Duration::from_secs(5), || {
        Some(gateway.rows()).filter(|rows| rows.len() == 9)
    });
    let late = rows.iter().find(|row| row["request_id"] == head.header("x-request-id").unwrap()).unwrap();
    assert!(late["cost_pico_usd"].as_i64().unwrap() > 0, "{late}");
    audited(&gateway);
    // It has been told that it is over: it begins nothing more, closes its books, and leaves the rest to its supervisor.
    let status = gateway.ended(Duration::from_secs(5));
    assert_eq!(status.code(), Some(1), "{}", super::tail(&gateway));
    wait_for("what is over its leases to be collected", ms(5_000), || {
        let shown = gateway.show();
        (shown["held_micro_usd"] == 0).then_some(())
    });
    gateway.note(&sibling.chat(&hello()).ok());
    sibling.stop();
    eprintln!("given up after {waited:?}; the stream ended as {}", late["outcome"]);
}

#[test]
fn a_key_that_was_not_used_for_a_while_is_held_to_what_others_spent_meanwhile() {
    let upstream = Upstream::start();
    upstream.always(Answer::json(200, &chat("hi", &usage(20, 60))));
    let gateway = Gateway::before(&upstream);
    let (_, key) = gateway.new_key(&gateway.account.id, &["--spend-limit-usd", "0.001"]);
    let sibling = Sibling::start(&gateway, "data/journal");
    let mut body = hello();
    body["max_tokens"] = json!(60);
    let request = || Request::post("/v1/chat/completions", body.to_string()).key(&key);
    gateway.ask(&request()).ok();
    // Longer than it is followed after its last use: that is what this is about.
    std::thread::sleep(ms(3_500));
    let mut answered = 1;
    loop {
        let reply = sibling.connect().ask(&request());
        gateway.note(&reply);
        if reply.status != 200 {
            reply.refused(402, "key_spend_limit_reached");
            break;
        }
        answered += 1;
    }
    gateway.rows_when(answered);
    gateway.ask(&request()).refused(402, "key_spend_limit_reached");
    sibling.stop();
}
