//! `Idempotency-Key`: the same request twice is sent and billed once.

use crate::support::gateway::{hello, hello_stream, within_a_second};
use crate::support::upstream::{Gate, chat, usage};
use crate::support::{Answer, Gateway, Reply, Request, Upstream, wait_for};
use serde_json::Value;
use std::time::Duration;

fn request(key: &str, idempotency_key: &str, body: &Value) -> Request {
    Request::post("/v1/chat/completions", body.to_string())
        .key(key)
        .header("Idempotency-Key", idempotency_key)
}

fn ask(gateway: &Gateway, idempotency_key: &str) -> Reply {
    gateway.ask(&request(&gateway.account.key, idempotency_key, &hello()))
}

/// An answer that comes when the gate is opened.
fn gated(gate: &std::sync::Arc<Gate>) -> Answer {
    let text = chat("done", &usage(10, 5)).to_string();
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        text.len()
    );
    Answer::silent().gate(gate).write(head + &text)
}

/// Once its settlement is in the database, a repeat is told so.
fn done(gateway: &Gateway, idempotency_key: &str) -> Reply {
    let reply = within_a_second("the first request to count as done", || {
        Some(ask(gateway, idempotency_key)).filter(|reply| reply.text().contains("request_already_done"))
    });
    reply.refused(409, "request_already_done");
    assert_eq!(reply.header("x-should-retry"), Some("false"));
    assert_eq!(reply.header("retry-after"), None);
    reply
}

#[test]
fn a_repeat_is_409_while_the_first_runs_and_afterwards_and_is_never_sent() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let gate = Gate::new();
    upstream.next(gated(&gate));
    let mut first = gateway.connect();
    first.send(&request(&gateway.account.key, "order-1", &hello()).to_bytes(gateway.address())).unwrap();
    wait_for("the first to be under way", Duration::from_secs(5), || (upstream.count() == 1).then_some(()));

    let reply = ask(&gateway, "order-1");
    reply.refused(409, "request_in_progress");
    assert_eq!(reply.header("x-should-retry"), Some("true"));
    let wait: u64 = reply.header("retry-after").expect("Retry-After").parse().unwrap();
    assert!((1..=120).contains(&wait), "{wait}");

    gate.open();
    let first = first.reply().unwrap().ok();
    gateway.note(&first);
    let id = first.header("x-request-id").unwrap();
    assert_eq!(reply.header("x-weir-original-request-id"), Some(id));
    let repeat = done(&gateway, "order-1");
    assert_eq!(repeat.header("x-weir-original-request-id"), Some(id));
    assert!(repeat.text().contains(id) && repeat.header("x-request-id") != Some(id));
    assert_eq!((upstream.count(), gateway.rows().len()), (1, 1));

    // Another key, another account and no key at all are other requests.
    ask(&gateway, "order-2").ok();
    let other = gateway.new_account("1");
    gateway.ask(&request(&other.key, "order-1", &hello())).ok();
    gateway.hello().ok();
    assert_eq!(upstream.count(), 4);
}

#[test]
fn a_stream_is_sent_once_too() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let stream = request(&gateway.account.key, "stream-1", &hello_stream());
    let reply = gateway.ask(&stream).ok();
    assert!(reply.done(), "{}", reply.text());
    done(&gateway, "stream-1");
    assert_eq!(upstream.count(), 1);
}

#[test]
fn a_request_that_was_refused_or_not_answered_frees_its_key() {
    let upstream = Upstream::start();
    let gateway = Gateway::builder().provider("main", &upstream).standard_models("main").credit("0").start();
    ask(&gateway, "a").refused(402, "credit_balance_exhausted");
    gateway.add_credit(&gateway.account.id, "1");
    within_a_second("the credit to count", || Some(gateway.hello()).filter(|reply| reply.status == 200));
    ask(&gateway, "a").ok();

    upstream.next(Answer::json(500, &Value::Null));
    ask(&gateway, "b").refused(502, "upstream_error");
    within_a_second("the key to be free", || Some(ask(&gateway, "b")).filter(|reply| reply.status == 200));
    done(&gateway, "b");
}

#[test]
fn what_was_under_way_when_the_process_died_is_cleared_by_its_recovery() {
    let upstream = Upstream::start();
    let mut gateway = Gateway::before(&upstream);
    let gate = Gate::new();
    upstream.next(gated(&gate));
    let mut first = gateway.connect();
    first.send(&request(&gateway.account.key, "k", &hello()).to_bytes(gateway.address())).unwrap();
    wait_for("the first to be under way", Duration::from_secs(5), || (upstream.count() == 1).then_some(()));
    gateway.kill();
    gate.open();
    drop(first);
    gateway.serve();
    let repeat = done(&gateway, "k");
    let row = gateway.row();
    assert_eq!(row["outcome"], "gateway_died");
    assert_eq!(row["request_id"], repeat.header("x-weir-original-request-id").unwrap());
    assert_eq!(upstream.count(), 1);
}

#[test]
fn a_key_that_is_none_is_told() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    for key in ["two words", &"x".repeat(256)] {
        let error = ask(&gateway, key).refused(400, "invalid_value");
        assert_eq!(error["param"], "Idempotency-Key");
    }
    let twice = request(&gateway.account.key, "a", &hello()).header("Idempotency-Key", "b");
    gateway.ask(&twice).refused(400, "invalid_value");
    assert_eq!(upstream.count(), 0);
}
