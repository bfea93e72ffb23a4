//! SIGHUP: what a configuration says is in force at once and whole, or changes nothing; requests under way do not notice.

mod storm;

use crate::support::gateway::{hello, hello_stream};
use crate::support::upstream::{Gate, PROVIDER_KEY, chat, chunk, last_chunk, usage, usage_chunk};
use crate::support::{Answer, Gateway, Request, Upstream, ms, wait_for};
use serde_json::json;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

impl Gateway {
    fn config_path(&self) -> PathBuf {
        self.directory().join("weir.toml")
    }

    fn config(&self) -> String {
        fs::read_to_string(self.config_path()).unwrap()
    }

    /// Writes a configuration as editors do: whole, under its name at once.
    fn configure(&self, text: &str) {
        let whole = self.directory().join("weir.toml.new");
        fs::write(&whole, text).unwrap();
        fs::rename(whole, self.config_path()).unwrap();
    }

    fn hang_up(&self) {
        let told = Command::new("kill").args(["-HUP", &self.process_id().to_string()]).status();
        assert!(told.is_ok_and(|status| status.success()), "SIGHUP is sent");
    }

    fn metric(&self, name: &str) -> f64 {
        let metrics = self.metrics();
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} in {metrics}")).parse().unwrap()
    }

    /// The line of the log that says this, once it is written.
    fn told(&self, text: &str) -> String {
        wait_for(text, ms(2_000), || self.log().lines().find(|line| line.contains(text)).map(str::to_owned))
    }

    fn reloads(&self) -> f64 {
        self.metric("weir_config_reloads_total")
    }

    /// Tells the process to read its configuration, and waits until it has.
    fn reload(&self) {
        let before = self.reloads();
        self.hang_up();
        wait_for("the configuration to be read", Duration::from_secs(10), || {
            (self.reloads() > before).then_some(())
        });
    }

    /// Puts a configuration into force.
    fn reload_as(&self, text: &str) {
        self.configure(text);
        self.reload();
        assert_eq!(self.metric("weir_config_last_reload_successful"), 1.0, "{}", self.log());
    }
}

/// The configuration with the first `from` in it replaced.
fn with(config: &str, from: &str, to: &str) -> String {
    assert!(config.contains(from), "{from} in {config}");
    config.replacen(from, to, 1)
}

fn answer() -> Answer {
    Answer::json(200, &chat("hi", &usage(5, 5)))
}

#[test]
fn models_providers_and_limits_are_in_force_for_the_next_request() {
    let (first, second) = (Upstream::start(), Upstream::start());
    let gateway = Gateway::builder()
        .provider("main", &first)
        .noted_by(&second)
        .model("tiny", &[("main", 1)])
        .server("max_body_bytes = 4096")
        .start();
    gateway.hello().ok();
    let mut rich = hello();
    rich["model"] = json!("rich");
    gateway.chat(&rich).refused(404, "model_not_found");
    let before = gateway.metric("weir_config_last_reload_success_timestamp_seconds");

    let other = format!(
        "\n[[provider]]\nname = \"other\"\ndialect = \"openai\"\nbase_url = \"http://{}/v1\"\n\
         [[model]]\nname = \"rich\"\ncontext_tokens = 1000\nroutes = [{{ provider = \"other\" }}]\n",
        second.address()
    );
    let config = with(&gateway.config(), "max_body_bytes = 4096", "max_body_bytes = 2048") + &other;
    gateway.reload_as(&config);
    assert!(gateway.metric("weir_config_last_reload_success_timestamp_seconds") > before);
    gateway.chat(&rich).ok();
    assert_eq!((first.count(), second.count()), (1, 1));
    let mut long = hello();
    long["messages"][0]["content"] = json!("x".repeat(3000));
    gateway.chat(&long).refused(413, "request_too_large");
    // What is gone is not served, and what is drained gets nothing while something else is left.
    let models = gateway.ask(&Request::get("/v1/models").key(&gateway.account.key)).ok().json();
    assert_eq!(models["data"].as_array().unwrap().len(), 2, "{models}");
    let without = with(&config, "name = \"tiny\"", "name = \"embed\"");
    gateway.reload_as(&without);
    gateway.hello().refused(404, "model_not_found");
}

