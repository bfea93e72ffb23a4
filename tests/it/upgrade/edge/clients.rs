//! Clients of every listener: HTTP/1.1 and HTTP/2, over TLS and over a socket of the file system.

use crate::support::Reply;
use crate::support::http::Head;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

/// Whom the certificate is for.
pub(super) const HOST: &str = "one.example";

const PATIENCE: Duration = Duration::from_secs(20);

/// How a client comes in.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    Tls1,
    Tls2,
    Unix1,
    Unix2,
}

impl Way {
    pub(super) const ALL: [Way; 4] = [Way::Tls1, Way::Tls2, Way::Unix1, Way::Unix2];

    pub(super) fn is_http_2(self) -> bool {
        matches!(self, Way::Tls2 | Way::Unix2)
    }

    fn is_tls(self) -> bool {
        matches!(self, Way::Tls1 | Way::Tls2)
    }
}

trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// A connection on which nothing is said yet.
pub(super) struct Opened {
    way: Way,
    socket: Box<dyn Socket>,
}

impl Opened {
    pub(super) async fn new(way: Way, secured: SocketAddr, path: &Path) -> Opened {
        let socket: Box<dyn Socket> = if way.is_tls() {
            Box::new(TcpStream::connect(secured).await.unwrap())
        } else {
            Box::new(UnixStream::connect(path).await.unwrap())
        };
        Opened { way, socket }
    }

    /// Begins, trusting this certificate only.
    pub(super) async fn speak(self, trusted: &CertificateDer<'static>, key: &str) -> Client {
        let Opened { way, mut socket } = self;
        if way.is_tls() {
            let tls = TlsConnector::from(Arc::new(tls_config(way, trusted)));
            let name = ServerName::try_from(HOST).unwrap();
            let secured = in_time("a TLS handshake", tls.connect(name, socket)).await.unwrap();
            let chosen = secured.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
            assert_eq!(chosen.as_deref(), Some(protocol(way)));
            socket = Box::new(secured);
        }
        let io = TokioIo::new(socket);
        let sender = if way.is_http_2() {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
            tokio::spawn(connection);
            Sender::Two(sender)
        } else {
            let (sender, connection) = http1::handshake(io).await.unwrap();
            tokio::spawn(connection);
            Sender::One(sender)
        };
        Client { way, sender, key: key.to_owned() }
    }
}

fn protocol(way: Way) -> &'static [u8] {
    if way.is_http_2() { b"h2" } else { b"http/1.1" }
}

fn tls_config(way: Way, trusted: &CertificateDer<'static>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol(way).to_vec()];
    config
}

enum Sender {
    One(http1::SendRequest<Full<Bytes>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

/// One connection.
pub(super) struct Client {
    pub(super) way: Way,
    sender: Sender,
    key: String,
}

impl Client {
    /// Asks, and waits for the head of the answer; nothing where the request was not sent, as the connection takes no more.
    pub(super) async fn begin(&mut self, body: &Value) -> Option<Stream> {
        let path = "/v1/chat/completions";
        let scheme = if self.way.is_tls() { "https" } else { "http" };
        let request = match self.sender {
            Sender::One(_) => Request::post(path).header("host", HOST),
            Sender::Two(_) => Request::post(format!("{scheme}://{HOST}{path}")),
        };
        let request = request
            .header("authorization", format!("Bearer {}", self.key))
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body.to_string())))
            .unwrap();
        let answer = match &mut self.sender {
            Sender::One(sender) => in_time("an answer", sender.send_request(request)).await,
            Sender::Two(sender) => in_time("an answer", sender.send_request(request)).await,
        };
        match answer {
            Ok(answer) => Some(Stream { way: self.way, answer, text: Vec::new() }),
            Err(error) if error.is_canceled() => None,
            Err(error) => panic!("{:?}: {error:?}", self.way),
        }
    }
}

/// An answer that is being read.
pub(super) struct Stream {
    pub(super) way: Way,
    answer: Response<Incoming>,
    text: Vec<u8>,
}

impl Stream {
    /// Reads until this has come.
    pub(super) async fn await_text(&mut self, text: &str) {
        while !String::from_utf8_lossy(&self.text).contains(text) {
            let frame = in_time("a piece", self.answer.body_mut().frame()).await;
            let frame = frame.expect("more of the answer").unwrap();
            self.text.extend(frame.into_data().unwrap_or_default());
        }
    }

    /// Reads the rest, which must end in order.
    pub(super) async fn finish(self) -> Reply {
        let (head, rest) = self.answer.into_parts();
        let rest = in_time("the end", rest.collect()).await;
        let rest = rest.unwrap_or_else(|error| panic!("{:?} is cut: {error:?}", self.way)).to_bytes();
        let text = |value: &hyper::header::HeaderValue| value.to_str().unwrap().to_owned();
        let headers = head.headers.iter().map(|(name, value)| (name.to_string(), text(value)));
        Reply {
            status: head.status.as_u16(),
            head: Head { first_line: head.status.to_string(), headers: headers.collect() },
            body: [self.text.as_slice(), &rest].concat(),
            whole: true,
        }
    }
}

async fn in_time<F: Future>(what: &str, done: F) -> F::Output {
    tokio::time::timeout(PATIENCE, done).await.unwrap_or_else(|_| panic!("no {what} in {PATIENCE:?}"))
}
