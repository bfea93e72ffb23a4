//! The load: connections that are kept, each asking again as soon as it has its answer.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::task::JoinSet;

/// What is asked.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// A chat request of 1 KB, its answer whole.
    Chat,
    /// The same, its answer a stream of 100 chunks.
    Stream,
    /// A request of 256 KB, its answer whole.
    Large,
}

impl Kind {
    pub(crate) const ALL: [Kind; 3] = [Kind::Chat, Kind::Stream, Kind::Large];

    pub(crate) fn parse(name: &str) -> Kind {
        Kind::ALL.into_iter().find(|kind| kind.name() == name).expect("a kind of load")
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Chat => "chat",
            Kind::Stream => "stream",
            Kind::Large => "large",
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Kind::Chat => "chat of 1 KB",
            Kind::Stream => "stream of 100 chunks",
            Kind::Large => "body of 256 KB",
        }
    }

    /// How many make a second or more of CPU, so that its ticks are fine enough.
    pub(crate) fn requests(self) -> u32 {
        match self {
            Kind::Chat => 24_000,
            Kind::Stream => 1_600,
            Kind::Large => 4_000,
        }
    }

    /// Streams spend their time waiting for the next chunk: more of them at once make the same CPU in less time.
    fn connections(self) -> u32 {
        match self {
            Kind::Chat | Kind::Large => 16,
            Kind::Stream => 64,
        }
    }

    fn body(self) -> Bytes {
        let (length, stream) = match self {
            Kind::Chat => (1 << 10, ""),
            Kind::Stream => (1 << 10, r#""stream":true,"#),
            Kind::Large => (256 << 10, ""),
        };
        let start =
            format!(r#"{{"model":"bench",{stream}"max_tokens":256,"messages":[{{"role":"user","content":""#);
        let end = r#""}]}"#;
        let words = "The quick brown fox jumps over the lazy dog. ".repeat(length / 40);
        let text = &words[..length - start.len() - end.len()];
        Bytes::from(format!("{start}{text}{end}"))
    }
}

/// Asks `count` times, and fails where any answer is not what the upstream sends.
pub(crate) fn run(address: SocketAddr, kind: Kind, count: u32, key: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let asked = Arc::new(AtomicU32::new(0));
        let body = kind.body();
        let mut drivers = JoinSet::new();
        let mut clients = JoinSet::new();
        for _ in 0..kind.connections() {
            let stream = tokio::net::TcpStream::connect(address).await.expect("a connection");
            stream.set_nodelay(true).expect("no delay");
            let (sender, connection) = handshake(TokioIo::new(stream)).await.expect("HTTP/1.1");
            drivers.spawn(connection);
            let (asked, body, bearer) = (Arc::clone(&asked), body.clone(), format!("Bearer {key}"));
            clients.spawn(async move {
                let mut sender = sender;
                while asked.fetch_add(1, Ordering::Relaxed) < count {
                    ask(&mut sender, address, kind, body.clone(), &bearer).await;
                }
            });
        }
        while let Some(ended) = clients.join_next().await {
            ended.expect("every answer is right");
        }
    });
}

async fn ask(
    sender: &mut SendRequest<Full<Bytes>>,
    address: SocketAddr,
    kind: Kind,
    body: Bytes,
    bearer: &str,
) {
    sender.ready().await.expect("the connection is kept");
    let request = Request::post("/v1/chat/completions")
        .header("host", address.to_string())
        .header("authorization", bearer)
        .header("content-type", "application/json")
        .body(Full::new(body))
        .expect("a request");
    let answer = sender.send_request(request).await.expect("an answer");
    assert_eq!(answer.status(), 200);
    let body = answer.into_body().collect().await.expect("a whole answer").to_bytes();
    let right = match kind {
        Kind::Stream => body.ends_with(b"data: [DONE]\n\n"),
        Kind::Chat | Kind::Large => body.starts_with(b"{") && body.ends_with(b"}"),
    };
    assert!(right, "not the upstream's answer: {:?}", String::from_utf8_lossy(&body));
}
