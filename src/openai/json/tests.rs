//! The reader against `serde_json`: the same texts taken, the same keys and values found.

use super::*;
use proptest::prelude::*;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;

type Members = Vec<(String, String)>;

/// The members of an object as `serde_json` finds them, doubles and all.
struct Oracle(Members);

impl<'de> Deserialize<'de> for Oracle {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Oracle;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Oracle, A::Error> {
                let mut members = Vec::new();
                while let Some((key, value)) = map.next_entry::<String, &RawValue>()? {
                    members.push((key, value.get().to_owned()));
                }
                Ok(Oracle(members))
            }
        }
        deserializer.deserialize_map(Each)
    }
}

fn members(text: &str) -> Option<Members> {
    let mut members = Vec::new();
    object(text, usize::MAX, &mut (), |key, value| members.push((key.into_owned(), value.to_owned())))
        .ok()
        .map(|()| members)
}

fn items(text: &str) -> Option<Vec<String>> {
    let mut items = Vec::new();
    array(text, |item| items.push(item.to_owned())).ok().map(|()| items)
}

#[track_caller]
fn same(text: &str) {
    let oracle = serde_json::from_str::<Oracle>(text).ok().map(|Oracle(members)| members);
    assert_eq!(members(text), oracle, "{text:?}");
    let oracle = serde_json::from_str::<Vec<&RawValue>>(text).ok();
    let oracle = oracle.map(|items| items.iter().map(|item| item.get().to_owned()).collect::<Vec<_>>());
    assert_eq!(items(text), oracle, "{text:?}");
}

/// What may be a value, or nearly.
const VALUES: &[&str] = &[
    "0",
    "-0",
    "01",
    "-",
    "-01",
    "1.",
    ".5",
    "+1",
    "1.0",
    "1.5e",
    "1e5",
    "1E+5",
    "1e-",
    "1e999",
    "--1",
    "0x1",
    "1_0",
    "00",
    "0.0.0",
    "NaN",
    "Infinity",
    "true",
    "tru",
    "truex",
    "True",
    "false",
    "null",
    "nul",
    "\"\"",
    "\"a\"",
    "\"",
    "\"\\\"",
    "\"\\x\"",
    "\"\\u12\"",
    "\"\\u12g4\"",
    "\"\\uD800\"",
    "\"\\ud83d\\ude00\"",
    "\"\\/\\b\\f\\n\\r\\t\\\\\"",
    "\"\t\"",
    "\"\u{1}\"",
    "\"\u{7f}\"",
    "\"\u{1f30a}\"",
    "'a'",
    "[]",
    "[,]",
    "[1,]",
    "[1 2]",
    "[1,2]",
    "[",
    "]",
    "[}",
    "{}",
    "{,}",
    "{\"a\"}",
    "{\"a\":}",
    "{\"a\":1,}",
    "{\"a\":1}",
    "{\"a\" : 1 , \"b\":[ { } , [ ] ] }",
    "{a:1}",
    "{1:2}",
    "{]",
    "[[[{\"a\":[{}]}]]]",
    "",
    " ",
    "/**/1",
    "1//",
    "\u{a0}1",
    "\u{c}1",
    "\u{feff}1",
];

