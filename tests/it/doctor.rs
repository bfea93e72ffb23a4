//! `weir doctor` on machines that are well, and on those that are not.

use crate::support::cli::{Cli, shown};
use crate::support::gateway::Gateway;
use crate::support::ports::Port;
use crate::support::{Upstream, ms};
use rcgen::{CertificateParams, KeyPair};
use serde_json::Value;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

/// Shakes hands and hangs up. Its address and its certificate.
fn tls_server() -> (SocketAddr, String) {
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec![Ipv4Addr::LOCALHOST.to_string()]).unwrap().self_signed(&key).unwrap();
    let private = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], private)
        .unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let acceptor = TlsAcceptor::from(Arc::new(config));
            while let Ok((stream, _)) = listener.accept().await {
                let _ = acceptor.accept(stream).await;
            }
        });
    });
    (address, certificate.pem())
}

/// State and text of every line about this.
fn lines(diagnosis: &Value, what: &str) -> Vec<(String, String)> {
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
    let all = diagnosis["findings"].as_array().unwrap().iter();
    all.filter(|finding| finding["what"] == what)
        .inspect(|finding| {
            let tells = finding["state"] == "ok" || finding["todo"].is_string() || what == "configuration";
            assert!(tells, "says what to do: {finding}");
        })
        .map(|finding| (text(finding, "state"), text(finding, "says")))
        .collect()
}

#[track_caller]
fn says(diagnosis: &Value, what: &str, state: &str, text: &str) {
    let lines = lines(diagnosis, what);
    let found = lines.iter().any(|(is, says)| is == state && says.contains(text));
    assert!(found, "{what} {state} {text:?} in {lines:#?}");
}

/// Runs it, expecting this exit status.
#[track_caller]
fn diagnosed(cli: &Cli, exit: i32) -> Value {
    let output = cli.run(&["doctor", "--json"]);
    assert_eq!(output.status.code(), Some(exit), "{}", shown(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_running_gateway_is_well_and_its_provider_is_asked_for_nothing() {
    let (tls, certificate) = tls_server();
    let upstream = Upstream::start();
    let gateway = Gateway::builder()
        .provider("main", &upstream)
        .provider_of_url("safe", &format!("https://{tls}/v1"), "")
        .trust(&certificate)
        .standard_models("main")
        .start();
    gateway.hello().ok();
    gateway.rows_when(1);
    let diagnosis = diagnosed(&gateway.cli, 0);
    assert_eq!((&diagnosis["ok"], &diagnosis["failures"]), (&true.into(), &0.into()), "{diagnosis}");
    says(&diagnosis, "provider", "ok", "main: 1 address, connected in");
    says(&diagnosis, "provider", "ok", "safe: 1 address, connected in");
    says(&diagnosis, "provider", "ok", "certificate good for");
    says(&diagnosis, "database", "ok", "commits took");
    says(&diagnosis, "books", "ok", "1 accounts, all balance");
    // The standard models have one on purpose.
    says(&diagnosis, "prices", "warning", "model unpriced");
    says(&diagnosis, "address", "ok", &format!("{} is taken, and a weir runs", gateway.address()));
    assert_eq!(lines(&diagnosis, "journal disk").len(), 1);
    assert_eq!(upstream.count(), 1, "the probe is no request");
    let output = gateway.cli.run(&["doctor"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!text.contains('\u{1b}'), "no colors where there is no terminal: {text:?}");
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    let files = fs::read_dir(gateway.directory().join("data/journal")).unwrap();
    let left =
        files.filter(|file| file.as_ref().unwrap().file_name().to_string_lossy().starts_with("doctor"));
    assert_eq!(left.count(), 0);
}

#[test]
fn what_is_wrong_is_told_with_what_to_do() {
    let (tls, _) = tls_server();
    let (_, other) = tls_server();
    let closed = Port::take();
    let upstream = Upstream::start();
    let mut gateway = Gateway::builder()
        .provider("main", &upstream)
        .provider_of_url("gone", &format!("http://{}/v1", closed.address()), "")
        .provider_of_url("unsafe", &format!("https://{tls}/v1"), "")
        .trust(&other)
        .standard_models("main")
        .model("free", &[("main", 1)])
        .server("max_requests = 10000000")
        .start();
    gateway.stop();
    let taken = TcpListener::bind(gateway.address()).unwrap();
    fs::set_permissions(gateway.database(), fs::Permissions::from_mode(0o644)).unwrap();
    let diagnosis = diagnosed(&gateway.cli, 1);
    says(&diagnosis, "provider", "failure", "gone: no connection to");
    says(&diagnosis, "provider", "failure", "unsafe: no TLS with 127.0.0.1: invalid peer certificate");
    says(&diagnosis, "provider", "ok", "main");
    says(&diagnosis, "prices", "warning", "free");
    says(&diagnosis, "limits", "warning", "max_requests = 10000000 needs 20000256");
    says(&diagnosis, "files", "warning", "others may read data/weir.db (mode 644)");
    says(&diagnosis, "address", "failure", &gateway.address().to_string());
    says(&diagnosis, "address", "ok", &format!("{} is free", gateway.admin()));
    assert_eq!(diagnosis["failures"], 3, "{diagnosis}");
    drop(taken);
    // A clock that was set back, seen by what the database has.
    let program = "import sqlite3, sys, time\n\
        db = sqlite3.connect(sys.argv[1])\n\
        db.execute('UPDATE session SET heartbeat_at = ?', [int((time.time() + 3600) * 1e6)])\n\
        db.commit()\n";
    let set = std::process::Command::new("python3").args(["-c", program]).arg(gateway.database()).status();
    assert!(set.unwrap().success());
    says(&diagnosed(&gateway.cli, 1), "clock", "failure", "behind the newest row");
    // The database is not one.
    let whole = fs::read(gateway.database()).unwrap();
    fs::write(gateway.database(), b"no database at all, but a text that is long enough to be one").unwrap();
    says(&diagnosed(&gateway.cli, 1), "database", "failure", "not a database");
    fs::write(gateway.database(), whole).unwrap();
    std::thread::sleep(ms(1));
}

#[test]
fn a_wrong_configuration_is_shown_and_a_new_machine_is_not_ill() {
    let directory = tempfile::tempdir().unwrap();
    let wrong = directory.path().join("wrong.toml");
    fs::write(&wrong, "[server]\nlisten = 5\n").unwrap();
    let diagnosis = diagnosed(&Cli::new(directory.path(), Some(&wrong)), 1);
    says(&diagnosis, "configuration", "failure", "listen = 5");
    // Only a secret is missing: the rest is looked at.
    let secret = directory.path().join("secret.toml");
    let (port, admin) = (Port::take(), Port::take());
    let text = format!(
        "[server]\nlisten = [\"{}\"]\n[admin]\nlisten = \"{}\"\n[[provider]]\nname = \"p\"\ndialect = \"openai\"\n\
         base_url = \"http://{}/v1\"\napi_key = \"env:WEIR_NO_SUCH_VARIABLE\"\n",
        port.address(),
        admin.address(),
        port.address()
    );
    fs::write(&secret, text).unwrap();
    let cli = Cli::new(directory.path(), Some(&secret));
    let diagnosis = diagnosed(&cli, 1);
    says(&diagnosis, "configuration", "failure", "WEIR_NO_SUCH_VARIABLE");
    says(&diagnosis, "database", "warning", "is not there yet");
    assert!(!directory.path().join("weir-data").exists(), "nothing is made");
}
