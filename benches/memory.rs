//! What a stream takes in memory while it is silent. `make bench`, or `cargo bench --bench memory`.
//!
//! Clients speak HTTP/1.1, the provider HTTP/2 over TLS, prompts have 4 KB, and the gateway has everything on. After a churn of
//! short streams, as many as told are opened; each has had its first chunk and hears nothing more. What the process then has more
//! resident than before, by the kernel's account, is divided among them. Whoever serves many streams pays this for each.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a bench that cannot measure stops")]
#![expect(clippy::print_stdout, reason = "the report")]
#![expect(clippy::disallowed_methods, reason = "deadlines of start-up, by the real clock; tasks of a bench")]

#[path = "whole/gateway.rs"]
mod gateway;

use bytes::Bytes;
use gateway::{Part, gateway};
use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

const FIRST: &str = "data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\
                     \"delta\":{\"content\":\"word\"},\"finish_reason\":null}]}\n\n";
const LAST: &str = "data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\
                    \"delta\":{},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":900,\"completion_tokens\":1,\
                    \"total_tokens\":901}}\n\ndata: [DONE]\n\n";
/// Of a prompt, in bytes.
const PROMPT: usize = 4096;
/// Streams of the churn that are open at a time.
const AT_ONCE: usize = 200;

fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let streams = if quick { 500 } else { 2_000 };
    let directory = tempfile::tempdir().expect("a temporary directory");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
    let certificates = directory.path().join("provider.pem");
    fs::write(&certificates, certified.cert.pem()).unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
    let origin = format!("https://{}", listener.local_addr().unwrap());
    runtime.spawn(provide(listener, acceptor(&certified)));
    let (weir, address, key) = gateway(directory.path(), &origin, Some(&certificates));

    runtime.block_on(async {
        for _ in 0..5 {
            let short = (0..AT_ONCE).map(|_| open(address, &key, "short", LAST));
            drop(futures::future::join_all(short).await);
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        let before = resident_kib(&weir);
        let mut idle = Vec::with_capacity(streams);
        while idle.len() < streams {
            let more = AT_ONCE.min(streams - idle.len());
            idle.extend(futures::future::join_all((0..more).map(|_| open(address, &key, "idle", FIRST))).await);
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
        let during = resident_kib(&weir);
        println!("Resident memory of an idle stream: HTTP/1.1 client, HTTP/2 provider, prompt of 4 KB, after churn.\n");
        println!("streams {streams}, before {before} KiB, with them {during} KiB");
        println!("KiB per stream: {:.1}", (during as f64 - before as f64) / streams as f64);
    });
}

/// Asks for a stream and reads until this has come.
async fn open(address: SocketAddr, key: &str, how: &str, until: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let prompt = format!("{how} {}", "The quick brown fox jumps over the lazy dog. ".repeat(PROMPT / 45));
    let body = format!(
        r#"{{"model":"bench","stream":true,"max_tokens":256,"messages":[{{"role":"user","content":"{prompt}"}}]}}"#
    );
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: weir\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).await.expect("the request goes");
    let mut answer = Vec::new();
    let awaited = if until == LAST { "data: [DONE]" } else { "word" };
    while memchr::memmem::find(&answer, awaited.as_bytes()).is_none() {
        let read = stream.read_buf(&mut answer).await.expect("the answer comes");
        assert!(read > 0, "ended: {}", String::from_utf8_lossy(&answer));
    }
    stream
}

fn acceptor(certified: &rcgen::CertifiedKey<rcgen::KeyPair>) -> TlsAcceptor {
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let ring = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let mut tls = ServerConfig::builder_with_provider(ring)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    TlsAcceptor::from(Arc::new(tls))
}

/// Answers each request with a first chunk; a short one ends there, another goes on for ever without a word.
async fn provide(listener: TcpListener, tls: TlsAcceptor) {
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        let tls = tls.clone();
        tokio::spawn(async move {
            let stream = tls.accept(stream).await.expect("a handshake");
            let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                tokio::spawn(async move {
                    let mut asked = request.into_body();
                    let mut body = Vec::new();
                    while let Some(Ok(piece)) = asked.data().await {
                        let _ = asked.flow_control().release_capacity(piece.len());
                        body.extend_from_slice(&piece);
                    }
                    let is_short = memchr::memmem::find(&body, b"short ").is_some();
                    let head = http::Response::builder().header("content-type", "text/event-stream");
                    let Ok(mut answer) = respond.send_response(head.body(()).unwrap(), false) else { return };
                    let _ = answer.send_data(Bytes::from_static(FIRST.as_bytes()), false);
                    if is_short {
                        let _ = answer.send_data(Bytes::from_static(LAST.as_bytes()), true);
                    } else {
                        std::future::poll_fn(|context| answer.poll_reset(context)).await.ok();
                    }
                });
            }
        });
    }
}

fn resident_kib(weir: &Part) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", weir.0.id())).expect("the process is there");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