#[test]
fn every_value_is_taken_or_refused_as_serde_does() {
    let long = "x".repeat(100);
    for value in VALUES.iter().copied().chain([&*format!("\"{long}\""), &*format!("\"{long}\n\"")]) {
        for text in [
            value.to_owned(),
            format!(" \r\n\t{value} \r\n\t"),
            format!("{value}x"),
            format!("{value}{value}"),
            format!(r#"{{"a":{value}}}"#),
            format!(r#"{{"a" : {value} , "b":[{value},{{"c":{value}}}]}}"#),
            format!("[{value}]"),
            format!("[{value},{value}]"),
            format!("{{{value}:1}}"),
        ] {
            same(&text);
        }
    }
}

#[test]
fn a_special_byte_is_found_wherever_it_stands() {
    for length in 0..100 {
        for special in
            ["\"", "\\", "\\n", "\\u0041", "\u{1f}", "\n", "\u{0}", "é", "\u{80}", "\u{7f}", " ", "!", "]"]
        {
            for at in 0..=length {
                let text = format!("{{\"a\":\"{}{special}{}\"}}", "x".repeat(at), "[".repeat(length - at));
                same(&text);
            }
        }
    }
}

#[test]
fn depth_is_bounded_where_it_is_to_be_and_nowhere_else() {
    let nested = |depth: usize| format!("{{\"a\":{}1{}}}", "[".repeat(depth), "]".repeat(depth));
    let read = |text: &str, max| object(text, max, &mut (), |_, _| ());
    assert_eq!(read(&nested(127), 128), Ok(()));
    assert_eq!(read(&nested(128), 128), Err(Fault::TooDeep));
    assert_eq!(read(&"[".repeat(129), 128), Err(Fault::TooDeep));
    assert_eq!(read(&"{\"a\":".repeat(100_000), 128), Err(Fault::TooDeep));
    assert_eq!(read(&format!("{{\"a\":[{}1]}}", "[],".repeat(1_000)), 128), Ok(()));
    for depth in [62, 63, 64, 65, 127, 128, 129, 200, 100_000] {
        same(&nested(depth));
        let mixed = format!("{}1{}", "{\"a\":[".repeat(depth), "]}".repeat(depth));
        same(&mixed);
        same(&mixed.replacen("]}]}", "]]}}", 1));
        same(&format!("[{}]", mixed.replace("]}", "],\"b\":[]}")));
    }
}

#[test]
fn fields_are_single_and_null_is_absent() {
    assert_eq!(fields(r#"{"a":1,"x":2,"b":null}"#, ["a", "b", "c"]), Ok([Some("1"), None, None]));
    assert_eq!(fields(r#"{"\u0061":1}"#, ["a"]), Ok([Some("1")]));
    for text in [r#"{"a":1,"a":2}"#, r#"{"a":1,"\u0061":2}"#, r#"{"a":null,"a":2}"#, "[]", "null", "7", "{"] {
        assert_eq!(fields(text, ["a"]), Err(Fault::Syntax), "{text}");
    }
}

#[test]
fn what_is_passed_over_is_told() {
    #[derive(Default)]
    struct Seen(Vec<String>);
    impl Watch for Seen {
        fn key(&mut self, key: &[u8], is_plain: bool) {
            self.0.push(format!("key {} {is_plain}", String::from_utf8_lossy(key)));
        }
        fn open(&mut self, key: &[u8]) {
            self.0.push(format!("open {}", String::from_utf8_lossy(key)));
        }
        fn string(&mut self, key: &[u8], string: &[u8]) {
            self.0.push(format!("{}={}", String::from_utf8_lossy(key), String::from_utf8_lossy(string)));
        }
    }
    let mut seen = Seen::default();
    let text = r#"{"a":"x","b":{"c":"y","\u0064":["z",{}]},"e":[]}"#;
    object(text, 128, &mut seen, |_, _| ()).unwrap();
    let want =
        ["a=x", "open b", "key c true", "c=y", "key \\u0064 false", "open \\u0064", "=z", "open ", "open e"];
    assert_eq!(seen.0, want);
}

const PARTS: [&str; 34] = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\"a\"",
    "\"b\":",
    "\"\\u0041\":",
    "\"\\ud800\":",
    "\"\\ud800\"",
    "\\",
    "\\n",
    "\\u00e9",
    "1",
    "0",
    "-",
    ".",
    "e",
    "+",
    "1.5e3",
    "true",
    "fals",
    "null",
    " ",
    "\n",
    "\t",
    "\u{1}",
    "é",
    "{}",
    "[]",
    "[1,2]",
    "\"a long text, longer than any word that is looked at in one step\"",
];

fn value() -> impl Strategy<Value = String> {
    let string = prop::collection::vec(
        prop::sample::select(vec![
            "a",
            "é",
            "\u{1f30a}",
            "\\n",
            "\\\"",
            "\\\\",
            "\\u0041",
            "some more text, ",
            "]",
            "{",
        ]),
        0..12,
    )
    .prop_map(|parts| format!("\"{}\"", parts.concat()));
    let number = prop::sample::select(vec!["0", "-0", "12", "-1.5", "1e9", "2.5E-7"]).prop_map(str::to_owned);
    let literal = prop::sample::select(vec!["true", "false", "null"]).prop_map(str::to_owned);
    let space = prop::sample::select(vec!["", "", " ", "\n", "\t\r "]);
    prop_oneof![string.clone(), number, literal].prop_recursive(6, 40, 5, move |inner| {
        let items = prop::collection::vec(inner.clone(), 0..5);
        let members = prop::collection::vec((string.clone(), inner), 0..5);
        prop_oneof![
            (items, space.clone())
                .prop_map(|(items, space)| format!("[{space}{}]", items.join(&format!(",{space}")))),
            (members, space.clone()).prop_map(|(members, space)| {
                let members: Vec<String> = members
                    .iter()
                    .map(|(key, value)| format!("{key}{space}:{space}{value}{space}"))
                    .collect();
                format!("{{{space}{}}}", members.join(","))
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn any_text_of_parts_is_read_as_serde_reads_it(parts in prop::collection::vec(prop::sample::select(&PARTS[..]), 0..14)) {
        let text = parts.concat();
        same(&text);
        same(&format!("{{{text}}}"));
        same(&format!("{{\"a\":{text}}}"));
        same(&format!("{{\"a\":[{text}]}}"));
    }

    #[test]
    fn json_with_a_part_changed_is_read_as_serde_reads_it(
        value in value(),
        at in any::<prop::sample::Index>(),
        removed in 0_usize..4,
        part in prop::sample::select(&PARTS[..]),
    ) {
        let text = format!("{{\"a\":{value},\"b\":{value}}}");
        prop_assert!(members(&text).is_some());
        same(&text);
        same(&value);
        let letters: Vec<char> = text.chars().collect();
        let at = at.index(letters.len());
        let rest = letters.iter().skip(at + removed);
        same(&letters[..at].iter().copied().chain(part.chars()).chain(rest.clone().copied()).collect::<String>());
        same(&letters[..at].iter().chain(rest).collect::<String>());
    }
}
