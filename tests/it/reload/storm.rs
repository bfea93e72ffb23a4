//! The configuration is read again and again while requests pass: none fails, and none goes by parts of two.

use super::with;
use crate::support::upstream::{chat, chunk, last_chunk, usage, usage_chunk};
use crate::support::{Answer, Gateway, Request, Upstream, ms};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

/// As many, or what `WEIR_RELOADS` says.
fn reloads() -> usize {
    std::env::var("WEIR_RELOADS").ok().and_then(|text| text.parse().ok()).unwrap_or(100)
}

fn body(is_streamed: bool) -> Value {
    json!({
        "model": "tiny", "max_tokens": 20, "stream": is_streamed,
        "messages": [{"role": "user", "content": if is_streamed { "a stream" } else { "an answer" }}],
    })
}

/// Some answers take a while, so that many reloads pass meanwhile; some are errors, so that the next route has its turn.
fn script(upstream: &Upstream) {
    upstream.when(
        "a stream",
        (0..8)
            .fold(Answer::stream(), |answer, _| answer.event(&chunk("piece ")).wait(ms(20)))
            .event(&last_chunk())
            .event(&usage_chunk(&usage(10, 8)))
            .done(),
    );
    upstream.always(Answer::json(200, &chat("hi", &usage(10, 2))));
}

#[test]
fn a_storm_of_reloads_under_load_fails_no_request_and_mixes_no_two_configurations() {
    let (one, other) = (Upstream::start(), Upstream::start());
    let broken = Upstream::start();
    broken.always(Answer::json(503, &json!({"error": {"message": "busy"}})));
    for upstream in [&one, &other] {
        script(upstream);
    }
    let gateway = Gateway::builder()
        .provider("main", &one)
        .provider("first", &broken)
        .noted_by(&other)
        .model_in_order("tiny", &["first", "main"])
        .lines("\n[routing]\nretry_min_per_second = 1000000\n")
        .start();
    // The same provider is elsewhere, and calls the model otherwise: a request that took one of each would be seen at once.
    let first = gateway.config();
    let moved = with(&first, &one.address().to_string(), &other.address().to_string());
    let second = moved.replace("model = \"provider-model\"", "model = \"model-elsewhere\"");

    let (ends, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let begun = Instant::now();
    let failed: Vec<String> = std::thread::scope(|scope| {
        let client = |is_streamed: bool| {
            let mut connection = gateway.connect();
            let mut failed = Vec::new();
            while !ends.load(Ordering::SeqCst) {
                let request = Request::post("/v1/chat/completions", body(is_streamed).to_string());
                let reply = connection.ask(&request.key(&gateway.account.key));
                gateway.note(&reply);
                let is_whole = reply.status == 200 && reply.whole && (!is_streamed || reply.done());
                answered.fetch_add(1, Ordering::SeqCst);
                if !is_whole {
                    failed.push(format!("{}: {}", reply.status, reply.text()));
                }
            }
            failed
        };
        let clients: Vec<_> = (0..8).map(|at| scope.spawn(move || client(at % 2 == 0))).collect();
        for round in 0..reloads() {
            gateway.reload_as(if round % 2 == 0 { &second } else { &first });
        }
        ends.store(true, Ordering::SeqCst);
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    let answered = answered.into_inner();
    eprintln!(
        "{} reloads in {:?} under {answered} requests: {} failed",
        reloads(),
        begun.elapsed(),
        failed.len()
    );
    assert!(failed.is_empty(), "{failed:#?}");
    assert_eq!(gateway.metric("weir_config_reload_failures_total"), 0.0);
    assert!(one.count() > 0 && other.count() > 0);
    for (upstream, name) in [(&one, "provider-model"), (&other, "model-elsewhere")] {
        let foreign = upstream.received().into_iter().find(|received| received.json()["model"] != name);
        assert!(foreign.is_none(), "{name} was asked for {foreign:?}");
    }
    assert_eq!(one.count() + other.count(), answered);
}
