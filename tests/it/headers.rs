//! What crosses the gateway: a client's identity never reaches a provider, a provider's never reaches a client.

use crate::support::gateway::{hello, hello_stream};
use crate::support::upstream::{PROVIDER_KEY, chat, usage};
use crate::support::{Answer, Gateway, Request, Upstream};

#[test]
fn nothing_that_identifies_a_client_reaches_a_provider() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let client = [
        ("OpenAI-Organization", "org-client"),
        ("OpenAI-Project", "proj-client"),
        ("Cookie", "session=client"),
        ("X-Api-Key", "client-key"),
        ("Api-Key", "client-key"),
        ("Proxy-Authorization", "Basic client"),
        ("X-Forwarded-For", "203.0.113.9"),
        ("Forwarded", "for=203.0.113.9"),
        ("X-Real-Ip", "203.0.113.9"),
        ("X-Request-Id", "client-chosen"),
        ("X-Client-Request-Id", "client-chosen"),
        ("X-Stainless-Lang", "client"),
        ("Referer", "https://client.example"),
        ("Accept-Encoding", "gzip, deflate"),
        ("Connection", "keep-alive, X-Hop"),
        ("X-Hop", "client"),
        ("Keep-Alive", "timeout=5"),
        ("TE", "trailers"),
        ("Upgrade", "websocket"),
    ];
    for body in [hello(), hello_stream()] {
        let request = Request::post("/v1/chat/completions", body.to_string()).key(&gateway.account.key);
        let request = client.iter().fold(request, |request, (name, value)| request.header(name, value));
        gateway.ask(&request).ok();
    }
    for received in upstream.received() {
        let head = received.head;
        let named =
            |name: &str| head.headers.iter().filter(|(have, _)| have.eq_ignore_ascii_case(name)).count();
        assert_eq!(named("authorization"), 1, "{head:?}");
        assert_eq!(head.header("authorization"), Some(format!("Bearer {PROVIDER_KEY}").as_str()));
        assert_eq!(named("host"), 1);
        assert_eq!(head.header("host"), Some(upstream.address().to_string().as_str()));
        assert_eq!(head.header("content-type"), Some("application/json"));
        for (name, value) in
            client.iter().filter(|(name, _)| !matches!(*name, "Accept-Encoding" | "Connection"))
        {
            let passed = head
                .headers
                .iter()
                .any(|(have, text)| have.eq_ignore_ascii_case(name) && text.contains(value));
            assert!(!passed, "{name} reaches the provider: {head:?}");
        }
        // A compressed answer could not be metered.
        assert!(head.header("accept-encoding").is_none_or(|value| value == "identity"), "{head:?}");
        let all = format!("{head:?}");
        assert!(!all.contains("sk-weir-"), "{all}");
        assert!(!all.contains("client-"), "{all}");
    }
}

#[test]
fn nothing_that_identifies_a_provider_s_account_reaches_a_client() {
    let provider = [
        ("Set-Cookie", "__cf_bm=provider"),
        ("OpenAI-Organization", "provider-org"),
        ("OpenAI-Processing-Ms", "12"),
        ("X-Request-Id", "req_provider"),
        ("CF-Ray", "provider-ray"),
        ("Server", "provider-server"),
        ("X-RateLimit-Limit-Requests", "424242"),
        ("X-RateLimit-Remaining-Tokens", "434343"),
        ("Connection", "keep-alive, X-Hop"),
        ("X-Hop", "provider-hop"),
        ("Content-Type", "application/json"),
    ];
    let upstream = Upstream::start();
    upstream.always(Answer::with_headers(200, &provider, chat("hi", &usage(5, 1)).to_string()));
    let gateway = Gateway::before(&upstream);
    let reply = gateway.hello().ok();
    let all = format!("{:?}", reply.head);
    for telling in ["provider", "424242", "434343", "Set-Cookie", "set-cookie", "cf-ray", "CF-Ray"] {
        assert!(!all.contains(telling), "{telling} reaches the client: {all}");
    }
    let ids = reply.head.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("x-request-id")).count();
    assert_eq!(ids, 1);
    gateway.row();
}

#[test]
fn a_client_s_request_id_does_not_become_ours() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let mut ids = Vec::new();
    for _ in 0..2 {
        let request = Request::post("/v1/chat/completions", hello().to_string()).key(&gateway.account.key);
        let reply = gateway.ask(&request.header("X-Request-Id", "the-same-each-time")).ok();
        ids.push(reply.header("x-request-id").unwrap().to_owned());
    }
    assert!(ids[0] != ids[1] && ids.iter().all(|id| id != "the-same-each-time"), "{ids:?}");
    gateway.rows_when(2);
}

#[test]
fn a_request_without_a_good_host_is_no_way_around() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let request = Request::post("/v1/chat/completions", hello().to_string()).key(&gateway.account.key);
    let text = String::from_utf8(request.to_bytes(gateway.address())).unwrap();
    let own = format!("Host: {}", gateway.address());
    for host in ["Host: api.openai.com", "Host: 169.254.169.254", "Host: x\r\nHost: y", "X-No-Host: 1"] {
        let mut connection = gateway.connect();
        connection.send(text.replace(&own, host).as_bytes()).unwrap();
        let reply = connection.reply().expect("an answer");
        assert!(matches!(reply.status, 200 | 400), "{host}: {}", reply.status);
        gateway.note(&reply);
    }
    for received in upstream.received() {
        assert_eq!(received.head.header("host"), Some(upstream.address().to_string().as_str()));
    }
}

#[test]
fn a_url_of_another_host_is_no_way_around() {
    let upstream = Upstream::start();
    let elsewhere = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let target = format!("http://{}/v1/chat/completions", elsewhere.address());
    let reply = gateway.ask(&Request::post(&target, hello().to_string()).key(&gateway.account.key));
    assert!((200..500).contains(&reply.status), "{}", reply.status);
    assert_eq!(elsewhere.count(), 0);
    let mut connection = gateway.connect();
    connection
        .send(format!("CONNECT {} HTTP/1.1\r\nHost: x\r\n\r\n", elsewhere.address()).as_bytes())
        .unwrap();
    let refused = connection.reply().map_or(405, |reply| reply.status);
    assert!((400..500).contains(&refused), "{refused}");
    assert_eq!(elsewhere.connections(), 0);
}

#[test]
fn prompts_and_answers_are_not_logged() {
    let upstream = Upstream::start();
    upstream.next(Answer::json(200, &chat("the answer is mellow-cormorant", &usage(5, 5))));
    upstream.next(Answer::json(
        400,
        &serde_json::json!({"error": {"message": "echo: brisk-otter", "code": "x"}}),
    ));
    let gateway = Gateway::before(&upstream);
    for secret in ["brisk-otter", "mellow-cormorant"] {
        gateway.keep_secret(secret);
    }
    let mut body = hello();
    body["messages"][0]["content"] = "what does brisk-otter mean?".into();
    gateway.chat(&body).ok();
    assert_eq!(gateway.chat(&body).status, 400);
    gateway.chat_bytes(r#"{"model": "tiny", "brisk-otter"#).refused(400, "invalid_json");
    gateway.rows_when(2);
    assert!(!gateway.log().is_empty(), "one line a request");
}
