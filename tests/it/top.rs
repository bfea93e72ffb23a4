//! `weir top` before a server under traffic: for programs, for people without a terminal, and on one.

use crate::support::cli::{Cli, shown};
use crate::support::ports::Port;
use crate::support::{Gateway, Upstream, ms, wait_for};
use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// Asks one question after the other, as long as `during` takes.
fn under_traffic<T>(gateway: &Gateway, during: impl FnOnce() -> T) -> T {
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done.load(Ordering::SeqCst) {
                gateway.hello().ok();
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(during));
        is_done.store(true, Ordering::SeqCst);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[test]
fn what_a_server_does_is_told_to_programs_and_to_people() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    gateway.hello().ok();
    let view = under_traffic(&gateway, || gateway.cli.json(&["top"]));
    assert_eq!(view["is_ready"], true, "{view}");
    assert!(view["requests_total"].as_f64().unwrap() > 1.0, "{view}");
    assert!(view["requests_per_s"].as_f64().unwrap() > 0.0, "{view}");
    assert!(view["usd_per_s"].as_f64().unwrap() > 0.0, "{view}");
    assert_eq!(view["errors_per_s"], serde_json::json!({}));
    let model = &view["models"][0];
    assert_eq!(model["name"], "tiny");
    assert!(model["requests_per_s"].as_f64().unwrap() > 0.0, "{view}");
    assert!(model["duration_p50_s"].as_f64().unwrap() > 0.0, "{view}");
    let routes = view["routes"].as_array().unwrap();
    let route = routes.iter().find(|route| route["model"] == "tiny").expect("the route of the model");
    assert_eq!(route["state"], "closed");
    assert!(route["attempts_per_s"].as_f64().unwrap() > 0.0, "{view}");
    assert!(view["ledger"]["weir_ledger_leases"].as_f64().unwrap() >= 1.0, "{view}");
    assert!(view["ledger"]["process_resident_memory_bytes"].as_f64().unwrap() > 1e6, "{view}");

    let page = gateway.cli.run(&["top"]);
    assert!(page.status.success(), "{}", shown(&page));
    let page = String::from_utf8(page.stdout).unwrap();
    for telling in ["weir ready", "tiny", "closed", "leases", "memory MB"] {
        assert!(page.contains(telling), "{telling}: {page}");
    }
    assert!(!page.contains('\u{1b}'), "no terminal is spoken to: {page:?}");
}

#[test]
fn where_no_server_answers_it_is_said_at_once() {
    let (directory, port) = (tempfile::tempdir().unwrap(), Port::take());
    let config = directory.path().join("weir.toml");
    fs::write(&config, format!("[admin]\nlisten = \"{}\"\n", port.address())).unwrap();
    let error = Cli::new(directory.path(), Some(&config)).fails(1, &["top"]);
    assert_eq!(error["code"], "unreachable");
    assert!(error["message"].as_str().unwrap().contains(&port.address().to_string()), "{error}");
}

/// Presses these keys once something is to be seen. What was on the terminal until its shell had asked how the terminal is.
fn on_a_terminal(gateway: &Gateway, keys: &[u8]) -> String {
    let config = gateway.directory().join("weir.toml");
    let weir = env!("CARGO_BIN_EXE_weir");
    let line = format!(
        "stty rows 24 cols 80; '{weir}' --config '{}' top; echo \"ended $?\"; stty -a; echo all said",
        config.display()
    );
    let mut script = Command::new("timeout");
    script.args(["--kill-after=5", "30", "script", "--quiet", "--return", "--command", &line, "/dev/null"]);
    let mut child = script
        .current_dir(gateway.directory())
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let seen = Mutex::new(Vec::new());
    let text = || String::from_utf8_lossy(&seen.lock().unwrap()).into_owned();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut some = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut some) {
                seen.lock().unwrap().extend_from_slice(&some[..count]);
            }
        });
        wait_for("the picture", ms(10_000), || text().contains("leases").then_some(()));
        stdin.write_all(keys).unwrap();
        wait_for("its end", ms(10_000), || text().contains("all said").then_some(()));
        drop(stdin);
        let ended = child.wait().unwrap();
        assert!(ended.success(), "{ended}");
    });
    text()
}

#[test]
fn on_a_terminal_q_and_interrupt_end_it_and_leave_the_terminal_as_it_was() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    gateway.hello().ok();
    for keys in [b"q", b"\x03"] {
        let text = on_a_terminal(&gateway, keys);
        let (picture, after) = text.split_once("\u{1b}[?1049l").expect("the other screen is left");
        assert!(picture.contains("\u{1b}[?1049h") && picture.contains("ledger"), "{picture:?}");
        assert!(after.contains("ended 0"), "{after:?}");
        assert!(text.rfind("\u{1b}[?25h") > text.rfind("\u{1b}[?25l"), "the cursor is back: {text:?}");
        let is_on = |flag: &str| after.split_whitespace().any(|word| word == flag);
        assert!(is_on("icanon") && is_on("echo") && is_on("isig"), "{after}");
    }
}
