//! Which provider answers: failover, retries, cool-downs, fallback models, drained providers, conversations that stay put.

mod killable;

use crate::support::gateway::{PROVIDER_MODEL, hello, hello_stream};
use crate::support::ports::Port;
use crate::support::upstream::{chat, usage};
use crate::support::{Answer, Gateway, Request, Upstream, ms, wait_for};
use killable::Killable;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Deadlines short enough for a test.
const QUICK: &str = "connect_timeout_ms = 500\nfirst_byte_timeout_ms = 400\nidle_timeout_ms = 800";

/// A model's table with these lines; a route is a provider's name and more keys.
fn model(name: &str, lines: &str, routes: &[(&str, &str)]) -> String {
    let route = |(provider, more): &(&str, &str)| {
        format!("{{ provider = \"{provider}\", model = \"{PROVIDER_MODEL}\"{more} }}")
    };
    let routes: Vec<String> = routes.iter().map(route).collect();
    format!(
        "\n[[model]]\nname = \"{name}\"\ncontext_tokens = 128000\nmax_output_tokens = 16384\n{lines}\nroutes = [{}]\n",
        routes.join(", ")
    )
}

/// `first` and, where that is left, `second`; with more in the model's table and in `[routing]`.
fn two(first: &Upstream, second: &Upstream, lines: &str, routing: &str) -> Gateway {
    Gateway::builder()
        .provider_with("first", first, QUICK)
        .provider_with("second", second, QUICK)
        .lines(&model("tiny", lines, &[("first", ""), ("second", ", priority = 1")]))
        .lines(&format!("[routing]\n{routing}\n"))
        .start()
}

fn broken(status: u16) -> Answer {
    Answer::json(status, &json!({"error": {"message": "not now"}}))
}

fn limited(header: &str, value: &str) -> Answer {
    Answer::with_headers(429, &[("Content-Type", "application/json"), (header, value)], "{}")
}

/// The value of a series, 0 where there is none.
fn metric(gateway: &Gateway, series: &str) -> f64 {
    let text = gateway.metrics();
    let line = text.lines().find_map(|line| line.strip_prefix(series));
    line.map_or(0.0, |rest| rest.trim().parse().expect("a number"))
}

/// Waits until the series has this value: a request is counted once its answer has gone.
#[track_caller]
fn counted(gateway: &Gateway, series: &str, value: f64) {
    wait_for(series, ms(2_000), || (metric(gateway, series) == value).then_some(()));
}

/// The entry of the request log for this answer.
fn logged(gateway: &Gateway, id: &str) -> Value {
    wait_for("the line of the request", ms(2_000), || {
        let log = gateway.log();
        let lines = log.lines().filter(|line| line.contains(id));
        lines.filter_map(|line| serde_json::from_str::<Value>(line).ok()).next()
    })
}

#[test]
fn a_failing_provider_is_left_after_two_requests_and_tried_again_later() {
    let (first, second) = (Upstream::start(), Upstream::start());
    first.always(broken(500));
    let gateway = two(&first, &second, "", "circuit_open_ms = 1500");
    for _ in 0..6 {
        gateway.hello().ok();
    }
    assert_eq!((first.count(), second.count()), (2, 6));
    counted(&gateway, "weir_circuits_opened_total{model=\"tiny\",provider=\"first\"}", 1.0);
    first.always(Answer::json(200, &chat("well again", &usage(5, 5))));
    wait_for("the first provider to be used again", ms(4_000), || {
        gateway.hello().ok();
        (first.count() > 2).then_some(())
    });
    let before = second.count();
    for _ in 0..5 {
        gateway.hello().ok();
    }
    assert_eq!(second.count(), before);
    assert!(
        metric(&gateway, "weir_route_choices_total{model=\"tiny\",provider=\"first\",why=\"probe\"}") >= 1.0
    );
}

