//! The table of errors as the official clients meet it: which exception a customer's program gets, with which code, and whether the
//! client tries again by itself.

use crate::e2e::{source, tools};
use crate::support::gateway::{Account, hello, hello_stream};
use crate::support::http::Request;
use crate::support::upstream::{Gate, chunk};
use crate::support::{Answer, Connection, Gateway, Upstream, ms, wait_for};
use serde_json::{Value, json};
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// What a client's program sees: status, code, and how often the client asks. Without a status the stream breaks off.
struct Case {
    ask: Value,
    status: Option<u16>,
    code: &'static str,
    asked: u64,
}

/// Circuits that never open, and tiers with hardly any room.
const STAGE: &str = "\n[routing]\ncircuit_failures = 1000000\ncircuit_error_requests = 1000000\n\
    \n[[tier]]\nname = \"single\"\nconcurrent_requests = 1\n\n[[tier]]\nname = \"short\"\ntokens_per_minute = 20\n";

/// The exception of each client. A status without one of its own has the general one, which both call differently.
fn classes(status: Option<u16>) -> [&'static str; 2] {
    match status {
        Some(400) => ["BadRequestError"; 2],
        Some(401) => ["AuthenticationError"; 2],
        Some(403) => ["PermissionDeniedError"; 2],
        Some(404) => ["NotFoundError"; 2],
        Some(409) => ["ConflictError"; 2],
        Some(429) => ["RateLimitError"; 2],
        Some(500..) => ["InternalServerError"; 2],
        Some(_) => ["APIStatusError", "APIError"],
        None => ["APIError"; 2],
    }
}

/// The gateway, what keeps it as it is, and what is asked of it.
struct Scene {
    gateway: Gateway,
    cases: Vec<Case>,
    held: Vec<Connection>,
    gate: Arc<Gate>,
}

fn error_answer(status: u16, code: &str) -> Answer {
    Answer::json(status, &json!({"error": {"message": "no", "type": "x", "param": null, "code": code}}))
}

impl Scene {
    fn new() -> Scene {
        let upstream = Upstream::start();
        let gate = Gate::new();
        let held = Answer::stream().event(&chunk("Hello")).gate(&gate).close();
        upstream
            .when("hold", held)
            .when("too long", error_answer(400, "context_length_exceeded"))
            .when("broken", error_answer(500, "x"))
            .when("limited", error_answer(429, "x"))
            .when("never", Answer::never())
            .when("cut", Answer::stream().event(&chunk("Hello")).close())
            .when(
                "flood",
                (0..400).fold(Answer::stream(), |a, _| a.wait(ms(1)).event(&chunk(" water"))).wait_for_end(),
            );
        let gateway = Gateway::builder()
            .provider_with("main", &upstream, "first_byte_timeout_ms = 300")
            .standard_models("main")
            .server("max_body_bytes = 65536")
            .lines(STAGE)
            .start();
        Scene { gateway, cases: Vec::new(), held: Vec::new(), gate }
    }

    /// A question of this text.
    fn question(text: &str, model: &str) -> Value {
        json!({"model": model, "max_tokens": 50, "messages": [{"role": "user", "content": text}]})
    }

    fn case(
        &mut self,
        key: &str,
        body: &Value,
        status: impl Into<Option<u16>>,
        code: &'static str,
        asked: u64,
    ) {
        self.case_with(key, "/chat/completions", body, &json!({}), status.into(), code, asked);
    }

    #[expect(clippy::too_many_arguments, reason = "a row of a table")]
    fn case_with(
        &mut self,
        key: &str,
        path: &str,
        body: &Value,
        headers: &Value,
        status: Option<u16>,
        code: &'static str,
        asked: u64,
    ) {
        let name = format!("{} {code}", self.cases.len());
        let ask = json!({"name": name, "key": key, "path": path, "body": body, "headers": headers});
        self.cases.push(Case { ask, status, code, asked });
    }

    /// Begins a stream that lasts until the end.
    fn hold(&mut self, account: &Account, model: &str, headers: &[(&str, &str)]) {
        let mut body = Scene::question("hold", model);
        body["stream"] = json!(true);
        body.as_object_mut().unwrap().remove("max_tokens");
        let mut request = Request::post("/v1/chat/completions", body.to_string()).key(&account.key);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let mut connection = self.gateway.connect();
        let head = connection.begin(&request);
        assert!(head.first_line.contains("200"), "{head:?}");
        self.held.push(connection);
    }

    /// What the request itself is refused for.
    fn requests(&mut self) {
        let key = self.gateway.account.key.clone();
        let mut odd = hello();
        odd["max_tokens"] = json!("many");
        self.case(&key, &odd, 400, "invalid_value", 1);
        let short = self.gateway.new_account_in(Some("short"), "1");
        self.case(&short.key, &hello(), 400, "tokens_exceed_limit", 1);
        self.case(&key, &Scene::question("too long", "tiny"), 400, "context_length_exceeded", 1);
        self.case("sk-weir-junk", &hello(), 401, "invalid_api_key", 1);
        self.case(&key, &Scene::question("x", "nobody"), 404, "model_not_found", 1);
        let get = Value::Null;
        self.case_with(&key, "/nothing", &get, &json!({}), Some(404), "unknown_url", 1);
        self.case_with(&key, "/embeddings", &get, &json!({}), Some(405), "method_not_allowed", 1);
        self.case(&key, &Scene::question(&"x".repeat(100_000), "tiny"), 413, "request_too_large", 1);
        let headers = json!({"Content-Encoding": "gzip"});
        self.case_with(&key, "/chat/completions", &hello(), &headers, Some(415), "unsupported_media_type", 1);
        let headers = json!({"X-Long": "x".repeat(40_000)});
        self.case_with(&key, "/chat/completions", &hello(), &headers, Some(431), "headers_too_large", 1);
    }

