//! A new process takes over from a running one: nobody is refused, no stream is cut, nothing is billed twice.

mod edge;
mod load;
mod stop;

use crate::support::gateway::{hello, hello_stream, lives};
use crate::support::upstream::{chunk, last_chunk, usage, usage_chunk};
use crate::support::{Answer, Gateway, Request, Upstream, ms, number, signal, wait_for};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

const BRIEF: Duration = Duration::from_secs(10);

fn gateway(upstream: &Upstream, server: &str) -> Gateway {
    Gateway::builder().provider("main", upstream).standard_models("main").server(server).start()
}

fn asking(gateway: &Gateway, body: &Value) -> Request {
    Request::post("/v1/chat/completions", body.to_string()).key(&gateway.account.key)
}

/// A stream of these numbered words, one in this time.
fn words(count: u64, every: Duration) -> Answer {
    let word = |number| chunk(&format!("w{number} "));
    (0..count)
        .fold(Answer::stream(), |answer, number| answer.event(&word(number)).wait(every))
        .event(&last_chunk())
        .event(&usage_chunk(&usage(9, count)))
        .done()
}

/// What asks the upstream for a stream that says a word and then nothing more.
fn endless(upstream: &Upstream) -> Value {
    upstream.when("endless", Answer::stream().event(&chunk("Hello")).wait_for_end());
    let mut body = hello_stream();
    body["messages"][0]["content"] = json!("endless");
    body
}

fn said(count: u64) -> String {
    (0..count).map(|number| format!("w{number} ")).collect()
}

#[test]
fn a_stream_passes_reload_upgrade_and_drain_whole_and_is_billed_once() {
    let seconds = number("WEIR_STREAM_SECONDS", 4);
    let upstream = Upstream::start();
    upstream.when("the long one", words(seconds * 10, ms(100)));
    let drain = format!("drain_timeout_ms = {}", (seconds + 20) * 1_000);
    let mut gateway = gateway(&upstream, &drain);
    let mut body = hello_stream();
    body["messages"][0]["content"] = json!("the long one");
    let (connection, head) = gateway.begin(&body);
    let reading = std::thread::spawn(move || connection.finish(head).unwrap());
    std::thread::sleep(Duration::from_secs(seconds) / 4);
    let second = gateway.upgrade();
    gateway.hello().ok();
    signal("HUP", second);
    wait_for("the reload", BRIEF, || gateway.log().contains("is in force").then_some(()));
    std::thread::sleep(Duration::from_secs(seconds) / 4);
    let third = gateway.upgrade();
    assert!(wait_for("the second process to end", BRIEF, || (!lives(second)).then_some(true)));
    // It is told to stop, and has time to drain.
    signal("TERM", gateway.first_process_id());
    let reply = reading.join().unwrap();
    gateway.note(&reply);
    assert!(reply.whole && reply.done(), "{}", reply.text());
    assert_eq!(reply.said(), said(seconds * 10));
    assert!(gateway.first_ended(BRIEF).success());
    assert_eq!(gateway.process_id(), third);
    let rows = gateway.rows_when(2);
    let long: Vec<_> = rows.iter().filter(|row| row["stream"] == true).collect();
    assert_eq!(long.len(), 1, "{rows:?}");
    assert_eq!(long[0]["outcome"], "completed", "{rows:?}");
    assert_eq!(long[0]["usage"], json!({"input": 9, "output": seconds * 10}), "{rows:?}");
}

#[test]
fn connections_of_the_old_process_are_answered_and_asked_to_come_anew() {
    let upstream = Upstream::start();
    let mut gateway = gateway(&upstream, "keepalive_timeout_ms = 3000");
    let request = asking(&gateway, &hello());
    let mut kept = gateway.connect();
    gateway.note(&kept.ask(&request).ok());
    let mut silent = gateway.connect();
    let mut half = gateway.connect();
    let bytes = request.to_bytes(gateway.address());
    let (first, second) = bytes.split_at(bytes.len() / 2);
    half.send(first).unwrap();
    gateway.upgrade();
    half.send(second).unwrap();
    let answers = [kept.ask(&request), silent.ask(&request), half.reply().unwrap()];
    for reply in answers {
        gateway.note(&reply);
        assert_eq!(reply.clone().ok().header("connection"), Some("close"));
    }
    assert!(kept.is_closed() && silent.is_closed() && half.is_closed());
    assert!(gateway.first_ended(BRIEF).success());
    gateway.hello().ok();
}

#[test]
fn an_old_process_without_connections_ends_at_once_with_its_leases_returned() {
    let upstream = Upstream::start();
    let mut gateway = gateway(&upstream, "");
    gateway.hello().ok();
    let begun = Instant::now();
    gateway.upgrade();
    assert!(gateway.first_ended(BRIEF).success());
    assert!(begun.elapsed() < BRIEF, "{:?}", begun.elapsed());
    let audit = gateway.cli.json(&["ledger", "audit"]);
    assert_eq!((&audit["live_sessions"], &audit["leased_micro_usd"]), (&json!(1), &json!(0)), "{audit}");
    gateway.hello().ok();
}

