//! HTTPS.

use crate::support::gateway::hello;
use crate::support::ports::Port;
use crate::support::{Connection, Gateway, Request, Upstream, wait_for};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// Writes a certificate for these names, with its key, and gives it in DER.
fn certificate(directory: &Path, file: &str, names: &[&str]) -> CertificateDer<'static> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    fs::write(directory.join(format!("{file}.pem")), made.cert.pem()).unwrap();
    fs::write(directory.join(format!("{file}.key")), made.signing_key.serialize_pem()).unwrap();
    made.cert.der().clone()
}

/// A connection that trusts this certificate only, and asks for this host.
fn connect(
    address: SocketAddr,
    host: &str,
    trusted: &CertificateDer<'static>,
    protocols: &[&[u8]],
) -> Result<StreamOwned<ClientConnection, TcpStream>, String> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(ring)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let mut tls = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = TcpStream::connect(address).map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    while tls.is_handshaking() {
        tls.complete_io(&mut stream).map_err(|error| error.to_string())?;
    }
    Ok(StreamOwned::new(tls, stream))
}

struct Https {
    gateway: Gateway,
    _upstream: Upstream,
    _port: Port,
    address: SocketAddr,
    directory: tempfile::TempDir,
}

fn https(certificates: &[&str]) -> Https {
    https_with(certificates, "")
}

/// With these lines in `[server]`.
fn https_with(certificates: &[&str], server: &str) -> Https {
    let directory = tempfile::tempdir().unwrap();
    let upstream = Upstream::start();
    let port = Port::take();
    let mut lines = format!("[tls]\nlisten = [\"{}\"]\n", port.address());
    for name in certificates {
        let at = |kind: &str| directory.path().join(format!("{name}.{kind}")).display().to_string();
        certificate(directory.path(), name, &[&format!("{name}.example")]);
        lines += &format!(
            "[[certificate]]\nname = \"{name}\"\nchain = \"{}\"\nkey = \"file:{}\"\n",
            at("pem"),
            at("key")
        );
    }
    let gateway = Gateway::builder()
        .provider("main", &upstream)
        .standard_models("main")
        .server(server)
        .lines(&lines)
        .start();
    Https { gateway, _upstream: upstream, address: port.address(), _port: port, directory }
}

impl Https {
    fn trusted(&self, name: &str) -> CertificateDer<'static> {
        use rustls::pki_types::pem::PemObject as _;
        CertificateDer::from_pem_file(self.directory.path().join(format!("{name}.pem"))).unwrap()
    }

    fn hang_up(&self) {
        let told = Command::new("kill").args(["-HUP", &self.gateway.process_id().to_string()]).status();
        assert!(told.is_ok_and(|status| status.success()), "SIGHUP is sent");
    }

    /// One chat over HTTP/1.1 on a new connection.
    fn chat(&self, host: &str, trusted: &CertificateDer<'static>) -> Result<String, String> {
        let mut stream = connect(self.address, host, trusted, &[b"http/1.1"])?;
        let request = Request::post("/v1/chat/completions", hello().to_string())
            .key(&self.gateway.account.key)
            .header("Connection", "close");
        stream.write_all(&request.to_bytes(self.address)).map_err(|error| error.to_string())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(|error| error.to_string())?;
        Ok(answer)
    }
}

#[test]
fn each_host_has_its_certificate_and_a_stranger_the_first() {
    let https = https(&["one", "two"]);
    let (one, two) = (https.trusted("one"), https.trusted("two"));
    assert!(https.chat("one.example", &one).unwrap().starts_with("HTTP/1.1 200"));
    assert!(https.chat("two.example", &two).unwrap().starts_with("HTTP/1.1 200"));
    assert!(https.chat("two.example", &one).is_err());
    // For a host that nothing is for there is the first, which the client then refuses by its name.
    let refused = https.chat("three.example", &one).unwrap_err();
    assert!(refused.contains("not valid for name"), "{refused}");
    let metrics = https.gateway.metrics();
    for name in ["one", "two"] {
        assert!(
            metrics.contains(&format!("weir_certificate_expiry_timestamp_seconds{{certificate=\"{name}\"}}"))
        );
    }
    // Plain HTTP goes on beside it.
    https.gateway.hello().ok();
}

