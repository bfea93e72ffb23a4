//! Providers of the matrix: an echo over HTTP/1.1 and h2c, one that always fails, and one that follows a script.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// SHA-256 in lower-case hexadecimal.
pub(super) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What `echo` answers: length, hash, `content-length`, `transfer-encoding` and `expect`, one a line.
async fn echo(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|whole| whole.to_bytes()).unwrap_or_default();
    let header =
        |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("-").to_owned();
    let lines = [
        body.len().to_string(),
        sha256(&body),
        header("content-length"),
        header("transfer-encoding"),
        header("expect"),
    ];
    Ok(Response::new(Full::new(Bytes::from(lines.join("\n")))))
}

/// Reads everything and answers 500.
async fn fail(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut body = request.into_body();
    while let Some(Ok(_)) = body.frame().await {}
    let mut response = Response::new(Full::new(Bytes::from_static(b"boom")));
    *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
    Ok(response)
}

/// Starts an echo (or a failing one) that speaks HTTP/1.1 and h2c.
pub(super) async fn start(failing: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let builder = auto::Builder::new(TokioExecutor::new());
                let io = TokioIo::new(stream);
                if failing {
                    let _ = builder.serve_connection(io, service_fn(fail)).await;
                } else {
                    let _ = builder.serve_connection(io, service_fn(echo)).await;
                }
            });
        }
    });
    address
}

/// A port that nobody listens on.
pub(super) async fn refused() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// One step of a scripted answer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Send(&'static str),
    WaitMs(u64),
    /// Closes the connection at once.
    Close,
    /// Says no more, and waits for the gateway to leave.
    Hang,
}

/// A provider that answers every request with the same script. Counts the connections that the gateway left.
pub(super) async fn scripted(steps: &'static [Step]) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let left = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&left);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                follow(stream, steps).await;
                count.fetch_add(1, Ordering::SeqCst);
            });
        }
    });
    (address, left)
}

async fn follow(mut stream: TcpStream, steps: &[Step]) {
    let mut request = Vec::new();
    // The small requests of these tests end with this.
    while !request.ends_with(b"}") {
        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
    }
    for step in steps {
        match step {
            Step::Send(text) => stream.write_all(text.as_bytes()).await.unwrap_or_default(),
            Step::WaitMs(time) => tokio::time::sleep(Duration::from_millis(*time)).await,
            Step::Close => return,
            Step::Hang => while stream.read_buf(&mut request).await.unwrap_or(0) > 0 {},
        }
    }
    while stream.read_buf(&mut request).await.unwrap_or(0) > 0 {}
}
