//! Faults of a provider that speaks HTTP/2, and so TLS.

use super::{Answered, CUT, ERROR, GOOD, LIMITED, Matrix, QUICK, Refused, Row, SLOW_TEXT, TIMEOUT};
use crate::streams::stream_of_http_1_0;
use crate::support::Upstream;
use crate::support::gateway::Gateway;
use crate::support::upstream::{chat, chunk, last_chunk, usage, usage_chunk};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response};
use hyper::body::Bytes;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

/// What the provider does with a request.
#[derive(Clone, Debug)]
enum Play {
    /// Answers with this status and body, whole.
    Whole(u16, Value),
    /// A success that says this and then does that.
    Begin(Content, Then),
    /// Resets the stream without an answer.
    Reset(Reason),
    /// Closes the whole connection without an answer.
    Close,
    /// Says that it has taken the request and goes away, then closes the connection without an answer.
    GoAway,
    /// Never answers.
    Never,
    /// Answers both late and slowly, but in time.
    Slow,
}

/// Closes a connection: with a word of farewell or without.
type Closer = tokio::sync::mpsc::Sender<Farewell>;

#[derive(Clone, Copy, Debug)]
enum Farewell {
    Said,
    Unsaid,
}

#[derive(Clone, Copy, Debug)]
enum Content {
    Json,
    Events,
}

#[derive(Clone, Copy, Debug)]
enum Then {
    Reset,
    Close,
    Stall,
    End,
}

/// The provider. It ends with the runtime that it is played on.
struct Provider {
    notes: Upstream,
    script: Arc<Mutex<VecDeque<Play>>>,
    certificate: String,
    _runtime: tokio::runtime::Runtime,
}

impl Provider {
    fn start() -> Provider {
        let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let ring = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let mut tls = ServerConfig::builder_with_provider(ring)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let notes = Upstream::elsewhere(listener.local_addr().unwrap());
        let script = Arc::default();
        runtime.spawn(serve(listener, TlsAcceptor::from(Arc::new(tls)), notes.clone(), Arc::clone(&script)));
        Provider { notes, script, certificate: certified.cert.pem(), _runtime: runtime }
    }

    fn address(&self) -> SocketAddr {
        self.notes.address()
    }

    fn next(&self, play: Play) {
        self.script.lock().unwrap().push_back(play);
    }
}

async fn serve(listener: TcpListener, tls: TlsAcceptor, notes: Upstream, script: Arc<Mutex<VecDeque<Play>>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, notes, script) = (tls.clone(), notes.clone(), Arc::clone(&script));
        tokio::spawn(async move { connection(stream, tls, notes, script).await });
    }
}

