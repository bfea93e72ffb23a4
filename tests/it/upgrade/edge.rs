//! Upgrades of listeners that speak TLS, and of those in the file system.

mod clients;

use super::{BRIEF, words};
use crate::support::gateway::{hello, hello_stream, lives};
use crate::support::ports::Port;
use crate::support::upstream::{Gate, chunk, last_chunk, usage, usage_chunk};
use crate::support::{Answer, Gateway, Reply, Upstream, ms, wait_for};
use clients::{Client, Opened, Stream, Way};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::runtime::Runtime;
use tokio_rustls::rustls::pki_types::CertificateDer;

/// A gateway with a listener of each kind, and what its clients need to know.
struct Edge {
    gateway: Gateway,
    upstream: Upstream,
    runtime: Runtime,
    secured: SocketAddr,
    certificate: CertificateDer<'static>,
    socket: PathBuf,
    _port: Port,
    _directory: tempfile::TempDir,
}

const WORDS: u64 = 6;

impl Edge {
    fn start() -> Edge {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let made = rcgen::generate_simple_self_signed(vec![clients::HOST.to_owned()]).unwrap();
        fs::write(at("chain.pem"), made.cert.pem()).unwrap();
        fs::write(at("key.pem"), made.signing_key.serialize_pem()).unwrap();
        let (port, socket) = (Port::take(), at("api.sock"));
        let lines = format!(
            "[tls]\nlisten = [\"{}\"]\n[[certificate]]\nname = \"one\"\nchain = \"{}\"\nkey = \"file:{}\"\n\
             [unix]\nlisten = [\"{}\"]\nmode = \"0600\"\n",
            port.address(),
            at("chain.pem").display(),
            at("key.pem").display(),
            socket.display()
        );
        let upstream = Upstream::start();
        let builder = Gateway::builder().provider("main", &upstream).standard_models("main").lines(&lines);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        Edge {
            gateway: builder.start(),
            upstream,
            runtime: runtime.unwrap(),
            secured: port.address(),
            certificate: made.cert.der().clone(),
            socket,
            _port: port,
            _directory: directory,
        }
    }

    /// A connection on which nothing is said yet.
    fn open(&self, way: Way) -> Opened {
        self.runtime.block_on(Opened::new(way, self.secured, &self.socket))
    }

    /// Speaks on it, and to nobody who shows another certificate.
    fn speak(&self, opened: Opened) -> Client {
        self.runtime.block_on(opened.speak(&self.certificate, &self.gateway.account.key))
    }

    fn connect(&self, way: Way) -> Client {
        self.speak(self.open(way))
    }

    /// Asks, unless the connection takes no more requests.
    fn ask(&self, client: &mut Client, body: &Value) -> Option<Reply> {
        let stream = self.runtime.block_on(client.begin(body))?;
        Some(self.finish(stream).ok())
    }

    fn finish(&self, stream: Stream) -> Reply {
        let reply = self.runtime.block_on(stream.finish());
        self.gateway.note(&reply);
        reply
    }

    /// One request on a new connection of each kind.
    fn ask_anew(&self) {
        for way in Way::ALL {
            let reply = self.ask(&mut self.connect(way), &hello()).expect("a new connection takes a request");
            assert_ne!(reply.header("connection"), Some("close"), "{way:?} came to a process that ends");
        }
    }

    /// Every answer that a client got is billed, once, and nothing else is.
    fn each_is_billed_once(&self) -> Vec<Value> {
        let answers: HashSet<String> = self.gateway.lock().answers.iter().map(|(_, id)| id.clone()).collect();
        let rows = self.gateway.rows_when(answers.len());
        let billed: HashSet<_> =
            rows.iter().map(|row| row["request_id"].as_str().unwrap().to_owned()).collect();
        assert_eq!(billed, answers);
        assert!(rows.iter().all(|row| row["outcome"] == "completed"), "{rows:?}");
        rows
    }

    fn mode(&self) -> u32 {
        fs::metadata(&self.socket).unwrap().permissions().mode() & 0o777
    }
}

/// A word, and the others once the gate is open.
fn gated(gate: &Arc<Gate>) -> Answer {
    let word = |number: u64| chunk(&format!("w{number} "));
    let first = Answer::stream().event(&word(0)).gate(gate);
    (1..WORDS)
        .fold(first, |answer, number| answer.event(&word(number)).wait(ms(20)))
        .event(&last_chunk())
        .event(&usage_chunk(&usage(9, WORDS)))
        .done()
}

