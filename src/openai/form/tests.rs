//! A chunk read by its form, beside the same chunk read as an answer.

use super::*;
use proptest::prelude::*;

type Texts = Vec<(u32, u32, String)>;

fn by_answer(chunk: &str) -> Option<Texts> {
    let answer = Answer::parse(chunk).ok()?;
    let mut texts = Texts::new();
    answer.each_choice(|choice| {
        choice.each_text(|said| texts.push((said.choice, said.channel, said.text.to_owned())));
    });
    Some(texts)
}

fn form(chunk: &str) -> Option<Form> {
    Form::of(chunk, &Answer::parse(chunk).unwrap())
}

fn by_form(form: &Form, chunk: &str) -> Option<Texts> {
    let mut texts = Texts::new();
    let is_read = form.read(chunk, |said| texts.push((said.choice, said.channel, said.text.to_owned())));
    is_read.then_some(texts)
}

const CHUNKS: [&str; 7] = [
    r#"{"id":"c","choices":[{"index":0,"delta":{"content":"TEXT"},"finish_reason":null}],"usage":null}"#,
    r#"{"choices":[{"index":3,"delta":{"content":"","reasoning_content":"TEXT"}}],"service_tier":"default","obfuscation":"PAD"}"#,
    r#"{"choices":[{"delta":{"tool_calls":[{"index":1,"function":{"arguments":"TEXT"}}]},"finish_reason":""}],"obfuscation":"PAD"}"#,
    r#"{ "choices" : [ {"index":1, "text" : "TEXT" } ] , "created" : 1e3 }"#,
    r#"{"choices":[{"delta":{"content":[{"type":"text","text":"TEXT"}]}}]}"#,
    r#"{"obfuscation":"PAD","choices":[{"delta":{"refusal":"TEXT"}}]}"#,
    r#"{"choices":[{"delta":{"content":"TEXT"},"logprobs":{"content":["TOKEN"]}}]}"#,
];

fn chunk(kind: usize, text: &str, padding: &str) -> String {
    CHUNKS[kind].replace("TEXT", text).replace("PAD", padding)
}

#[test]
fn chunks_of_one_form_are_read_by_it() {
    for kind in 0..CHUNKS.len() {
        let form = form(&chunk(kind, " weir", "x7")).unwrap();
        for text in ["a", "the water", "\u{5ddd}", r"\n", r#"say \"so\""#, r"\ud83c\udf0a", r"\\", "weir"] {
            let padding = if kind == 5 { "x7" } else { "another" };
            let next = chunk(kind, text, padding);
            assert_eq!(by_form(&form, &next), by_answer(&next), "{next}");
            assert!(by_form(&form, &next).is_some(), "{next}");
        }
    }
}

#[test]
fn what_is_not_of_the_form_is_not_read() {
    let of = |kind: usize| form(&chunk(kind, " weir", "x7")).unwrap();
    for next in [
        chunk(0, "", ""),
        chunk(0, "a\",\"role\":\"b", ""),
        chunk(0, "a", "").replace("null}]", "\"stop\"}]"),
        chunk(0, "a", "")
            .replace("\"usage\":null", "\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1}"),
        chunk(0, "a", "").replace("\"id\":\"c\"", "\"id\":\"d\""),
        chunk(0, "a", "") + "x",
        chunk(0, "a\u{1}", ""),
        chunk(0, r"\x", ""),
        chunk(0, r"a\", ""),
        chunk(0, "a", "").replace("\"a\"", "7"),
        chunk(1, "a", "x7"),
        String::new(),
        "{".to_owned(),
    ] {
        assert_eq!(by_form(&of(0), &next), None, "{next}");
    }
    for padding in ["a\",\"error\":\"b", "\n", r"\"] {
        assert_eq!(by_form(&of(1), &chunk(1, "a", padding)), None, "{padding}");
    }
    assert_eq!(by_form(&of(1), &chunk(1, "a", "b").replace("\"b\"", "{}")), None);
}

#[test]
fn what_cannot_be_exchanged_is_no_form() {
    for chunk in [
        // Written with an escape, or twice: nobody knows which of them was read.
        chunk(0, r"a\n", ""),
        chunk(0, "delta", ""),
        chunk(0, "", ""),
        chunk(0, "a", "").replace("\"id\":\"c\"", "\"id\":\"a\""),
        // Two texts, two choices, an end, something to bill by, an error, an odd shape.
        r#"{"choices":[{"delta":{"content":"a","refusal":"b"}}]}"#.to_owned(),
        r#"{"choices":[{"text":"a"},{"text":"b"}]}"#.to_owned(),
        chunk(0, "a", "").replace("null}]", "\"stop\"}]"),
        chunk(0, "a", "").replace("\"usage\":null", "\"usage\":{}"),
        r#"{"choices":[{"text":"a"}],"error":"b"}"#.to_owned(),
        r#"{"choices":[{"delta":"a"}]}"#.to_owned(),
        r#"{"choices":[]}"#.to_owned(),
        "{}".to_owned(),
        chunk(0, &"a".repeat(2_000), ""),
    ] {
        assert!(form(&chunk).is_none(), "{chunk}");
    }
}

proptest! {
    /// Whatever follows whatever: what a form reads, it reads as the answer does.
    #[test]
    fn a_form_never_reads_what_an_answer_does_not(
        kinds in (0..CHUNKS.len(), 0..CHUNKS.len()),
        first in "[a-z\" \\\\]{0,6}",
        next in "[a-z\" \\\\nu0-9{}:,\u{1}é]{0,12}",
        paddings in ("[a-c]{0,3}", "[a-c\" \\\\,:{}]{0,6}"),
        cut in (0..200_usize, 0..4_usize),
    ) {
        let before = chunk(kinds.0, &first, &paddings.0);
        let mut after: Vec<char> = chunk(kinds.1, &next, &paddings.1).chars().collect();
        if cut.0 < after.len() {
            after.drain(cut.0..after.len().min(cut.0 + cut.1));
        }
        let after: String = after.into_iter().collect();
        let learned = Answer::parse(&before).ok().and_then(|answer| Form::of(&before, &answer));
        if let Some(texts) = learned.and_then(|form| by_form(&form, &after)) {
            let answer = Answer::parse(&after);
            prop_assert!(answer.is_ok_and(|answer| !answer.is_error() && !answer.has_usage() && answer.has_choices()));
            prop_assert_eq!(Some(texts), by_answer(&after));
        }
    }
}
