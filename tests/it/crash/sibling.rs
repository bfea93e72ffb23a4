//! A second `weir serve` on the store of a gateway.

use super::signal;
use crate::support::cli::Cli;
use crate::support::gateway::Gateway;
use crate::support::http::{Reply, is_ready};
use crate::support::ports::Port;
use crate::support::{Connection, Request, ms, wait_for};
use serde_json::Value;
use std::fs::{self, File};
use std::process::{Child, Stdio};
use std::time::Duration;

/// It ends with the test.
#[derive(Debug)]
pub(super) struct Sibling {
    child: Child,
    port: Port,
    key: String,
}

impl Sibling {
    /// Starts it with the gateway's configuration, but for its ports and, where given, its journal's directory.
    pub(super) fn start(gateway: &Gateway, journal_dir: &str) -> Sibling {
        let (port, admin) = (Port::take(), Port::take());
        let text = fs::read_to_string(gateway.directory().join("weir.toml")).unwrap();
        let text = text
            .replace(&gateway.address().to_string(), &port.address().to_string())
            .replace(&gateway.admin().to_string(), &admin.address().to_string())
            .replace("data/journal", journal_dir);
        let config = gateway.directory().join("sibling.toml");
        fs::write(&config, text).unwrap();
        let log = || {
            File::options().create(true).append(true).open(gateway.directory().join("sibling.err")).unwrap()
        };
        let mut command = Cli::new(gateway.directory(), Some(&config)).command(&["serve"]);
        let child = command.stdin(Stdio::null()).stdout(log()).stderr(log()).spawn().expect("weir starts");
        let sibling = Sibling { child, port, key: gateway.account.key.clone() };
        wait_for("the sibling to be ready", Duration::from_secs(20), || {
            is_ready(admin.address()).then_some(())
        });
        sibling
    }

    pub(super) fn request(&self, body: &Value) -> Request {
        Request::post("/v1/chat/completions", body.to_string()).key(&self.key)
    }

    pub(super) fn connect(&self) -> Connection {
        Connection::open(self.port.address())
    }

    pub(super) fn chat(&self, body: &Value) -> Reply {
        self.connect().ask(&self.request(body))
    }

    pub(super) fn kill(&mut self) {
        self.child.kill().expect("SIGKILL is sent");
        self.child.wait().expect("the process is gone");
    }

    /// Asks it to stop, and waits until it has, in good order.
    #[track_caller]
    pub(super) fn stop(mut self) {
        signal("TERM", self.child.id());
        for _ in 0..2_000 {
            if let Some(status) = self.child.try_wait().unwrap() {
                return assert!(status.success(), "{status}");
            }
            std::thread::sleep(ms(10));
        }
        panic!("the sibling does not stop");
    }
}

impl Drop for Sibling {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