#[test]
fn a_stop_of_the_old_process_while_it_drains_ends_its_streams_with_a_bill() {
    let upstream = Upstream::start();
    let body = endless(&upstream);
    let mut gateway = gateway(&upstream, "drain_timeout_ms = 300");
    let (connection, head) = gateway.begin(&body);
    gateway.upgrade();
    gateway.hello().ok();
    signal("TERM", gateway.first_process_id());
    let reply = connection.finish(head).unwrap();
    gateway.note(&reply);
    assert!(!reply.done() && reply.text().contains("\"error\""), "{}", reply.text());
    assert!(gateway.first_ended(BRIEF).success());
    let rows = gateway.rows_when(2);
    assert!(rows.iter().any(|row| row["outcome"] == "shutdown"), "{rows:?}");
}

#[test]
fn a_configuration_that_cannot_be_read_leaves_the_old_process_serving() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream, "");
    let good = gateway.directory().join("weir.toml");
    let kept = gateway.directory().join("kept.toml");
    let text = fs::read_to_string(&good).unwrap();
    fs::write(&kept, &text).unwrap();
    fs::write(&good, text.replace("threads", "treads")).unwrap();
    let asking = crate::support::cli::Cli::new(gateway.directory(), Some(&kept));
    let error = asking.fails(1, &["upgrade"]);
    assert_eq!(error["code"], "upgrade_failed", "{error}");
    assert!(error["message"].as_str().unwrap().contains("exit status: 3"), "{error}");
    assert!(gateway.log().contains("unknown field `treads`") || gateway.log().contains("treads"));
    assert!(gateway.metrics().contains("\nweir_upgrade_failures_total 1\n"));
    assert!(lives(gateway.process_id()));
    fs::write(&good, &text).unwrap();
    gateway.hello().ok();
}

#[test]
fn a_configuration_with_other_books_leaves_the_old_process_serving() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream, "");
    let good = gateway.directory().join("weir.toml");
    let kept = gateway.directory().join("kept.toml");
    let text = fs::read_to_string(&good).unwrap();
    fs::write(&kept, &text).unwrap();
    let other = text.replace("data/journal", "data/other");
    assert_ne!(other, text);
    fs::write(&good, other).unwrap();
    let asking = crate::support::cli::Cli::new(gateway.directory(), Some(&kept));
    let error = asking.fails(1, &["upgrade"]);
    assert_eq!(error["code"], "upgrade_failed", "{error}");
    assert!(gateway.log().contains("an upgrade cannot move them"), "{}", gateway.log());
    assert!(lives(gateway.process_id()));
    fs::write(&good, &text).unwrap();
    gateway.hello().ok();
}

#[test]
fn a_process_that_stops_refuses_an_upgrade_at_once() {
    let upstream = Upstream::start();
    let body = endless(&upstream);
    let mut gateway = gateway(&upstream, "drain_timeout_ms = 60000");
    let (connection, head) = gateway.begin(&body);
    signal("TERM", gateway.process_id());
    wait_for("the drain", BRIEF, || gateway.log().contains("\"stopping\"").then_some(()));
    let begun = Instant::now();
    let error = gateway.cli.fails(1, &["upgrade"]);
    assert_eq!(error["message"], "the process stops", "{error}");
    assert!(begun.elapsed() < BRIEF, "{:?}", begun.elapsed());
    // The second signal hurries.
    assert!(gateway.stop().unwrap().success());
    gateway.note(&connection.finish(head).unwrap());
}

/// A gateway whose program is at a path of its own, where another can be put.
fn replaceable(upstream: &Upstream, server: &str) -> Gateway {
    let mut gateway = gateway(upstream, server);
    assert!(gateway.stop().unwrap().success());
    let path = gateway.directory().join("weir");
    symlink(env!("CARGO_BIN_EXE_weir"), &path).unwrap();
    gateway.cli.program(&path);
    gateway.serve();
    gateway
}

fn put(gateway: &Gateway, script: &str) {
    let path = gateway.directory().join("weir");
    put_at(&path, script);
}

