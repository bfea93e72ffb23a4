//! A gateway of a test's own: temporary directory, reserved ports, priced models, a funded account, and the real binary. When
//! it is dropped the books are audited, whatever the test was about.

mod builder;
mod upgrade;

pub(crate) use builder::Builder;
pub(crate) use upgrade::{lives, parent};

use super::audit;
use super::cli::Cli;
use super::http::{Connection, Head, Reply, Request, is_ready, status_of};
use super::ports::Port;
use super::prices::PRICES;
use super::upstream::Upstream;
use super::wait_for;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use weir::money::Micros;

/// The model names that a provider is asked for: unlike ours, so that a mix-up shows.
pub(crate) const PROVIDER_MODEL: &str = "provider-model";

/// An account with a key.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    pub(crate) id: String,
    pub(crate) email: String,
    pub(crate) key: String,
    pub(crate) key_id: String,
}

/// A running gateway.
#[derive(Debug)]
pub(crate) struct Gateway {
    /// The command line, with this gateway's configuration.
    pub(crate) cli: Cli,
    /// The funded account.
    pub(crate) account: Account,
    port: Port,
    admin: Port,
    upstreams: Vec<Upstream>,
    books: Mutex<Books>,
    child: Option<Child>,
    upgrades: upgrade::Upgrades,
    // Last, so that it outlives the process that works in it.
    directory: TempDir,
}

/// What the test did, against which the gateway's books are held.
#[derive(Debug, Default)]
pub(crate) struct Books {
    /// Accounts with all credit that they were ever given.
    pub(crate) accounts: Vec<(Account, Micros)>,
    /// Status and request id of each whole answer that the test got to a POST.
    pub(crate) answers: Vec<(u16, String)>,
    /// Texts that must not be in the log: keys, prompts.
    pub(crate) secrets: Vec<String>,
}

impl Gateway {
    /// With nothing in it yet.
    pub(crate) fn builder() -> Builder {
        Builder::default()
    }

    /// In front of one provider, `main`, with the standard models.
    pub(crate) fn before(upstream: &Upstream) -> Gateway {
        Gateway::builder().provider("main", upstream).standard_models("main").start()
    }

