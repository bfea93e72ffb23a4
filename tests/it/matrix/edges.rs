//! What happens at the edges of a request, over raw sockets where a client library would hide it.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::gateway::{Gateway, Outcome};
use super::upstream::{self, Step};
use super::{all_given_back, peers};

const HANG: &[Step] = &[Step::Hang];

/// A small request that the scripted provider understands; `headers` are lines of their own.
fn request(case: &str, plan: &str, headers: &str) -> String {
    let body = "{\"model\":\"a\"}";
    format!(
        "POST /v1/echo HTTP/1.1\r\nhost: a\r\nx-case: {case}\r\nx-peers: {plan}\r\n{headers}content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

async fn connect(gateway: &Gateway) -> TcpStream {
    TcpStream::connect(gateway.address).await.unwrap()
}

/// Everything until the gateway closes.
async fn to_the_end(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    tokio::time::timeout(Duration::from_secs(15), stream.read_to_end(&mut answer))
        .await
        .expect("no end")
        .unwrap();
    String::from_utf8(answer).unwrap()
}

/// One answer with a Content-Length; the connection stays open.
async fn one_answer(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    loop {
        assert_ne!(
            stream.read_buf(&mut answer).await.unwrap(),
            0,
            "closed: {}",
            String::from_utf8_lossy(&answer)
        );
        let text = String::from_utf8_lossy(&answer);
        let Some((head, body)) = text.rsplit_once("\r\n\r\n") else { continue };
        let length = head.to_lowercase().rsplit_once("content-length: ").map(|(_, rest)| {
            rest.split_once("\r\n").map_or(rest, |(value, _)| value).parse::<usize>().unwrap()
        });
        if length == Some(body.len()) {
            return text.into_owned();
        }
    }
}

/// A gateway with one scripted peer, one request to it, what came back, and what was logged.
async fn scripted(steps: &'static [Step], headers: &str) -> (String, Outcome) {
    let mut peers = peers().await;
    peers.insert("scripted", (upstream::scripted(steps).await.0, false));
    let gateway = Gateway::start(peers).await;
    let mut stream = connect(&gateway).await;
    let headers = format!("connection: close\r\n{headers}");
    stream.write_all(request("scripted", "scripted", &headers).as_bytes()).await.unwrap();
    let answer = to_the_end(stream).await;
    let outcome = gateway.outcome("scripted").await;
    all_given_back(&gateway).await;
    (answer, outcome)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_is_kept_alive_through_failovers() {
    let gateway = Gateway::start(peers().await).await;
    let mut stream = connect(&gateway).await;
    for case in ["one", "two", "three"] {
        stream.write_all(request(case, "fail,refused,echo", "").as_bytes()).await.unwrap();
        let answer = one_answer(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(gateway.outcome(case).await.attempts, 3);
    }
    all_given_back(&gateway).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invited_body_fails_over_and_keeps_the_connection() {
    let gateway = Gateway::start(peers().await).await;
    let mut stream = connect(&gateway).await;
    for case in ["one", "two"] {
        let size = 2 << 20;
        let head = format!(
            "POST / HTTP/1.1\r\nhost: a\r\nx-case: {case}\r\nx-peers: fail,echo\r\nexpect: 100-continue\r\ncontent-length: {size}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut invitation = [0; 25];
        stream.read_exact(&mut invitation).await.unwrap();
        assert_eq!(&invitation, b"HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(&vec![b'x'; size]).await.unwrap();
        let answer = one_answer(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\n-"), "{answer}");
        assert!(answer.contains("keep-alive"), "{answer}");
        assert_eq!(gateway.outcome(case).await.attempts, 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_before_the_first_byte_is_noticed() {
    let (slow, left) = upstream::scripted(HANG).await;
    let gateway = Gateway::start([("slow", (slow, false))].into()).await;
    let mut stream = connect(&gateway).await;
    stream.write_all(request("leaver", "slow", "").as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    drop(stream);
    let outcome = gateway.outcome("leaver").await;
    assert!(outcome.client_gone && !outcome.head_sent, "{outcome:?}");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(left.load(Ordering::SeqCst), 1, "the provider is left, too");
    all_given_back(&gateway).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_in_the_middle_of_a_stream_is_noticed() {
    let (slow, _) = upstream::scripted(&[
        Step::Send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n5\r\ndata\n\r\n"),
        Step::Hang,
    ])
    .await;
    let gateway = Gateway::start([("slow", (slow, false))].into()).await;
    let mut stream = connect(&gateway).await;
    stream.write_all(request("leaver", "slow", "").as_bytes()).await.unwrap();
    let mut begun = Vec::new();
    while !begun.windows(5).any(|window| window == b"data\n") {
        stream.read_buf(&mut begun).await.unwrap();
    }
    drop(stream);
    let outcome = gateway.outcome("leaver").await;
    assert!(outcome.client_gone && outcome.head_sent && !outcome.ended, "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_sends_its_next_request_early_is_still_answered() {
    let (slow, _) = upstream::scripted(&[
        Step::WaitMs(300),
        Step::Send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"),
    ])
    .await;
    let gateway = Gateway::start([("slow", (slow, false))].into()).await;
    let mut stream = connect(&gateway).await;
    stream.write_all(request("early", "slow", "").as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    stream.write_all(b"GET ").await.unwrap();
    let answer = to_the_end(stream).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("{}"), "{answer}");
    assert!(answer.to_lowercase().contains("connection: close"), "{answer}");
    assert!(!gateway.outcome("early").await.client_gone);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_does_not_begin_in_time_is_left_for_the_next() {
    let mut peers = peers().await;
    peers.insert("slow", (upstream::scripted(HANG).await.0, false));
    let gateway = Gateway::start(peers).await;
    let mut stream = connect(&gateway).await;
    let start = Instant::now();
    stream.write_all(request("slow", "slow,echo", "x-first-byte-ms: 300\r\n").as_bytes()).await.unwrap();
    let answer = one_answer(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert_eq!(gateway.outcome("slow").await.attempts, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_sends_only_informational_heads_does_not_begin() {
    let (answer, outcome) =
        scripted(&[Step::Send("HTTP/1.1 103 Early Hints\r\n\r\n"), Step::Hang], "x-first-byte-ms: 300\r\n")
            .await;
    assert!(answer.contains("HTTP/1.1 502") && answer.ends_with("FirstByteTimeout"), "{answer}");
    assert!(!outcome.head_sent, "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_stops_in_the_middle_is_not_waited_for() {
    let (answer, outcome) = scripted(
        &[
            Step::Send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\ndata\n\r\n"),
            Step::WaitMs(300),
            Step::Send("5\r\ndata\n\r\n"),
            Step::Hang,
        ],
        "x-idle-ms: 600\r\n",
    )
    .await;
    assert_eq!(answer.matches("data\n").count(), 2, "each piece begins the wait anew: {answer}");
    assert_eq!(outcome.error.as_deref(), Some("IdleTimeout"));
    assert!(!outcome.client_gone);
}

const IN_TWO: &[Step] = &[
    Step::Send("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 4\r\n\r\n{\""),
    Step::WaitMs(200),
    Step::Send("\"}"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_head_is_replaced_at_the_end_of_the_body() {
    let (answer, outcome) = scripted(IN_TWO, "x-hold: replace\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nreplaced 4 bytes"), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1").count(), 1);
    assert!(outcome.head_sent && outcome.error.is_none(), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_head_goes_as_it_came_when_nothing_replaces_it() {
    let (answer, _) = scripted(IN_TWO, "x-hold: pass\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n{\"\"}"), "{answer}");
    assert!(answer.to_lowercase().contains("content-type: application/json"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_dies_while_its_head_is_held_can_still_be_answered_for() {
    let (answer, outcome) = scripted(
        &[Step::Send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"half"), Step::Close],
        "x-hold: pass\r\n",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 502") && answer.ends_with("ConnectionClosed"), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1").count(), 1);
    assert!(!outcome.client_gone, "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_head_without_a_body_is_an_error_and_not_an_answer() {
    let (answer, _) =
        scripted(&[Step::Send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")], "x-hold: pass\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 502") && answer.ends_with("EmptyAnswer"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_can_be_read_while_the_body_is_still_being_sent() {
    let gateway = Gateway::start(peers().await).await;
    let megabyte = vec![b'x'; 1 << 20];
    for chunked in [false, true] {
        let mut stream = connect(&gateway).await;
        let framing = if chunked {
            "transfer-encoding: chunked".to_owned()
        } else {
            format!("content-length: {}", 20 << 20)
        };
        let head = format!(
            "POST / HTTP/1.1\r\nhost: a\r\nx-peers: echo\r\nx-max-bytes: 100000\r\n{framing}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        for _ in 0..20 {
            if chunked {
                stream.write_all(b"100000\r\n").await.unwrap();
            }
            stream.write_all(&megabyte).await.unwrap();
            if chunked {
                stream.write_all(b"\r\n").await.unwrap();
            }
        }
        if chunked {
            stream.write_all(b"0\r\n\r\n").await.unwrap();
        }
        let answer = to_the_end(stream).await;
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
        assert!(answer.ends_with("the most that is accepted."), "{answer}");
    }
    all_given_back(&gateway).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_client_that_sends_nothing_is_not_waited_for_long() {
    let gateway = Gateway::start(peers().await).await;
    let mut stream = connect(&gateway).await;
    let start = Instant::now();
    stream
        .write_all(b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\nx-max-bytes: 10\r\ncontent-length: 11\r\n\r\n")
        .await
        .unwrap();
    let answer = to_the_end(stream).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_does_not_arrive_is_refused_and_one_that_breaks_off_is_dropped() {
    let gateway = Gateway::start(peers().await).await;
    let half = "POST / HTTP/1.1\r\nhost: a\r\nx-case: half\r\nx-peers: echo\r\nx-grace-ms: 300\r\ncontent-length: 100\r\n\r\n";
    let mut slow = connect(&gateway).await;
    slow.write_all(half.as_bytes()).await.unwrap();
    assert!(to_the_end(slow).await.starts_with("HTTP/1.1 408"));
    let mut leaver = connect(&gateway).await;
    leaver.write_all(half.replace("half", "leaver").as_bytes()).await.unwrap();
    leaver.write_all(b"{").await.unwrap();
    drop(leaver);
    assert_eq!(gateway.outcome("leaver").await.error.as_deref(), Some("ConnectionClosed"));
    all_given_back(&gateway).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_can_be_read_in_two_ways_is_refused_and_the_connection_closed() {
    let gateway = Gateway::start(peers().await).await;
    let chunks = "4\r\nabcd\r\n0\r\n\r\n";
    for head in [
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 14\r\ntransfer-encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 14\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 14\r\ncontent-length: 4\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 14, 4\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\n",
        "POST / HTTP/1.0\r\nhost: a\r\nconnection: keep-alive\r\ntransfer-encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding : chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +14\r\n\r\n",
    ] {
        let mut stream = connect(&gateway).await;
        let smuggled = format!("{head}{chunks}GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n");
        stream.write_all(smuggled.as_bytes()).await.unwrap();
        let answer = to_the_end(stream).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{head}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{head}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_beyond_the_cap_is_refused() {
    let gateway = Gateway::start(peers().await).await;
    for (filler, wanted) in [(20 << 10, "HTTP/1.1 200"), (40 << 10, "HTTP/1.1 431")] {
        let mut stream = connect(&gateway).await;
        let headers = format!("connection: close\r\nx-filler: {}\r\n", "x".repeat(filler));
        stream.write_all(request("large", "echo", &headers).as_bytes()).await.unwrap();
        let answer = to_the_end(stream).await;
        assert!(answer.starts_with(wanted), "{answer}");
    }
}
