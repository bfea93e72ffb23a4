//! What a client is told when a provider fails, when another is asked instead, and what it is billed: nothing.

use crate::support::gateway::{hello, hello_stream};
use crate::support::http::error_of;
use crate::support::ports::Port;
use crate::support::upstream::{PROVIDER_KEY, chat, usage};
use crate::support::{Answer, Gateway, Request, Upstream, ms};
use serde_json::json;
use std::time::Instant;

/// So much heavier than the other route that it is the first to be asked.
const FIRST: u32 = 1_000_000;
/// Deadlines short enough for a test.
const QUICK: &str = "connect_timeout_ms = 500\nfirst_byte_timeout_ms = 800\nidle_timeout_ms = 800";

/// `tiny` at a first provider and, where that fails in a way that allows it, at a second.
fn two(first: &Upstream, second: &Upstream) -> Gateway {
    Gateway::builder()
        .provider_with("first", first, QUICK)
        .provider_with("second", second, QUICK)
        .model("tiny", &[("first", FIRST), ("second", 1)])
        .start()
}

fn one(upstream: &Upstream) -> Gateway {
    Gateway::builder().provider_with("main", upstream, QUICK).standard_models("main").start()
}

/// The one provider answers so; the client gets this error, streamed or not, and is billed nothing.
fn told(answer: &Answer, status: u16, code: &str) -> Vec<serde_json::Value> {
    let upstream = Upstream::start();
    upstream.always(answer.clone());
    let gateway = one(&upstream);
    let replies = [gateway.hello(), gateway.hello_stream()];
    let rows = gateway.rows_when(2);
    for row in &rows {
        assert_eq!(row["cost_pico_usd"], 0, "{row}");
        assert_eq!(row["status"], status, "{row}");
    }
    replies.iter().map(|reply| reply.refused(status, code)).collect()
}

#[test]
fn every_error_has_the_four_keys_and_an_id() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let key = &gateway.account.key;
    let requests = [
        Request::get("/nothing"),
        Request::get("/v1/models/nobody").key(key),
        Request::post("/v1/chat/completions", "{").key(key),
        Request::post("/v1/chat/completions", "{}").key("junk"),
        Request::post("/v1/embeddings", r#"{"model": "nobody", "input": "x"}"#).key(key),
    ];
    let mut ids = Vec::new();
    for request in requests {
        let reply = gateway.ask(&request);
        error_of(&reply.json());
        let id = reply.header("x-request-id").expect("x-request-id").to_owned();
        let parsed: weir::ids::RequestId = id.parse().expect("a UUID");
        assert_eq!(parsed.0.get_version_num(), 7, "{id}");
        ids.push(id);
    }
    ids.dedup();
    assert_eq!(ids.len(), 5);
}

#[test]
fn authenticated_answers_tell_the_limits() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let key = &gateway.account.key;
    let replies = [
        gateway.hello().ok(),
        gateway.hello_stream().ok(),
        gateway.ask(&Request::get("/v1/models").key(key)).ok(),
        gateway.ask(&Request::post("/v1/chat/completions", "{").key(key)),
    ];
    for reply in replies {
        for kind in ["requests", "tokens"] {
            let value = |what: &str| {
                let name = format!("x-ratelimit-{what}-{kind}");
                reply.header(&name).unwrap_or_else(|| panic!("{name} in {:?}", reply.head)).to_owned()
            };
            let limit: u64 = value("limit").parse().expect("a number");
            let remaining: u64 = value("remaining").parse().expect("a number");
            assert!(remaining <= limit, "{remaining} of {limit} {kind}");
            let reset = value("reset");
            let shaped = reset.ends_with('s') && reset.starts_with(|first: char| first.is_ascii_digit());
            assert!(shaped && reset.chars().all(|c| c.is_ascii_digit() || ".hms".contains(c)), "{reset:?}");
        }
    }
}

#[test]
fn our_misconfiguration_at_a_provider_is_502_and_says_nothing_of_it() {
    for status in [401, 402, 403] {
        let text = format!("Incorrect API key provided: {PROVIDER_KEY}");
        let body = json!({"error": {"message": text, "type": "x", "param": null, "code": "invalid_api_key"}});
        for error in told(&Answer::json(status, &body), 502, "upstream_error") {
            assert!(!error.to_string().contains("provider-7f3a"), "{error}");
        }
    }
}

