//! The configuration file: which keys there are, what may stand there, and how they fit together.

mod edge;
mod routes;

use super::loaded::Outside;
use super::telemetry;
use super::{
    Admin, Auth, Config, DEFAULT_TIER, Durability, Journal, Log, LogLevel, SecretRef, Server, Store, Tier,
};
use crate::document::{self, Report, Table, Value};
use crate::ids::TierName;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// From a millisecond to a day.
const TIMES_MS: RangeInclusive<u64> = 1..=86_400_000;
/// Up to ten minutes: nobody who means well takes longer, and each who does has a place.
const BEGIN_MS: RangeInclusive<u64> = 1..=600_000;
/// From a kibibyte to a gibibyte.
const BODY_BYTES: RangeInclusive<u64> = 1024..=1 << 30;
/// What all bodies together may take, up to a tebibyte.
const BUFFER_BYTES: RangeInclusive<u64> = 1024..=1 << 40;
/// From a mebibyte to a tebibyte.
const JOURNAL_BYTES: RangeInclusive<u64> = 1 << 20..=1 << 40;
/// Up to a year.
const KEEP_MS: RangeInclusive<u64> = 0..=365 * 86_400_000;
const THREADS: RangeInclusive<u64> = 0..=1024;
/// A limit of this size limits nothing.
const LIMITS: RangeInclusive<u64> = 1..=1_000_000_000_000;

/// Reads a configuration. `file_name` is what messages call it.
pub(super) fn parse(text: &str, file_name: &str, outside: &mut Outside) -> Result<Config, Report> {
    document::read(file_name, text, |table| root(table, outside))
}

fn root(root: &mut Table<'_>, outside: &mut Outside) -> Config {
    let server = root.table("server", server);
    let tls = root.table("tls", |table| edge::tls(table, &server));
    let unix = root.table("unix", edge::unix);
    let certificates = edge::certificates(root, &tls, outside);
    let networks = root.table("network", |table| edge::networks(table, outside));
    let admin = root.table("admin", |table| {
        let listen = table.optional("listen", address).unwrap_or(Admin::default().listen);
        for (name, taken) in [("server", &server.listen), ("tls", &tls.listen)] {
            if taken.contains(&listen) {
                table.problem_at("listen", format!("`listen`: {listen} is an address of [{name}], too"));
            }
        }
        Admin { listen }
    });
    let store = root.table("store", |table| Store {
        url: table.optional("url", database).unwrap_or(Store::default().url),
    });
    let auth = root.table("auth", |table| auth(table, outside));
    let journal = root.table("journal", journal);
    let log = root.table("log", log);
    let telemetry = root.table("telemetry", telemetry::telemetry);
    let mut names = HashSet::new();
    let routing = root.table("routing", routes::routing);
    let providers = root.tables("provider", |table| routes::provider(table, &mut names, outside));
    let models = routes::models(root, &names);
    let mut tier_names = HashSet::new();
    let mut tiers = root.tables("tier", |table| tier(table, &mut tier_names));
    if !tier_names.contains(DEFAULT_TIER) {
        tiers.push(Some(Tier::named(DEFAULT_TIER)));
    }
    Config {
        server,
        tls,
        unix,
        certificates,
        networks,
        admin,
        store,
        auth,
        journal,
        log,
        telemetry,
        routing,
        providers: providers.into_iter().flatten().collect(),
        models,
        tiers: tiers.into_iter().flatten().collect(),
    }
}