    /// Where clients connect.
    pub(crate) fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// Where operators connect.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin.address()
    }

    /// Its working directory.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Its database.
    pub(crate) fn database(&self) -> PathBuf {
        self.directory.path().join("data/weir.db")
    }

    /// The process.
    pub(crate) fn process_id(&self) -> u32 {
        self.upgrades.serving().unwrap_or_else(|| self.child.as_ref().expect("the gateway runs").id())
    }

    /// A connection of a client.
    pub(crate) fn connect(&self) -> Connection {
        Connection::open(self.address())
    }

    /// Asks on a connection of its own.
    pub(crate) fn ask(&self, request: &Request) -> Reply {
        let reply = self.connect().ask(request);
        if request.is_post() {
            self.note(&reply);
        }
        reply
    }

    /// Remembers the answer to a POST for the audit. [`Gateway::ask`] does; tests with connections of their own call it.
    pub(crate) fn note(&self, reply: &Reply) {
        if let Some(id) = reply.header("x-request-id").filter(|_| reply.whole) {
            self.lock().answers.push((reply.status, id.to_owned()));
        }
    }

    /// Posts JSON with the account's key.
    pub(crate) fn post(&self, path: &str, body: &Value) -> Reply {
        self.ask(&Request::post(path, body.to_string()).key(&self.account.key))
    }

    /// Posts these bytes as a chat request with the account's key.
    pub(crate) fn chat_bytes(&self, body: impl Into<Vec<u8>>) -> Reply {
        self.ask(&Request::post("/v1/chat/completions", body).key(&self.account.key))
    }

    /// Asks for a chat completion.
    pub(crate) fn chat(&self, body: &Value) -> Reply {
        self.post("/v1/chat/completions", body)
    }

    /// A short question to `tiny`, not streamed.
    pub(crate) fn hello(&self) -> Reply {
        self.chat(&hello())
    }

    /// The same, streamed.
    pub(crate) fn hello_stream(&self) -> Reply {
        self.chat(&hello_stream())
    }

    /// Begins a chat completion and leaves the answer's body unread.
    pub(crate) fn begin(&self, body: &Value) -> (Connection, Head) {
        let mut connection = self.connect();
        let request = Request::post("/v1/chat/completions", body.to_string()).key(&self.account.key);
        let head = connection.begin(&request);
        assert_eq!(status_of(&head), 200, "{head:?}");
        (connection, head)
    }

    /// Sends a chat completion and reads nothing.
    pub(crate) fn send(&self, body: &Value) -> Connection {
        let mut connection = self.connect();
        let request = Request::post("/v1/chat/completions", body.to_string()).key(&self.account.key);
        connection.send(&request.to_bytes(self.address())).expect("the request is written");
        connection
    }

    /// A new account with this credit, in dollars, and a key.
    pub(crate) fn new_account(&self, usd: &str) -> Account {
        self.new_account_in(None, usd)
    }

    /// The same in a tier of its own.
    pub(crate) fn new_account_in(&self, tier: Option<&str>, usd: &str) -> Account {
        let email = format!("test-{}@example.com", self.lock().accounts.len());
        let tier: Vec<&str> = tier.map_or_else(Vec::new, |tier| vec!["--tier", tier]);
        let made = self.cli.json(&[&["account", "create", "--email", &email], tier.as_slice()].concat());
        let id = made["account_id"].as_str().expect("account_id").to_owned();
        let (key_id, key) = self.new_key(&id, &[]);
        let account = Account { id, email, key, key_id };
        self.lock().accounts.push((account.clone(), Micros(0)));
        if usd != "0" {
            self.add_credit(&account.id, usd);
        }
        account
    }

    /// A new key of an account: its id and its text.
    pub(crate) fn new_key(&self, account: &str, more: &[&str]) -> (String, String) {
        let made = self.cli.json(&[&["key", "create", "--account", account], more].concat());
        let text = |name: &str| made[name].as_str().expect(name).to_owned();
        self.lock().secrets.push(text("key"));
        (text("key_id"), text("key"))
    }

    /// Buys credit by the command line.
    pub(crate) fn add_credit(&self, account: &str, usd: &str) -> Value {
        let made = self.cli.json(&["credit", "add", "--account", account, "--usd", usd, "--reason", "test"]);
        let amount = Micros::parse_usd(usd).unwrap();
        let mut books = self.lock();
        let (_, credited) =
            books.accounts.iter_mut().find(|(have, _)| have.id == account).expect("an account of this test");
        credited.0 += amount.0;
        made
    }

    /// `weir account show` of the account.
    pub(crate) fn show(&self) -> Value {
        self.cli.json(&["account", "show", &self.account.id])
    }

    /// All request rows of the account, newest first.
    pub(crate) fn rows(&self) -> Vec<Value> {
        rows_of(&self.cli, &self.account.id)
    }

    /// All request rows once there are this many, which must be within two seconds.
    #[track_caller]
    pub(crate) fn rows_when(&self, count: usize) -> Vec<Value> {
        let end = Instant::now() + Duration::from_secs(2);
        loop {
            let late = Instant::now() > end;
            let rows = self.rows();
            if rows.len() == count {
                return rows;
            }
            assert!(!late && rows.len() < count, "{count} rows expected, these found: {rows:#?}");
            std::thread::sleep(super::ms(50));
        }
    }

    /// The one request row.
    #[track_caller]
    pub(crate) fn row(&self) -> Value {
        self.rows_when(1).remove(0)
    }

    /// Asserts that no row is written, not even by a batch that is under way.
    #[track_caller]
    pub(crate) fn no_rows(&self) {
        std::thread::sleep(super::ms(200));
        assert_eq!(self.rows(), Vec::<Value>::new());
    }

    /// The text of `/metrics`.
    pub(crate) fn metrics(&self) -> String {
        Connection::open(self.admin()).ask(&Request::get("/metrics")).ok().text()
    }

    /// Text that must not show up in the log.
    pub(crate) fn keep_secret(&self, text: &str) {
        self.lock().secrets.push(text.to_owned());
    }

    /// What it has logged and printed.
    pub(crate) fn log(&self) -> String {
        let read = |name: &str| fs::read(self.directory.path().join(name)).unwrap_or_default();
        String::from_utf8_lossy(&[read("serve.out"), read("serve.err")].concat()).into_owned()
    }

    /// Starts the process.
    pub(crate) fn spawn(&mut self) {
        let file = |name: &str| {
            File::options().create(true).append(true).open(self.directory.path().join(name)).unwrap()
        };
        let mut command = self.cli.command(&["serve"]);
        command.stdin(Stdio::null()).stdout(file("serve.out")).stderr(file("serve.err"));
        self.child = Some(command.spawn().expect("the weir binary starts"));
    }

    /// Starts the process and waits until it is ready.
    pub(crate) fn serve(&mut self) {
        self.spawn();
        let end = Instant::now() + Duration::from_secs(20);
        while !is_ready(self.admin()) {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < end, "not ready, {ended:?}:\n{}", self.log());
            std::thread::sleep(super::ms(10));
        }
    }

    /// Kills the process at once (SIGKILL), and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("the gateway runs");
        child.kill().expect("SIGKILL is sent");
        child.wait().expect("the process is gone");
    }

    /// Asks the process to stop, and waits until it has.
    pub(crate) fn stop(&mut self) -> Option<ExitStatus> {
        if self.upgrades.serving().is_some() {
            return Some(self.stop_successor());
        }
        let id = self.child.as_ref()?.id().to_string();
        let told = Command::new("kill").args(["-TERM", &id]).status();
        assert!(told.is_ok_and(|status| status.success()), "SIGTERM is sent");
        Some(self.ended(Duration::from_secs(20)))
    }

    /// Waits until the process has ended.
    pub(crate) fn ended(&mut self, most: Duration) -> ExitStatus {
        let mut child = self.child.take().expect("the gateway runs");
        let end = Instant::now() + most;
        while Instant::now() < end {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            std::thread::sleep(super::ms(10));
        }
        let _ = child.kill();
        let _ = child.wait();
        panic!("still there after {most:?}:\n{}", tail(&self.log()));
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn upstreams(&self) -> &[Upstream] {
        &self.upstreams
    }

    /// Holds the books against what the test did, stops, and does so once more with what is left behind.
    fn end(&mut self) {
        let books = wait_for_books(self);
        let status = self.stop();
        assert!(books.is_empty(), "the books are off:\n{}\n{}", books.join("\n"), tail(&self.log()));
        assert!(
            status.is_none_or(|status| status.success()),
            "the gateway ended with {status:?}:\n{}",
            tail(&self.log())
        );
        let books = [audit::books(self), audit::log(self)].concat();
        assert!(
            books.is_empty(),
            "after the end the books are off:\n{}\n{}",
            books.join("\n"),
            tail(&self.log())
        );
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.end();
        } else {
            self.upgrades.kill();
            if let Some(child) = &mut self.child {
                let _ = child.kill();
                let _ = child.wait();
            }
            // New processes of upgrades, of which the test has not heard.
            for id in self.processes() {
                let _ = Command::new("kill").args(["-KILL", &id.to_string()]).status();
            }
            eprintln!("the gateway's log ends so:\n{}", tail(&self.log()));
        }
    }
}

/// What is off in the books two seconds after the last byte: by then they must be right.
fn wait_for_books(gateway: &Gateway) -> Vec<String> {
    let end = Instant::now() + Duration::from_secs(2);
    loop {
        let late = Instant::now() > end;
        let off = audit::books(gateway);
        if off.is_empty() || late {
            return off;
        }
        std::thread::sleep(super::ms(50));
    }
}

/// All request rows of an account, newest first.
pub(crate) fn rows_of(cli: &Cli, account: &str) -> Vec<Value> {
    let rows = cli.json(&["usage", "--account", account, "--limit", "100000"]);
    rows.as_array().expect("an array of requests").clone()
}

/// Waits for something that another process brings about in under one second.
#[track_caller]
pub(crate) fn within_a_second<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    wait_for(what, Duration::from_secs(1), ask)
}

/// A short question to `tiny`.
pub(crate) fn hello() -> Value {
    json!({"model": "tiny", "max_tokens": 50, "messages": [{"role": "user", "content": "Hello, weir"}]})
}

/// The same, streamed.
pub(crate) fn hello_stream() -> Value {
    let mut body = hello();
    body["stream"] = json!(true);
    body
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
