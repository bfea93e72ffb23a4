//! A client that speaks HTTP/2 without TLS.

use crate::support::Gateway;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;

/// One connection.
pub(crate) struct Client {
    runtime: Runtime,
    sender: SendRequest<Full<Bytes>>,
    address: String,
    key: String,
}

/// An answer that is being read. Dropped before its end, its stream is reset.
pub(crate) type Stream = Response<Incoming>;

const PATIENCE: Duration = Duration::from_secs(20);

impl Client {
    /// Connects with the key of the gateway's account.
    pub(crate) fn open(gateway: &Gateway) -> Client {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let address = gateway.address();
        let sender = runtime.block_on(async {
            let stream = TcpStream::connect(address).await.unwrap();
            let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            sender
        });
        Client { runtime, sender, address: address.to_string(), key: gateway.account.key.clone() }
    }

    /// Asks, and waits for the head of the answer.
    pub(crate) fn begin(&mut self, body: &Value) -> Stream {
        let request = Request::post(format!("http://{}/v1/chat/completions", self.address))
            .header("authorization", format!("Bearer {}", self.key))
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body.to_string())))
            .unwrap();
        let answer = self.sender.send_request(request);
        self.runtime.block_on(async { timeout(PATIENCE, answer).await }).expect("an answer in time").unwrap()
    }

    /// The next piece of an answer.
    pub(crate) fn piece(&self, stream: &mut Stream) -> String {
        let frame = self.runtime.block_on(async { timeout(PATIENCE, stream.body_mut().frame()).await });
        let frame = frame.expect("a piece in time").expect("more of the answer").unwrap();
        String::from_utf8(frame.into_data().unwrap_or_default().to_vec()).unwrap()
    }

    /// Asks, and reads the whole answer.
    pub(crate) fn text(&mut self, body: &Value) -> String {
        let stream = self.begin(body);
        let whole = self.runtime.block_on(async { timeout(PATIENCE, stream.into_body().collect()).await });
        String::from_utf8(whole.expect("the end in time").unwrap().to_bytes().to_vec()).unwrap()
    }

    /// Asks, reads the whole answer and tells its status.
    pub(crate) fn status(&mut self, body: &Value) -> u16 {
        let stream = self.begin(body);
        let status = stream.status().as_u16();
        let whole = self.runtime.block_on(async { timeout(PATIENCE, stream.into_body().collect()).await });
        whole.expect("the end in time").unwrap();
        status
    }

    /// Gives what has been told to the connection the time to go out.
    pub(crate) fn turn(&self) {
        self.runtime.block_on(async { tokio::time::sleep(Duration::from_millis(50)).await });
    }
}