fn put_at(path: &Path, script: &str) {
    fs::remove_file(path).unwrap();
    fs::write(path, script).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

const HANGS: &str = "#!/bin/sh\necho $$ > hanging\nexec sleep 60\n";

fn hanging(gateway: &Gateway) -> u32 {
    let path = gateway.directory().join("hanging");
    wait_for("the new process to hang", BRIEF, || fs::read_to_string(&path).ok()?.trim().parse().ok())
}

#[test]
fn a_program_that_hangs_is_ended_and_the_old_one_serves_on() {
    let upstream = Upstream::start();
    let mut gateway = replaceable(&upstream, "upgrade_timeout_ms = 1500");
    put(&gateway, HANGS);
    let mut asking = gateway.cli.clone();
    asking.program(Path::new(env!("CARGO_BIN_EXE_weir")));
    let first = std::thread::spawn({
        let asking = asking.clone();
        move || asking.fails(1, &["upgrade"])
    });
    let hangs = hanging(&gateway);
    let second = asking.fails(1, &["upgrade"]);
    assert_eq!(second["message"], "an upgrade is under way", "{second}");
    gateway.hello().ok();
    let first = first.join().unwrap();
    assert!(first["message"].as_str().unwrap().contains("no answer within 1.5s"), "{first}");
    assert!(!lives(hangs));
    gateway.hello().ok();
    put(&gateway, "not a program");
    let error = asking.fails(1, &["upgrade"]);
    assert_eq!(error["code"], "upgrade_failed", "{error}");
    fs::remove_file(gateway.directory().join("weir")).unwrap();
    symlink(env!("CARGO_BIN_EXE_weir"), gateway.directory().join("weir")).unwrap();
    gateway.upgrade();
    gateway.hello().ok();
}

#[test]
fn a_stop_during_an_upgrade_stops_and_leaves_no_new_process() {
    let upstream = Upstream::start();
    let mut gateway = replaceable(&upstream, "");
    put(&gateway, HANGS);
    signal("USR2", gateway.process_id());
    let hangs = hanging(&gateway);
    assert!(gateway.stop().unwrap().success());
    assert!(wait_for("the new process to be gone", BRIEF, || (!lives(hangs)).then_some(true)));
}

#[test]
fn an_upgrade_of_nothing_says_that_nothing_runs() {
    let upstream = Upstream::start();
    let mut gateway = gateway(&upstream, "");
    assert!(gateway.stop().unwrap().success());
    let error = gateway.cli.fails(1, &["upgrade"]);
    assert_eq!(error["code"], "not_running", "{error}");
}

#[test]
fn the_end_of_the_new_process_ends_the_old_one_so_that_the_service_is_started_anew() {
    let upstream = Upstream::start();
    let body = endless(&upstream);
    let mut gateway = gateway(&upstream, "drain_timeout_ms = 200");
    let (connection, head) = gateway.begin(&body);
    let new = gateway.upgrade();
    signal("KILL", new);
    let reply = connection.finish(head).unwrap();
    gateway.note(&reply);
    assert!(!gateway.first_ended(BRIEF).success(), "a service manager would not start it anew");
    gateway.forget_upgrades();
    gateway.serve();
    gateway.hello().ok();
}

#[test]
fn the_end_of_the_third_process_is_a_failure_of_the_first_that_is_still_draining() {
    let upstream = Upstream::start();
    let body = endless(&upstream);
    let mut gateway = gateway(&upstream, "drain_timeout_ms = 200");
    let (on_first, first_head) = gateway.begin(&body);
    let second = gateway.upgrade();
    let (on_second, second_head) = gateway.begin(&body);
    let third = gateway.upgrade();
    assert!(lives(gateway.first_process_id()) && lives(second));
    signal("KILL", third);
    for reply in [on_second.finish(second_head), on_first.finish(first_head)] {
        gateway.note(&reply.unwrap());
    }
    assert!(!gateway.first_ended(BRIEF).success(), "a service manager would not start it anew");
    assert!(!lives(second));
    gateway.forget_upgrades();
    gateway.serve();
    gateway.hello().ok();
}

#[test]
fn the_end_of_the_second_process_while_a_third_serves_is_no_failure_of_the_first() {
    let upstream = Upstream::start();
    let body = endless(&upstream);
    let mut gateway = gateway(&upstream, "drain_timeout_ms = 200\nkeepalive_timeout_ms = 30000");
    let (on_first, first_head) = gateway.begin(&body);
    let second = gateway.upgrade();
    let request = asking(&gateway, &hello());
    let mut kept = gateway.connect();
    gateway.note(&kept.ask(&request).ok());
    gateway.rows_when(1);
    gateway.upgrade();
    assert!(lives(second));
    signal("KILL", second);
    wait_for("the second process to be gone", BRIEF, || (!lives(second)).then_some(()));
    gateway.hello().ok();
    signal("TERM", gateway.first_process_id());
    gateway.note(&on_first.finish(first_head).unwrap());
    assert!(gateway.first_ended(BRIEF).success());
    gateway.hello().ok();
    assert!(gateway.stop().unwrap().success());
    // What the killed one held is returned.
    gateway.forget_upgrades();
    gateway.serve();
    gateway.hello().ok();
}
