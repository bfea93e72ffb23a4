//! Requests whose shape two readers could take differently: none reaches a provider, and none leaves a second request behind it.

use super::head;
use crate::support::gateway::hello;
use crate::support::{Gateway, Request, Upstream};

#[test]
fn shapes_that_smuggle_are_refused_and_the_connection_ends() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let body = hello().to_string();
    let length = body.len();
    let smuggled = String::from_utf8(
        Request::post("/v1/chat/completions", body.clone())
            .key(&gateway.account.key)
            .to_bytes(gateway.address()),
    )
    .unwrap();
    let framed = |framing: &str, body: &str| [head(&gateway, framing), body.as_bytes().to_vec()].concat();
    let chunked = |chunks: &str| framed("Transfer-Encoding: chunked", chunks);
    let whole = format!("{length:x}\r\n{body}\r\n");
    let shapes: Vec<(&str, Vec<u8>)> = vec![
        (
            "both lengths",
            framed(
                &format!("Content-Length: {length}\r\nTransfer-Encoding: chunked"),
                &format!("0\r\n\r\n{smuggled}"),
            ),
        ),
        ("a space before the colon", framed(&format!("Content-Length : {length}"), &body)),
        ("a folded coding", framed("Transfer-Encoding:\r\n chunked", &format!("{whole}0\r\n\r\n"))),
        ("a folded length", framed(&format!("Content-Length: {length}\r\n 0"), &body)),
        (
            "a tab before the coding's end",
            framed("Transfer-Encoding: \tchunked\u{b}", &format!("{whole}0\r\n\r\n")),
        ),
        ("a quoted coding", framed("Transfer-Encoding: \"chunked\"", &format!("{whole}0\r\n\r\n"))),
        ("codings in a list", framed("Transfer-Encoding: chunked, identity", &format!("{whole}0\r\n\r\n"))),
        (
            "two codings",
            framed("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", &format!("{whole}0\r\n\r\n")),
        ),
        ("a chunk size that is no number", chunked(&format!("xyz\r\n{body}\r\n0\r\n\r\n"))),
        ("a negative chunk size", chunked(&format!("-5\r\n{body}\r\n0\r\n\r\n"))),
        ("a chunk size with a prefix", chunked(&format!("0x{whole}0\r\n\r\n"))),
        ("a chunk size that overflows", chunked(&format!("fffffffffffffffff\r\n{body}\r\n0\r\n\r\n"))),
        ("a chunk longer than it says", chunked(&format!("3\r\n{body}\r\n0\r\n\r\n"))),
        ("a name with a space", framed(&format!("Content-Length: {length}\r\nX Y: z"), &body)),
        ("a name with a null", framed(&format!("Content-Length: {length}\r\nX\0: z"), &body)),
        ("a value with a null", framed(&format!("Content-Length: {length}\r\nX: a\0b"), &body)),
        (
            "a bare carriage return",
            framed(&format!("Content-Length: {length}\r\nX: a\rContent-Length: 0"), &body),
        ),
    ];
    for (shape, bytes) in &shapes {
        let mut connection = gateway.connect();
        connection.send(bytes).unwrap();
        if let Ok(reply) = connection.reply() {
            assert!((400..500).contains(&reply.status), "{shape}: {}", reply.status);
            assert!(connection.is_closed(), "{shape}: the connection is open after {}", reply.status);
        }
        assert_eq!(upstream.count(), 0, "{shape} reached the provider");
    }
    gateway.hello().ok();
    gateway.row();
}

#[test]
fn requests_sent_before_the_answer_are_not_answered_out_of_order() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let request = Request::post("/v1/chat/completions", hello().to_string()).key(&gateway.account.key);
    let one = request.to_bytes(gateway.address());
    let mut connection = gateway.connect();
    connection.send(&[one.clone(), one.clone(), one].concat()).unwrap();
    gateway.note(&connection.reply().expect("the first is answered").ok());
    // Pipelining is not spoken: what came too early is not read, and the connection ends.
    assert!(connection.is_closed());
    assert_eq!(upstream.count(), 1);
    gateway.row();
}

#[test]
fn an_upgrade_is_ignored_and_connect_is_refused() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    for upgrade in ["websocket", "h2c", "TLS/1.0"] {
        let request = Request::post("/v1/chat/completions", hello().to_string())
            .key(&gateway.account.key)
            .header("Connection", "Upgrade")
            .header("Upgrade", upgrade)
            .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("Sec-WebSocket-Version", "13");
        let reply = gateway.ask(&request).ok();
        assert_eq!(reply.header("upgrade"), None, "{upgrade}");
    }
    for received in upstream.received() {
        assert_eq!(received.head.header("upgrade"), None);
    }
    let mut connection = gateway.connect();
    connection.send(b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1:22\r\n\r\n").unwrap();
    assert_eq!(connection.reply().expect("an answer").status, 405);
    gateway.rows_when(3);
}
