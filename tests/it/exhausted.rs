//! Streams that go beyond what their account can pay: they end in words that every client understands, at a price that was there.

use crate::gone::h2c;
use crate::support::http::{error_of, events_of};
use crate::support::upstream::{Gate, chunk, last_chunk, usage, usage_chunk};
use crate::support::{Answer, Gateway, Upstream, ms, tokens, wait_for};
use serde_json::{Value, json};
use std::time::Duration;

/// What a token of `dear` costs, in micro-dollars.
const TOKEN: i64 = 600;

/// A stream of so many words, each a token and an event of its own.
fn words(answer: Answer, count: usize) -> Answer {
    (0..count).fold(answer, |answer, _| answer.wait(ms(1)).event(&chunk(" water")))
}

fn ask(include_usage: bool) -> Value {
    json!({
        "model": "dear", "stream": true, "stream_options": {"include_usage": include_usage},
        "messages": [{"role": "user", "content": "Go on for ever"}],
    })
}

/// An account with ten cents: some 160 tokens.
fn poor(upstream: &Upstream) -> Gateway {
    Gateway::builder().provider("main", upstream).standard_models("main").credit("0.10").start()
}

fn said(events: &[String]) -> String {
    let chunks = events.iter().filter_map(|event| serde_json::from_str::<Value>(event).ok());
    chunks.filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned)).collect()
}

#[track_caller]
fn cut_short(text: &str, row: &Value, include_usage: bool) {
    assert_eq!((&row["outcome"], &row["status"]), (&json!("credit_exhausted"), &json!(200)), "{row}");
    assert_eq!(row["usage_source"], "counted", "{row}");
    let events = events_of(text);
    let ends: Vec<Value> =
        events.iter().rev().take(3).map(|event| serde_json::from_str(event).unwrap()).collect();
    let error = error_of(&ends[0]);
    assert_eq!(
        (&error["code"], &error["type"]),
        (&json!("credit_balance_exhausted"), &json!("insufficient_quota"))
    );
    let last = &ends[usize::from(include_usage) + 1];
    assert_eq!(
        last["choices"],
        json!([{"index": 0, "delta": {}, "logprobs": null, "finish_reason": "length"}])
    );
    assert_eq!((&last["id"], &last["model"]), (&json!("chatcmpl-1"), &json!("provider-model")));
    // What was billed has been sent, to the last word.
    let (input, output) = (row["input_tokens"].as_u64().unwrap(), row["output_tokens"].as_u64().unwrap());
    assert_eq!(tokens(&said(&events)), output, "{row}");
    if include_usage {
        let told =
            json!({"prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output});
        assert_eq!((&ends[1]["usage"], &ends[1]["choices"]), (&told, &json!([])));
    }
}

#[test]
fn a_stream_that_credit_does_not_cover_ends_with_what_came_and_why() {
    for include_usage in [false, true] {
        let upstream = Upstream::start();
        upstream.always(words(Answer::stream(), 200).wait_for_end());
        let gateway = poor(&upstream);
        let reply = gateway.chat(&ask(include_usage)).ok();
        let row = gateway.row();
        cut_short(&reply.text(), &row, include_usage);
        // All of the credit could be used, and next to nothing above it.
        let micros = row["cost_pico_usd"].as_i64().unwrap() / 1_000_000;
        assert!((95_000..=100_000 + 16 * TOKEN).contains(&micros), "{micros}");
        wait_for("the provider to be left", Duration::from_secs(2), || {
            (!upstream.ends().is_empty()).then_some(())
        });
    }
}

#[test]
fn it_ends_so_for_an_http_2_client_and_for_a_provider_that_falls_silent() {
    let upstream = Upstream::start();
    // The last words come in one piece and go beyond all credit; then nothing comes that could tell the gateway to look.
    upstream.always(words(Answer::stream(), 20).event(&chunk(&" water".repeat(400))).wait_for_end());
    let gateway = poor(&upstream);
    let text = h2c::Client::open(&gateway).text(&ask(true));
    cut_short(&text, &gateway.row(), true);
}

#[test]
fn credit_that_comes_in_time_lets_a_stream_go_on() {
    let (upstream, gate) = (Upstream::start(), Gate::new());
    let answer = words(words(Answer::stream(), 100).gate(&gate), 300).event(&last_chunk());
    upstream.always(answer.event(&usage_chunk(&usage(10, 400))).done());
    let gateway = poor(&upstream);
    let (mut connection, _) = gateway.begin(&ask(false));
    for _ in 0..50 {
        connection.chunk().unwrap().expect("more of the answer");
    }
    gateway.add_credit(&gateway.account.id, "10");
    std::thread::sleep(ms(300));
    gate.open();
    while connection.chunk().unwrap().is_some() {}
    let row = gateway.row();
    assert_eq!((&row["outcome"], &row["output_tokens"]), (&json!("completed"), &json!(400)), "{row}");
}

#[test]
fn a_stream_of_an_account_with_credit_is_extended_again_and_again() {
    let upstream = Upstream::start();
    upstream.always(
        words(Answer::stream(), 50).event(&chunk(&" water".repeat(6_000))).event(&last_chunk()).done(),
    );
    let gateway = Gateway::before(&upstream);
    let reply = gateway.chat(&ask(false)).ok();
    assert!(reply.done());
    let row = gateway.row();
    assert_eq!((&row["outcome"], &row["output_tokens"]), (&json!("completed"), &json!(6_050)), "{row}");
    assert_eq!(gateway.show()["owed_micro_usd"], 0);
}