#[test]
fn a_configuration_with_mistakes_changes_nothing_and_all_of_them_are_told() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let good = gateway.config();
    gateway.configure(&(with(&good, "threads = 1", "threads = \"many\"") + "\n[servers]\n"));
    gateway.reload();
    assert_eq!(gateway.metric("weir_config_last_reload_successful"), 0.0);
    assert_eq!(gateway.metric("weir_config_reload_failures_total"), 1.0);
    let told: serde_json::Value =
        serde_json::from_str(&gateway.told("the one before stays in force")).unwrap();
    let problems = told["problems"].as_str().unwrap();
    for telling in [
        "`threads`: a whole number is expected, not a string",
        "weir.toml:3:11",
        "3 | threads = \"many\"",
        "^^^^^^",
        "unknown key `servers`",
    ] {
        assert!(problems.contains(telling), "{telling}: {problems}");
    }
    // The command says the same.
    let checked = gateway.cli.fails(3, &["check"]);
    assert_eq!(checked["message"], problems);
    gateway.hello().ok();
    fs::remove_file(gateway.config_path()).unwrap();
    gateway.reload();
    gateway.told("cannot be read: No such file");
    gateway.hello().ok();
    gateway.reload_as(&good);
    assert_eq!(gateway.metric("weir_config_reload_failures_total"), 2.0);
    gateway.hello().ok();
}

#[test]
fn a_request_under_way_ends_by_what_it_began_with() {
    let (upstream, other) = (Upstream::start(), Upstream::start());
    let gateway =
        Gateway::builder().provider("main", &upstream).noted_by(&other).standard_models("main").start();
    let gate = Gate::new();
    upstream.next(
        Answer::stream()
            .event(&chunk("Hel"))
            .gate(&gate)
            .event(&chunk("lo"))
            .event(&last_chunk())
            .event(&usage_chunk(&usage(5, 5)))
            .done(),
    );
    // This one has gone to its provider and nothing has come back.
    let failing = Gate::new();
    upstream.next(
        Answer::silent()
            .gate(&failing)
            .write(*b"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{}"),
    );
    let (mut stream, head) = gateway.begin(&hello_stream());
    let mut waiting = gateway.send(&hello());
    wait_for("both requests", ms(5_000), || (upstream.count() == 2).then_some(()));

    let main = format!("base_url = \"http://{}/v1\"", upstream.address());
    let config = with(&gateway.config(), &main, &format!("base_url = \"http://{}/v1\"", other.address()));
    gateway.reload_as(&with(&config, "name = \"tiny\"", "name = \"tiny-2\""));
    gateway.hello().refused(404, "model_not_found");
    gate.open();
    let mut text = String::new();
    while let Some(piece) = stream.chunk().unwrap() {
        text.push_str(&String::from_utf8(piece).unwrap());
    }
    assert!(text.contains("\"lo\"") && text.ends_with("data: [DONE]\n\n"), "{text}");
    failing.open();
    waiting.reply().unwrap().refused(503, "no_capacity");
    assert_eq!(other.count(), 0);
    let rows = gateway.rows_when(2);
    let streamed = rows.iter().find(|row| row["request_id"] == head.header("x-request-id").unwrap()).unwrap();
    assert_eq!(
        (streamed["outcome"].as_str(), streamed["output_tokens"].as_u64()),
        (Some("completed"), Some(5))
    );
    gateway.reload_as(&with(&gateway.config(), "name = \"tiny-2\"", "name = \"tiny\""));
    gateway.hello().ok();
    assert_eq!(other.count(), 1);
}

#[test]
fn what_was_seen_of_a_provider_outlives_a_reload_unless_it_is_another_one() {
    let (bad, good) = (Upstream::start(), Upstream::start());
    bad.always(Answer::json(500, &json!({"error": {"message": "broken"}})));
    let gateway = Gateway::builder()
        .provider("bad", &bad)
        .provider("good", &good)
        .model_in_order("tiny", &["bad", "good"])
        .lines("\n[routing]\ncircuit_open_ms = 60000\n")
        .start();
    let key = gateway.directory().join("key");
    fs::write(&key, "sk-first\n").unwrap();
    gateway.reload_as(&with(&gateway.config(), "env:WEIR_TEST_PROVIDER_KEY", "file:key"));
    for _ in 0..3 {
        gateway.hello().ok();
    }
    assert_eq!(bad.count(), 2, "two failures open the circuit");
    let authorization = |at: usize| bad.received()[at].head.header("authorization").map(str::to_owned);
    assert_eq!(authorization(0).as_deref(), Some("Bearer sk-first"));
    gateway.reload_as(&with(&gateway.config(), "circuit_open_ms = 60000", "circuit_open_ms = 50000"));
    gateway.hello().ok();
    assert_eq!(bad.count(), 2, "the circuit is still open");
    assert_eq!(good.connections(), 1, "connections to providers are kept");
    // A key may be what was wrong.
    fs::write(&key, "sk-second\n").unwrap();
    gateway.reload();
    gateway.hello().ok();
    assert_eq!(bad.count(), 3);
    assert_eq!(authorization(2).as_deref(), Some("Bearer sk-second"));
    assert_eq!(good.received()[0].head.header("authorization"), Some(&*format!("Bearer {PROVIDER_KEY}")));
    gateway.keep_secret("sk-first");
    gateway.keep_secret("sk-second");
}