fn server(table: &mut Table<'_>) -> Server {
    let default = Server::default();
    let mut seen = HashSet::new();
    let listen = table.list("listen", |value| {
        let address = address(value)?;
        seen.insert(address).then_some(address).ok_or_else(|| format!("{address} stands here twice"))
    });
    if table.is_empty_list("listen") {
        table.problem_at("listen", "`listen`: at least one address is needed");
    }
    let mut server = Server {
        listen: listen.filter(|listen| !listen.is_empty()).unwrap_or(default.listen),
        plain_http: default.plain_http,
        threads: size(table, "threads", default.threads, THREADS),
        max_connections: size(table, "max_connections", default.max_connections, 1..=10_000_000),
        max_connections_per_address: size(
            table,
            "max_connections_per_address",
            default.max_connections_per_address,
            1..=10_000_000,
        ),
        begin_timeout: time_in(table, "begin_timeout_ms", default.begin_timeout, BEGIN_MS),
        head_timeout: time(table, "head_timeout_ms", default.head_timeout),
        max_requests: table
            .optional("max_requests", |value| value.integer(1..=10_000_000))
            .unwrap_or(default.max_requests),
        max_requests_per_s: rate(table, "max_requests_per_s", default.max_requests_per_s),
        max_requests_per_s_per_address: rate(
            table,
            "max_requests_per_s_per_address",
            default.max_requests_per_s_per_address,
        ),
        max_body_bytes: size(table, "max_body_bytes", default.max_body_bytes, BODY_BYTES),
        max_buffered_bytes: size(table, "max_buffered_bytes", default.max_buffered_bytes, BUFFER_BYTES),
        body_timeout: time(table, "body_timeout_ms", default.body_timeout),
        body_min_bytes_per_s: table
            .optional("body_min_bytes_per_s", |value| value.integer(0..=1 << 30))
            .unwrap_or(default.body_min_bytes_per_s),
        keepalive_timeout: time(table, "keepalive_timeout_ms", default.keepalive_timeout),
        write_timeout: time(table, "write_timeout_ms", default.write_timeout),
        max_answer_bytes: size(table, "max_answer_bytes", default.max_answer_bytes, BODY_BYTES),
        max_event_bytes: size(table, "max_event_bytes", default.max_event_bytes, BODY_BYTES),
        stream_comment_every: time(table, "stream_comment_ms", default.stream_comment_every),
        client_gone_timeout: time(table, "client_gone_timeout_ms", default.client_gone_timeout),
        client_gone_max_bytes: size(
            table,
            "client_gone_max_bytes",
            default.client_gone_max_bytes,
            BODY_BYTES,
        ),
        client_gone_max_requests: size(
            table,
            "client_gone_max_requests",
            default.client_gone_max_requests,
            0..=1_000_000,
        ),
        stop_delay: time_in(table, "stop_delay_ms", default.stop_delay, 0..=600_000),
        drain_timeout: time(table, "drain_timeout_ms", default.drain_timeout),
        upgrade_timeout: time(table, "upgrade_timeout_ms", default.upgrade_timeout),
        max_stale: time(table, "max_stale_ms", default.max_stale),
        max_stream_time: time(table, "max_stream_time_ms", default.max_stream_time),
    };
    server.plain_http = edge::plain_http(table, &server);
    if server.max_buffered_bytes < server.max_body_bytes {
        table.problem_at(
            "max_buffered_bytes",
            "`max_buffered_bytes`: less than `max_body_bytes`, so that one body alone could take more than all together",
        );
    }
    server
}

fn auth(table: &mut Table<'_>, outside: &Outside) -> Auth {
    let default = Auth::default();
    let pepper = table.confidential("pepper", secret).unwrap_or(default.pepper);
    if let Err(error) = outside.check_pepper(&pepper) {
        table.problem_at("pepper", format!("`pepper`: {error}"));
    }
    Auth {
        pepper,
        service_tiers: table.list("service_tiers", label).unwrap_or(default.service_tiers),
        max_failures_per_s: rate(table, "max_failures_per_s", default.max_failures_per_s),
        max_failures_per_s_per_address: rate(
            table,
            "max_failures_per_s_per_address",
            default.max_failures_per_s_per_address,
        ),
    }
}

fn journal(table: &mut Table<'_>) -> Journal {
    let default = Journal::default();
    let durabilities = [("os", Durability::Os), ("group", Durability::Group), ("strict", Durability::Strict)];
    Journal {
        dir: table.optional("dir", directory).unwrap_or(default.dir),
        durability: table
            .optional("durability", |value| one_of(value, &durabilities))
            .unwrap_or(default.durability),
        max_bytes: table
            .optional("max_bytes", |value| value.integer(JOURNAL_BYTES))
            .unwrap_or(default.max_bytes),
        keep_time: table
            .optional("keep_ms", |value| value.integer(KEEP_MS).map(Duration::from_millis))
            .unwrap_or(default.keep_time),
        keep_bytes: table
            .optional("keep_bytes", |value| value.integer(0..=1 << 40))
            .unwrap_or(default.keep_bytes),
    }
}

