//! What the operator says: one TOML file, checked whole before anything starts.
//!
//! Promises: everything that is wrong with the file is told at once, with line and caret; what is left out has a default that is safe;
//! a secret is named, never contained. Refuses to know: what the parts do with their settings.
//!
//! `conf/weir.toml` is the commented reference of every key. Relative paths are relative to the working directory.

mod edge;
mod file;
mod loaded;
mod log;
mod restart;
mod secrets;
mod telemetry;
mod warnings;

pub use edge::{Certificate, Countries, Networks, PlainHttp, Tls, Unix};
pub use loaded::Loaded;
pub use log::{Log, LogLevel};
pub use secrets::{SecretError, SecretRef, pepper};
pub use telemetry::Telemetry;

use crate::document::Report;
use crate::ids::{ModelName, ProviderName, TierName};
use crate::provider::Dialect;
use crate::relay::{OnClientGone, Origin};
use crate::route::{Cost, Order, Retry};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The whole configuration. The default is that of no file: SQLite in `./weir-data`, loopback, no providers.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[server]`
    pub server: Server,
    /// `[tls]`
    pub tls: Tls,
    /// `[unix]`
    pub unix: Unix,
    /// `[[certificate]]`, by distinct names; the first is for clients that name no host.
    pub certificates: Vec<Certificate>,
    /// `[network]`
    pub networks: Networks,
    /// `[admin]`
    pub admin: Admin,
    /// `[store]`
    pub store: Store,
    /// `[auth]`
    pub auth: Auth,
    /// `[journal]`
    pub journal: Journal,
    /// `[log]`
    pub log: Log,
    /// `[telemetry]`
    pub telemetry: Telemetry,
    /// `[routing]`
    pub routing: Routing,
    /// `[[provider]]`, by distinct names.
    pub providers: Vec<Provider>,
    /// `[[model]]`, by distinct names.
    pub models: Vec<Model>,
    /// `[[tier]]`, by distinct names; one of them is [`DEFAULT_TIER`].
    pub tiers: Vec<Tier>,
}

/// The side of the clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Where clients connect; at least one, all distinct.
    pub listen: Vec<SocketAddr>,
    /// Whether some of those may be addresses beyond this machine.
    pub plain_http: PlainHttp,
    /// Threads that carry requests; 0 is one per core.
    pub threads: usize,
    /// Connections at once.
    pub max_connections: usize,
    /// Connections at once of one address that is not of this machine.
    pub max_connections_per_address: usize,
    /// For what comes before HTTP on a connection: a head of the PROXY protocol, and a TLS handshake.
    pub begin_timeout: Duration,
    /// From the first byte of a request's head to its last.
    pub head_timeout: Duration,
    /// Requests under way together, of all accounts.
    pub max_requests: u64,
    /// Requests in a second, of all addresses; 0 sets no limit.
    pub max_requests_per_s: u32,
    /// Requests in a second of one address that is not of this machine; 0 sets no limit.
    pub max_requests_per_s_per_address: u32,
    /// The largest body of a request, in bytes.
    pub max_body_bytes: usize,
    /// What the bodies of all requests under way may take together, in bytes; no less than one body.
    pub max_buffered_bytes: usize,
    /// For a whole body, from its first read.
    pub body_timeout: Duration,
    /// The slowest a body may come, in bytes per second; 0 sets no minimum.
    pub body_min_bytes_per_s: u64,
    /// How long an idle connection of a client is kept.
    pub keepalive_timeout: Duration,
    /// How long a client may take to read a piece of its answer.
    pub write_timeout: Duration,
    /// The largest answer that is not a stream, in bytes.
    pub max_answer_bytes: usize,
    /// The largest event of a stream, in bytes.
    pub max_event_bytes: usize,
    /// How long the client of a stream may hear nothing while its provider is silent; then it is sent a comment.
    pub stream_comment_every: Duration,
    /// How long a provider is read on when its client has left.
    pub client_gone_timeout: Duration,
    /// How much of an answer is read on then, in bytes.
    pub client_gone_max_bytes: usize,
    /// How many providers are read on at a time; 0 leaves each with its client.
    pub client_gone_max_requests: usize,
    /// From SIGTERM, when the process says that it is not ready, to the close of its listeners.
    pub stop_delay: Duration,
    /// How long requests under way may go on after that.
    pub drain_timeout: Duration,
    /// How long a new process may take to get ready, before an upgrade is called off.
    pub upgrade_timeout: Duration,
    /// How long the gateway goes on admitting while it cannot see changes in the database.
    pub max_stale: Duration,
    /// How long an answer may take; then it ends, billed for what passed.
    pub max_stream_time: Duration,
}

/// The side of the operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Where `/metrics`, `/healthz` and `/readyz` are.
    pub listen: SocketAddr,
}

/// The database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    /// `sqlite:` and a path.
    pub url: String,
}

/// How keys are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    /// The secret that key hashes are keyed with; see [`pepper`].
    pub pepper: SecretRef,
    /// Values of `service_tier` that keys without a list of their own may ask for.
    pub service_tiers: Vec<String>,
    /// Requests without a good key in a second, of all addresses; 0 sets no limit.
    pub max_failures_per_s: u32,
    /// The same of one address that is not of this machine.
    pub max_failures_per_s_per_address: u32,
}

/// The journal of usage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journal {
    /// Its directory.
    pub dir: PathBuf,
    /// When a record counts as kept.
    pub durability: Durability,
    /// What one process's part of it may take on the disk, in bytes.
    pub max_bytes: u64,
    /// How long it is kept once it is in the database.
    pub keep_time: Duration,
    /// And how much of it, in bytes.
    pub keep_bytes: u64,
}

/// When a record of the journal counts as kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The operating system has it: it outlives the process, not the machine.
    Os,
    /// It is on the disk within the next group of records.
    Group,
    /// It is on the disk before the answer ends.
    Strict,
}

/// One upstream service.
#[derive(Clone)]
pub struct Provider {
    /// What routes and metrics call it.
    pub name: ProviderName,
    /// How it speaks.
    pub dialect: &'static dyn Dialect,
    /// Where it is.
    pub origin: Origin,
    /// The operator's key for it.
    pub api_key: Option<SecretRef>,
    /// For a TCP connection.
    pub connect_timeout: Duration,
    /// For the TLS handshake after it.
    pub tls_timeout: Duration,
    /// From a request to the head of its answer.
    pub first_byte_timeout: Duration,
    /// From one piece of an answer to the next.
    pub idle_timeout: Duration,
    /// From a request to the end of its answer.
    pub total_timeout: Duration,
    /// It gets no new request unless nothing else is left.
    pub is_drained: bool,
    /// What becomes of an answer when its client leaves; `None` leaves that to the model.
    pub on_client_gone: Option<OnClientGone>,
}

/// A model that clients can ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// What clients and the price book call it.
    pub name: ModelName,
    /// Input and output together, in tokens.
    pub context_tokens: u64,
    /// The most output of one choice, in tokens.
    pub max_output_tokens: Option<u64>,
    /// It thinks in tokens that it bills and does not show: only its own report tells what an answer cost.
    pub hidden_reasoning: bool,
    /// How a route is chosen among the healthy ones.
    pub order: Order,
    /// Whether a conversation stays with one route.
    pub is_sticky: bool,
    /// What may be tried again with the next route.
    pub retry: Retry,
    /// Models that are tried when no route of this one is left; they exist, and each stands here once.
    pub fallback: Vec<ModelName>,
    /// At least one, to providers that exist.
    pub routes: Vec<Route>,
}

/// One way to have a model answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Who answers.
    pub provider: ProviderName,
    /// What the provider calls the model.
    pub model: String,
    /// The share of traffic relative to the other routes of its priority; at least 1.
    pub weight: u32,
    /// Routes with a lower number are tried first.
    pub priority: u32,
    /// What the operator pays; there for every route of a model that is ordered by cost.
    pub cost: Option<Cost>,
}

/// When a route is left alone, and how often another is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routing {
    /// The most routes that one request is sent to; at least 1.
    pub attempts_max: u32,
    /// What retries may add to the requests of a model, in percent.
    pub retry_percent: u32,
    /// And besides.
    pub retry_min_per_second: u32,
    /// Failures in a row after which a route is left alone; at least 1.
    pub circuit_failures: u32,
    /// Or this share of its requests, in percent.
    pub circuit_error_percent: u32,
    /// If it had so many; at least 1.
    pub circuit_error_requests: u32,
    /// In this time.
    pub circuit_error_window: Duration,
    /// How long it is left alone at first.
    pub circuit_open: Duration,
    /// And at most, when it fails again and again.
    pub circuit_open_max: Duration,
    /// The longest that a provider's `Retry-After` is obeyed.
    pub cool_down_max: Duration,
}

/// What an account may do at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tier {
    /// What accounts call it.
    pub name: TierName,
    /// At least 1.
    pub requests_per_minute: u64,
    /// Input and output together; at least 1.
    pub tokens_per_minute: u64,
    /// Requests at once; at least 1.
    pub concurrent_requests: u64,
}

/// The tier of an account that names none.
pub const DEFAULT_TIER: &str = "default";
/// The most that `attempts_max` can be.
pub const ATTEMPTS_MAX: u32 = 16;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration {path} cannot be read: {cause}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// It is not UTF-8.
    #[error("the configuration {path} is not UTF-8 text: byte 0x{byte:02x} in line {line}", path = path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// The first one that cannot be there.
        byte: u8,
    },
    /// It is longer than any configuration.
    #[error("the configuration {path} is longer than {max_bytes} bytes, the most that is read", path = path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// What would have been read.
        max_bytes: u64,
    },
    /// There is no file, and the default pepper is of no use.
    #[error("[auth] pepper: {0}")]
    Pepper(SecretError),
    /// The file is wrong; all that is wrong with it is here.
    #[error("{0}")]
    Wrong(#[from] Report),
}

impl Config {
    /// Reads the file; without one, the default. The secrets that it names are left alone; see [`Loaded`].
    ///
    /// # Errors
    ///
    /// The file cannot be read, or is wrong.
    pub fn load(path: Option<&Path>) -> Result<Config, ConfigError> {
        let Some(path) = path else { return Ok(Config::default()) };
        Config::parse(&loaded::text(path)?, &path.display().to_string())
    }

    /// Reads the text of a file of this name, without what its secrets are.
    ///
    /// # Errors
    ///
    /// All that is wrong with it.
    pub fn parse(text: &str, file: &str) -> Result<Config, ConfigError> {
        Ok(file::parse(text, file, &mut loaded::Outside::Named)?)
    }
}

impl Default for Config {
    fn default() -> Self {
        Config {
            server: Server::default(),
            tls: Tls::default(),
            unix: Unix::default(),
            certificates: Vec::new(),
            networks: Networks::default(),
            admin: Admin::default(),
            store: Store::default(),
            auth: Auth::default(),
            journal: Journal::default(),
            log: Log::default(),
            telemetry: Telemetry::default(),
            routing: Routing::default(),
            providers: Vec::new(),
            models: Vec::new(),
            tiers: vec![Tier::named(DEFAULT_TIER)],
        }
    }
}

impl Default for Server {
    fn default() -> Self {
        Server {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 8080))],
            plain_http: PlainHttp::Loopback,
            threads: 0,
            max_connections: 20_000,
            max_connections_per_address: 1_000,
            begin_timeout: Duration::from_secs(10),
            head_timeout: Duration::from_secs(15),
            max_requests: 10_000,
            max_requests_per_s: 100_000,
            max_requests_per_s_per_address: 5_000,
            max_body_bytes: 32 << 20,
            max_buffered_bytes: 512 << 20,
            body_timeout: Duration::from_secs(120),
            body_min_bytes_per_s: 1024,
            keepalive_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(60),
            max_answer_bytes: 64 << 20,
            max_event_bytes: 8 << 20,
            stream_comment_every: Duration::from_secs(15),
            client_gone_timeout: Duration::from_secs(60),
            client_gone_max_bytes: 16 << 20,
            client_gone_max_requests: 1_000,
            stop_delay: Duration::ZERO,
            drain_timeout: Duration::from_secs(60),
            upgrade_timeout: Duration::from_secs(60),
            max_stale: Duration::from_secs(900),
            max_stream_time: Duration::from_secs(3_600),
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Admin { listen: SocketAddr::from(([127, 0, 0, 1], 9090)) }
    }
}

impl Default for Store {
    fn default() -> Self {
        Store { url: "sqlite:weir-data/weir.db".to_owned() }
    }
}

impl Default for Auth {
    fn default() -> Self {
        Auth {
            pepper: SecretRef::File("weir-data/pepper".into()),
            service_tiers: Vec::new(),
            max_failures_per_s: 5_000,
            max_failures_per_s_per_address: 50,
        }
    }
}

impl Default for Journal {
    fn default() -> Self {
        Journal {
            dir: "weir-data/journal".into(),
            durability: Durability::Group,
            max_bytes: 1 << 30,
            keep_time: Duration::from_secs(48 * 3_600),
            keep_bytes: 4 << 30,
        }
    }
}

impl Default for Routing {
    fn default() -> Self {
        Routing {
            attempts_max: 4,
            retry_percent: 20,
            retry_min_per_second: 10,
            circuit_failures: 2,
            circuit_error_percent: 50,
            circuit_error_requests: 20,
            circuit_error_window: Duration::from_secs(10),
            circuit_open: Duration::from_secs(1),
            circuit_open_max: Duration::from_secs(60),
            cool_down_max: Duration::from_secs(60),
        }
    }
}

impl Tier {
    /// A tier of that name with the limits that hold where none are told.
    fn named(name: &str) -> Self {
        Tier {
            name: TierName::from(name),
            requests_per_minute: 600,
            tokens_per_minute: 1_000_000,
            concurrent_requests: 50,
        }
    }
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Provider { name, dialect, origin, api_key, .. } = self;
        f.debug_struct("Provider")
            .field("name", name)
            .field("dialect", &dialect.name())
            .field("origin", origin)
            .field("api_key", api_key)
            .finish_non_exhaustive()
    }
}