#[test]
fn every_attempt_is_in_the_log_and_in_the_metrics() {
    let (first, second) = (Upstream::start(), Upstream::start());
    first.next(broken(503));
    let gateway = two(&first, &second, "", "");
    let reply = gateway.hello().ok();
    let line = logged(&gateway, reply.header("x-request-id").unwrap()).to_string();
    for told in [
        "\"provider\":\"second\"",
        "\"why\":\"failover\"",
        "first:priority:answered_error second:failover:answered",
    ] {
        assert!(line.contains(told), "{told} in {line}");
    }
    for series in [
        "weir_attempts_total{model=\"tiny\",outcome=\"answered_error\",provider=\"first\"}",
        "weir_attempts_total{model=\"tiny\",outcome=\"answered\",provider=\"second\"}",
        "weir_route_choices_total{model=\"tiny\",provider=\"second\",why=\"failover\"}",
    ] {
        counted(&gateway, series, 1.0);
    }
}

#[test]
fn what_may_have_been_executed_is_sent_again_only_where_that_is_asked_for() {
    // The answer of the first provider, and how often the second is asked under each policy.
    let cases = [
        (Answer::never(), [0, 1, 0]),
        (Answer::silent().wait(ms(50)).reset(), [0, 1, 0]),
        (Answer::silent().wait(ms(50)).close(), [0, 1, 0]),
        (broken(500), [1, 1, 0]),
        (broken(429), [1, 1, 0]),
        (broken(400), [0, 0, 0]),
    ];
    for (at, retry) in ["safe", "any", "never"].into_iter().enumerate() {
        let (first, second) = (Upstream::start(), Upstream::start());
        let gateway = two(&first, &second, &format!("retry = \"{retry}\""), "circuit_failures = 100");
        let (mut seen, mut rows) = (0, 0);
        for (answer, asked) in &cases {
            for body in [hello(), hello_stream()] {
                first.next(answer.clone());
                let reply = gateway.chat(&body);
                seen += asked[at];
                rows += 1;
                assert_eq!(second.count(), seen, "retry = {retry}: {answer:?} {}", reply.text());
                assert_eq!(reply.status == 200, asked[at] == 1, "retry = {retry}: {}", reply.text());
            }
        }
        assert_eq!(first.count(), cases.len() * 2);
        // The customer pays for the answers, and for nothing else.
        let rows = gateway.rows_when(rows);
        let paid = rows.iter().filter(|row| row["cost_pico_usd"].as_i64() > Some(0)).count();
        assert_eq!(paid, seen);
    }
}

#[test]
fn a_provider_that_cannot_be_reached_is_not_left_for_another_where_nothing_is_retried() {
    let (nobody, second) = (Port::take(), Upstream::start());
    let gateway = Gateway::builder()
        .provider_at("first", nobody.address(), QUICK)
        .provider("second", &second)
        .lines(&model("tiny", "retry = \"never\"", &[("first", ""), ("second", ", priority = 1")]))
        .start();
    gateway.hello().refused(502, "upstream_error");
    assert_eq!(second.count(), 0);
    gateway.no_rows();
}

#[test]
fn a_limited_provider_is_left_for_as_long_as_it_says() {
    for (header, value) in [("Retry-After", "2"), ("retry-after-ms", "2000")] {
        let (first, second) = (Upstream::start(), Upstream::start());
        first.next(limited(header, value));
        let gateway = two(&first, &second, "", "");
        let begun = Instant::now();
        while begun.elapsed() < ms(1_700) {
            gateway.hello().ok();
            thread::sleep(ms(100));
        }
        assert_eq!(first.count(), 1, "{header}");
        thread::sleep(ms(500));
        gateway.hello().ok();
        assert_eq!(first.count(), 2, "{header}");
    }
}

