//! Streams as providers send them, and what becomes of them.

use super::*;
use crate::tokens::count;
use proptest::prelude::*;

struct Seen {
    text: String,
    ending: Ending,
    usage: Option<Usage>,
    tokens: u64,
}

fn settings(usage_asked: bool) -> StreamSettings {
    StreamSettings { endpoint: Endpoint::ChatCompletions, usage_asked, max_event_bytes: 4_096 }
}

/// Feeds the stream in pieces of that size, then its end.
fn metered(stream: &str, size: usize, usage_asked: bool) -> Seen {
    let mut meter = StreamMeter::new(settings(usage_asked));
    let mut out = Vec::new();
    let ended = stream.as_bytes().chunks(size).find_map(|piece| match meter.feed(piece, &mut out) {
        Fed::Ended(ending) => Some(ending),
        Fed::Open => None,
    });
    let ending = ended.unwrap_or_else(|| meter.finish(&mut out));
    meter.write_end(&ending, &mut out);
    Seen {
        text: String::from_utf8(out).unwrap(),
        ending,
        usage: meter.usage(),
        tokens: meter.output_tokens(),
    }
}

/// The same at every size of pieces, for the sizes must not matter.
#[track_caller]
fn stream(text: &str) -> Seen {
    let whole = metered(text, text.len().max(1), false);
    for size in 1..60 {
        let cut = metered(text, size, false);
        assert_eq!(
            (&cut.text, &cut.ending, cut.usage),
            (&whole.text, &whole.ending, whole.usage),
            "by {size}"
        );
        assert_eq!(cut.tokens, whole.tokens, "by {size}");
    }
    whole
}

fn said(text: &str) -> String {
    format!(r#"{{"choices":[{{"index":0,"delta":{{"content":"{text}"}},"finish_reason":null}}]}}"#)
}

const LAST: &str = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}"#;
const USAGE: &str = r#"{"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":2,"total_tokens":12}}"#;

fn events(data: &[&str]) -> String {
    data.iter().map(|data| format!("data: {data}\n\n")).collect()
}

fn used() -> Option<Usage> {
    Some(Usage { input: 10, output: 2, ..Usage::default() })
}

#[test]
fn chunks_pass_byte_for_byte_and_the_usage_chunk_only_if_asked() {
    let odd =
        r#"{ "choices":[{"index":0,"delta":{"content":"Hello there"}}],"extra":{"a":1.50} , "created":1e3 }"#;
    let seen = stream(&events(&[odd, LAST, USAGE, "[DONE]"]));
    assert_eq!(seen.text, events(&[odd, LAST, "[DONE]"]));
    assert_eq!((seen.ending, seen.usage, seen.tokens), (Ending::Done, used(), 2));
    let asked = metered(&events(&[odd, LAST, USAGE, "[DONE]"]), 1_000, true);
    assert_eq!(asked.text, events(&[odd, LAST, USAGE, "[DONE]"]));
}

#[test]
fn every_framing_becomes_the_one_that_clients_understand() {
    let want = events(&[&said("a"), LAST, "[DONE]"]);
    for end in ["\n", "\r\n", "\r"] {
        let frame = |data: &str| format!("retry: 10{end}id: 1{end}event: message{end}data:{data}{end}{end}");
        let noise = format!(
            "\u{feff}: PROCESSING{end}{end}retry: 3{end}{end}event: ping{end}data: {{}}{end}{end}data:{end}{end}data{end}{end}{end}{end}"
        );
        let text = noise + &[&said("a"), LAST, "[DONE]"].map(frame).concat();
        assert_eq!(stream(&text).text, want);
    }
    let lines = "data: {\"choices\":\ndata: []}\n\n";
    assert!(stream(lines).text.starts_with(lines));
}

