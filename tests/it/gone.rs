//! Clients that leave before the end, that do not read, or that wait: what becomes of the provider, and what is billed.

pub(crate) mod h2c;

use crate::support::gateway::{hello, hello_stream};
use crate::support::upstream::{Gate, chat, chunk, last_chunk, usage, usage_chunk};
use crate::support::{Answer, Connection, Gateway, Request, Upstream, ms, tokens, wait_for};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

const DRAIN: &str = "on_client_gone = \"drain\"";
const PATIENCE: Duration = Duration::from_secs(5);

/// A stream that goes on when the gate opens: two words of text, and a report of far more.
fn gated(gate: &Arc<Gate>) -> Answer {
    let begun = Answer::stream().event(&chunk("Hello")).gate(gate).event(&chunk(" there"));
    begun.event(&last_chunk()).event(&usage_chunk(&usage(10, 700))).done()
}

fn draining(upstream: &Upstream, server: &str) -> Gateway {
    let builder = Gateway::builder().provider_with("main", upstream, DRAIN).standard_models("main");
    builder.server(server).start()
}

/// The value of a metric without labels.
pub(crate) fn metric(gateway: &Gateway, name: &str) -> f64 {
    let text = gateway.metrics();
    let line = text.lines().find(|line| line.split(' ').next() == Some(name));
    line.unwrap_or_else(|| panic!("{name} in {text}")).rsplit(' ').next().unwrap().parse().unwrap()
}

#[track_caller]
fn wait_for_metric(gateway: &Gateway, name: &str, value: f64) {
    wait_for(&format!("{name} to be {value}"), PATIENCE, || {
        ((metric(gateway, name) - value).abs() < 0.5).then_some(())
    });
}

/// Reads a stream up to its first word.
fn read_hello(connection: &mut Connection) {
    let mut text = String::new();
    while !text.contains("Hello") {
        text.push_str(&String::from_utf8(connection.chunk().unwrap().expect("more of the answer")).unwrap());
    }
}

fn leave(connection: Connection, reset: bool) {
    if reset { connection.reset() } else { drop(connection) }
}

#[track_caller]
fn drained(row: &Value, status: u16) {
    assert_eq!(row["outcome"], "client_gone", "{row}");
    assert_eq!(row["usage_source"], "reported", "{row}");
    assert_eq!(row["usage"], json!({"input": 10, "output": 700}), "{row}");
    assert_eq!(row["status"], status, "{row}");
}

#[track_caller]
fn left(upstream: &Upstream) {
    wait_for("the provider to be left", PATIENCE, || (!upstream.ends().is_empty()).then_some(()));
}

#[test]
fn a_drained_stream_is_billed_by_what_the_provider_reports_after_its_client_has_left() {
    for reset in [false, true] {
        let (upstream, gate) = (Upstream::start(), Gate::new());
        upstream.always(gated(&gate));
        let gateway = draining(&upstream, "");
        let (mut connection, _) = gateway.begin(&hello_stream());
        read_hello(&mut connection);
        leave(connection, reset);
        wait_for_metric(&gateway, "weir_drains", 1.0);
        gate.open();
        drained(&gateway.row(), 200);
        wait_for_metric(&gateway, "weir_drains", 0.0);
        wait_for_metric(&gateway, "weir_requests_in_flight", 0.0);
    }
}

#[test]
fn a_drained_answer_that_had_not_begun_is_billed_by_what_the_provider_reports() {
    for streamed in [false, true] {
        let (upstream, gate) = (Upstream::start(), Gate::new());
        let whole = chat("Hello there", &usage(10, 700)).to_string();
        let whole = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{whole}",
            whole.len()
        );
        let begun = Answer::silent().gate(&gate);
        let stream = Answer::stream().gate(&gate).event(&chunk("Hello")).event(&last_chunk());
        upstream.always(match streamed {
            false => begun.write(whole),
            true => stream.event(&usage_chunk(&usage(10, 700))).done(),
        });
        let gateway = draining(&upstream, "");
        let connection = gateway.send(&if streamed { hello_stream() } else { hello() });
        wait_for("the request to arrive", PATIENCE, || (upstream.count() == 1).then_some(()));
        drop(connection);
        wait_for_metric(&gateway, "weir_drains", 1.0);
        gate.open();
        drained(&gateway.row(), 499);
    }
}

#[test]
fn a_drained_stream_of_an_http_2_client_is_billed_by_what_the_provider_reports() {
    for whole_connection in [false, true] {
        let (upstream, gate) = (Upstream::start(), Gate::new());
        upstream.always(gated(&gate));
        let gateway = draining(&upstream, "");
        let mut client = h2c::Client::open(&gateway);
        let mut stream = client.begin(&hello_stream());
        assert!(client.piece(&mut stream).contains("Hello"));
        drop(stream);
        if whole_connection {
            drop(client);
        } else {
            client.turn();
        }
        wait_for_metric(&gateway, "weir_drains", 1.0);
        gate.open();
        drained(&gateway.row(), 200);
    }
}

