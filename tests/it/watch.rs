//! What operators watch: metrics as Prometheus wants them, rules that fire, dashboards whose every query is answered.

mod catalogue;
mod dashboard;
mod prometheus;
mod rules;
mod tools;
mod traces;
mod traffic;

use crate::support::{Connection, Request};
use std::io::Write as _;
use std::process::Stdio;

/// Every family that operators are told of in `README.md`, or that a dashboard or a rule of ours reads, is in a scrape of a
/// gateway that has had all kinds of requests; and promtool finds nothing to complain of.
#[test]
fn promtool_has_nothing_to_say_of_the_metrics_of_a_gateway_under_traffic() {
    let scene = traffic::Scene::start();
    scene.play();
    let metrics = scene.gateway.metrics();
    let mut promtool = tools::command("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let told = promtool.wait_with_output().unwrap();
    let text = crate::support::cli::shown(&told);
    assert!(told.status.success() && told.stderr.is_empty() && told.stdout.is_empty(), "{text}");
    for series in [
        "weir_limits_hit_total{limit=\"account_requests_per_minute\"} 1",
        "weir_provider_connections_total{connection=\"reused\",provider=\"main\"}",
        "weir_route_state{model=\"dear\",provider=\"broken\"} 3",
        "weir_route_state{model=\"tiny\",provider=\"main\"} 0",
        "weir_route_attempts_in_flight{model=\"tiny\",provider=\"main\"} 0",
        "weir_ledger_journal_limit_bytes",
        "weir_ledger_backlog_limit_settlements",
        "weir_owing_accounts",
        "weir_ledger_quarantine_rows",
        "process_start_time_seconds",
        "process_max_fds",
        "weir_build_info{version=\"",
    ] {
        assert!(metrics.contains(series), "{series} in\n{metrics}");
    }
}

#[test]
fn nothing_that_a_client_sends_becomes_a_label() {
    let scene = traffic::Scene::start();
    let gateway = &scene.gateway;
    gateway.chat_bytes(r#"{"model": "made-up-0", "messages": []}"#);
    gateway.ask(&Request::post("/v1/made-up", "{}").key(&gateway.account.key));
    let before = scene.counted().lines().count();
    for turn in 0..50 {
        gateway.chat_bytes(format!(r#"{{"model": "made-up-{turn}", "messages": []}}"#));
        let path = format!("/v1/made-up-{turn}");
        gateway.ask(&Request::post(&path, "{}").key(&gateway.account.key).header("x-request-id", "made-up"));
        gateway.ask(&Request::post("/v1/chat/completions", "{}").key(&format!("sk-weir-made-up-{turn}")));
    }
    let metrics = scene.counted();
    assert!(!metrics.contains("made-up"), "{metrics}");
    assert!(
        metrics.lines().count() <= before + 1,
        "one series more at most, for the key that is none: {metrics}"
    );
}

/// The text of `/metrics` and how long it took.
fn scrape(gateway: &crate::support::Gateway) -> (String, std::time::Duration) {
    let mut connection = Connection::open(gateway.admin());
    let begun = std::time::Instant::now();
    let text = connection.ask(&Request::get("/metrics")).ok().text();
    (text, begun.elapsed())
}
