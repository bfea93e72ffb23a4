//! What a client sees of a stream: every framing that providers use becomes the one that every client understands, and an end
//! that is none is said to be none.

use crate::support::gateway::hello_stream;
use crate::support::upstream::{Gate, choice_chunk, chunk, last_chunk, usage, usage_chunk};
use crate::support::{Answer, Gateway, Reply, Request, Upstream, ms, tokens};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const QUICK: &str = "first_byte_timeout_ms = 2000\nidle_timeout_ms = 700";

/// Streams this from the provider to a client, and hands on what the client got with the row of the bill.
fn streamed(answer: Answer, include_usage: bool) -> (Reply, Value) {
    let upstream = Upstream::start();
    upstream.always(answer);
    let gateway = Gateway::builder().provider_with("main", &upstream, QUICK).standard_models("main").start();
    let mut body = hello_stream();
    if include_usage {
        body["stream_options"] = json!({"include_usage": true});
    }
    let reply = gateway.chat(&body);
    (reply, gateway.row())
}

/// A whole stream of "Hello there" with usage 10 and 2, its lines ended and its events framed as told.
fn framed(line_end: &str, prefix: &str) -> String {
    let events = [chunk("Hello"), chunk(" there"), last_chunk(), usage_chunk(&usage(10, 2))];
    let mut text = String::new();
    for event in events {
        text.push_str(&format!("{prefix}{event}{line_end}{line_end}"));
    }
    text + &format!("{prefix}[DONE]{line_end}{line_end}")
}

#[track_caller]
fn whole(reply: &Reply, row: &Value) {
    assert_eq!(reply.said(), "Hello there", "{}", reply.text());
    assert!(reply.done() && reply.whole, "{}", reply.text());
    assert_eq!(row["outcome"], "completed", "{row}");
    assert_eq!(row["usage_source"], "reported", "{row}");
    assert_eq!(row["usage"], json!({"input": 10, "output": 2}), "{row}");
    assert_eq!(row["stream"], true);
    assert!(row["ttft_ms"].is_u64(), "{row}");
}

#[track_caller]
fn cut(reply: &Reply, row: &Value) {
    let events = reply.events();
    let last: Value = serde_json::from_str(events.last().expect("an event")).expect("not [DONE]");
    let error = crate::support::http::error_of(&last);
    assert_eq!(error["code"], "upstream_stream_truncated", "{error}");
    assert_eq!(error["type"], "server_error", "{error}");
    assert!(reply.whole, "the error event ends the body properly");
    assert!(!events.contains(&"[DONE]".to_owned()), "{events:?}");
    assert_eq!(row["outcome"], "upstream_cut", "{row}");
    assert_eq!(row["usage_source"], "counted", "{row}");
    assert_eq!(row["status"], 200, "{row}");
}

#[test]
fn every_line_end_becomes_a_line_feed() {
    for line_end in ["\n", "\r\n", "\r"] {
        let (reply, row) = streamed(Answer::stream_of([framed(line_end, "data: ")]), false);
        whole(&reply, &row);
    }
}

#[test]
fn a_stream_that_comes_byte_by_byte_is_the_same() {
    for line_end in ["\n", "\r\n", "\r"] {
        let text = framed(line_end, "data:");
        let (reply, row) = streamed(Answer::stream_of(text.as_bytes().chunks(1)), false);
        whole(&reply, &row);
    }
}

#[test]
fn what_clients_stumble_over_is_left_out() {
    let noise = [
        "\u{feff}".to_owned(),
        ": OPENROUTER PROCESSING\n\n".to_owned(),
        "retry: 3000\n\n".to_owned(),
        "id: 7\n\n".to_owned(),
        "event: ping\ndata: {}\n\n".to_owned(),
        "data:\n\n".to_owned(),
        "data\n\n".to_owned(),
        "unknown: field\n\n".to_owned(),
        "\n\n\n".to_owned(),
    ];
    let text = noise.concat() + &framed("\n", "retry: 10\nid: 1\ndata: ");
    let (reply, row) = streamed(Answer::stream_of([text]), false);
    whole(&reply, &row);
    assert_eq!(reply.chunks().len(), 3, "{}", reply.text());
}