#[test]
fn a_drained_request_keeps_its_place_among_those_of_its_account() {
    let (upstream, gate) = (Upstream::start(), Gate::new());
    upstream.next(gated(&gate));
    let tier = format!("{DRAIN}\n[[tier]]\nname = \"one\"\nconcurrent_requests = 1");
    let gateway = Gateway::builder().provider_with("main", &upstream, &tier).standard_models("main").start();
    let account = gateway.new_account_in(Some("one"), "1");
    let ask = || Request::post("/v1/chat/completions", hello_stream().to_string()).key(&account.key);
    let mut connection = gateway.connect();
    connection.begin(&ask());
    read_hello(&mut connection);
    drop(connection);
    wait_for_metric(&gateway, "weir_drains", 1.0);
    gateway.ask(&ask()).refused(429, "rate_limit_exceeded");
    gate.open();
    wait_for_metric(&gateway, "weir_drains", 0.0);
    wait_for("the place to come back", PATIENCE, || (gateway.ask(&ask()).status == 200).then_some(()));
}

#[test]
fn a_model_with_hidden_reasoning_is_drained_unless_its_provider_says_otherwise() {
    let (upstream, gate) = (Upstream::start(), Gate::new());
    upstream.always(gated(&gate));
    let gateway = Gateway::builder()
        .provider("plain", &upstream)
        .provider_at("cancelled", upstream.address(), "on_client_gone = \"cancel\"")
        .hidden_reasoning_model("rich", &[("plain", 1)])
        .hidden_reasoning_model("tiny", &[("cancelled", 1)])
        .start();
    for model in ["rich", "tiny"] {
        let mut body = hello_stream();
        body["model"] = json!(model);
        let (mut connection, _) = gateway.begin(&body);
        read_hello(&mut connection);
        drop(connection);
    }
    let cancelled = gateway.rows_when(1).remove(0);
    assert_eq!((&cancelled["model"], &cancelled["usage_source"]), (&json!("tiny"), &json!("counted")));
    gate.open();
    let rows = gateway.rows_when(2);
    drained(rows.iter().find(|row| row["model"] == "rich").unwrap(), 200);
}

#[test]
fn a_drain_is_bounded_in_time_in_bytes_and_in_number() {
    // In one write: of several the last ones could meet a gateway that has left, and nobody would note that it did.
    let much = || {
        let text = format!("data: {}\n\n", chunk("x")).repeat(64);
        Answer::stream().event(&chunk("Hello")).wait(ms(300)).piece(text)
    };
    let cases = [
        ("client_gone_timeout_ms = 300", Answer::stream().event(&chunk("Hello")).wait_for_end()),
        ("client_gone_max_bytes = 1024", much().wait_for_end()),
        ("client_gone_max_requests = 0", Answer::stream().event(&chunk("Hello")).wait_for_end()),
    ];
    for (bound, answer) in cases {
        let upstream = Upstream::start();
        upstream.always(answer);
        let gateway = draining(&upstream, bound);
        let (mut connection, _) = gateway.begin(&hello_stream());
        read_hello(&mut connection);
        drop(connection);
        let row = gateway.row();
        assert_eq!(row["outcome"], "client_gone", "{bound}: {row}");
        assert_eq!(row["usage_source"], "counted", "{bound}: {row}");
        assert!(row["output_tokens"].as_u64().unwrap() >= tokens("Hello"), "{bound}: {row}");
        left(&upstream);
        assert!(upstream.ends()[0] < ms(1500), "{bound}: {:?}", upstream.ends());
        let turned_away = metric(&gateway, "weir_drains_turned_away_total");
        assert_eq!(turned_away > 0.5, bound.ends_with("= 0"), "{bound}");
    }
}

#[test]
fn a_provider_that_fails_while_nobody_waits_is_neither_billed_nor_followed_by_another() {
    let (first, second, gate) = (Upstream::start(), Upstream::start(), Gate::new());
    let refusal = "HTTP/1.1 500 Oops\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
    first.always(Answer::silent().gate(&gate).write(refusal));
    let gateway = Gateway::builder()
        .provider_with("first", &first, DRAIN)
        .provider_with("second", &second, DRAIN)
        .model_in_order("tiny", &["first", "second"])
        .start();
    let connection = gateway.send(&hello());
    wait_for("the request to arrive", PATIENCE, || (first.count() == 1).then_some(()));
    drop(connection);
    wait_for_metric(&gateway, "weir_drains", 1.0);
    gate.open();
    let row = gateway.row();
    assert_eq!((&row["outcome"], &row["status"]), (&json!("client_gone"), &json!(499)), "{row}");
    assert_eq!(row["cost_pico_usd"], 0, "{row}");
    assert_eq!(second.count(), 0);
}

