//! The whole, with nothing made up: the real llama.cpp server behind the gateway, the official OpenAI clients before it, and
//! the server's own count of tokens against the bill.

use crate::support::ports::Port;
use crate::support::prices::PRICES;
use crate::support::{Connection, Gateway, Request, wait_for};
use serde_json::Value;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::time::Duration;

/// Where `make test` installs llama.cpp and the clients.
pub(crate) fn tools() -> PathBuf {
    let directory = std::env::var_os("WEIR_E2E_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/e2e"), PathBuf::from);
    assert!(
        directory.join("installed").is_file(),
        "llama.cpp and the OpenAI clients are not in {}: run `make test`, which installs them",
        directory.display()
    );
    directory
}

/// A file of the end-to-end tests.
pub(crate) fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e").join(name)
}

/// The real server with a model of noise. It ends with its standard input, so with the test at the latest.
struct Llama {
    child: Child,
    _input: ChildStdin,
    port: Port,
    _directory: tempfile::TempDir,
}

impl Llama {
    fn start(tools: &Path) -> Llama {
        let python = tools.join("venv/bin/python");
        let directory = tempfile::tempdir().unwrap();
        let model = directory.path().join("noise.gguf");
        let made = Command::new(&python).arg(source("model.py")).arg(&model).output().unwrap();
        assert!(made.status.success(), "{}", crate::support::cli::shown(&made));
        let port = Port::take();
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let mut child = Command::new(&python)
            .arg(source("serve.py"))
            .arg(&model)
            .arg(port.address().port().to_string())
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let llama = Llama { child, _input: input, port, _directory: directory };
        wait_for("llama.cpp to be ready", Duration::from_secs(60), || {
            let address = llama.address();
            let stream = std::net::TcpStream::connect(address).ok()?;
            let mut connection = Connection::over(stream, address);
            connection.send(&Request::get("/health").to_bytes(address)).ok()?;
            connection.reply().ok().filter(|reply| reply.status == 200).map(drop)
        });
        llama
    }

    fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// The tokens that it says it has produced, ever.
    fn produced(&self) -> u64 {
        let metrics = Connection::open(self.address()).ask(&Request::get("/metrics")).ok().text();
        let line = metrics
            .lines()
            .find(|line| line.starts_with("llamacpp:tokens_predicted_total"))
            .expect("the counter");
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }
}

impl Drop for Llama {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a client's program, and hands on the answers that it saw.
fn run(command: &mut Command, gateway: &Gateway) -> Vec<Value> {
    let base = format!("http://{}/v1", gateway.address());
    let output: Output = command.args([&base, &gateway.account.key, "tiny"]).output().unwrap();
    assert!(output.status.success(), "{}", crate::support::cli::shown(&output));
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn real_clients_and_a_real_server_agree_with_the_bill_to_the_token() {
    let tools = tools();
    let llama = Llama::start(&tools);
    let before = llama.produced();
    let gateway =
        Gateway::builder().provider_at("llama", llama.address(), "").standard_models("llama").start();
    let python = tools.join("venv/bin/python");
    let node = tools.join("venv/bin/node");
    let mut seen = run(Command::new("timeout").arg("120").arg(python).arg(source("sdk.py")), &gateway);
    let javascript = source("sdk.mjs");
    seen.extend(run(
        Command::new("timeout").arg("120").arg(node).arg(javascript).current_dir(&tools),
        &gateway,
    ));
    assert_eq!(seen.len(), 36, "three lengths, six kinds of answer, two clients");

    let rows = gateway.rows_when(seen.len());
    for answer in &seen {
        let row =
            rows.iter().find(|row| row["request_id"] == answer["request_id"]).expect("a row for each answer");
        assert_eq!(row["outcome"], "completed", "{row}");
        assert_eq!(row["usage_source"], "reported", "{row}");
        let told = &answer["completion_tokens"];
        assert!(told.is_null() || *told == row["output_tokens"], "{answer} but {row}");
    }
    let billed: u64 = rows.iter().map(|row| row["output_tokens"].as_u64().unwrap()).sum();
    assert_eq!(billed, 2 * 6 * (1 + 7 + 33));
    assert_eq!(llama.produced() - before, billed, "the server's own count is the bill");
    assert_eq!(PRICES[0].0, "tiny");
}

#[test]
fn a_real_server_stops_when_the_client_leaves_and_the_bill_is_near_its_count() {
    let tools = tools();
    let llama = Llama::start(&tools);
    let gateway =
        Gateway::builder().provider_at("llama", llama.address(), "").standard_models("llama").start();
    let before = llama.produced();
    let body = serde_json::json!({
        "model": "tiny", "max_tokens": 16_000, "stream": true, "messages": [{"role": "user", "content": "Go on for ever"}],
    });
    let (mut connection, _) = gateway.begin(&body);
    for _ in 0..20 {
        connection.chunk().unwrap().expect("more of the answer");
    }
    drop(connection);
    let row = gateway.row();
    assert_eq!(row["outcome"], "client_gone", "{row}");
    assert_eq!(row["usage_source"], "counted", "{row}");
    assert!(row["output_tokens"].as_u64().unwrap() > 0, "{row}");
    let produced = wait_for("the server to stop", Duration::from_secs(10), || {
        let one = llama.produced();
        std::thread::sleep(Duration::from_millis(500));
        (llama.produced() == one && one > before).then_some(one - before)
    });
    assert!(produced < 8_000, "{produced} tokens for nobody");
}