    /// What the account, its key or its credit are refused for.
    fn accounts(&mut self) {
        let broke = self.gateway.new_account("0");
        self.case(&broke.key, &hello(), 402, "credit_balance_exhausted", 1);
        let account = self.gateway.account.clone();
        let (_, spent) = self.gateway.new_key(&account.id, &["--spend-limit-usd", "0.000001"]);
        self.case(&spent, &Scene::question("x", "dear"), 402, "key_spend_limit_reached", 1);
        let busy = self.gateway.new_account("0.30");
        self.hold(&busy, "dear", &[]);
        self.case(&busy.key, &Scene::question("x", "dear"), 402, "credit_in_flight", 3);
        let suspended = self.gateway.new_account("1");
        self.gateway.cli.json(&["account", "suspend", &suspended.id, "--reason", "test"]);
        self.case(&suspended.key, &hello(), 403, "account_suspended", 1);
        let (_, narrow) = self.gateway.new_key(&account.id, &["--models", "embed"]);
        self.case(&narrow, &hello(), 403, "model_not_allowed", 1);
        let single = self.gateway.new_account_in(Some("single"), "1");
        self.hold(&single, "tiny", &[]);
        self.case(&single.key, &hello(), 429, "rate_limit_exceeded", 3);
        self.hold(&account, "tiny", &[("Idempotency-Key", "running")]);
        let running = json!({"Idempotency-Key": "running"});
        self.case_with(
            &account.key,
            "/chat/completions",
            &hello(),
            &running,
            Some(409),
            "request_in_progress",
            3,
        );
        let request = Request::post("/v1/chat/completions", hello().to_string()).key(&account.key);
        let request = request.header("Idempotency-Key", "done");
        self.gateway.ask(&request).ok();
        wait_for("the first request to count as done", Duration::from_secs(2), || {
            self.gateway.ask(&request).text().contains("request_already_done").then_some(())
        });
        let done = json!({"Idempotency-Key": "done"});
        self.case_with(
            &account.key,
            "/chat/completions",
            &hello(),
            &done,
            Some(409),
            "request_already_done",
            1,
        );
    }

    /// What providers do, and streams that break off.
    fn providers(&mut self) {
        let key = self.gateway.account.key.clone();
        self.case(&key, &Scene::question("broken", "tiny"), 502, "upstream_error", 3);
        self.case(&key, &Scene::question("limited", "tiny"), 503, "no_capacity", 3);
        self.case(&key, &Scene::question("never", "tiny"), 504, "upstream_timeout", 3);
        let mut broken = hello_stream();
        broken["messages"][0]["content"] = json!("cut");
        self.case(&key, &broken, None, "upstream_stream_truncated", 1);
        // One for each client: the credit is gone then.
        let poor = [self.gateway.new_account("0.10"), self.gateway.new_account("0.10")];
        let mut flood = Scene::question("flood", "dear");
        flood["stream"] = json!(true);
        flood.as_object_mut().unwrap().remove("max_tokens");
        self.case(&poor[0].key, &flood, None, "credit_balance_exhausted", 1);
        self.cases.last_mut().unwrap().ask["key_of_second"] = json!(poor[1].key);
    }

    /// Lets a client's program ask everything.
    fn run(&self, mut command: Command, is_second: bool) -> Vec<Value> {
        let base = format!("http://{}/v1", self.gateway.address());
        command.arg(&base).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        for case in &self.cases {
            let mut ask = case.ask.clone();
            if let Some(key) = ask.get("key_of_second").cloned().filter(|_| is_second) {
                ask["key"] = key;
            }
            writeln!(input, "{ask}").unwrap();
        }
        drop(input);
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", crate::support::cli::shown(&output));
        String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

#[test]
fn the_official_clients_raise_what_the_table_says_and_try_again_only_where_that_helps() {
    let tools = tools();
    let mut scene = Scene::new();
    scene.requests();
    scene.accounts();
    scene.providers();
    let mut python = Command::new("timeout");
    python.arg("100").arg(tools.join("venv/bin/python")).arg(source("errors.py"));
    let mut node = Command::new("timeout");
    node.arg("100").arg(tools.join("venv/bin/node")).arg(source("errors.mjs")).current_dir(&tools);
    let scene = &scene;
    let seen = std::thread::scope(|scope| {
        let first = scope.spawn(move || scene.run(python, false));
        let second = scope.spawn(move || scene.run(node, true));
        [first.join().unwrap(), second.join().unwrap()]
    });
    let mut off = Vec::new();
    for (client, seen) in seen.iter().enumerate() {
        assert_eq!(seen.len(), scene.cases.len());
        for (case, seen) in scene.cases.iter().zip(seen) {
            let class = classes(case.status)[client];
            let want = json!([class, case.status, case.code, case.asked]);
            let got = json!([seen["class"], seen["status"], seen["code"], seen["asked"]]);
            let is_named =
                case.status.is_none() || seen["request_id"].as_str().is_some_and(|id| !id.is_empty());
            if want != got || !is_named {
                off.push(format!("{}: {want} expected, {seen} seen", ["Python", "JavaScript"][client]));
            }
        }
    }
    scene.gate.open();
    assert!(off.is_empty(), "{}", off.join("\n"));
}