async fn connection(
    stream: TcpStream,
    tls: TlsAcceptor,
    notes: Upstream,
    script: Arc<Mutex<VecDeque<Play>>>,
) -> Option<()> {
    let mut connection = h2::server::handshake(tls.accept(stream).await.ok()?).await.ok()?;
    let (close, mut is_closing) = tokio::sync::mpsc::channel(1);
    loop {
        let (request, respond) = tokio::select! {
            accepted = connection.accept() => accepted?.ok()?,
            farewell = is_closing.recv() => {
                if matches!(farewell, Some(Farewell::Said)) {
                    connection.abrupt_shutdown(Reason::NO_ERROR);
                    while connection.accept().await.is_some() {}
                }
                return None;
            }
        };
        let play = script.lock().unwrap().pop_front().expect("a script for each request");
        let (notes, close) = (notes.clone(), close.clone());
        tokio::spawn(async move { answer(request, respond, play, &notes, close).await });
    }
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    play: Play,
    notes: &Upstream,
    close: Closer,
) -> Option<()> {
    let mut body = request.into_body();
    let mut whole = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece.ok()?;
        let _ = body.flow_control().release_capacity(piece.len());
        whole.extend_from_slice(&piece);
    }
    let is_streamed = serde_json::from_slice::<Value>(&whole).ok()?["stream"] == true;
    notes.note_request(whole);
    let mut head = |status: u16, content_type: &str| {
        notes.note_answer(status);
        let head = Response::builder().status(status).header("content-type", content_type).body(()).unwrap();
        respond.send_response(head, false)
    };
    match play {
        Play::Whole(status, body) => {
            let mut stream = head(status, "application/json").ok()?;
            stream.send_data(Bytes::from(body.to_string()), true).ok()?;
        }
        Play::Begin(content, then) => {
            let mut stream = match content {
                Content::Json => head(200, "application/json").ok()?,
                Content::Events => head(200, "text/event-stream").ok()?,
            };
            let text = match content {
                Content::Json => r#"{"id":"chatcmpl-1","choices":[{"ind"#.to_owned(),
                Content::Events => event(&chunk("Hello")),
            };
            stream.send_data(Bytes::from(text), false).ok()?;
            pause(50).await;
            finish(stream, then, close).await;
        }
        Play::Reset(reason) => respond.send_reset(reason),
        Play::Close | Play::GoAway => {
            let farewell = if matches!(play, Play::GoAway) { Farewell::Said } else { Farewell::Unsaid };
            close.send(farewell).await.ok()?;
            // Dropped sooner, the stream would be reset before the connection is closed.
            pause(300).await;
        }
        Play::Never => {
            let _left = std::future::poll_fn(|context| respond.poll_reset(context)).await;
        }
        Play::Slow => {
            pause(300).await;
            let told = usage(9, 2);
            if is_streamed {
                let mut stream = head(200, "text/event-stream").ok()?;
                pause(300).await;
                let events =
                    [chunk(SLOW_TEXT), last_chunk(), usage_chunk(&told)].map(|chunk| event(&chunk)).concat();
                stream.send_data(Bytes::from(events + "data: [DONE]\n\n"), true).ok()?;
            } else {
                let mut stream = head(200, "application/json").ok()?;
                pause(300).await;
                stream.send_data(Bytes::from(chat(SLOW_TEXT, &told).to_string()), true).ok()?;
            }
        }
    }
    Some(())
}

async fn finish(mut stream: SendStream<Bytes>, then: Then, close: Closer) {
    match then {
        Then::Reset => stream.send_reset(Reason::INTERNAL_ERROR),
        Then::Close => {
            let _closed = close.send(Farewell::Unsaid).await;
            pause(300).await;
        }
        Then::Stall => {
            let _left = std::future::poll_fn(|context| stream.poll_reset(context)).await;
        }
        Then::End => drop(stream.send_data(Bytes::new(), true)),
    }
}

