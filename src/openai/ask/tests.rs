//! What may be asked, and what becomes of it.

use super::*;
use crate::openai::splice;

fn ask(keys: &str) -> Result<Ask, Refused> {
    Ask::parse(Endpoint::ChatCompletions, format!("{{{keys}}}").as_bytes())
}

#[track_caller]
fn refused(keys: &str, kind: Kind, param: &str) {
    let refused = ask(keys).expect_err(keys);
    assert_eq!(refused.kind, kind, "{keys}: {refused}");
    assert_eq!(refused.param.as_deref(), Some(param), "{keys}");
}

/// The body as it goes to a provider that calls the model `up`.
fn sent(body: &str) -> String {
    let ask = Ask::parse(Endpoint::ChatCompletions, body.as_bytes()).unwrap();
    String::from_utf8(splice(body.as_bytes(), &ask.edits("up"))).unwrap()
}

#[test]
fn everything_that_is_acted_on_is_read() {
    let ask = ask(
        r#""model":"m\u0061","stream":true,"stream_options":{"include_usage":true},"max_tokens":5,
        "max_completion_tokens":7,"n":2,"best_of":3,"service_tier":"flex","messages":[],"user":{"model":"x","n":-1}"#,
    )
    .unwrap();
    assert_eq!(ask.model, "ma");
    assert!(ask.stream && ask.include_usage);
    assert_eq!((ask.max_output_tokens, ask.choices), (Some(7), 3));
    assert_eq!(ask.service_tier.as_deref(), Some("flex"));
}

#[test]
fn null_is_as_good_as_absent() {
    let nulls = r#""model":"m","stream":null,"stream_options":null,"n":null,"best_of":null,"max_tokens":null,
        "max_completion_tokens":null,"service_tier":null,"store":null,"previous_response_id":null"#;
    let ask = ask(nulls).unwrap();
    assert!(!ask.stream && !ask.include_usage && ask.service_tier.is_none());
    assert_eq!((ask.max_output_tokens, ask.choices), (None, 1));
}