#[test]
fn an_event_of_several_data_lines_is_one() {
    let text = chunk("Hello").to_string().replacen(",\"", ",\ndata: \"", 2);
    let rest = framed("\n", "data: ");
    let (_, rest) = rest.split_once("\n\n").unwrap();
    let (reply, _) = streamed(Answer::stream_of([format!("data: {text}\n\n{rest}")]), false);
    let events = reply.chunks();
    assert_eq!(events[0], chunk("Hello"));
}

#[test]
fn chunks_go_on_as_they_came() {
    let odd = r#"{ "id":"x","choices":[{"index":0,"delta":{"content":"Hello there"},"finish_reason":null}],"extra":{"a":1.50},"created":1e3 }"#;
    let text = format!("data: {odd}\n\ndata: {}\n\ndata: [DONE]\n\n", last_chunk());
    let (reply, _) = streamed(Answer::stream_of([text]), false);
    assert_eq!(reply.events()[0], odd);
}

#[test]
fn events_that_come_apart_in_time_go_out_apart() {
    let upstream = Upstream::start();
    let gate = Gate::new();
    upstream.always(Answer::stream().event(&chunk("first")).gate(&gate).event(&last_chunk()).done());
    let gateway = Gateway::before(&upstream);
    let (mut connection, head) = gateway.begin(&hello_stream());
    let first = String::from_utf8(connection.chunk().unwrap().unwrap()).unwrap();
    assert!(first.contains("first"), "{first}");
    gate.open();
    while connection.chunk().unwrap().is_some() {}
    assert_eq!(gateway.row()["request_id"], head.header("x-request-id").unwrap());
}

#[test]
fn the_usage_chunk_reaches_only_the_client_that_asked() {
    for include_usage in [false, true] {
        let (reply, row) = streamed(Answer::stream_of([framed("\n", "data: ")]), include_usage);
        whole(&reply, &row);
        let with_usage: Vec<Value> =
            reply.chunks().into_iter().filter(|chunk| chunk["usage"].is_object()).collect();
        assert_eq!(with_usage.len(), usize::from(include_usage), "{}", reply.text());
        assert!(with_usage.iter().all(|chunk| chunk["choices"] == json!([])));
    }
}

#[test]
fn usage_in_every_chunk_is_taken_from_the_last() {
    let with = |mut chunk: Value, prompt: u64, completion: u64| {
        chunk["usage"] = usage(prompt, completion);
        chunk
    };
    let answer = Answer::stream()
        .event(&with(chunk("Hello"), 10, 1))
        .event(&with(chunk(" there"), 10, 2))
        .event(&with(last_chunk(), 10, 2))
        .event(&with(choice_chunk(&json!([])), 10, 2))
        .done();
    let (reply, row) = streamed(answer, false);
    whole(&reply, &row);
}

#[test]
fn usage_beside_choices_counts_and_the_choices_pass() {
    let mut last = last_chunk();
    last["usage"] = usage(10, 2);
    let (reply, row) =
        streamed(Answer::stream().event(&chunk("Hello")).event(&chunk(" there")).event(&last).done(), false);
    whole(&reply, &row);
    assert_eq!(reply.chunks().last().unwrap()["choices"][0]["finish_reason"], "stop");
}

#[test]
fn usage_that_is_null_after_some_was_told_does_not_erase_it() {
    let mut early = last_chunk();
    early["usage"] = usage(10, 2);
    let mut after = choice_chunk(&json!([]));
    after["usage"] = Value::Null;
    let answer =
        Answer::stream().event(&chunk("Hello")).event(&chunk(" there")).event(&early).event(&after).done();
    let (reply, row) = streamed(answer, false);
    whole(&reply, &row);
}

#[test]
fn usage_under_another_roof_counts() {
    let mut last = last_chunk();
    last["x_groq"] = json!({"id": "req_1", "usage": usage(10, 2)});
    let (reply, row) =
        streamed(Answer::stream().event(&chunk("Hello")).event(&chunk(" there")).event(&last).done(), false);
    whole(&reply, &row);
}