#[test]
fn other_limits_of_a_tier_hold_at_once_and_forget_nothing() {
    let upstream = Upstream::start();
    upstream.always(answer());
    let gateway = Gateway::builder()
        .provider("main", &upstream)
        .standard_models("main")
        .lines("\n[[tier]]\nname = \"few\"\nrequests_per_minute = 5\n")
        .start();
    let account = gateway.new_account_in(Some("few"), "1");
    let ask = || gateway.ask(&Request::post("/v1/chat/completions", hello().to_string()).key(&account.key));
    let standing = || {
        let reply = ask();
        let told = |name: &str| reply.header(&format!("x-ratelimit-{name}-requests")).unwrap().to_owned();
        (reply.status, told("limit"), told("remaining"))
    };
    for left in [4, 3] {
        assert_eq!(standing(), (200, "5".to_owned(), left.to_string()));
    }
    gateway.reload_as(&with(&gateway.config(), "per_minute = 5\n", "per_minute = 10\n"));
    assert_eq!(standing(), (200, "10".to_owned(), "7".to_owned()));
    gateway.reload_as(&with(&gateway.config(), "per_minute = 10\n", "per_minute = 2\n"));
    ask().refused(429, "rate_limit_exceeded");
}

#[test]
fn what_waits_for_a_restart_is_named_and_the_rest_is_in_force() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let good = gateway.config();
    assert_eq!(gateway.metric("weir_config_restart_needed"), 0.0);
    let config = with(&good, "threads = 1", "threads = 2\nmax_body_bytes = 1024");
    gateway.reload_as(&with(
        &config,
        "dir = \"data/journal\"",
        "dir = \"data/journal\"\nmax_bytes = 536870912",
    ));
    assert_eq!(gateway.metric("weir_config_restart_needed"), 1.0);
    let told = gateway.told("wait for a restart");
    assert!(told.contains("\"keys\":\"[server] threads, [journal] max_bytes\""), "{told}");
    gateway.told("\"keys_of_the_start\":\"main\"");
    let mut long = hello();
    long["messages"][0]["content"] = json!("x".repeat(2000));
    gateway.chat(&long).refused(413, "request_too_large");
    gateway.reload_as(&good);
    assert_eq!(gateway.metric("weir_config_restart_needed"), 0.0);
    gateway.chat(&long).ok();
}

#[test]
fn the_level_of_the_log_changes_while_it_runs() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let quiet = gateway.config() + "\n[log]\nlevel = \"error\"\n";
    let lines = || gateway.log().lines().filter(|line| line.contains("\"weir::request\"")).count();
    let settled = |count: usize| {
        wait_for("the lines of the log", ms(2_000), || (lines() == count).then_some(()));
    };
    gateway.hello().ok();
    settled(1);
    gateway.reload_as(&quiet);
    gateway.hello().ok();
    gateway.reload_as(&with(&quiet, "level = \"error\"", "level = \"info\""));
    gateway.hello().ok();
    settled(2);
}

#[test]
fn a_signal_before_the_process_is_ready_is_heard_when_it_is() {
    let upstream = Upstream::start();
    let mut gateway = Gateway::before(&upstream);
    gateway.stop();
    gateway.spawn();
    // From the moment in which it can be asked whether it is ready.
    wait_for("the process", Duration::from_secs(20), || std::net::TcpStream::connect(gateway.admin()).ok());
    gateway.hang_up();
    wait_for("the configuration to be read", Duration::from_secs(20), || {
        (gateway.reloads() > 0.0).then_some(())
    });
    gateway.hello().ok();
}

#[test]
fn a_signal_during_a_stop_is_not_heard_and_ends_nothing() {
    let upstream = Upstream::start();
    let mut gateway = Gateway::before(&upstream);
    let gate = Gate::new();
    upstream.next(Answer::stream().event(&chunk("Hello")).gate(&gate).event(&last_chunk()).done());
    let (mut stream, _) = gateway.begin(&hello_stream());
    stream.chunk().unwrap();
    let stopped = Command::new("kill").args(["-TERM", &gateway.process_id().to_string()]).status();
    assert!(stopped.is_ok_and(|status| status.success()));
    gateway.told("\"stopping\"");
    gateway.hang_up();
    gateway.told("is not read again");
    gate.open();
    let mut text = String::new();
    while let Some(piece) = stream.chunk().unwrap() {
        text.push_str(&String::from_utf8(piece).unwrap());
    }
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    assert!(gateway.ended(Duration::from_secs(20)).success());
}

#[test]
fn many_signals_at_once_end_in_what_the_file_says_last() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let good = gateway.config();
    for round in 0..10 {
        gateway.configure(&with(&good, "name = \"tiny\"", &format!("name = \"tiny-{round}\"")));
        (0..5).for_each(|_| gateway.hang_up());
    }
    gateway.configure(&good);
    gateway.reload();
    wait_for("the last one", ms(5_000), || (gateway.hello().status == 200).then_some(()));
    assert!(gateway.reloads() <= 51.0);
    gateway.hello().ok();
}
