//! The gateway as a process of its own.

use serde_json::Value;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A child process that ends with us.
pub(crate) struct Part(pub(crate) Child);

impl Part {
    pub(crate) fn start(command: &mut Command) -> Part {
        Part(command.stdin(Stdio::null()).spawn().expect("the part starts"))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Weir with everything on, before the provider at this origin, whose certificate is in that file where it has one of its own; its
/// process, its address, and the key of a funded account.
pub(crate) fn gateway(
    directory: &Path,
    provider: &str,
    certificates: Option<&Path>,
) -> (Part, SocketAddr, String) {
    let (listen, admin) = (free_address(), free_address());
    let config = format!(
        "[server]\nlisten = [\"{listen}\"]\nthreads = 1\n\n[admin]\nlisten = \"{admin}\"\n\n\
         [store]\nurl = \"sqlite:data/weir.db\"\n\n[auth]\npepper = \"file:data/pepper\"\n\n\
         [journal]\ndir = \"data/journal\"\n\n\
         [[provider]]\nname = \"up\"\ndialect = \"openai\"\nbase_url = \"{provider}/v1\"\napi_key = \"env:BENCH_KEY\"\n\n\
         [[model]]\nname = \"bench\"\ncontext_tokens = 1000000\nmax_output_tokens = 4096\n\
         routes = [{{ provider = \"up\", model = \"upstream-model\", weight = 1 }}]\n\n\
         [[tier]]\nname = \"default\"\nrequests_per_minute = 100000000\ntokens_per_minute = 1000000000000\n\
         concurrent_requests = 100000\n"
    );
    fs::write(directory.join("weir.toml"), config).unwrap();
    fs::write(
        directory.join("prices.toml"),
        "[[price]]\nmodel = \"bench\"\ninput = \"0.15\"\noutput = \"0.60\"\n",
    )
    .unwrap();
    let command = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
        command
            .args(arguments)
            .args(["--config", "weir.toml"])
            .current_dir(directory)
            .env("BENCH_KEY", "sk-bench");
        if let Some(certificates) = certificates {
            command.env("SSL_CERT_FILE", certificates);
        }
        command
    };
    let json = |arguments: &[&str]| -> Value {
        let output = command(arguments).arg("--json").output().expect("weir runs");
        assert!(output.status.success(), "weir {arguments:?}: {output:?}");
        serde_json::from_slice(&output.stdout).expect("one JSON value")
    };
    json(&["price", "import", "prices.toml"]);
    let made = json(&["account", "create", "--email", "bench@example.com"]);
    let account = made["account_id"].as_str().unwrap();
    json(&["credit", "add", "--account", account, "--usd", "100000", "--reason", "bench"]);
    let made = json(&["key", "create", "--account", account]);
    let log = fs::File::create(directory.join("weir.log")).unwrap();
    let weir = Part::start(command(&["serve"]).stdout(log.try_clone().unwrap()).stderr(log));
    wait_until_accepted(listen);
    (weir, listen, made["key"].as_str().unwrap().to_owned())
}

/// An address of this machine that nobody uses.
pub(crate) fn free_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

/// Returns once somebody listens there.
pub(crate) fn wait_until_accepted(address: SocketAddr) {
    let end = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < end, "nobody listens on {address}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
