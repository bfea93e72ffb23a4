//! The relay over Pingora: what it is built on is not a stable interface, so these cases hold it in place.

mod edges;
mod gateway;
mod upstream;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use gateway::{Gateway, Peers, REWRITTEN};

const SIZES: [usize; 5] = [1 << 10, 63 << 10, 65 << 10, 1 << 20, 20 << 20];
const WAYS: [Way; 4] = [Way::H1Length, Way::H1Chunked, Way::H2Length, Way::H2NoLength];
const PLANS: [&str; 6] =
    ["echo", "refused,echo", "fail,echo", "fail,refused,echo-h2", "echo-h2", "fail-h2,echo-h2"];

/// How a client sends its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    H1Length,
    H1Chunked,
    H2Length,
    H2NoLength,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_body_reaches_the_provider_whole_through_every_failover() {
    let gateway = Gateway::start(peers().await).await;
    let bodies = SIZES.map(Sample::of);
    let mut cases = Vec::new();
    for sample in &bodies {
        for way in WAYS {
            cases.extend(PLANS.map(|plan| (sample, way, plan)));
        }
    }
    assert_eq!(cases.len(), 120);
    let address = gateway.address;
    let failed: Vec<String> = futures::stream::iter(cases)
        .map(|(sample, way, plan)| async move { sample.send(address, way, plan).await.err() })
        .buffer_unordered(4)
        .filter_map(|failed| async move { failed })
        .collect()
        .await;
    assert!(failed.is_empty(), "{} of 120 failed: {failed:#?}", failed.len());
    all_given_back(&gateway).await;
}

/// A body and what the provider must say of it.
struct Sample {
    bytes: Bytes,
    rewritten_length: usize,
    rewritten_sha256: String,
}

impl Sample {
    fn of(size: usize) -> Sample {
        let mut bytes = Vec::with_capacity(size);
        bytes.push(b'{');
        bytes.extend((1..size).map(|at| b'a' + u8::try_from(at * 7 % 26).unwrap()));
        let rewritten = [REWRITTEN, &bytes[1..]].concat();
        Sample {
            rewritten_length: rewritten.len(),
            rewritten_sha256: upstream::sha256(&rewritten),
            bytes: bytes.into(),
        }
    }

    async fn send(&self, to: SocketAddr, way: Way, plan: &str) -> Result<(), String> {
        let case = format!("{} bytes, {way:?}, {plan}", self.bytes.len());
        // HTTP/2 has the host in its target, HTTP/1.1 in a header; Pingora refuses a request whose two differ.
        let request = match way {
            Way::H1Length | Way::H1Chunked => Request::post("/v1/echo").header("host", to.to_string()),
            Way::H2Length | Way::H2NoLength => Request::post(format!("http://{to}/v1/echo")),
        };
        let request = request
            .header("x-peers", plan)
            .header("x-rewrite", "yes")
            .header("x-length", self.bytes.len().to_string())
            .body(self.body(way))
            .unwrap();
        let response = tokio::time::timeout(Duration::from_secs(30), exchange(to, way, request))
            .await
            .map_err(|_| format!("{case}: no answer"))?
            .map_err(|e| format!("{case}: {e:?}"))?;
        let status = response.status();
        let text = response.into_body().collect().await.map_err(|e| format!("{case}: {e}"))?.to_bytes();
        let length = self.rewritten_length.to_string();
        let wanted = [length.as_str(), &self.rewritten_sha256, &length, "-", "-"].join("\n");
        if status == 200 && text == wanted {
            return Ok(());
        }
        Err(format!("{case}: {status} {}", String::from_utf8_lossy(&text)))
    }

    fn body(&self, way: Way) -> BoxBody<Bytes, std::convert::Infallible> {
        match way {
            Way::H1Length | Way::H2Length => Full::new(self.bytes.clone()).boxed(),
            Way::H1Chunked | Way::H2NoLength => {
                let pieces: Vec<_> = (0..self.bytes.len())
                    .step_by(50_000)
                    .map(|from| self.bytes.slice(from..self.bytes.len().min(from + 50_000)))
                    .map(|piece| Ok(Frame::data(piece)))
                    .collect();
                BodyExt::boxed(StreamBody::new(futures::stream::iter(pieces)))
            }
        }
    }
}

async fn exchange(
    to: SocketAddr,
    way: Way,
    request: Request<BoxBody<Bytes, std::convert::Infallible>>,
) -> Result<Response<Incoming>, hyper::Error> {
    let io = TokioIo::new(TcpStream::connect(to).await.unwrap());
    match way {
        Way::H1Length | Way::H1Chunked => {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
            tokio::spawn(connection);
            sender.send_request(request).await
        }
        Way::H2Length | Way::H2NoLength => {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
            tokio::spawn(connection);
            sender.send_request(request).await
        }
    }
}

/// The peers that every test may name.
async fn peers() -> Peers {
    let (echo, fail) = (upstream::start(false).await, upstream::start(true).await);
    Peers::from([
        ("echo", (echo, false)),
        ("echo-h2", (echo, true)),
        ("fail", (fail, false)),
        ("fail-h2", (fail, true)),
        ("refused", (upstream::refused().await, false)),
    ])
}

/// No body is held when nothing is on its way.
async fn all_given_back(gateway: &Gateway) {
    for _ in 0..100 {
        if gateway.budget.used_bytes() == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{} bytes are still charged", gateway.budget.used_bytes());
}