#[test]
fn a_key_with_two_readings_is_refused() {
    for (keys, name) in [
        (r#""model":"a","model":"b""#, "model"),
        (r#""model":"a","model":null"#, "model"),
        (r#""model":null,"model":"a""#, "model"),
        (r#""Model":"a""#, "model"),
        (r#""mod\u0065l":"a""#, "model"),
        (r#""model":"a","N":5"#, "n"),
        (r#""model":"a","MAX_tokens":5"#, "max_tokens"),
        (r#""model":"a","\u0073tream":true"#, "stream"),
        ("\"model\":\"a\",\"\u{17f}tream\":true", "stream"),
        ("\"model\":\"a\",\"max_to\u{212a}ens\":1", "max_tokens"),
        (r#""model":"a","messages":[],"Messages":[]"#, "messages"),
        (r#""model":"a","stream_options":{"include_usage":true,"include_usage":false}"#, "stream_options"),
        (r#""model":"a","stream_options":{"Include_Usage":true}"#, "stream_options"),
    ] {
        refused(keys, Kind::DuplicateKey, name);
    }
    assert!(ask(r#""model":"a","x":1,"x":2,"X":3,"caf\u00e9":4,"temperature":1,"Temperature":2"#).is_ok());
}

#[test]
fn a_wrong_kind_is_refused_by_name() {
    for (keys, name) in [
        (r#""messages":[]"#, "model"),
        (r#""model":null"#, "model"),
        (r#""model":"""#, "model"),
        (r#""model":["m"]"#, "model"),
        (r#""model":"m","stream":"true""#, "stream"),
        (r#""model":"m","n":0"#, "n"),
        (r#""model":"m","n":129"#, "n"),
        (r#""model":"m","n":1.0"#, "n"),
        (r#""model":"m","best_of":"2""#, "best_of"),
        (r#""model":"m","max_tokens":-1"#, "max_tokens"),
        (r#""model":"m","max_tokens":0"#, "max_tokens"),
        (r#""model":"m","max_tokens":1e23"#, "max_tokens"),
        (r#""model":"m","max_completion_tokens":99999999999999999999"#, "max_completion_tokens"),
        (r#""model":"m","service_tier":5"#, "service_tier"),
        (r#""model":"m","store":"yes""#, "store"),
        (r#""model":"m","stream_options":[]"#, "stream_options"),
        (r#""model":"m","stream_options":{"include_usage":1}"#, "stream_options"),
    ] {
        refused(keys, Kind::InvalidValue, name);
    }
}

#[test]
fn state_at_a_provider_is_refused() {
    for (keys, name) in [
        (r#""model":"m","store":true"#, "store"),
        (r#""model":"m","previous_response_id":"resp_1""#, "previous_response_id"),
        (r#""model":"m","conversation":{"id":"conv_1"}"#, "conversation"),
        (
            r#""model":"m","messages":[{"role":"user","content":[{"type":"file","file":{"file_id":"file-1"}}]}]"#,
            "messages",
        ),
    ] {
        refused(keys, Kind::UnsupportedParameter, name);
    }
    let harmless = r#""model":"m","store":false,"tools":[{"type":"function","function":{"parameters":
        {"properties":{"file_id":{"type":"string"}}}}}],"messages":[{"role":"user","content":"\"file_id\""}]"#;
    assert!(ask(harmless).is_ok());
    let refused = Ask::parse(Endpoint::Embeddings, br#"{"model":"m","stream":true}"#).unwrap_err();
    assert_eq!(refused.kind, Kind::UnsupportedParameter);
}

#[test]
fn what_is_not_one_json_object_is_refused_without_a_quote_of_it() {
    for body in [
        "",
        "{",
        "secret",
        "{'secret':1}",
        r#"{"model":"m"} {}"#,
        r#"{"x":NaN}"#,
        "[]",
        "null",
        "7",
        "\"secret\"",
        "\u{feff}{}",
    ] {
        let refused = Ask::parse(Endpoint::ChatCompletions, body.as_bytes()).unwrap_err();
        assert_eq!(refused.kind, Kind::InvalidJson, "{body}");
        assert!(!refused.public.contains("secret") && !refused.to_string().contains("secret"), "{refused}");
    }
    let not_utf8 = Ask::parse(Endpoint::ChatCompletions, b"{\"model\":\"m\",\"x\":\"\xff\"}").unwrap_err();
    assert_eq!(not_utf8.kind, Kind::InvalidJson);
    for deep in
        ["[".repeat(100_000), format!("{{\"model\":\"m\",\"x\":{}1{}}}", "[".repeat(128), "]".repeat(128))]
    {
        assert_eq!(Ask::parse(Endpoint::ChatCompletions, deep.as_bytes()).unwrap_err().kind, Kind::TooDeep);
    }
}

#[test]
fn every_prompt_of_a_completion_makes_its_choices() {
    let choices = |prompt: &str| {
        let body = format!(r#"{{"model":"m","n":2,"prompt":{prompt}}}"#);
        Ask::parse(Endpoint::Completions, body.as_bytes()).unwrap().choices
    };
    assert_eq!(choices(r#""a""#), 2);
    assert_eq!(choices(r#"["a"]"#), 2);
    assert_eq!(choices(r#"[ "a", "b,c", "d"]"#), 6);
    assert_eq!(choices("[1,2,3]"), 2);
    assert_eq!(choices("[[1,2],[3]]"), 4);
    assert_eq!(choices("[]"), 2);
}

#[test]
fn only_what_must_change_for_the_provider_changes() {
    let odd = "{ \"x\" : [1, 2.50,1e3] ,\n\t\"messages\":[{\"model\":\"inner\"}],\"model\"  :  \"tiny\" , \"seed\":12345678901234567890123}";
    assert_eq!(sent(odd), odd.replacen("\"tiny\"", "\"up\"", 1));
    for (keys, want) in [
        (r#" "stream":true"#, r#""stream_options":{"include_usage":true}, "stream":true"#),
        (
            r#""stream":true,"stream_options":null"#,
            r#""stream":true,"stream_options":{"include_usage":true}"#,
        ),
        (
            r#""stream":true,"stream_options":{ }"#,
            r#""stream":true,"stream_options":{"include_usage":true }"#,
        ),
        (
            r#""stream":true,"stream_options":{"a":[1]}"#,
            r#""stream":true,"stream_options":{"include_usage":true,"a":[1]}"#,
        ),
        (
            r#""stream_options":{"a":1,"include_usage" : false},"stream":true"#,
            r#""stream_options":{"a":1,"include_usage" : true},"stream":true"#,
        ),
        (
            r#""stream_options":{"include_usage":true},"stream":true"#,
            r#""stream_options":{"include_usage":true},"stream":true"#,
        ),
        (r#""stream":false,"stream_options":{"a":1}"#, r#""stream":false,"stream_options":{"a":1}"#),
    ] {
        assert_eq!(sent(&format!(r#"{{{keys},"model":"tiny"}}"#)), format!(r#"{{{want},"model":"up"}}"#));
        assert_eq!(
            sent(&format!(r#" {{"model":"tiny",{keys}}}"#)).matches("include_usage").count(),
            want.matches("include_usage").count()
        );
    }
}

#[test]
fn edits_come_in_the_order_of_the_body() {
    for body in [
        r#"{"max_tokens":9,"stream":true,"model":"m","max_completion_tokens":9}"#,
        r#"{"stream":true,"max_completion_tokens":9,"stream_options":{},"max_tokens":9,"model":"m"}"#,
        r#"{"model":"m","stream":true}"#,
    ] {
        let mut ask = Ask::parse(Endpoint::ChatCompletions, body.as_bytes()).unwrap();
        ask.lower_output(7);
        let edits = ask.edits("other");
        assert!(edits.is_sorted_by_key(|edit| edit.at.start), "{edits:?}");
        let spliced = splice(body.as_bytes(), &edits);
        let lowered = Ask::parse(Endpoint::ChatCompletions, &spliced).unwrap();
        assert_eq!((lowered.model.as_str(), lowered.max_output_tokens), ("other", Some(7)), "{edits:?}");
        assert!(lowered.include_usage, "{edits:?}");
    }
}

#[test]
fn a_conversation_is_told_by_its_name_or_its_beginning() {
    let affinity = |account: &[u8], body: &str| {
        Ask::parse(Endpoint::ChatCompletions, body.as_bytes()).unwrap().affinity(account, body.as_bytes())
    };
    let named = |text: &str| {
        format!(r#"{{"model":"m","prompt_cache_key":"k","messages":[{{"role":"user","content":"{text}"}}]}}"#)
    };
    assert_eq!(affinity(b"a", &named("x")), affinity(b"a", &named("y")));
    assert_ne!(affinity(b"a", &named("x")), affinity(b"b", &named("x")));
    let unnamed = |text: &str| named(text).replace("\"k\"", "null");
    assert_ne!(affinity(b"a", &unnamed("x")), affinity(b"a", &unnamed("y")));
    assert_eq!(affinity(b"a", r#"{"model":"m"}"#), None);
    let twice = br#"{"model":"m","prompt_cache_key":"k","Prompt_cache_key":"l"}"#;
    assert_eq!(Ask::parse(Endpoint::ChatCompletions, twice).unwrap_err().kind, Kind::DuplicateKey);
}
