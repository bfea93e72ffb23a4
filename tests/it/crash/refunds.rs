//! `weir credit refund` beside a server that spends the same credit.

use super::audited;
use crate::support::gateway::{Gateway, hello_stream};
use crate::support::upstream::{Gate, chunk, last_chunk, usage, usage_chunk};
use crate::support::{Answer, Connection, Upstream, ms, wait_for};
use serde_json::Value;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

/// A gateway whose account has one lot of ten dollars.
fn funded(upstream: &Upstream) -> (Gateway, String) {
    let gateway = Gateway::builder().provider("main", upstream).standard_models("main").credit("0").start();
    let made = gateway.add_credit(&gateway.account.id, "10");
    let lot = made["lot_id"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned();
    (gateway, lot)
}

fn refund(gateway: &Gateway, lot: &str, more: &[&str]) -> Value {
    let account = &gateway.account.id;
    gateway.cli.json(&[&["credit", "refund", "--account", account, "--lot", lot], more].concat())
}

/// The test's own account of the credit.
fn paid_back(gateway: &Gateway, said: &Value) -> i64 {
    let amount = said["refunded_micro_usd"].as_i64().unwrap();
    gateway.lock().accounts[0].1.0 -= amount;
    amount
}

fn begin_stream(gateway: &Gateway, upstream: &Upstream) -> (Connection, Arc<Gate>) {
    let gate = Gate::new();
    upstream.next(
        Answer::stream()
            .event(&chunk("Hello"))
            .gate(&gate)
            .event(&last_chunk())
            .event(&usage_chunk(&usage(12, 3)))
            .done(),
    );
    let (connection, _) = gateway.begin(&hello_stream());
    (connection, gate)
}

fn end_stream(mut connection: Connection, gate: &Gate) {
    gate.open();
    while connection.chunk().unwrap().is_some() {}
}

#[test]
fn a_refund_pays_the_unused_part_once_while_the_server_runs() {
    let upstream = Upstream::start();
    let (gateway, lot) = funded(&upstream);
    gateway.hello().ok();
    gateway.rows_when(1);
    assert!(audited(&gateway)["leased_micro_usd"].as_i64().unwrap() > 0, "credit is out");
    let said = refund(&gateway, &lot, &["--idempotency-key", "refund-1"]);
    // 12 x 0.15 + 5 x 0.60 micro-dollars were used, and a micro-dollar that was begun is not given back.
    assert_eq!(paid_back(&gateway, &said), 10_000_000 - 5, "{said}");
    assert_eq!(refund(&gateway, &lot, &["--idempotency-key", "refund-1"]), said, "a repeat answers the same");
    assert_eq!(refund(&gateway, &lot, &[])["refunded_micro_usd"], 0, "nothing is left to pay twice");
    wait_for("the server to know", Duration::from_secs(1), || {
        Some(gateway.hello()).filter(|reply| reply.status == 402)
    });
    audited(&gateway);
    gateway.add_credit(&gateway.account.id, "1.00");
    wait_for("new credit to count", Duration::from_secs(2), || {
        Some(gateway.hello()).filter(|reply| reply.status == 200)
    });
}

#[test]
fn refunds_at_the_same_time_pay_once() {
    let upstream = Upstream::start();
    let (gateway, lot) = funded(&upstream);
    gateway.hello().ok();
    gateway.rows_when(1);
    let paid: Vec<Value> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| refund(&gateway, &lot, &[]))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let sum: i64 = paid.iter().map(|said| paid_back(&gateway, said)).sum();
    assert_eq!(sum, 10_000_000 - 5, "{paid:?}");
    audited(&gateway);
}

#[test]
fn a_refund_waits_for_a_request_under_way() {
    let upstream = Upstream::start();
    let (gateway, lot) = funded(&upstream);
    let (connection, gate) = begin_stream(&gateway, &upstream);
    let said = std::thread::scope(|scope| {
        let refunding = scope.spawn(|| refund(&gateway, &lot, &[]));
        std::thread::sleep(ms(1_500));
        end_stream(connection, &gate);
        refunding.join().unwrap()
    });
    assert_eq!(paid_back(&gateway, &said), 10_000_000 - 4, "{said}");
}

#[test]
fn a_refund_of_credit_in_use_is_refused_and_the_account_works_on() {
    let upstream = Upstream::start();
    let (gateway, lot) = funded(&upstream);
    let (connection, gate) = begin_stream(&gateway, &upstream);
    let arguments = ["credit", "refund", "--account", &gateway.account.id, "--lot", &lot];
    assert_eq!(gateway.cli.fails(1, &arguments)["code"], "in_use");
    wait_for("the account to be served", Duration::from_secs(2), || {
        Some(gateway.hello()).filter(|reply| reply.status == 200)
    });
    // A refund that is killed has paid nothing, and the next one pays.
    let mut command = gateway.cli.command(&arguments);
    let mut killed = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    std::thread::sleep(ms(1_000));
    killed.kill().unwrap();
    killed.wait().unwrap();
    end_stream(connection, &gate);
    let said = refund(&gateway, &lot, &[]);
    assert!(paid_back(&gateway, &said) > 9_999_000, "{said}");
    audited(&gateway);
}