#[test]
fn a_provider_that_is_limited_or_overloaded_is_503_and_when_to_come_back() {
    for status in [429, 503, 529] {
        let upstream = Upstream::start();
        let body = json!({"error": {"message": "slow down", "type": "requests", "param": null, "code": "x"}});
        upstream.always(Answer::json(status, &body));
        let gateway = one(&upstream);
        let reply = gateway.hello();
        reply.refused(503, "no_capacity");
        let wait: u64 = reply.header("retry-after").expect("Retry-After").parse().unwrap();
        assert!((1..=120).contains(&wait), "{wait}");
        assert_eq!(gateway.row()["cost_pico_usd"], 0);
    }
}

#[test]
fn a_provider_that_fails_is_502_whatever_it_says() {
    let array = r#"[{"error": {"message": "as an array", "code": 500}}]"#;
    let answers = [
        Answer::json(
            500,
            &json!({"error": {"message": "boom", "type": "server_error", "param": null, "code": null}}),
        ),
        Answer::new(502, "text/html", "<html><body>Bad Gateway</body></html>"),
        Answer::new(500, "application/json", array),
        Answer::new(500, "application/json", r#"{"error": {"mess"#),
        Answer::new(500, "application/json", ""),
        Answer::new(500, "application/json", r#"{"object": "error", "message": "flat", "code": 500}"#),
    ];
    for answer in answers {
        told(&answer, 502, "upstream_error");
    }
}

#[test]
fn a_success_that_is_not_a_json_object_is_502_and_free() {
    let whole = chat("half", &usage(5, 5)).to_string();
    let bodies = ["<html>welcome</html>", "[]", "", "\"text\"", "null", &whole[..whole.len() / 2]];
    for body in bodies {
        let upstream = Upstream::start();
        upstream.always(Answer::new(200, "application/json", body));
        let gateway = one(&upstream);
        gateway.hello().refused(502, "upstream_error");
        let row = gateway.row();
        assert_eq!(row["outcome"], "upstream_error", "{body}");
        assert_eq!(row["cost_pico_usd"], 0);
    }
}

#[test]
fn a_whole_answer_to_a_streamed_request_is_502_and_free() {
    let upstream = Upstream::start();
    upstream.always(Answer::new(200, "text/html", "<html>welcome</html>"));
    let gateway = one(&upstream);
    gateway.hello_stream().refused(502, "upstream_error");
    assert_eq!(gateway.row()["cost_pico_usd"], 0);
}

#[test]
fn a_provider_s_400_keeps_the_codes_that_clients_know_and_no_other_text() {
    let known = json!({"error": {
        "message": "This model's maximum context length is 8192 tokens.", "type": "invalid_request_error",
        "param": "messages", "code": "context_length_exceeded",
    }});
    for error in told(&Answer::json(400, &known), 400, "context_length_exceeded") {
        assert!(error["message"].as_str().unwrap().contains("8192"), "{error}");
    }

    let upstream = Upstream::start();
    let odd =
        json!({"error": {"message": "org-42 may not", "type": "odd", "param": null, "code": "odd_internal"}});
    upstream.always(Answer::json(400, &odd));
    let gateway = one(&upstream);
    let reply = gateway.hello();
    assert_eq!(reply.status, 400);
    let error = error_of(&reply.json());
    assert!(!error.to_string().contains("org-42") && !error.to_string().contains("odd_internal"), "{error}");
    assert_eq!(reply.header("x-should-retry"), Some("false"));
    assert_eq!(gateway.row()["cost_pico_usd"], 0);
}

#[test]
fn a_provider_that_cannot_be_reached_is_502() {
    let nobody = Port::take();
    let gateway =
        Gateway::builder().provider_at("main", nobody.address(), QUICK).standard_models("main").start();
    let begun = Instant::now();
    gateway.hello().refused(502, "upstream_error");
    gateway.hello_stream().refused(502, "upstream_error");
    assert!(begun.elapsed() < ms(3000), "{:?}", begun.elapsed());
    assert_eq!(gateway.show()["consumed_micro_usd"], 0);
}

#[test]
fn a_provider_that_never_answers_is_504_in_time_and_is_left() {
    let upstream = Upstream::start();
    upstream.always(Answer::never());
    let gateway = one(&upstream);
    let begun = Instant::now();
    gateway.hello().refused(504, "upstream_timeout");
    assert!(begun.elapsed() < ms(2500), "{:?}", begun.elapsed());
    let row = gateway.row();
    assert_eq!(row["outcome"], "upstream_timeout");
    assert_eq!(row["status"], 504);
    assert_eq!(row["cost_pico_usd"], 0);
    crate::support::wait_for("the provider to be left", ms(2000), || {
        (!upstream.ends().is_empty()).then_some(())
    });
}

#[test]
fn an_answer_that_stops_in_the_middle_of_its_body_is_502_and_free() {
    let body = chat("half an answer", &usage(9, 9)).to_string();
    let (half, _) = body.split_at(body.len() / 2);
    let head = |length: usize| {
        format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n")
    };
    let cut = head(body.len()) + half;
    for answer in [Answer::silent().write(cut.clone()).close(), Answer::silent().write(cut.clone()).reset()] {
        let upstream = Upstream::start();
        upstream.always(answer);
        let gateway = one(&upstream);
        let reply = gateway.hello();
        reply.refused(502, "upstream_error");
        assert_eq!(gateway.row()["cost_pico_usd"], 0);
    }
    let upstream = Upstream::start();
    upstream.always(Answer::silent().write(cut).wait_for_end());
    let gateway = one(&upstream);
    let reply = gateway.hello();
    assert!(matches!(reply.status, 502 | 504), "{}", reply.text());
    assert_eq!(gateway.row()["cost_pico_usd"], 0);
}

#[test]
fn another_provider_is_asked_when_one_cannot_be_reached() {
    let (nobody, second) = (Port::take(), Upstream::start());
    let gateway = Gateway::builder()
        .provider_at("first", nobody.address(), QUICK)
        .provider("second", &second)
        .model("tiny", &[("first", FIRST), ("second", 1)])
        .start();
    for _ in 0..3 {
        gateway.hello().ok();
        assert!(gateway.hello_stream().ok().done());
    }
    assert_eq!(second.count(), 6);
    for row in gateway.rows_when(6) {
        assert_eq!(row["provider"], "second");
        assert_eq!(row["outcome"], "completed");
    }
}

#[test]
fn another_provider_is_asked_when_one_answers_that_it_cannot() {
    for status in [408, 429, 500, 502, 503, 504, 529] {
        let (first, second) = (Upstream::start(), Upstream::start());
        first.always(Answer::json(status, &json!({"error": {"message": "not now"}})));
        let gateway = two(&first, &second);
        gateway.hello().ok();
        assert!(gateway.hello_stream().ok().done());
        assert_eq!((first.count(), second.count()), (2, 2), "after {status}");
        let rows = gateway.rows_when(2);
        assert!(
            rows.iter().all(|row| row["provider"] == "second" && row["outcome"] == "completed"),
            "{rows:?}"
        );
        // The same bytes for both, the body whole.
        assert_eq!(first.received()[0].body, second.received()[0].body);
    }
}

#[test]
fn no_other_provider_is_asked_when_the_first_may_have_done_the_work() {
    let answers = [
        (Answer::never(), 504, "upstream_timeout"),
        (Answer::silent().wait(ms(50)).reset(), 502, "upstream_error"),
        (Answer::silent().wait(ms(50)).close(), 502, "upstream_error"),
    ];
    for (answer, status, code) in answers {
        let (first, second) = (Upstream::start(), Upstream::start());
        first.always(answer);
        let gateway = two(&first, &second);
        gateway.hello().refused(status, code);
        assert_eq!((first.count(), second.count()), (1, 0), "{code}");
        assert_eq!(gateway.row()["cost_pico_usd"], 0);
    }
}

#[test]
fn no_other_provider_is_asked_when_the_first_refuses_the_request() {
    for status in [400, 401, 403, 404, 413, 422] {
        let (first, second) = (Upstream::start(), Upstream::start());
        first.always(Answer::json(
            status,
            &json!({"error": {"message": "no", "type": "x", "param": null, "code": null}}),
        ));
        let gateway = two(&first, &second);
        let reply = gateway.hello();
        assert!((400..600).contains(&reply.status), "{}", reply.status);
        error_of(&reply.json());
        assert_eq!((first.count(), second.count()), (1, 0), "after {status}");
    }
}

#[test]
fn a_connection_that_the_provider_closed_while_idle_costs_no_request() {
    let upstream = Upstream::start();
    let gateway = one(&upstream);
    gateway.hello().ok();
    // The second request arrives on the kept connection, which ends without a byte of an answer.
    upstream.next(Answer::silent().close());
    gateway.hello().ok();
    upstream.next(Answer::silent().reset());
    gateway.hello().ok();
    assert_eq!(upstream.count(), 5);
    assert_eq!(gateway.rows_when(3).iter().filter(|row| row["outcome"] == "completed").count(), 3);
}

#[test]
fn the_last_failure_decides_when_all_providers_fail() {
    let limited = Answer::json(429, &json!({"error": {"message": "slow"}}));
    let broken = Answer::json(500, &json!({"error": {"message": "boom"}}));
    let cases = [(&limited, &limited, 503, "no_capacity"), (&limited, &broken, 502, "upstream_error")];
    for (first_answer, second_answer, status, code) in cases {
        let (first, second) = (Upstream::start(), Upstream::start());
        first.always(first_answer.clone());
        second.always(second_answer.clone());
        let gateway = two(&first, &second);
        gateway.hello().refused(status, code);
        assert_eq!((first.count(), second.count()), (1, 1));
        assert_eq!(gateway.row()["cost_pico_usd"], 0);
    }
}

#[test]
fn routes_share_the_traffic_by_weight() {
    let (first, second) = (Upstream::start(), Upstream::start());
    let gateway = Gateway::builder()
        .provider("first", &first)
        .provider("second", &second)
        .model("tiny", &[("first", 3), ("second", 1)])
        .start();
    let mut connection = gateway.connect();
    for _ in 0..80 {
        let request = Request::post("/v1/chat/completions", hello().to_string()).key(&gateway.account.key);
        gateway.note(&connection.ask(&request).ok());
    }
    // 60 expected of 80, with a standard deviation of 3.9 where each draw is independent.
    assert!((40..=76).contains(&first.count()), "{} and {}", first.count(), second.count());
    assert_eq!(first.count() + second.count(), 80);
}

#[test]
fn an_upstream_head_without_end_is_bounded() {
    let upstream = Upstream::start();
    upstream.always(
        Answer::silent().write(format!("HTTP/1.1 200 OK\r\nX-Long: {}", "x".repeat(3 << 20))).wait_for_end(),
    );
    let gateway = one(&upstream);
    let reply = gateway.hello();
    assert!(matches!(reply.status, 502 | 504), "{}", reply.text());
    assert_eq!(gateway.row()["cost_pico_usd"], 0);
}

#[test]
fn the_gateway_is_ready_and_measured_on_its_own_listener() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    gateway.hello().ok();
    gateway.chat(&hello_stream()).ok();
    let admin = |path: &str| crate::support::Connection::open(gateway.admin()).ask(&Request::get(path));
    assert_eq!((admin("/healthz").status, admin("/readyz").status, admin("/").status), (200, 200, 404));
    gateway.rows_when(2);
    let metrics = gateway.metrics();
    assert!(metrics.contains("weir_"), "{metrics}");
    assert!(metrics.contains("model=\"tiny\""), "{metrics}");
    for secret in [&gateway.account.key, &gateway.account.id, &gateway.account.email, &gateway.account.key_id]
    {
        assert!(!metrics.contains(secret.as_str()), "{secret} is a label");
    }
}

#[test]
fn a_name_that_a_client_made_up_is_no_label() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let mut body = hello();
    body["model"] = json!("made-up-by-a-client");
    gateway.chat(&body).refused(404, "model_not_found");
    gateway.ask(&Request::get("/made-up-path").key(&gateway.account.key)).refused(404, "unknown_url");
    assert!(!gateway.metrics().contains("made-up"));
}
