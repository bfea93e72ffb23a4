//! Providers to which no connection comes about, or none that lasts.

use super::{ERROR, GOOD, Matrix, QUICK, TIMEOUT};
use crate::support::Upstream;
use crate::support::gateway::Gateway;
use crate::support::ports::Port;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Takes a connection and resets it, whatever has been sent.
fn slammer() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let slammed = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&slammed);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            count.fetch_add(1, Ordering::SeqCst);
            crate::support::Connection::over(stream, address).reset();
        }
    });
    (address, slammed)
}

/// Speaks plain HTTP, at once.
fn plain() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
            let _ = stream.read(&mut [0; 4096]);
        }
    });
    address
}

/// The base URLs of providers that cannot be reached: nobody listens, no such name, no TLS where there should be, and silence there.
fn unreachable(silent: &Upstream, nobody: &Port) -> [(&'static str, String); 4] {
    [
        ("refused", format!("http://{}/v1", nobody.address())),
        ("nameless", "http://provider.invalid/v1".to_owned()),
        ("plain", format!("https://{}/v1", plain())),
        ("silent", format!("https://{}/v1", silent.address())),
    ]
}

const MODELS: [&str; 4] = ["tiny", "rich", "dear", "embed"];

#[test]
fn each_fault_of_a_connection_is_passed_on_to_the_next() {
    let (silent, good, nobody) = (Upstream::start(), Upstream::start(), Port::take());
    let providers = unreachable(&silent, &nobody);
    let mut builder = Gateway::builder().provider("good", &good);
    for ((name, url), model) in providers.iter().zip(MODELS) {
        builder = builder.provider_of_url(name, url, QUICK).model_in_order(model, &[name, "good"]);
    }
    let mut matrix = Matrix::start(builder, &good);
    for ((name, _), model) in providers.iter().zip(MODELS) {
        for streamed in [false, true, false] {
            matrix.check(name, model, streamed, GOOD);
        }
    }
    matrix.end();
    assert_eq!(silent.count(), 0, "nothing was said to a provider that has no TLS");
}

#[test]
fn each_fault_of_the_only_connection_is_told_and_free() {
    let (silent, nobody, good) = (Upstream::start(), Port::take(), Upstream::start());
    let providers = unreachable(&silent, &nobody);
    let mut builder = Gateway::builder().provider("good", &good);
    for ((name, url), model) in providers.iter().zip(MODELS) {
        builder = builder.provider_of_url(name, url, QUICK).model_in_order(model, &[name]);
    }
    let mut matrix = Matrix::start(builder, &good);
    for ((name, _), model) in providers.iter().zip(MODELS) {
        for streamed in [false, true] {
            let told = if *name == "silent" { TIMEOUT } else { ERROR };
            matrix.check(name, model, streamed, told);
        }
    }
    let rows = crate::support::gateway::rows_of(&matrix.gateway.cli, &matrix.account.id);
    assert_eq!(rows.len(), 0, "nothing was sent to anybody");
    matrix.end();
}

#[test]
fn a_connection_that_is_reset_at_once_may_have_carried_the_request() {
    let ((address, slammed), good) = (slammer(), Upstream::start());
    let builder = Gateway::builder()
        .provider_at("bad", address, QUICK)
        .provider("good", &good)
        .model_in_order("tiny", &["bad", "good"])
        .model_in_order("rich", &["bad"]);
    let mut matrix = Matrix::start(builder, &good);
    for streamed in [false, true, false, true] {
        let before = (slammed.load(Ordering::SeqCst), good.count());
        matrix.check("slammed", "rich", streamed, ERROR);
        // Seen before anything was written, it is as if no connection had come about; else nobody else is asked.
        let reply = matrix.ask("tiny", streamed);
        assert_eq!(reply.status == 200, good.count() > before.1, "{}", reply.text());
        assert!(matches!(reply.status, 200 | 502), "{}", reply.text());
        assert_eq!(slammed.load(Ordering::SeqCst) - before.0, 2);
    }
    matrix.end();
}