#[test]
fn a_first_chunk_without_choices_is_no_usage_chunk() {
    let azure = json!({
        "choices": [], "created": 0, "id": "", "model": "", "object": "",
        "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": {}}],
    });
    let text = format!("data: {azure}\n\n{}", framed("\n", "data: "));
    let (reply, row) = streamed(Answer::stream_of([text]), false);
    whole(&reply, &row);
    assert_eq!(reply.chunks()[0], azure);
}

#[test]
fn an_end_of_file_after_every_choice_is_finished_is_a_proper_end() {
    let (reply, row) = streamed(
        Answer::stream()
            .event(&chunk("Hello"))
            .event(&chunk(" there"))
            .event(&last_chunk())
            .event(&usage_chunk(&usage(10, 2)))
            .end(),
        false,
    );
    whole(&reply, &row);
}

#[test]
fn an_end_of_file_while_a_choice_is_open_is_a_cut() {
    let two = choice_chunk(&json!([
        {"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"},
        {"index": 1, "delta": {"content": "b"}, "finish_reason": null},
    ]));
    for answer in [
        Answer::stream().event(&chunk("Hello")).end(),
        Answer::stream().event(&two).end(),
        Answer::stream().end(),
    ] {
        let (reply, row) = streamed(answer, false);
        cut(&reply, &row);
    }
}

#[test]
fn a_stream_that_is_cut_says_so_and_bills_what_passed() {
    let begun = Answer::stream().event(&chunk("Hello")).event(&chunk(" there"));
    let half = begun.clone().piece("data: {\"id\":\"chatcmpl-1\",\"cho");
    let after_usage = begun.clone().event(&usage_chunk(&usage(10, 2)));
    for answer in
        [begun.clone().close(), begun.clone().wait(ms(50)).reset(), half.close(), after_usage.close()]
    {
        let (reply, row) = streamed(answer, false);
        cut(&reply, &row);
        assert_eq!(reply.said(), "Hello there");
        assert_eq!(row["output_tokens"], 2, "{row}");
        assert!(row["input_tokens"].as_u64().unwrap() > 0, "{row}");
    }
}

#[test]
fn a_stream_that_stalls_is_cut_in_time() {
    let begun = Instant::now();
    let (reply, row) = streamed(Answer::stream().event(&chunk("Hello")).wait_for_end(), false);
    cut(&reply, &row);
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}

#[test]
fn an_error_event_becomes_ours_and_ends_the_stream() {
    let nested =
        json!({"error": {"message": "overloaded", "type": "server_error", "param": null, "code": "x"}});
    let number = json!({"error": {"message": "overloaded", "code": 502}});
    let flat = json!({"object": "error", "message": "overloaded", "type": "BadRequestError", "param": null, "code": 400});
    let mut beside = choice_chunk(&json!([{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}]));
    beside["error"] = json!({"code": 502, "message": "overloaded"});
    for error in [nested, number, flat, beside] {
        for prefix in ["", "event: error\n"] {
            let answer = Answer::stream()
                .event(&chunk("Hello"))
                .piece(format!("{prefix}data: {error}\n\n"))
                .event(&chunk(" never"))
                .done();
            let (reply, row) = streamed(answer, false);
            let events = reply.events();
            let last: Value = serde_json::from_str(events.last().unwrap()).expect("an error and not [DONE]");
            crate::support::http::error_of(&last);
            assert_eq!(last.as_object().unwrap().len(), 1, "{last}");
            assert_eq!(reply.said(), "Hello");
            assert_eq!(row["outcome"], "upstream_cut", "{row}");
            assert_eq!(row["usage_source"], "counted", "{row}");
            assert_eq!(row["output_tokens"], 1, "{row}");
        }
    }
}