fn streamed(text: &str) -> Value {
    let mut body = hello_stream();
    body["messages"][0]["content"] = json!(text);
    body
}

/// Requests that the process that serves has answered itself.
fn answered(gateway: &Gateway) -> u64 {
    let metrics = gateway.metrics();
    let lines = metrics.lines().filter(|line| line.starts_with("weir_requests_total{"));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

#[test]
fn streams_over_tls_and_a_socket_of_the_file_system_outlive_an_upgrade_and_are_billed_once() {
    let mut edge = Edge::start();
    let gate = Gate::new();
    edge.upstream.when("the long one", gated(&gate));
    let mut clients = Way::ALL.map(|way| edge.connect(way));
    let mut streams = Vec::new();
    for client in &mut clients {
        for _ in 0..if client.way.is_http_2() { 3 } else { 1 } {
            let stream = edge.runtime.block_on(async {
                let mut stream = client.begin(&streamed("the long one")).await.unwrap();
                stream.await_text("w0 ").await;
                stream
            });
            streams.push(stream);
        }
    }
    edge.gateway.upgrade();
    edge.ask_anew();
    assert_eq!(answered(&edge.gateway), 4, "these, and none but these, came to the new process");
    // HTTP/2 tells its clients to come anew; until it has, they are served.
    for client in clients.iter_mut().filter(|client| client.way.is_http_2()) {
        let end = std::time::Instant::now() + BRIEF;
        while edge.ask(client, &hello()).is_some() {
            assert!(std::time::Instant::now() < end, "{:?} is not told", client.way);
        }
    }
    assert!(lives(edge.gateway.first_process_id()));
    assert_eq!(streams.len(), 8);
    gate.open();
    for stream in streams {
        let way = stream.way;
        let reply = edge.finish(stream).ok();
        assert!(reply.done() && reply.said() == super::said(WORDS), "{way:?}: {}", reply.text());
    }
    drop(clients);
    assert!(edge.gateway.first_ended(BRIEF).success());
    assert_eq!(edge.mode(), 0o600);
    edge.ask_anew();
    let rows = edge.each_is_billed_once();
    let long: Vec<_> = rows.iter().filter(|row| row["stream"] == true).collect();
    assert_eq!(long.len(), 8);
    assert!(long.iter().all(|row| row["usage"] == json!({"input": 9, "output": WORDS})), "{long:?}");
}

#[test]
fn who_has_not_yet_spoken_when_an_upgrade_comes_is_answered_or_told_that_nothing_was_taken() {
    let mut edge = Edge::start();
    edge.upstream.when("the short one", words(2, ms(10)));
    let silent = Way::ALL.map(|way| edge.open(way));
    let spoken = Way::ALL.map(|way| edge.connect(way));
    edge.gateway.upgrade();
    let begun: Vec<_> = silent.into_iter().map(|opened| edge.speak(opened)).chain(spoken).collect();
    for mut client in begun {
        let reply = edge.ask(&mut client, &streamed("the short one"));
        if let Some(reply) = &reply {
            assert!(reply.done() && reply.said() == super::said(2), "{:?}: {}", client.way, reply.text());
        }
        assert!(reply.is_some() || client.way.is_http_2(), "{:?} is shut out", client.way);
    }
    assert!(edge.gateway.first_ended(BRIEF).success());
    edge.ask_anew();
    edge.each_is_billed_once();
}

#[test]
fn a_socket_of_the_file_system_has_the_new_mode_after_an_upgrade_and_is_made_anew_where_it_is_gone() {
    let mut edge = Edge::start();
    let config = edge.gateway.directory().join("weir.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("mode = \"0600\"", "mode = \"0660\"")).unwrap();
    edge.gateway.upgrade();
    assert!(edge.gateway.first_ended(BRIEF).success());
    assert_eq!(edge.mode(), 0o660);
    edge.ask_anew();
    fs::remove_file(&edge.socket).unwrap();
    edge.gateway.upgrade();
    let told = "the file of this listener is gone";
    wait_for("the line of it", BRIEF, || edge.gateway.log().contains(told).then_some(()));
    assert_eq!(edge.mode(), 0o660);
    edge.ask_anew();
    edge.each_is_billed_once();
}