#[test]
fn when_all_are_limited_the_client_is_told_the_smallest_wait() {
    let (first, second) = (Upstream::start(), Upstream::start());
    first.always(limited("Retry-After", "9"));
    second.always(limited("Retry-After", "20"));
    let gateway = two(&first, &second, "", "");
    let reply = gateway.hello();
    reply.refused(503, "no_capacity");
    assert_eq!(reply.header("retry-after"), Some("9"));
    assert_eq!(gateway.row()["cost_pico_usd"], 0);

    // The one that comes back first is tried by one request at a time; the others wait for nothing.
    first
        .always(Answer::silent().wait(ms(300)).write(*b"HTTP/1.1 429 Scripted\r\nContent-Length: 0\r\n\r\n"));
    let mut trying = gateway.send(&hello());
    thread::sleep(ms(100));
    let begun = Instant::now();
    let told = gateway.hello();
    told.refused(503, "no_capacity");
    let wait: u64 = told.header("retry-after").unwrap().parse().unwrap();
    // That one waits for the second provider, as the first is being tried.
    assert!((7..=20).contains(&wait) && begun.elapsed() < ms(150), "{wait} s, after {:?}", begun.elapsed());
    let tried = trying.reply().unwrap();
    gateway.note(&tried);
    tried.refused(503, "no_capacity");
}

#[test]
fn the_last_kind_of_failure_is_what_the_client_is_told() {
    let cases = [
        (broken(500), broken(429), 503, "no_capacity"),
        (broken(429), broken(502), 502, "upstream_error"),
        (broken(500), Answer::never(), 504, "upstream_timeout"),
        (broken(503), broken(408), 504, "upstream_timeout"),
    ];
    for (first_answer, second_answer, status, code) in cases {
        let (first, second) = (Upstream::start(), Upstream::start());
        first.always(first_answer);
        second.always(second_answer);
        let gateway = two(&first, &second, "", "");
        gateway.hello().refused(status, code);
        assert_eq!((first.count(), second.count()), (1, 1));
        assert_eq!(gateway.row()["cost_pico_usd"], 0);
    }
}

#[test]
fn another_model_stands_in_at_its_own_price() {
    let (first, second) = (Upstream::start(), Upstream::start());
    first.always(broken(500));
    let gateway = Gateway::builder()
        .provider("first", &first)
        .provider("second", &second)
        .lines(&model("tiny", "fallback = [\"unpriced\", \"rich\"]", &[("first", "")]))
        .lines(&model("unpriced", "", &[("second", "")]))
        .lines(&model("rich", "", &[("second", "")]))
        .start();
    let reply = gateway.hello().ok();
    assert_eq!(reply.header("x-weir-model"), Some("rich"));
    let streamed = gateway.hello_stream().ok();
    assert!(streamed.done());
    assert_eq!(streamed.header("x-weir-model"), Some("rich"));
    for row in gateway.rows_when(2) {
        // The audit recomputes the cost from the prices of the row's model.
        assert_eq!(
            (row["model"].as_str(), row["provider"].as_str()),
            (Some("rich"), Some("second")),
            "{row}"
        );
        assert_eq!(row["outcome"], "completed");
        assert!(row["cost_pico_usd"].as_i64() > Some(12 * 1_234_567), "{row}");
    }
    let why = "weir_route_choices_total{model=\"rich\",provider=\"second\",why=\"fallback\"}";
    counted(&gateway, why, 2.0);

    // A key that may not use the other model gets no other model.
    let (_, key) = gateway.new_key(&gateway.account.id, &["--models", "tiny"]);
    let reply = gateway.ask(&Request::post("/v1/chat/completions", hello().to_string()).key(&key));
    reply.refused(502, "upstream_error");
    assert_eq!(second.count(), 2);
}

#[test]
fn what_is_held_covers_the_dearest_model_that_may_stand_in() {
    let (first, second) = (Upstream::start(), Upstream::start());
    first.always(broken(500));
    let gateway = Gateway::builder()
        .credit("0.02")
        .provider("first", &first)
        .provider("second", &second)
        .lines(&model("tiny", "fallback = [\"dear\"]", &[("first", "")]))
        .lines(&model("dear", "", &[("second", "")]))
        .start();
    // 50 tokens of output cost 0.03 at the price of `dear`, and 0.00003 at that of `tiny`.
    let reply = gateway.hello();
    let is_refused = reply.status == 402;
    let is_lowered = reply.status == 200 && reply.header("x-weir-max-output-tokens").is_some();
    assert!(is_refused || is_lowered, "{} {}", reply.status, reply.text());
}