#[test]
fn usage_is_the_last_one_that_says_something() {
    let beside = LAST.replace("null}", r#"{"prompt_tokens":10,"completion_tokens":2}}"#);
    let extension =
        LAST.replace(r#""usage":null"#, r#""x_vendor":{"usage":{"prompt_tokens":10,"completion_tokens":2}}"#);
    let null = r#"{"choices":[],"usage":null}"#;
    let early = USAGE.replace("10", "9");
    for chunks in [[&*beside, null], [&early, &extension], [USAGE, r#"{"choices":[],"usage":{}}"#]] {
        let seen = stream(&events(&[&said("a"), chunks[0], chunks[1], "[DONE]"]));
        assert_eq!(seen.usage, used(), "{chunks:?}");
    }
    // A first chunk without choices is none of usage.
    let first = r#"{"choices":[],"id":"","prompt_filter_results":[]}"#;
    assert!(stream(&events(&[first, LAST, "[DONE]"])).text.contains("prompt_filter_results"));
}

#[test]
fn an_end_of_file_is_proper_only_when_every_choice_is_finished() {
    let two = r#"{"choices":[{"index":0,"finish_reason":"stop"},{"index":1,"finish_reason":""}]}"#;
    let second = r#"{"choices":[{"index":1,"delta":{},"finish_reason":"length"}]}"#;
    assert_eq!(stream(&events(&[two, second])).ending, Ending::Done);
    for text in [
        events(&[two]),
        events(&[&said("a")]),
        String::new(),
        events(&[LAST, second, two, &said("a")]).replace("length\"", "\""),
    ] {
        let seen = stream(&text);
        assert_eq!(seen.ending, Ending::Truncated, "{text}");
        assert!(seen.text.contains("upstream_stream_truncated") && !seen.text.contains("[DONE]"));
    }
    let forgotten = events(&[&said("a"), LAST]) + "data: " + USAGE;
    assert_eq!(stream(&forgotten).usage, used());
    assert_eq!(stream(&(events(&[&said("a")]) + "data: [DONE]")).ending, Ending::Done);
    let half = events(&[&said("a")]) + "data: {\"choices\":[{";
    assert_eq!(stream(&half).ending, Ending::Truncated);
}

#[test]
fn any_error_event_ends_the_stream_as_ours() {
    for error in [
        r#"{"error":{"message":"sk-secret","type":"server_error","param":null,"code":"x"}}"#,
        r#"{"object":"error","message":"sk-secret","code":400}"#,
        r#"[{"error":{"message":"sk-secret"}}]"#,
        r#"{"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":"error"}],"error":{"code":502,"message":"sk-secret"}}"#,
        "not JSON, sk-secret",
    ] {
        for prefix in ["", "event: error\n"] {
            let seen = stream(&format!(
                "{}{prefix}data: {error}\n\n{}",
                events(&[&said("Hello")]),
                events(&[&said("never"), "[DONE]"])
            ));
            assert!(matches!(seen.ending, Ending::ErrorEvent(_)), "{error}");
            let (first, last) = seen.text.split_once("\n\n").unwrap();
            assert!(first.contains("Hello") && seen.tokens == 1, "{}", seen.text);
            assert!(last.starts_with("data: {\"error\":{\"message\":") && last.ends_with("}}\n\n"), "{last}");
            assert!(!seen.text.contains("secret") && !seen.text.contains("[DONE]"), "{}", seen.text);
        }
    }
    let long = r#"{"error":{"message":"x","code":"context_length_exceeded"}}"#;
    assert!(stream(&events(&[long])).text.contains(r#""code":"context_length_exceeded""#));
}

#[test]
fn nothing_follows_done() {
    let seen = stream(&events(&[LAST, "[DONE]", r#"{"late":true}"#, "[DONE]"]));
    assert_eq!(seen.text, events(&[LAST, "[DONE]"]));
}

#[test]
fn an_event_without_end_is_bounded() {
    let seen = stream(&(events(&[&said("a")]) + "data: {\"x\":\"" + &"x".repeat(5_000)));
    assert_eq!(seen.ending, Ending::TooLong);
    assert!(seen.text.contains("upstream_error") && !seen.text.contains("[DONE]"));
}

#[test]
fn text_in_any_pieces_counts_as_the_text_that_it_is() {
    let text = "Streams cut words any where: 3.14159, don't, 川の堰。";
    let letters: Vec<char> = text.chars().collect();
    let mut meter = StreamMeter::new(settings(false));
    let mut out = Vec::new();
    assert!(!meter.passed());
    for piece in letters.chunks(2) {
        meter.feed(events(&[&said(&piece.iter().collect::<String>())]).as_bytes(), &mut out);
        assert!(meter.passed() && meter.output_tokens() > 0);
    }
    assert_eq!(meter.output_tokens(), count(text));
    assert_eq!(meter.usage(), None);
}

#[test]
fn the_service_tier_is_the_one_that_the_answer_names() {
    let mut meter = StreamMeter::new(settings(false));
    let chunk = r#"{"choices":[],"service_tier":"priority"}"#;
    meter.feed(events(&[chunk, r#"{"service_tier":null}"#]).as_bytes(), &mut Vec::new());
    assert_eq!(meter.service_tier(), Some("priority"));
}

#[test]
fn a_stream_that_credit_does_not_cover_is_cut_short_and_says_so() {
    for usage_asked in [false, true] {
        let mut meter = StreamMeter::new(settings(usage_asked));
        let mut out = Vec::new();
        let first = r#"{"id":"c","object":"o","created":5,"model":"m","choices":[{"index":0,"delta":{"content":"Hello"}}]}"#;
        let other = r#"{"choices":[{"index":1,"delta":{},"finish_reason":"stop"}]}"#;
        assert_eq!(meter.feed(events(&[first, other]).as_bytes(), &mut out), Fed::Open);
        assert_eq!((meter.said_bytes(), meter.output_tokens()), (5, 1));
        let usage = Usage { input: 7, output: 1, ..Usage::default() };
        meter.write_end(&Ending::CreditExhausted(usage), &mut out);
        let text = String::from_utf8(out).unwrap();
        let told: Vec<&str> = text.split_terminator("\n\n").skip(2).collect();
        let head = r#"data: {"id":"c","object":"o","created":5,"model":"m","choices":["#;
        assert_eq!(
            told[0],
            format!(r#"{head}{{"index":0,"delta":{{}},"logprobs":null,"finish_reason":"length"}}]}}"#)
        );
        assert_eq!(told.len(), 2 + usize::from(usage_asked));
        if usage_asked {
            let usage = r#"],"usage":{"prompt_tokens":7,"completion_tokens":1,"total_tokens":8}}"#;
            assert_eq!(told[1], format!("{head}{usage}"));
        }
        let last = told.last().unwrap();
        assert!(
            last.contains(r#""type":"insufficient_quota","param":null,"code":"credit_balance_exhausted""#),
            "{last}"
        );
    }
}

/// A chunk of one of the kinds that streams mix.
fn mixed(kind: usize, text: &str) -> String {
    match kind {
        0 => said(text),
        1 => said(text).replace("\"index\":0", "\"index\":1"),
        2 => said(text).replace("\"content\"", "\"reasoning_content\""),
        3 => said(text).replace("null}]}", "null}],\"obfuscation\":\"pad\"}"),
        4 => format!(
            r#"{{"choices":[{{"index":0,"delta":{{"tool_calls":[{{"index":0,"function":{{"arguments":"{text}"}}}}]}}}}]}}"#
        ),
        5 => said(text).replace("null}]}", "null}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":1}}"),
        6 => said(text).replace("null", "\"stop\""),
        _ => USAGE.to_owned(),
    }
}

proptest! {
    #[test]
    fn chunks_that_repeat_a_form_are_read_as_each_alone_is(
        chunks in prop::collection::vec((0..8_usize, "[a-c]{0,2}|water|\\\\n|u00e9"), 1..40),
        runs in 1..6_usize,
    ) {
        let mut meter = StreamMeter::new(settings(false));
        let (mut out, mut alone_out, mut alone_bytes, mut usage) = (Vec::new(), Vec::new(), 0, None);
        for (kind, text) in &chunks {
            for _ in 0..runs {
                let event = events(&[&mixed(*kind, text)]);
                prop_assert_eq!(meter.feed(event.as_bytes(), &mut out), Fed::Open);
                let mut alone = StreamMeter::new(settings(false));
                prop_assert_eq!(alone.feed(event.as_bytes(), &mut alone_out), Fed::Open);
                alone_bytes += alone.said_bytes();
                usage = alone.usage().or(usage);
            }
        }
        prop_assert_eq!(String::from_utf8(out), String::from_utf8(alone_out));
        prop_assert_eq!((meter.said_bytes(), meter.usage()), (alone_bytes, usage));
    }
}