#[test]
fn http_2_is_spoken_where_a_client_offers_it() {
    let https = https(&["one"]);
    let stream = connect(https.address, "one.example", &https.trusted("one"), &[b"h2", b"http/1.1"]).unwrap();
    assert_eq!(stream.conn.alpn_protocol(), Some(&b"h2"[..]));
    let stream = connect(https.address, "one.example", &https.trusted("one"), &[]).unwrap();
    assert_eq!(stream.conn.alpn_protocol(), None);
    assert_eq!(stream.conn.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
}

/// 100 swaps with `WEIR_RELOADS=100`.
#[test]
fn a_certificate_is_swapped_under_load_and_no_request_fails() {
    let swaps: usize = std::env::var("WEIR_RELOADS").map_or(10, |text| text.parse().unwrap());
    let https = https(&["one"]);
    let first = https.trusted("one");
    let (is_over, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        // What is open goes on with the certificate that it began with.
        scope.spawn(|| {
            let mut stream = connect(https.address, "one.example", &first, &[b"http/1.1"]).unwrap();
            while !is_over.load(Ordering::Relaxed) {
                let request = Request::get("/v1/models").key(&https.gateway.account.key);
                stream.write_all(&request.to_bytes(https.address)).unwrap();
                let mut answer = [0; 4096];
                let read = stream.read(&mut answer).unwrap();
                assert!(answer[..read].starts_with(b"HTTP/1.1 200"));
                asked.fetch_add(1, Ordering::Relaxed);
            }
        });
        for swap in 0..swaps {
            let next = certificate(https.directory.path(), "one", &["one.example"]);
            https.hang_up();
            wait_for("the new certificate to be in force", Duration::from_secs(10), || {
                https.chat("one.example", &next).ok()
            });
            assert!(https.chat("one.example", &first).is_err(), "swap {swap}: the old one is still given");
        }
        is_over.store(true, Ordering::Relaxed);
    });
    eprintln!(
        "{swaps} certificates swapped, {} requests on an open connection, none failed",
        asked.load(Ordering::Relaxed)
    );

    // A key that does not fit changes nothing.
    let last = https.trusted("one");
    let other = rcgen::KeyPair::generate().unwrap();
    fs::write(https.directory.path().join("one.key"), other.serialize_pem()).unwrap();
    https.hang_up();
    wait_for("the bad key to be told of", Duration::from_secs(10), || {
        https.gateway.log().contains("it is not the key of the certificate in").then_some(())
    });
    assert!(https.chat("one.example", &last).unwrap().starts_with("HTTP/1.1 200"));
}

#[test]
fn plain_http_on_a_tls_listener_ends_and_harms_nobody() {
    let https = https(&["one"]);
    let mut plain = Connection::open(https.address);
    plain.send(b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert!(plain.head().is_err());
    assert!(https.chat("one.example", &https.trusted("one")).unwrap().starts_with("HTTP/1.1 200"));
}

#[test]
fn a_client_that_does_not_begin_is_closed_when_its_time_is_over() {
    let https = https_with(&["one"], "begin_timeout_ms = 400");
    let mut silent = Connection::open(https.address);
    let mut half = Connection::open(https.address);
    half.send(b"\x16\x03\x01").unwrap();
    let begun = Instant::now();
    assert!(silent.is_closed() && half.is_closed());
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(8), "the default is not what holds: {took:?}");
    let metrics = https.gateway.metrics();
    assert!(metrics.contains("\nweir_connections_not_begun_total 2\n"), "{metrics}");
    assert!(https.chat("one.example", &https.trusted("one")).unwrap().starts_with("HTTP/1.1 200"));
}