#[test]
fn a_drained_provider_gets_no_request_unless_nothing_else_is_left() {
    let (first, second) = (Upstream::start(), Upstream::start());
    let gateway = Gateway::builder()
        .provider_with("first", &first, "drain = true")
        .provider("second", &second)
        .lines(&model("tiny", "", &[("first", ", weight = 1000000"), ("second", "")]))
        .start();
    for _ in 0..5 {
        gateway.hello().ok();
    }
    assert_eq!((first.count(), second.count()), (0, 5));
    second.always(broken(500));
    gateway.hello().ok();
    assert_eq!((first.count(), second.count()), (1, 6));
}

#[test]
fn a_conversation_stays_with_one_provider() {
    let upstreams: Vec<Upstream> = (0..3).map(|_| Upstream::start()).collect();
    let names = ["a", "b", "c"];
    let mut builder = Gateway::builder();
    for (name, upstream) in names.into_iter().zip(&upstreams) {
        builder = builder.provider(name, upstream);
    }
    let gateway = builder.lines(&model("tiny", "sticky = true", &names.map(|name| (name, "")))).start();
    let counts = || upstreams.iter().map(Upstream::count).collect::<Vec<_>>();
    // Where each request went.
    let went = |body: &Value| {
        let before = counts();
        gateway.chat(body).ok();
        counts().iter().zip(&before).position(|(after, before)| after > before).unwrap()
    };
    let turn = |text: &str, turns: usize| {
        let mut messages =
            vec![json!({"role": "system", "content": "Be brief."}), json!({"role": "user", "content": text})];
        for turn in 0..turns {
            messages.push(json!({"role": "assistant", "content": format!("answer {turn}")}));
            messages.push(json!({"role": "user", "content": format!("question {turn}")}));
        }
        json!({"model": "tiny", "max_tokens": 50, "messages": messages})
    };
    let mut places = HashMap::new();
    for text in 0..12 {
        let text = format!("conversation {text}");
        let first = went(&turn(&text, 0));
        assert!((1..4).all(|turns| went(&turn(&text, turns)) == first), "{text}");
        *places.entry(first).or_insert(0) += 1;
    }
    assert!(places.len() > 1, "{places:?}");
    // A name that the client gives counts for more than what is said.
    let named = |text: &str| {
        let mut body = turn(text, 0);
        body["prompt_cache_key"] = json!("shelf");
        body
    };
    let first = went(&named("0"));
    assert!((1..8).all(|text| went(&named(&text.to_string())) == first));
}

#[test]
fn routes_are_ordered_by_what_they_cost_the_operator() {
    let (first, second) = (Upstream::start(), Upstream::start());
    let routes = [
        ("first", ", input_cost = \"0.2\", output_cost = \"0.9\""),
        ("second", ", input_cost = \"0.1\", output_cost = \"0.8\""),
    ];
    let gateway = Gateway::builder()
        .provider("first", &first)
        .provider("second", &second)
        .lines(&model("tiny", "order = \"cost\"", &routes))
        .start();
    for _ in 0..5 {
        gateway.hello().ok();
    }
    assert_eq!((first.count(), second.count()), (0, 5));
}