#[test]
fn a_stop_ends_a_drain_and_bills_what_passed() {
    let upstream = Upstream::start();
    upstream.always(Answer::stream().event(&chunk("Hello")).wait_for_end());
    let mut gateway = draining(&upstream, "drain_timeout_ms = 200");
    let (mut connection, _) = gateway.begin(&hello_stream());
    read_hello(&mut connection);
    drop(connection);
    wait_for_metric(&gateway, "weir_drains", 1.0);
    gateway.stop();
    let row = gateway.row();
    assert_eq!((&row["outcome"], &row["usage_source"]), (&json!("client_gone"), &json!("counted")), "{row}");
}

/// Far more than all buffers between a provider and its client take.
fn flood() -> Answer {
    let text = chunk(&"word ".repeat(6_000));
    (0..1_500).fold(Answer::stream(), |answer, _| answer.event(&text)).wait_for_end()
}

#[test]
fn a_client_that_does_not_read_ends_as_one_that_has_left_and_harms_nobody() {
    for http_2 in [false, true] {
        let upstream = Upstream::start();
        // Counted, so that the tokenizer is in memory before that is measured.
        upstream.next(Answer::stream().event(&chunk("Hello")).event(&last_chunk()).done()).next(flood());
        let builder = Gateway::builder().provider("main", &upstream).standard_models("main");
        let gateway = builder.server("write_timeout_ms = 700").start();
        gateway.hello_stream().ok();
        let before = resident_kib(&gateway);
        let mut client = h2c::Client::open(&gateway);
        let mut held: (Option<Connection>, Option<h2c::Stream>) = (None, None);
        if http_2 {
            held.1 = Some(client.begin(&hello_stream()));
        } else {
            held.0 = Some(gateway.begin(&hello_stream()).0);
        }
        let begun = Instant::now();
        while begun.elapsed() < ms(500) {
            gateway.hello_stream().ok();
            // The same connection has room for others, too.
            assert_eq!(client.status(&hello()), 200);
        }
        wait_for("the stalled stream's row", PATIENCE, || {
            gateway.rows().into_iter().find(|row| row["outcome"] == "client_gone")
        });
        let grown = resident_kib(&gateway).saturating_sub(before);
        assert!(grown < 32 * 1024, "{grown} KiB for a client that does not read");
        for row in gateway.rows() {
            let is_stalled = row["outcome"] == "client_gone";
            assert!(is_stalled || row["outcome"] == "completed", "{row}");
            assert!(!is_stalled || (row["status"] == 200 && row["usage_source"] == "counted"), "{row}");
        }
        drop(held);
    }
}

fn resident_kib(gateway: &Gateway) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.process_id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A stream that is silent before its first event and between two of them, for half a second each.
fn hesitant() -> Answer {
    let begun = Answer::stream().wait(ms(500)).event(&chunk("Hello")).wait(ms(500)).event(&chunk(" there"));
    begun.event(&last_chunk()).event(&usage_chunk(&usage(10, 2))).done()
}

const COMMENT: &str = ": keep-alive\n\n";

#[test]
fn a_silent_stream_is_kept_alive_with_comments_and_only_once_its_head_has_gone() {
    let upstream = Upstream::start();
    upstream.always(hesitant());
    let builder = Gateway::builder().provider("main", &upstream).standard_models("main");
    let gateway = builder.server("stream_comment_ms = 100").start();
    let reply = gateway.hello_stream().ok();
    let http_2 = h2c::Client::open(&gateway).text(&hello_stream());
    assert_eq!(reply.said(), "Hello there");
    assert!(reply.done());
    for text in [reply.text(), http_2] {
        assert!(text.starts_with("data: "), "{text}");
        assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
        let comments = text.matches(COMMENT).count();
        assert!((3..=5).contains(&comments), "{comments} in {text}");
        assert_eq!(crate::support::http::events_of(&text).len(), 4, "{text}");
    }
    assert!(gateway.rows_when(2).iter().all(|row| row["outcome"] == "completed"));
}

#[test]
fn what_a_provider_sends_and_no_client_needs_does_not_keep_a_stream_alive() {
    let upstream = Upstream::start();
    let mut answer = Answer::stream().event(&chunk("Hello"));
    for _ in 0..12 {
        answer = answer.wait(ms(50)).piece(": PROCESSING\n\n");
    }
    upstream.always(answer.event(&last_chunk()).done());
    let builder = Gateway::builder().provider("main", &upstream).standard_models("main");
    let gateway = builder.server("stream_comment_ms = 150").start();
    let text = gateway.hello_stream().ok().text();
    assert!((2..=4).contains(&text.matches(COMMENT).count()), "{text}");
}

#[test]
fn an_answer_that_is_no_stream_is_not_commented_on() {
    let upstream = Upstream::start();
    let body = chat("Hello", &usage(1, 1)).to_string();
    let (half, rest) = body.split_at(20);
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    upstream.always(Answer::silent().write(head + half).wait(ms(400)).write(rest));
    let builder = Gateway::builder().provider("main", &upstream).standard_models("main");
    let gateway = builder.server("stream_comment_ms = 50").start();
    assert_eq!(gateway.hello().ok().text(), body);
}
