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
use std::path::Path;
use std::process::Command;
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
    // A shell has other limits than the service: it is the server's that are told.
    let id = gateway.process_id().to_string();
    let lowered = Command::new("prlimit").args(["--pid", &id, "--nofile=500:"]).status();
    assert!(lowered.is_ok_and(|status| status.success()), "prlimit of util-linux");
    let diagnosis = diagnosed(&gateway.cli, 0);
    says(&diagnosis, "limits", "warning", "500 files may be open in the running server");
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

/// A program of this name that does this, found before all others.
fn put_program(cli: &mut Cli, directory: &Path, name: &str, script: &str) {
    let path = directory.join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let all = std::env::var("PATH").unwrap();
    cli.set("PATH", &format!("{}:{all}", directory.display()));
}

#[test]
fn listeners_certificates_and_sockets_are_tried() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let made = rcgen::generate_simple_self_signed(["api.example".to_owned()]).unwrap();
    fs::write(at("api.pem"), made.cert.pem()).unwrap();
    fs::write(at("api.key"), made.signing_key.serialize_pem()).unwrap();
    let mut old = CertificateParams::new(vec!["old.example".to_owned()]).unwrap();
    old.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let key = KeyPair::generate().unwrap();
    fs::write(at("old.pem"), old.self_signed(&key).unwrap().pem()).unwrap();
    fs::write(at("old.key"), key.serialize_pem()).unwrap();
    fs::create_dir(at("open")).unwrap();
    let tls = Port::take();
    let certificate = |name: &str| {
        let (chain, key) = (at(&format!("{name}.pem")), at(&format!("{name}.key")));
        format!(
            "[[certificate]]\nname = \"{name}\"\nchain = \"{}\"\nkey = \"file:{}\"\n",
            chain.display(),
            key.display()
        )
    };
    let upstream = Upstream::start();
    let mut gateway = Gateway::builder()
        .provider("main", &upstream)
        .standard_models("main")
        .lines(&format!(
            "[tls]\nlisten = [\"{}\"]\n{}{}",
            tls.address(),
            certificate("api"),
            certificate("old")
        ))
        .lines(&format!("[unix]\nlisten = [\"{}\"]\n", at("open/api.sock").display()))
        .start();
    let diagnosis = diagnosed(&gateway.cli, 1);
    says(&diagnosis, "certificate", "ok", "api: for api.example; it fits its key, good for");
    says(&diagnosis, "certificate", "failure", "old: for old.example; it fits its key, and has expired");
    says(&diagnosis, "address", "ok", &format!("{} for TLS is taken, and a weir runs", tls.address()));
    says(&diagnosis, "socket", "ok", "open/api.sock is taken, and a weir runs");
    gateway.kill();
    says(&diagnosed(&gateway.cli, 1), "socket", "ok", "was left by a process that is gone");
    gateway.serve();
    gateway.stop();

    // Everything that can be in the way of a socket.
    fs::write(at("file"), "kept").unwrap();
    let taken = std::os::unix::net::UnixListener::bind(at("taken")).unwrap();
    fs::write(at("none"), "").unwrap();
    let sockets: Vec<String> = ["file", "taken", "none/below.sock", "new/api.sock"]
        .map(|name| format!("\"{}\"", at(name).display()))
        .to_vec();
    let path = gateway.directory().join("weir.toml");
    let good = fs::read_to_string(&path).unwrap();
    let api = format!("\"{}\"", at("open/api.sock").display());
    fs::write(&path, good.replace(&api, &sockets.join(", "))).unwrap();
    let diagnosis = diagnosed(&gateway.cli, 1);
    says(&diagnosis, "socket", "failure", "file is there, and is no socket");
    says(&diagnosis, "socket", "failure", "somebody listens at");
    says(&diagnosis, "socket", "failure", "no socket can be made in");
    says(&diagnosis, "socket", "warning", "its mode 660 lets others in, and its folder does not");
    drop(taken);
    assert_eq!(fs::read_to_string(at("file")).unwrap(), "kept");
    assert!(!at("new").exists(), "nothing is made");
    fs::write(&path, good).unwrap();
}

#[test]
fn few_threads_and_a_clock_that_nobody_keeps_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("weir.toml");
    let (port, admin) = (Port::take(), Port::take());
    let text = format!(
        "[server]\nlisten = [\"{}\"]\nthreads = 1024\n[admin]\nlisten = \"{}\"\n",
        port.address(),
        admin.address()
    );
    fs::write(&file, text).unwrap();
    let cli = Cli::new(directory.path(), Some(&file));
    let output = std::process::Command::new("prlimit")
        .args(["--nproc=2000:2000"])
        .arg(env!("CARGO_BIN_EXE_weir"))
        .args(["doctor", "--json", "--config"])
        .arg(&file)
        .current_dir(directory.path())
        .output()
        .unwrap();
    let diagnosis: Value = serde_json::from_slice(&output.stdout).unwrap();
    says(&diagnosis, "limits", "warning", "2000 threads are all that its user may have");
    let with_clock = |script: &str| {
        let mut cli = cli.clone();
        put_program(&mut cli, directory.path(), "timedatectl", script);
        diagnosed(&cli, 0)
    };
    // Where systemd-timesyncd runs it has said so already.
    if !Path::new("/run/systemd/timesync/synchronized").exists() {
        says(&with_clock("echo no"), "clock", "warning", "nothing keeps it right");
        says(&with_clock("echo yes"), "clock", "ok", "kept right by NTP");
        says(&with_clock("exit 1"), "clock", "ok", "cannot be seen from here");
        says(&with_clock("exec sleep 60"), "clock", "ok", "cannot be seen from here");
    }
}
