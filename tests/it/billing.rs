//! What is billed, for each way in which a request can end: to the token and to the pico-dollar.

use crate::support::gateway::{hello, hello_stream};
use crate::support::upstream::{Gate, chat, choice_chunk, chunk, last_chunk, usage, usage_chunk};
use crate::support::{Answer, Gateway, Request, Upstream, ms, tokens, wait_for};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The tokens of a chat with one user message, by the published rule: three a message, its role, its text, three for the answer.
fn chat_input(text: &str) -> u64 {
    3 + tokens("user") + tokens(text) + 3
}

/// The bill of one request to `model` that the provider answers so.
fn billed(model: &str, answer: Answer) -> Value {
    let upstream = Upstream::start();
    upstream.always(answer);
    let gateway = Gateway::before(&upstream);
    let mut body = hello();
    body["model"] = json!(model);
    let reply = gateway.chat(&body).ok();
    let row = gateway.row();
    assert_eq!(row["request_id"], reply.header("x-request-id").unwrap());
    assert_eq!(row["status"], 200);
    assert_eq!(row["outcome"], "completed");
    row
}

#[test]
fn what_the_provider_reports_is_billed() {
    let row = billed("tiny", Answer::json(200, &chat("hi", &usage(1000, 500))));
    assert_eq!(row["usage"], json!({"input": 1000, "output": 500}));
    assert_eq!(row["usage_source"], "reported");
    assert_eq!(row["cost_pico_usd"], 1000 * 150_000 + 500 * 600_000);
    assert_eq!(row["input_tokens"], 1000);
    assert_eq!(row["output_tokens"], 500);
    assert_eq!(row["stream"], false);
    assert_eq!(row["ttft_ms"], Value::Null);
}

#[test]
fn cached_and_reasoning_tokens_are_classes_of_their_own() {
    let mut used = usage(1000, 500);
    used["prompt_tokens_details"] = json!({"cached_tokens": 600, "audio_tokens": 0});
    used["completion_tokens_details"] = json!({"reasoning_tokens": 400, "rejected_prediction_tokens": 0});
    let row = billed("rich", Answer::json(200, &chat("hi", &used)));
    assert_eq!(row["usage"], json!({"input": 400, "cache_read": 600, "output": 100, "reasoning": 400}));
    assert_eq!((&row["input_tokens"], &row["cached_tokens"]), (&json!(1000), &json!(600)));
    assert_eq!((&row["output_tokens"], &row["reasoning_tokens"]), (&json!(500), &json!(400)));
    assert_eq!(row["cost_pico_usd"], 400_i64 * 1_234_567 + 600 * 123_457 + 100 * 7_654_321 + 400 * 9_100_000);

    // `tiny` has no price for reasoning: that of output counts.
    let row = billed("tiny", Answer::json(200, &chat("hi", &used)));
    assert_eq!(row["cost_pico_usd"], 400 * 150_000 + 600 * 75_000 + 500 * 600_000);
}

#[test]
fn reasoning_outside_of_the_completion_is_added_once() {
    let mut used = json!({"prompt_tokens": 10_120, "completion_tokens": 1_499, "total_tokens": 14_428});
    used["completion_tokens_details"] = json!({"reasoning_tokens": 2_809});
    let row = billed("rich", Answer::json(200, &chat("hi", &used)));
    assert_eq!(row["usage"], json!({"input": 10_120, "output": 1_499, "reasoning": 2_809}));
    assert_eq!(row["output_tokens"], 1_499 + 2_809);
}

#[test]
fn a_class_without_a_price_is_not_free() {
    let mut used = usage(1000, 10);
    used["prompt_tokens_details"] = json!({"audio_tokens": 900});
    let row = billed("tiny", Answer::json(200, &chat("hi", &used)));
    assert_eq!(row["usage"], json!({"input": 100, "audio_in": 900, "output": 10}));
    // The dearest price of the model.
    assert_eq!(row["cost_pico_usd"], 100 * 150_000 + 900 * 600_000 + 10 * 600_000);
}

#[test]
fn usage_of_three_times_the_estimate_is_billed_whole() {
    let row = billed("tiny", Answer::json(200, &chat("hi", &usage(3 * 60, 3 * 50))));
    assert_eq!(row["usage"], json!({"input": 180, "output": 150}));
}

