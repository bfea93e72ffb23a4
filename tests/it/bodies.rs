//! What may be asked: bodies that two readers could read differently are refused, the others go on byte for byte.

use crate::support::gateway::{PROVIDER_MODEL, hello};
use crate::support::http::status_of;
use crate::support::{Gateway, Reply, Request, Upstream, ms};
use serde_json::{Value, json};
use std::time::Instant;

/// Posts each body and hands the answers on, having seen that none reached the provider.
fn answers(bodies: &[Vec<u8>]) -> Vec<Reply> {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let replies = bodies.iter().map(|body| gateway.chat_bytes(body.clone())).collect();
    assert_eq!(upstream.count(), 0);
    gateway.no_rows();
    replies
}

/// A chat body with these keys before the messages.
fn with(keys: &str) -> Vec<u8> {
    format!(r#"{{{keys}, "messages": [{{"role": "user", "content": "hi"}}]}}"#).into_bytes()
}

#[test]
fn a_body_that_is_not_json_is_400() {
    let not_utf8 =
        [&br#"{"model": "tiny", "messages": [], "user": ""#[..], &[0xff, 0xfe], &br#""}"#[..]].concat();
    let bodies: Vec<Vec<u8>> = [
        &b"{"[..],
        b"",
        b"hello",
        br#"{"model": "tiny""#,
        br#"{"model": "tiny"} {"model": "tiny"}"#,
        br#"{"model": "tiny",}"#,
        br#"{"model": 'tiny'}"#,
        br#"{"model": "tiny", "x": NaN}"#,
        &not_utf8,
    ]
    .map(<[u8]>::to_vec)
    .to_vec();
    for (reply, body) in answers(&bodies).iter().zip(&bodies) {
        let error = reply.refused(400, "invalid_json");
        let message = error["message"].as_str().unwrap();
        assert!(!message.contains("hello"), "the body is quoted: {message} for {body:?}");
    }
}

#[test]
fn a_body_that_is_not_an_object_is_400() {
    for reply in answers(&[b"[]".to_vec(), b"null".to_vec(), b"3".to_vec(), b"\"tiny\"".to_vec()]) {
        let code = reply.json()["error"]["code"].as_str().unwrap_or_default().to_owned();
        assert!(matches!(code.as_str(), "invalid_json" | "invalid_value"), "{code}");
        reply.refused(400, &code);
    }
}

#[test]
fn a_body_nested_too_deep_is_400_however_deep() {
    let nested = |depth: usize, open: &str, close: &str| {
        let inner = format!("{}1{}", open.repeat(depth), close.repeat(depth));
        format!(r#"{{"model": "tiny", "messages": [], "deep": {inner}}}"#).into_bytes()
    };
    let unclosed = format!(r#"{{"model": "tiny", "deep": {}"#, "[".repeat(100_000)).into_bytes();
    let bodies =
        [nested(129, "[", "]"), nested(100_000, "[", "]"), nested(100_000, r#"{"a":"#, "}"), unclosed];
    for reply in answers(&bodies) {
        reply.refused(400, "too_deep");
    }
}

#[test]
fn brackets_in_text_are_not_depth() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let text = format!(r#"{} \" {}"#, "[{".repeat(500), "[".repeat(500));
    let body = format!(r#"{{"model": "tiny", "messages": [{{"role": "user", "content": "{text}"}}]}}"#);
    gateway.chat_bytes(body).ok();
}

#[test]
fn a_key_that_could_be_read_twice_is_400() {
    let keys = [
        r#""model": "tiny", "model": "dear""#,
        r#""model": "tiny", "Model": "dear""#,
        r#""Model": "tiny""#,
        r#""model": "tiny", "mod\u0065l": "dear""#,
        r#""mod\u0065l": "tiny""#,
        r#""model": "tiny", "stream": false, "STREAM": true"#,
        r#""model": "tiny", "n": 1, "n": 5"#,
        r#""model": "tiny", "N": 5"#,
        r#""model": "tiny", "max_tokens": 5, "max_tokens": 5000"#,
        r#""model": "tiny", "max_\u0074okens": 5000"#,
        r#""model": "tiny", "stream_options": {}, "Stream_Options": {}"#,
    ];
    let bodies = keys.map(with);
    for (reply, keys) in answers(&bodies).iter().zip(keys) {
        assert_eq!(reply.status, 400, "{keys}: {}", reply.text());
        reply.refused(400, "duplicate_key");
    }
}

#[test]
fn null_is_as_good_as_absent_where_the_api_says_so() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let nulls = r#""model": "tiny", "stream": null, "stream_options": null, "n": null, "max_tokens": null, "service_tier": null, "max_completion_tokens": null, "store": null, "stop": null"#;
    gateway.chat_bytes(with(nulls)).ok();
    let streamed = r#""model": "tiny", "stream": true, "stream_options": null"#;
    assert!(gateway.chat_bytes(with(streamed)).ok().done());
    let asked = upstream.received()[1].json();
    assert_eq!(asked["stream_options"], json!({"include_usage": true}));
}

#[test]
fn a_value_of_the_wrong_kind_is_400_and_named() {
    let cases = [
        (r#""model": null"#, "model"),
        (r#""temperature": 1"#, "model"),
        (r#""model": 5"#, "model"),
        (r#""model": "tiny", "stream": "true""#, "stream"),
        (r#""model": "tiny", "stream": 1"#, "stream"),
        (r#""model": "tiny", "n": 0"#, "n"),
        (r#""model": "tiny", "n": 129"#, "n"),
        (r#""model": "tiny", "n": 1.5"#, "n"),
        (r#""model": "tiny", "max_tokens": -1"#, "max_tokens"),
        (r#""model": "tiny", "max_tokens": "50""#, "max_tokens"),
        (r#""model": "tiny", "max_tokens": 1e23"#, "max_tokens"),
        (r#""model": "tiny", "max_completion_tokens": []"#, "max_completion_tokens"),
        (r#""model": "tiny", "stream": true, "stream_options": true"#, "stream_options"),
    ];
    let bodies = cases.map(|(keys, _)| with(keys));
    for (reply, (keys, param)) in answers(&bodies).iter().zip(cases) {
        assert_eq!(reply.status, 400, "{keys}: {}", reply.text());
        let error = reply.refused(400, "invalid_value");
        assert_eq!(error["param"], param, "{keys}: {error}");
    }
}

#[test]
fn requests_that_bind_state_at_a_provider_are_400() {
    let cases = [
        (r#""model": "tiny", "store": true"#, "store"),
        (r#""model": "tiny", "previous_response_id": "resp_1""#, "previous_response_id"),
    ];
    for (reply, (_, param)) in answers(&cases.map(|(keys, _)| with(keys))).iter().zip(cases) {
        assert_eq!(reply.refused(400, "unsupported_parameter")["param"], param);
    }
}

#[test]
fn what_is_not_ours_goes_on_byte_for_byte() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let body = "{ \"x_unknown\" : {\"a\":[1, 2.50,1e3] } ,\n\t\"messages\":[{\"role\":\"user\",\"content\":\"caf\\u00e9 \
                \u{1f30a} \\ud83d\\ude00\",\"model\":\"inner\"}],\"model\"  :  \"tiny\" , \"seed\":123456789012345678901}";
    gateway.chat_bytes(body).ok();
    let want = body.replacen("\"tiny\"", &format!("\"{PROVIDER_MODEL}\""), 1);
    let got = upstream.only();
    assert_eq!(String::from_utf8(got.body.clone()).unwrap(), want);
    assert_eq!(got.head.header("content-length"), Some(want.len().to_string().as_str()));
    assert_eq!(got.head.header("transfer-encoding"), None);
}

#[test]
fn stream_options_are_merged_with_what_the_client_said() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let cases = [
        (r#""model": "tiny", "stream": true"#, json!({"include_usage": true})),
        (r#""model": "tiny", "stream": true, "stream_options": {}"#, json!({"include_usage": true})),
        (
            r#""model": "tiny", "stream": true, "stream_options": {"include_obfuscation": false}"#,
            json!({"include_usage": true, "include_obfuscation": false}),
        ),
        (
            r#""model": "tiny", "stream": true, "stream_options": {"include_usage": false, "x": [1]}"#,
            json!({"include_usage": true, "x": [1]}),
        ),
        (
            r#""stream": true, "stream_options": {"include_usage": true}, "model": "tiny""#,
            json!({"include_usage": true}),
        ),
    ];
    for (number, (keys, want)) in cases.into_iter().enumerate() {
        let reply = gateway.chat_bytes(with(keys)).ok();
        assert!(reply.done(), "{keys}");
        assert_eq!(upstream.received()[number].json()["stream_options"], want, "{keys}");
        let told = reply.chunks().iter().any(|chunk| chunk["usage"].is_object());
        assert_eq!(told, keys.contains(r#""include_usage": true"#), "{keys}: {}", reply.text());
    }
}

/// A gateway that takes bodies of 64 KiB and waits half a second for them.
fn small(upstream: &Upstream) -> Gateway {
    let limits = "max_body_bytes = 65536\nbody_timeout_ms = 1000";
    Gateway::builder().provider("main", upstream).standard_models("main").server(limits).start()
}

fn big(length: usize) -> Vec<u8> {
    let frame = |fill: usize| {
        json!({"model": "tiny", "max_tokens": 5, "messages": [{"role": "user", "content": "x".repeat(fill)}]})
            .to_string()
    };
    let body = frame(length - frame(0).len()).into_bytes();
    assert_eq!(body.len(), length);
    body
}

fn chunked(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in body.chunks(10_000) {
        out.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        out.extend_from_slice(piece);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n\r\n");
    out
}

fn chat_head(gateway: &Gateway, framing: &str) -> Vec<u8> {
    let request = Request::post("/v1/chat/completions", "").key(&gateway.account.key);
    let text = String::from_utf8(request.to_bytes(gateway.address())).unwrap();
    text.replace("Content-Length: 0\r\n", &format!("{framing}\r\n")).into_bytes()
}

#[test]
fn a_body_of_exactly_the_cap_passes_however_it_is_framed() {
    let upstream = Upstream::start();
    let gateway = small(&upstream);
    gateway.chat_bytes(big(65_536)).ok();
    let mut connection = gateway.connect();
    let head = chat_head(&gateway, "Transfer-Encoding: chunked");
    connection.send(&[head, chunked(&big(65_536))].concat()).unwrap();
    gateway.note(&connection.reply().unwrap().ok());
    let sent: Vec<usize> =
        upstream.received().iter().map(|received| received.json()["messages"].to_string().len()).collect();
    assert_eq!(sent[0], sent[1]);
}

#[test]
fn a_declared_body_over_the_cap_is_413_before_it_is_read_and_the_answer_can_be_read() {
    let upstream = Upstream::start();
    let gateway = small(&upstream);
    let mut connection = gateway.connect();
    connection.send(&chat_head(&gateway, "Content-Length: 65537")).unwrap();
    let begun = Instant::now();
    connection.reply().unwrap().refused(413, "request_too_large");
    assert!(begun.elapsed() < ms(800), "answered without waiting for the body");

    // A client that sends all of it first, as most do, must find the answer and not a reset.
    for length in [65_537, 1 << 20, 4 << 20] {
        let mut connection = gateway.connect();
        let head = chat_head(&gateway, &format!("Content-Length: {length}"));
        let _ = connection.send(&[head, vec![b'x'; length]].concat());
        connection.reply().expect("the answer can be read").refused(413, "request_too_large");
    }
    assert_eq!(upstream.count(), 0);
}

#[test]
fn an_undeclared_body_over_the_cap_is_413_and_the_answer_can_be_read() {
    let upstream = Upstream::start();
    let gateway = small(&upstream);
    for length in [65_537, 1 << 20] {
        let mut connection = gateway.connect();
        let head = chat_head(&gateway, "Transfer-Encoding: chunked");
        let _ = connection.send(&[head, chunked(&big(length))].concat());
        connection.reply().expect("the answer can be read").refused(413, "request_too_large");
    }
    assert_eq!(upstream.count(), 0);
}

#[test]
fn an_absurd_length_is_refused() {
    let upstream = Upstream::start();
    let gateway = small(&upstream);
    for length in ["18446744073709551615", "99999999999999999999999", "-1", "+5", "0x10"] {
        let mut connection = gateway.connect();
        connection.send(&chat_head(&gateway, &format!("Content-Length: {length}"))).unwrap();
        let reply = connection.reply().expect("an answer");
        assert!(matches!(reply.status, 400 | 413), "{length}: {}", reply.status);
    }
    assert_eq!(upstream.count(), 0);
}

#[test]
fn a_body_that_does_not_come_in_time_is_408() {
    let upstream = Upstream::start();
    let gateway = small(&upstream);
    let mut stalled = gateway.connect();
    stalled.send(&[chat_head(&gateway, "Content-Length: 1000"), b"{\"model\"".to_vec()].concat()).unwrap();
    let begun = Instant::now();
    stalled.reply().unwrap().refused(408, "request_timeout");
    assert!(begun.elapsed() < ms(3000), "{:?}", begun.elapsed());

    // One byte at a time keeps a deadline per read happy for ever; it must not this one.
    let mut dripping = gateway.connect();
    dripping.send(&chat_head(&gateway, "Content-Length: 1000")).unwrap();
    let begun = Instant::now();
    while begun.elapsed() < ms(2500) && dripping.send(b" ").is_ok() {
        std::thread::sleep(ms(50));
    }
    dripping.reply().unwrap().refused(408, "request_timeout");
    assert_eq!(upstream.count(), 0);
    gateway.no_rows();
}

#[test]
fn a_client_that_leaves_in_the_middle_of_its_body_costs_nothing() {
    let upstream = Upstream::start();
    let gateway = small(&upstream);
    for reset in [false, true] {
        let mut connection = gateway.connect();
        connection
            .send(&[chat_head(&gateway, "Content-Length: 1000"), b"{\"model\"".to_vec()].concat())
            .unwrap();
        std::thread::sleep(ms(50));
        if reset {
            connection.reset();
        }
    }
    gateway.no_rows();
    assert_eq!(upstream.count(), 0);
    gateway.hello().ok();
}

#[test]
fn an_encoded_body_is_415() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let request = Request::post("/v1/chat/completions", hello().to_string()).key(&gateway.account.key);
    for encoding in ["gzip", "br", "zstd", "deflate"] {
        let reply = gateway.ask(&request.clone().header("Content-Encoding", encoding));
        reply.refused(415, "unsupported_media_type");
    }
    assert_eq!(upstream.count(), 0);
}

#[test]
fn a_body_framed_in_two_ways_is_400_and_the_connection_ends() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let body = hello().to_string();
    let length = body.len();
    let framings = [
        format!("Content-Length: {length}\r\nTransfer-Encoding: chunked"),
        format!("Transfer-Encoding: chunked\r\nContent-Length: {length}"),
        format!("Content-Length: {length}\r\nContent-Length: 3"),
        format!("Content-Length: {length}, 3"),
        "Transfer-Encoding: gzip, chunked".to_owned(),
        "Transfer-Encoding: xchunked".to_owned(),
        format!("Transfer-Encoding: identity\r\nContent-Length: {length}"),
    ];
    for framing in framings {
        let mut connection = gateway.connect();
        connection.send(&[chat_head(&gateway, &framing), body.clone().into_bytes()].concat()).unwrap();
        let reply = connection.reply().expect("an answer");
        assert_eq!(reply.status, 400, "{framing:?}: {}", reply.text());
        assert!(connection.is_closed(), "open after {framing:?}");
    }

    let old = String::from_utf8(chat_head(&gateway, "Transfer-Encoding: chunked")).unwrap();
    let mut connection = gateway.connect();
    connection
        .send(&[old.replace("HTTP/1.1", "HTTP/1.0").into_bytes(), chunked(body.as_bytes())].concat())
        .unwrap();
    assert_eq!(connection.reply().expect("an answer").status, 400);
    assert!(connection.is_closed());
    assert_eq!(upstream.count(), 0);
}

#[test]
fn a_head_that_is_too_large_is_431() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let request = Request::post("/v1/chat/completions", hello().to_string()).key(&gateway.account.key);
    let reply = gateway.ask(&request.header("X-Padding", &"x".repeat(200_000)));
    reply.refused(431, "headers_too_large");
    assert_eq!(upstream.count(), 0);
}

#[test]
fn a_client_that_waits_for_100_continue_is_told_to_go_on() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let body = hello().to_string();
    let mut connection = gateway.connect();
    let framing = format!("Content-Length: {}\r\nExpect: 100-continue", body.len());
    connection.send(&chat_head(&gateway, &framing)).unwrap();
    assert_eq!(status_of(&connection.head().unwrap()), 100);
    connection.send(body.as_bytes()).unwrap();
    gateway.note(&connection.reply().unwrap().ok());
    assert_eq!(upstream.only().head.header("expect"), None);
}

#[test]
fn a_refused_request_leaves_the_connection_usable() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let mut connection = gateway.connect();
    let request =
        |body: &Value| Request::post("/v1/chat/completions", body.to_string()).key(&gateway.account.key);
    connection.ask(&request(&json!({"model": "nobody"}))).refused(404, "model_not_found");
    gateway.note(&connection.ask(&request(&hello())).ok());
    gateway.note(&connection.ask(&request(&hello())).ok());
}