#[test]
fn nothing_follows_done() {
    let text = framed("\n", "data: ") + "data: {\"late\": true}\n\ndata: [DONE]\n\n";
    let (reply, row) = streamed(Answer::stream_of([text]), false);
    whole(&reply, &row);
    assert!(!reply.text().contains("late"));
    assert_eq!(reply.text().matches("[DONE]").count(), 1);
}

#[test]
fn the_bill_is_written_before_the_end_is_told() {
    let upstream = Upstream::start();
    // After [DONE] the provider keeps the connection: neither the client nor the bill waits for it.
    upstream.always(Answer::stream().piece(framed("\n", "data: ")).wait_for_end());
    let gateway = Gateway::before(&upstream);
    let begun = Instant::now();
    let reply = gateway.hello_stream().ok();
    assert!(reply.done());
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(gateway.row()["outcome"], "completed");
}

#[test]
fn an_event_without_end_is_bounded() {
    let upstream = Upstream::start();
    let mut answer = Answer::stream().event(&chunk("Hello")).piece("data: {\"x\":\"");
    for _ in 0..40 {
        answer = answer.piece("x".repeat(512 * 1024));
    }
    upstream.always(answer.close());
    let gateway = Gateway::before(&upstream);
    let reply = gateway.hello_stream();
    let last: Value = serde_json::from_str(reply.events().last().unwrap()).unwrap();
    crate::support::http::error_of(&last);
    assert!(!reply.done());
    gateway.row();
}

#[test]
fn streamed_completions_are_metered_as_chats_are() {
    let upstream = Upstream::start();
    let text = |text: &str, finish: Value| {
        json!({"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m",
               "choices": [{"index": 0, "text": text, "finish_reason": finish}]})
    };
    upstream.always(
        Answer::stream().event(&text("Hello", Value::Null)).event(&text(" there", json!("length"))).done(),
    );
    let gateway = Gateway::before(&upstream);
    let body = json!({"model": "tiny", "prompt": "Say hello", "stream": true, "max_tokens": 5});
    let reply = gateway.post("/v1/completions", &body).ok();
    assert!(reply.done());
    let row = gateway.row();
    assert_eq!(row["usage_source"], "counted", "{row}");
    assert_eq!(row["usage"], json!({"input": tokens("Say hello"), "output": tokens("Hello there")}), "{row}");
}

#[test]
fn many_streams_at_once_are_each_billed_once() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..4 {
                    let reply = gateway.hello_stream().ok();
                    assert!(reply.done());
                }
            });
        }
    });
    let rows = gateway.rows_when(64);
    assert!(rows.iter().all(|row| row["outcome"] == "completed"));
}

/// Asks for a stream as a client of HTTP/1.0 does, with these headers besides.
pub(crate) fn stream_of_http_1_0(gateway: &Gateway, headers: &str) -> Reply {
    let request = Request::post("/v1/chat/completions", hello_stream().to_string()).key(&gateway.account.key);
    let request = String::from_utf8(request.to_bytes(gateway.address())).unwrap();
    let mut client = gateway.connect();
    client.send(request.replacen(" HTTP/1.1\r\n", &format!(" HTTP/1.0\r\n{headers}"), 1).as_bytes()).unwrap();
    let head = client.head().unwrap();
    assert_eq!(head.header("transfer-encoding"), None);
    assert_eq!(head.header("connection"), Some("close"));
    let reply = client.finish(head).unwrap();
    gateway.note(&reply);
    assert!(reply.body.starts_with(b"data: {"), "{}", reply.text());
    assert!(reply.done(), "{}", reply.text());
    reply
}

#[test]
fn a_client_of_http_1_0_gets_a_stream_without_chunks_that_ends_with_its_connection() {
    let upstream = Upstream::start();
    upstream.always(Answer::new(200, "text/event-stream", framed("\n", "data: ")));
    let gateway = Gateway::before(&upstream);
    for headers in ["", "Connection: keep-alive\r\n"] {
        assert_eq!(stream_of_http_1_0(&gateway, headers).said(), "Hello there");
    }
    assert!(gateway.rows_when(2).iter().all(|row| row["outcome"] == "completed"));
}