#[test]
fn usage_beyond_all_credit_is_owed_and_collected_from_the_next() {
    let upstream = Upstream::start();
    upstream.next(Answer::json(200, &chat("hi", &usage(100_000, 100_000))));
    let gateway =
        Gateway::builder().provider("main", &upstream).standard_models("main").credit("0.05").start();
    gateway.hello().ok();
    let row = gateway.row();
    assert_eq!(row["cost_pico_usd"], 100_000_i64 * 750_000);
    let shown = wait_for("the debt", Duration::from_secs(2), || {
        Some(gateway.show()).filter(|shown| shown["owed_micro_usd"] != 0)
    });
    assert_eq!(shown["balance_micro_usd"], 0, "{shown}");
    assert_eq!(shown["owed_micro_usd"], 25_000, "{shown}");
    gateway.hello().refused(402, "credit_balance_exhausted");
    gateway.add_credit(&gateway.account.id, "0.10");
    let shown = wait_for("the debt to be collected", Duration::from_secs(2), || {
        Some(gateway.show()).filter(|shown| shown["owed_micro_usd"] == 0)
    });
    assert_eq!(shown["balance_micro_usd"], 75_000, "{shown}");
    wait_for("the credit to count", Duration::from_secs(1), || {
        Some(gateway.hello()).filter(|reply| reply.status == 200)
    });
}

#[test]
fn an_answer_without_usage_is_counted() {
    let text = "The weir measures what passes: ünïcödé, 川, and 12345 figures.";
    for missing in [json!(null), json!({}), json!({"prompt_tokens": -5, "completion_tokens": "x"})] {
        let mut answer = chat(text, &missing);
        if missing.is_null() {
            answer.as_object_mut().unwrap().remove("usage");
        }
        let row = billed("tiny", Answer::json(200, &answer));
        assert_eq!(row["usage_source"], "counted", "{missing}");
        assert_eq!(
            row["usage"],
            json!({"input": chat_input("Hello, weir"), "output": tokens(text)}),
            "{missing}"
        );
    }
}

#[test]
fn a_stream_without_usage_is_counted_as_the_text_that_it_is() {
    let text =
        "Streams cut words any where, and yet the count is that of the whole: 3.14159, don't, 川の堰。";
    let letters: Vec<char> = text.chars().collect();
    let mut answer = Answer::stream();
    for piece in letters.chunks(3) {
        answer = answer.event(&chunk(&piece.iter().collect::<String>()));
    }
    let upstream = Upstream::start();
    upstream.always(answer.event(&last_chunk()).done());
    let gateway = Gateway::before(&upstream);
    let reply = gateway.hello_stream().ok();
    assert_eq!(reply.said(), text);
    let row = gateway.row();
    assert_eq!(row["usage_source"], "counted");
    assert_eq!(row["usage"], json!({"input": chat_input("Hello, weir"), "output": tokens(text)}));
}

#[test]
fn what_is_not_content_is_counted_too() {
    let delta = |delta: &Value| choice_chunk(&json!([{"index": 0, "delta": delta, "finish_reason": null}]));
    let call = |name: &str, arguments: &str| json!({"tool_calls": [{"index": 0, "function": {"name": name, "arguments": arguments}}]});
    let upstream = Upstream::start();
    upstream.always(
        Answer::stream()
            .event(&delta(&json!({"reasoning_content": "Let me think about that for a while."})))
            .event(&delta(&json!({"refusal": "I would rather not."})))
            .event(&delta(&call("get_water_level", "{\"river\":")))
            .event(&delta(&json!({"tool_calls": [{"index": 0, "function": {"arguments": "\"Thames\"}"}}]})))
            .event(&last_chunk())
            .done(),
    );
    let gateway = Gateway::before(&upstream);
    gateway.hello_stream().ok();
    let row = gateway.row();
    // Exact where one piece ends and the next begins is nobody's promise; nothing left out is.
    let least = [
        "Let me think about that for a while.",
        "I would rather not.",
        "get_water_level",
        "{\"river\":\"Thames\"}",
    ]
    .map(tokens)
    .iter()
    .sum::<u64>();
    let output = row["output_tokens"].as_u64().unwrap();
    assert!((least - 3..=least + 3).contains(&output), "{output} for {least}");
}

#[test]
fn a_silent_embedding_is_counted_by_its_input() {
    let upstream = Upstream::start();
    let mut answer = crate::support::upstream::embeddings(0);
    answer.as_object_mut().unwrap().remove("usage");
    upstream.always(Answer::json(200, &answer));
    let gateway = Gateway::before(&upstream);
    gateway.post("/v1/embeddings", &json!({"model": "embed", "input": ["one weir", "two rivers"]})).ok();
    let row = gateway.row();
    assert_eq!(row["usage_source"], "counted");
    assert_eq!(row["usage"], json!({"input": tokens("one weir") + tokens("two rivers")}));
}