async fn pause(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

fn event(data: &Value) -> String {
    format!("data: {data}\n\n")
}

fn both(play: Play) -> [Play; 2] {
    [play.clone(), play]
}

fn begun(then: Then) -> [Play; 2] {
    [Play::Begin(Content::Json, then), Play::Begin(Content::Events, then)]
}

fn faults() -> Vec<(Row, [Play; 2])> {
    let error = |code: &str| json!({"error": {"message": "no", "type": "invalid_request_error", "param": null, "code": code}});
    let status = |status: u16| both(Play::Whole(status, error("x")));
    let too_long = both(Play::Whole(400, error("context_length_exceeded")));
    vec![
        // First, and so on connections that no request used before: it may have been executed.
        (Row::told("gone away with the request", ERROR), both(Play::GoAway)),
        (Row::passed_on("refused stream", ERROR), both(Play::Reset(Reason::REFUSED_STREAM))),
        (Row::told("reset after the request", ERROR), both(Play::Reset(Reason::INTERNAL_ERROR))),
        (Row::told("cancelled after the request", ERROR), both(Play::Reset(Reason::CANCEL))),
        (Row::told("no first byte", TIMEOUT), both(Play::Never)),
        (Row::told("a slow first byte, in time", Answered("bad")), both(Play::Slow)),
        (Row::broken("a stall in the middle", TIMEOUT, CUT), begun(Then::Stall)),
        (Row::broken("reset in the middle", ERROR, CUT), begun(Then::Reset)),
        (Row::broken("closed in the middle", ERROR, CUT), begun(Then::Close)),
        (Row::broken("ended in the middle", ERROR, CUT), begun(Then::End)),
        (Row::told("not an answer", ERROR), both(Play::Whole(200, json!([])))),
        (Row::told("an error as a success", ERROR), both(Play::Whole(200, error("x")))),
        (Row::told("400", Refused(400, "context_length_exceeded")), too_long),
        (Row::told("401", ERROR), status(401)),
        (Row::passed_on("429", LIMITED), status(429)),
        (Row::passed_on("500", ERROR), status(500)),
        (Row::passed_on("503", LIMITED), status(503)),
    ]
}

fn matrix(bad: &Provider, good: &Upstream) -> Matrix {
    let builder = Gateway::builder()
        .provider_of_url("bad", &format!("https://{}/v1", bad.address()), QUICK)
        .noted_by(&bad.notes)
        .trust(&bad.certificate)
        .provider("good", good)
        .model_in_order("tiny", &["bad", "good"])
        .model_in_order("rich", &["bad"]);
    Matrix::start(builder, good)
}

#[test]
fn each_fault_over_http_2() {
    let (bad, good) = (Provider::start(), Upstream::start());
    let mut matrix = matrix(&bad, &good);
    for (row, plays) in faults() {
        for (streamed, play) in [false, true].into_iter().zip(&plays) {
            for (model, told) in [("tiny", row.before_another), ("rich", row.alone)] {
                let before = bad.notes.count();
                bad.next(play.clone());
                matrix.check(row.fault, model, streamed, told[usize::from(streamed)]);
                assert_eq!(bad.notes.count() - before, row.seen, "{} is seen so often: {model}", row.fault);
            }
        }
    }
    matrix.end();
}

#[test]
fn a_provider_whose_certificate_nobody_vouches_for_is_told_nothing() {
    let (bad, other, good) = (Provider::start(), Provider::start(), Upstream::start());
    let builder = Gateway::builder()
        .provider_of_url("bad", &format!("https://{}/v1", bad.address()), QUICK)
        .trust(&other.certificate)
        .provider("good", &good)
        .model_in_order("tiny", &["bad", "good"])
        .model_in_order("rich", &["bad"]);
    let mut matrix = Matrix::start(builder, &good);
    for streamed in [false, true] {
        matrix.check("not trusted", "tiny", streamed, GOOD);
        matrix.check("not trusted", "rich", streamed, ERROR);
    }
    matrix.end();
    assert_eq!(bad.notes.count(), 0);
}

#[test]
fn a_connection_that_is_closed_without_an_answer_is_tried_once_more_only_if_it_was_used_before() {
    let (bad, good) = (Provider::start(), Upstream::start());
    let mut matrix = matrix(&bad, &good);
    bad.next(Play::Close);
    matrix.check("closed, fresh", "tiny", false, ERROR);
    assert_eq!(bad.notes.count(), 1);
    for streamed in [false, true] {
        bad.next(Play::Slow);
        matrix.check("in between", "tiny", streamed, Answered("bad"));
        let before = bad.notes.count();
        bad.next(Play::Close);
        bad.next(Play::Slow);
        matrix.check("closed, used", "tiny", streamed, Answered("bad"));
        assert_eq!(bad.notes.count() - before, 2);
    }
    bad.next(Play::Whole(500, json!({})));
    matrix.check("passed on", "tiny", true, GOOD);
    matrix.end();
}

#[test]
fn a_client_of_http_1_0_gets_no_chunks_of_a_provider_that_speaks_http_2() {
    let provider = Provider::start();
    let gateway = Gateway::builder()
        .provider_of_url("main", &format!("https://{}/v1", provider.address()), QUICK)
        .trust(&provider.certificate)
        .standard_models("main")
        .start();
    provider.next(Play::Slow);
    stream_of_http_1_0(&gateway, "Connection: keep-alive\r\n");
    assert_eq!(gateway.row()["outcome"], "completed");
}
