//! How much memory a gateway takes that has nothing to do.

use crate::support::{Gateway, Upstream, wait_for};
use std::time::Duration;

/// In KiB, from the kernel.
fn resident(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("the process is there");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn an_idle_gateway_takes_less_than_40_mib() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    std::thread::sleep(Duration::from_millis(500));
    let taken = resident(gateway.process_id());
    eprintln!("idle: {taken} KiB resident");
    assert!(taken < 40 * 1024, "{taken} KiB");
}

#[test]
fn buffered_bodies_are_given_back() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let body = serde_json::json!({
        "model": "tiny", "max_tokens": 5, "input_audio": "x".repeat(4 << 20),
        "messages": [{"role": "user", "content": "hi"}],
    });
    for _ in 0..4 {
        gateway.chat(&body).ok();
    }
    let before = resident(gateway.process_id());
    for _ in 0..12 {
        gateway.chat(&body).ok();
    }
    wait_for("the memory of the bodies to be free", Duration::from_secs(3), || {
        (resident(gateway.process_id()) < before + 12 * 1024).then_some(())
    });
}