#[test]
fn a_client_that_leaves_before_the_first_byte_pays_its_input() {
    for streamed in [false, true] {
        let upstream = Upstream::start();
        upstream.always(Answer::never());
        let gateway = Gateway::before(&upstream);
        let connection = gateway.send(&if streamed { hello_stream() } else { hello() });
        wait_for("the request to arrive", Duration::from_secs(5), || (upstream.count() == 1).then_some(()));
        std::thread::sleep(ms(50));
        drop(connection);
        let row = gateway.row();
        assert_eq!(row["outcome"], "client_gone", "{row}");
        assert_eq!(row["status"], 499, "{row}");
        assert_eq!(row["usage_source"], "counted", "{row}");
        assert_eq!(row["usage"], json!({"input": chat_input("Hello, weir")}), "{row}");
        wait_for("the provider to be left", Duration::from_secs(2), || {
            (!upstream.ends().is_empty()).then_some(())
        });
    }
}

#[test]
fn a_client_that_leaves_in_the_middle_pays_its_input_and_what_passed() {
    for reset in [false, true] {
        let upstream = Upstream::start();
        upstream.always(Answer::stream().event(&chunk("Hello")).event(&chunk(" there, weir")).wait_for_end());
        let gateway = Gateway::before(&upstream);
        let (mut connection, head) = gateway.begin(&hello_stream());
        let mut text = String::new();
        while !text.contains(" there, weir") {
            text.push_str(&String::from_utf8(connection.chunk().unwrap().unwrap()).unwrap());
        }
        if reset {
            connection.reset();
        } else {
            drop(connection);
        }
        let row = gateway.row();
        assert_eq!(row["request_id"], head.header("x-request-id").unwrap());
        assert_eq!(row["outcome"], "client_gone", "{row}");
        assert_eq!(row["status"], 200, "{row}");
        assert_eq!(row["usage_source"], "counted", "{row}");
        let want = json!({"input": chat_input("Hello, weir"), "output": tokens("Hello there, weir")});
        assert_eq!(row["usage"], want, "{row}");
        wait_for("the provider to be left", Duration::from_secs(2), || {
            (!upstream.ends().is_empty()).then_some(())
        });
    }
}

#[test]
fn a_client_that_leaves_after_the_last_byte_pays_what_was_reported() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    for body in [hello(), hello_stream()] {
        let mut connection = gateway.connect();
        let request = Request::post("/v1/chat/completions", body.to_string()).key(&gateway.account.key);
        gateway.note(&connection.ask(&request).ok());
        connection.reset();
    }
    for row in gateway.rows_when(2) {
        assert_eq!(row["outcome"], "completed", "{row}");
        assert_eq!(row["usage_source"], "reported", "{row}");
    }
}

#[test]
fn a_client_that_reads_slowly_gets_and_pays_everything() {
    let upstream = Upstream::start();
    let mut answer = Answer::stream();
    for _ in 0..200 {
        answer = answer.event(&chunk(&"word ".repeat(2000)));
    }
    upstream.always(answer.event(&last_chunk()).event(&usage_chunk(&usage(10, 400_000))).done());
    let gateway = Gateway::before(&upstream);
    let (mut connection, _) = gateway.begin(&hello_stream());
    std::thread::sleep(ms(700));
    let mut length = 0;
    while let Some(piece) = connection.chunk().unwrap() {
        length += piece.len();
    }
    assert!(length > 200 * 10_000, "{length}");
    assert_eq!(gateway.row()["output_tokens"], 400_000);
}

#[test]
fn credit_is_never_overspent_by_requests_at_once() {
    let upstream = Upstream::start();
    // Each costs 0.06 at most and takes a moment: 16 fit into one dollar, however many ask.
    upstream.always(Answer::silent().wait(ms(30)).write(plain(&chat("x", &usage(9, 100)))));
    let gateway = Gateway::builder().provider("main", &upstream).standard_models("main").credit("1").start();
    let body = json!({"model": "dear", "max_tokens": 100, "messages": [{"role": "user", "content": "x"}]});
    let statuses = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                for _ in 0..6 {
                    let reply = gateway.chat(&body);
                    statuses.lock().unwrap().push(reply.status);
                }
            });
        }
    });
    let statuses = statuses.into_inner().unwrap();
    let served = statuses.iter().filter(|status| **status == 200).count();
    assert!(statuses.iter().all(|status| matches!(status, 200 | 402)), "{statuses:?}");
    assert!((1..=16).contains(&served), "{served} of {}", statuses.len());
    let rows = gateway.rows_when(served);
    assert!(
        rows.iter().all(|row| row["cost_pico_usd"] == 9 * 150_000_000_i64 + 100 * 600_000_000_i64),
        "{rows:?}"
    );
    let shown = gateway.show();
    assert_eq!(shown["owed_micro_usd"], 0, "{shown}");
    assert!(shown["balance_micro_usd"].as_i64().unwrap() >= 0, "{shown}");
}