#[test]
fn retries_are_limited_in_number_and_as_a_share_of_the_traffic() {
    let upstreams: Vec<Upstream> = (0..3).map(|_| Upstream::start()).collect();
    let names = ["a", "b", "c"];
    let start = |routing: &str| {
        let mut builder = Gateway::builder();
        for (name, upstream) in names.into_iter().zip(&upstreams) {
            upstream.always(broken(500));
            builder = builder.provider(name, upstream);
        }
        builder
            .lines(&model("tiny", "", &names.map(|name| (name, ""))))
            .lines(&format!("[routing]\n{routing}\n"))
            .start()
    };
    let sent = || upstreams.iter().map(Upstream::count).sum::<usize>();

    let gateway = start("attempts_max = 2\ncircuit_failures = 1000\ncircuit_error_requests = 1000");
    gateway.hello().refused(502, "upstream_error");
    assert_eq!(sent(), 2);
    counted(&gateway, "weir_retries_denied_total{model=\"tiny\",reason=\"attempts_max\"}", 1.0);
    drop(gateway);

    let before = sent();
    let more = "retry_min_per_second = 1\ncircuit_failures = 1000\ncircuit_error_requests = 1000";
    let gateway = start(more);
    let asked = 30;
    for _ in 0..asked {
        gateway.hello().refused(502, "upstream_error");
    }
    // Ten in ten seconds, and a fifth of thirty.
    let retries = sent() - before - asked;
    assert!((10..=17).contains(&retries), "{retries} retries of {asked} requests");
    assert!(metric(&gateway, "weir_retries_denied_total{model=\"tiny\",reason=\"budget\"}") > 0.0);
}

#[test]
fn an_answer_that_takes_too_long_as_a_whole_is_ended() {
    let upstream = Upstream::start();
    let mut slow = Answer::stream();
    for _ in 0..40 {
        slow = slow.event(&crate::support::upstream::chunk("word ")).wait(ms(100));
    }
    upstream.always(slow.done());
    let gateway = Gateway::builder()
        .provider_with("main", &upstream, "total_timeout_ms = 900")
        .standard_models("main")
        .start();
    let begun = Instant::now();
    let reply = gateway.hello_stream();
    assert!((ms(800)..ms(1_500)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    let last = reply.events().pop().unwrap();
    assert!(last.contains("upstream_stream_truncated"), "{last}");
    assert_eq!(gateway.row()["outcome"], "upstream_cut");

    upstream.always(Answer::never());
    let begun = Instant::now();
    gateway.hello().refused(504, "upstream_timeout");
    assert!((ms(800)..ms(1_500)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
}

#[test]
fn no_client_sees_an_error_after_the_first_second_when_one_of_two_providers_is_killed() {
    let (mut victim, survivor) = (Killable::start(), Upstream::start());
    let gateway = Gateway::builder()
        .provider_at("victim", victim.address(), QUICK)
        .provider_at("survivor", survivor.address(), QUICK)
        .lines(&model("tiny", "", &[("victim", ""), ("survivor", "")]))
        .start();
    let stop = AtomicBool::new(false);
    let errors = Mutex::new(Vec::new());
    let mut killed_at = None;
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while !stop.load(Ordering::SeqCst) {
                    let begun = Instant::now();
                    let reply = gateway.hello();
                    if reply.status != 200 {
                        errors.lock().unwrap().push((Instant::now(), reply.text()));
                    }
                    thread::sleep(ms(40).saturating_sub(begun.elapsed()));
                }
            });
        }
        thread::sleep(ms(1_000));
        victim.kill();
        killed_at = Some(Instant::now());
        thread::sleep(ms(3_000));
        stop.store(true, Ordering::SeqCst);
    });
    let killed_at = killed_at.unwrap();
    let (before, late): (Vec<_>, Vec<_>) = errors
        .into_inner()
        .unwrap()
        .into_iter()
        .map(|(at, text)| (at.checked_duration_since(killed_at), text))
        .partition(|(after, _)| after.is_none());
    assert!(before.is_empty(), "{before:?}");
    let late: Vec<_> = late.iter().filter(|(after, _)| *after > Some(Duration::from_secs(1))).collect();
    assert!(late.is_empty(), "{late:?}");
    assert!(survivor.count() > 100, "{}", survivor.count());
}