fn log(table: &mut Table<'_>) -> Log {
    let levels = LogLevel::ALL.map(|level| (level.as_str(), level));
    Log { level: table.optional("level", |value| one_of(value, &levels)).unwrap_or(Log::default().level) }
}

fn tier(table: &mut Table<'_>, names: &mut HashSet<String>) -> Option<Tier> {
    let name = new_name(table, label, names);
    let default = Tier::named(DEFAULT_TIER);
    let mut limit = |key, default| table.optional(key, |value| value.integer(LIMITS)).unwrap_or(default);
    let requests_per_minute = limit("requests_per_minute", default.requests_per_minute);
    let tokens_per_minute = limit("tokens_per_minute", default.tokens_per_minute);
    let concurrent_requests = limit("concurrent_requests", default.concurrent_requests);
    Some(Tier {
        name: TierName::from(name?.as_str()),
        requests_per_minute,
        tokens_per_minute,
        concurrent_requests,
    })
}

/// A `name` that no table of its kind has before it. It is known from here on, whatever else is wrong with the table.
fn new_name(
    table: &mut Table<'_>,
    parse: fn(Value<'_>) -> Result<String, String>,
    names: &mut HashSet<String>,
) -> Option<String> {
    let name = table.required("name", parse)?;
    if !names.insert(name.clone()) {
        table.problem_at("name", format!("`name`: there is another `{name}` above"));
    }
    Some(name)
}

fn time(table: &mut Table<'_>, key: &'static str, default: Duration) -> Duration {
    time_in(table, key, default, TIMES_MS)
}

/// The same within bounds of its own, in milliseconds.
fn time_in(
    table: &mut Table<'_>,
    key: &'static str,
    default: Duration,
    range: RangeInclusive<u64>,
) -> Duration {
    table.optional(key, |value| value.integer(range)).map_or(default, Duration::from_millis)
}

/// How much in a second; 0 sets no limit.
fn rate(table: &mut Table<'_>, key: &'static str, default: u32) -> u32 {
    let rate = table.optional(key, |value| value.integer(0..=1_000_000_000));
    rate.map_or(default, |rate| u32::try_from(rate).unwrap_or(u32::MAX))
}

fn size(table: &mut Table<'_>, key: &'static str, default: usize, range: RangeInclusive<u64>) -> usize {
    let fitting = |size| usize::try_from(size).map_err(|_| "too large for this machine".to_owned());
    table.optional(key, |value| value.integer(range).and_then(fitting)).unwrap_or(default)
}

fn address(value: Value<'_>) -> Result<SocketAddr, String> {
    let text = value.text()?;
    let address: SocketAddr = text
        .parse()
        .map_err(|_| format!("`{text}` is not an address and port, such as 127.0.0.1:8080 or [::1]:8080"))?;
    if address.port() == 0 {
        return Err("the port cannot be 0".to_owned());
    }
    Ok(address)
}

fn database(value: Value<'_>) -> Result<String, String> {
    let url = value.text()?;
    if url.starts_with("postgres:") || url.starts_with("postgresql:") {
        return Err("PostgreSQL is not built in this release; use sqlite:PATH".to_owned());
    }
    let path = url.strip_prefix("sqlite:").ok_or("sqlite:PATH is expected")?;
    if path.is_empty() || path.contains(":memory:") {
        return Err("sqlite: is followed by the path of a file".to_owned());
    }
    Ok(url.to_owned())
}

fn secret(value: Value<'_>) -> Result<SecretRef, String> {
    SecretRef::parse(value.text()?)
}

fn directory(value: Value<'_>) -> Result<PathBuf, String> {
    let path = value.text()?;
    if path.is_empty() { Err("a path is expected".to_owned()) } else { Ok(path.into()) }
}

pub(super) fn one_of<T: Copy>(value: Value<'_>, choices: &[(&str, T)]) -> Result<T, String> {
    let text = value.text()?;
    choices.iter().find(|(name, _)| *name == text).map(|(_, choice)| *choice).ok_or_else(|| {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        format!("`{text}` is none of: {}", names.join(", "))
    })
}

/// A name that is a label of metrics and a word of the command line.
fn label(value: Value<'_>) -> Result<String, String> {
    let name = value.text()?;
    let is_usual = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !(1..=64).contains(&name.len()) || !name.chars().all(is_usual) {
        return Err("a name has 1 to 64 letters, digits, or - _ . here".to_owned());
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, file_name: &str) -> Result<Config, Report> {
        super::parse(text, file_name, &mut Outside::Named)
    }
    use std::collections::BTreeSet;

    const REFERENCE: &str = include_str!("../../conf/weir.toml");

    /// The reference with its defaults as settings.
    fn reference_told() -> String {
        let told = |line: &str| match line.strip_prefix('#') {
            Some(setting) if setting.starts_with(|c: char| c.is_ascii_lowercase()) => format!("{setting}\n"),
            Some(_) | None => format!("{line}\n"),
        };
        REFERENCE.lines().map(told).collect()
    }

    /// What is told of a text that is no configuration.
    fn told(text: &str) -> String {
        parse(text, "weir.toml").expect_err(text).to_string()
    }

    fn with_provider(lines: &str) -> String {
        format!(
            "[[provider]]\nname = \"p\"\ndialect = \"openai\"\nbase_url = \"http://127.0.0.1:1/v1\"\n{lines}\n"
        )
    }

    #[test]
    fn the_reference_names_every_key_in_its_table() {
        let mut named = BTreeSet::new();
        let mut table = String::new();
        for line in reference_told().lines() {
            if let Some(example) = line.strip_prefix("# [[") {
                named.insert(example.split(']').next().unwrap().to_owned());
            }
            if let Some(head) = line.strip_prefix('[') {
                table = head.trim_start_matches('[').split(']').next().unwrap().to_owned();
                named.insert(table.clone());
            } else if let Some((key, _)) = line.split_once(" = ").filter(|(key, _)| !key.starts_with('#')) {
                named.insert(format!("{table}.{key}"));
            }
            for key in ["provider", "model", "weight", "priority", "input_cost", "output_cost"]
                .iter()
                .filter(|key| line.starts_with("routes") && line.contains(*key))
            {
                named.insert(format!("model.routes.{key}"));
            }
        }
        assert_eq!(named, document::keys(REFERENCE, |table| root(table, &mut Outside::Named)));
    }

    #[test]
    fn the_defaults_of_the_reference_are_those_of_the_code() {
        let default = Config::default();
        for text in [REFERENCE.to_owned(), reference_told()] {
            let read = parse(&text, "weir.toml").unwrap();
            assert_eq!(read.server, default.server);
            assert_eq!(read.admin, default.admin);
            assert_eq!(read.unix, default.unix);
            assert_eq!(read.store, default.store);
            assert_eq!(read.auth, default.auth);
            assert_eq!(read.journal, default.journal);
            assert_eq!(read.log, default.log);
            assert_eq!(read.telemetry, default.telemetry);
            assert_eq!(read.routing, default.routing);
            assert_eq!(read.tiers, default.tiers);
            let minimal = parse(&with_provider(""), "weir.toml").unwrap();
            let times = |provider: &crate::config::Provider| {
                let of_connection = (provider.connect_timeout, provider.tls_timeout);
                let of_answer = (provider.first_byte_timeout, provider.idle_timeout, provider.total_timeout);
                (of_connection, of_answer, provider.is_drained)
            };
            assert_eq!(times(&read.providers[0]), times(&minimal.providers[0]));
            assert!(read.models.iter().all(|model| !model.hidden_reasoning));
            assert_eq!(read.models[1].routes[0].weight, 1);
            assert_eq!(read.models[1].routes[0].model, "text-embedding-3-small");
        }
    }

    #[test]
    fn every_problem_of_a_file_is_told_at_once() {
        let told = told(
            "[server]\nlisten = [\"127.0.0.1:8080\"]\nlisten_to = 5\n\n[[provider]]\nname = \"p\"\ndialect = \"no-such\"\n\
             base_url = \"ftp://a\"\napi_key = \"sk-secret\"\n\n[[model]]\nname = \"m\"\ncontext_tokens = 10\n\
             routes = [{ provider = \"nobody\", model = \"m\", weight = 0 }]\n\n[servers]\n",
        );
        for telling in [
            "unknown key `listen_to`",
            "weir.toml:3:1",
            "`no-such` is not built",
            "must begin with https://",
            "the secret itself does not belong here",
            "there is no [[provider]] `nobody`",
            "`weight`: must be from 1",
            "unknown key `servers`",
            "^^^^^^^^^",
        ] {
            assert!(told.contains(telling), "{telling}: {told}");
        }
        // The provider has a problem of its own; that is no reason to tell that routes to it lead nowhere.
        let one = "[[provider]]\nname = \"p\"\n[[model]]\nname = \"m\"\ncontext_tokens = 1\nroutes = [{ provider = \"p\" }]\n";
        assert!(!super::tests::told(one).contains("there is no"));
    }

    #[test]
    fn what_cannot_be_is_refused_where_it_stands() {
        let model =
            |lines: &str| with_provider(&format!("[[model]]\nname = \"m\"\ncontext_tokens = 1\n{lines}"));
        for (text, telling) in [
            ("[server]\nlisten = []".to_owned(), "at least one address"),
            ("[server]\nlisten = [\"localhost\"]".to_owned(), "not an address"),
            ("[server]\nlisten = [\"127.0.0.1:0\"]".to_owned(), "port"),
            ("[server]\nlisten = [\"[::1]:1\", \"[::1]:1\"]".to_owned(), "twice"),
            ("[server]\nlisten = \"127.0.0.1:8080\"".to_owned(), "list"),
            ("[admin]\nlisten = \"127.0.0.1:8080\"".to_owned(), "[server], too"),
            ("[server]\nbody_timeout_ms = 0".to_owned(), "from 1 to"),
            ("[server]\nmax_body_bytes = 1048576\nmax_buffered_bytes = 65536".to_owned(), "alone"),
            ("[store]\nurl = \"postgres://user@host/db\"".to_owned(), "not built"),
            ("[store]\nurl = \"sqlite::memory:\"".to_owned(), "path"),
            ("[journal]\ndurability = \"never\"".to_owned(), "os, group, strict"),
            ("[[tier]]\nname = \"t\"\nrequests_per_minute = 0".to_owned(), "from 1 to"),
            ("[[tier]]\nname = \"t\"\n[[tier]]\nname = \"t\"".to_owned(), "another `t`"),
            ("[[tier]]\nname = \"t t\"".to_owned(), "letters"),
            (with_provider("idle_timeout_ms = -1"), "from 1 to"),
            (with_provider("on_client_gone = \"stay\""), "cancel, drain"),
            (with_provider("[[provider]]\nname = \"p\""), "another `p`"),
            (model(""), "`routes` is missing"),
            (model("routes = []"), "at least one route"),
            (model("routes = [\"p\"]"), "tables"),
            (model("routes = [{ provider = \"p\", weigth = 1 }]"), "unknown key `weigth`"),
            (model("max_output_tokens = 0\nroutes = [{ provider = \"p\" }]"), "from 1 to"),
            (
                with_provider(
                    "[[model]]\nname = \"tiny \"\ncontext_tokens = 1\nroutes = [{ provider = \"p\" }]",
                ),
                "no spaces",
            ),
        ] {
            let told = told(&text);
            assert!(
                told.contains(telling) && told.contains('^') && told.contains("weir.toml:"),
                "{text}: {told}"
            );
        }
    }

    #[test]
    fn a_tier_that_names_a_limit_keeps_the_others_and_default_is_always_there() {
        let tiers = parse("[[tier]]\nname = \"big\"\ntokens_per_minute = 5\n", "weir.toml").unwrap().tiers;
        assert_eq!(tiers[0], Tier { tokens_per_minute: 5, ..Tier::named("big") });
        assert_eq!(tiers[1], Tier::named(DEFAULT_TIER));
    }
}