fn plain(body: &Value) -> String {
    let body = body.to_string();
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[test]
fn a_hold_counts_every_choice_that_was_asked_for() {
    let upstream = Upstream::start();
    let gateway =
        Gateway::builder().provider("main", &upstream).standard_models("main").credit("0.15").start();
    let ask = |extra: Value| {
        let mut body =
            json!({"model": "dear", "max_tokens": 200, "messages": [{"role": "user", "content": "x"}]});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        gateway.chat(&body)
    };
    // One choice of 200 tokens costs 0.12 at most, five of them 0.60; for less than 64 tokens a choice none is begun.
    ask(json!({"n": 5})).refused(402, "credit_balance_exhausted");
    ask(json!({"n": 1})).ok();
    let body = json!({"model": "dear", "prompt": "x", "max_tokens": 200, "best_of": 5});
    gateway.post("/v1/completions", &body).refused(402, "credit_balance_exhausted");
}

#[test]
fn what_is_held_shows_and_is_part_of_the_balance() {
    let upstream = Upstream::start();
    let gate = Gate::new();
    upstream.always(
        Answer::stream()
            .event(&chunk("Hello"))
            .gate(&gate)
            .event(&last_chunk())
            .event(&usage_chunk(&usage(9, 1)))
            .done(),
    );
    let gateway = Gateway::before(&upstream);
    let (mut connection, _) = gateway.begin(&hello_stream());
    let shown = wait_for("the hold to show", Duration::from_secs(2), || {
        Some(gateway.show()).filter(|shown| shown["held_micro_usd"] != 0)
    });
    assert_eq!(shown["balance_micro_usd"], 10_000_000, "{shown}");
    gate.open();
    while connection.chunk().unwrap().is_some() {}
    wait_for("the hold to go", Duration::from_secs(2), || {
        (gateway.show()["held_micro_usd"] == 0).then_some(())
    });
}

#[test]
fn thousands_of_tiny_costs_are_not_rounded() {
    let upstream = Upstream::start();
    let mut used = usage(1, 1);
    used["prompt_tokens_details"] = json!({"cached_tokens": 1});
    upstream.always(Answer::json(200, &chat("x", &used)));
    let gateway = Gateway::before(&upstream);
    let mut body = hello();
    body["model"] = json!("rich");
    let request = Request::post("/v1/chat/completions", body.to_string()).key(&gateway.account.key);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut connection = gateway.connect();
                for _ in 0..50 {
                    gateway.note(&connection.ask(&request).ok());
                }
            });
        }
    });
    // 7.777778 micro-dollars each: 200 of them are 1,555.5556, and not 1,400 or 1,600.
    gateway.rows_when(200);
    let shown = gateway.show();
    assert_eq!(shown["balance_micro_usd"], 10_000_000 - 1_556, "{shown}");
}

#[test]
fn a_restart_keeps_every_account_as_it_was() {
    let upstream = Upstream::start();
    let mut gateway = Gateway::before(&upstream);
    for _ in 0..5 {
        gateway.hello().ok();
    }
    gateway.rows_when(5);
    let before = gateway.show()["balance_micro_usd"].clone();
    assert!(gateway.stop().unwrap().success());
    assert_eq!(gateway.show()["balance_micro_usd"], before);
    gateway.serve();
    assert_eq!(gateway.show()["balance_micro_usd"], before);
    gateway.hello().ok();
    gateway.rows_when(6);
}

#[test]
fn a_stop_in_the_middle_of_a_stream_bills_what_passed() {
    let upstream = Upstream::start();
    upstream.always(Answer::stream().event(&chunk("Hello")).wait_for_end());
    let mut gateway = Gateway::builder()
        .provider("main", &upstream)
        .standard_models("main")
        .server("drain_timeout_ms = 300")
        .start();
    let (mut connection, _) = gateway.begin(&hello_stream());
    connection.chunk().unwrap();
    let begun = Instant::now();
    assert!(gateway.stop().unwrap().success());
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let row = gateway.row();
    assert_eq!(row["outcome"], "shutdown", "{row}");
    assert_eq!(row["usage"], json!({"input": chat_input("Hello, weir"), "output": 1}), "{row}");
}

#[test]
fn a_stop_lets_a_stream_that_ends_in_time_end_well() {
    let upstream = Upstream::start();
    upstream.always(
        Answer::stream()
            .event(&chunk("Hello"))
            .wait(ms(700))
            .event(&last_chunk())
            .event(&usage_chunk(&usage(9, 1)))
            .done(),
    );
    let mut gateway = Gateway::builder()
        .provider("main", &upstream)
        .standard_models("main")
        .server("drain_timeout_ms = 8000")
        .start();
    let (mut connection, _) = gateway.begin(&hello_stream());
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        while let Some(piece) = connection.chunk().unwrap() {
            text.push_str(&String::from_utf8(piece).unwrap());
        }
        text
    });
    assert!(gateway.stop().unwrap().success());
    assert!(reader.join().unwrap().ends_with("data: [DONE]\n\n"));
    assert_eq!(gateway.row()["outcome"], "completed");
}
