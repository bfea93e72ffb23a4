//! The matrix of faults: each fault of a provider, before a healthy one and alone, streamed or not, over HTTP/1.1 and HTTP/2. What
//! the client is told, what is billed, what each provider saw, and that no credit and no place is left behind.
//!
//! Circuits never open here, and the account has one place: a place that does not come back ends the matrix.

mod http1;
mod http2;
mod unreachable;

use crate::gone::metric;
use crate::support::gateway::{Account, Builder, hello, hello_stream};
use crate::support::http::error_of;
use crate::support::{Gateway, Reply, Request, Upstream, ms, wait_for};
use serde_json::{Value, json};
use std::time::Duration;

/// What a client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// A whole answer of the provider that is named.
    Answer(&'static str),
    /// A refusal: status and code.
    Refused(u16, &'static str),
    /// The beginning of a stream, and an event with this code in place of its end.
    Broken(&'static str),
}
use Told::{Answer as Answered, Broken, Refused};

/// What becomes of a request whose first provider has a fault.
#[derive(Clone, Copy, Debug)]
struct Row {
    fault: &'static str,
    /// A healthy provider comes next: for a request that is not streamed, and for one that is.
    before_another: [Told; 2],
    /// Nobody comes next.
    alone: [Told; 2],
    seen: usize,
}

const GOOD: Told = Answered("good");
const ERROR: Told = Refused(502, "upstream_error");
const TIMEOUT: Told = Refused(504, "upstream_timeout");
const LIMITED: Told = Refused(503, "no_capacity");
const CUT: Told = Broken("upstream_stream_truncated");

impl Row {
    /// Another provider is asked; without one the client is told this.
    const fn passed_on(fault: &'static str, alone: Told) -> Row {
        Row { fault, before_another: [GOOD; 2], alone: [alone; 2], seen: 1 }
    }

    /// The client is told this, whoever could be asked besides.
    const fn told(fault: &'static str, told: Told) -> Row {
        Row { fault, before_another: [told; 2], alone: [told; 2], seen: 1 }
    }

    /// The same, with an end of its own for a stream.
    const fn broken(fault: &'static str, whole: Told, streamed: Told) -> Row {
        Row { fault, before_another: [whole, streamed], alone: [whole, streamed], seen: 1 }
    }
}

const QUICK: &str = "connect_timeout_ms = 700\nfirst_byte_timeout_ms = 700\nidle_timeout_ms = 500";
/// Circuits that never open, and an account that makes one request at a time.
const STAGE: &str = "\n[routing]\ncircuit_failures = 1000000\ncircuit_error_requests = 1000000\n\
                     \n[[tier]]\nname = \"single\"\nrequests_per_minute = 1000000\ntokens_per_minute = 1000000000\n\
                     concurrent_requests = 1\n";

/// One gateway before all faults of a kind.
struct Matrix {
    gateway: Gateway,
    account: Account,
    good: Upstream,
    expected_rows: Vec<(String, Told, bool)>,
}

impl Matrix {
    /// A gateway with these providers besides `good`.
    fn start(builder: Builder, good: &Upstream) -> Matrix {
        let gateway = builder.lines(STAGE).start();
        let account = gateway.new_account_in(Some("single"), "10");
        Matrix { gateway, account, good: good.clone(), expected_rows: Vec::new() }
    }

    /// Asks, and checks what the client is told and whether the healthy provider was asked.
    fn check(&mut self, what: &str, model: &str, streamed: bool, told: Told) {
        let before = self.good.count();
        let reply = self.ask(model, streamed);
        let what = format!("{what}, {}, {model}", if streamed { "streamed" } else { "whole" });
        assert_eq!(told_by(&reply, streamed), told, "{what}: {}", reply.text());
        let asked = self.good.count() - before;
        assert_eq!(asked, usize::from(told == GOOD), "the healthy provider is asked: {what}");
        let id = reply.header("x-request-id").expect("x-request-id").to_owned();
        self.expected_rows.push((id, told, streamed));
    }

    /// Asks as soon as the account's place is free, which must be soon.
    fn ask(&self, model: &str, streamed: bool) -> Reply {
        let mut body = if streamed { hello_stream() } else { hello() };
        body["model"] = json!(model);
        wait_for("the place of the request before", Duration::from_secs(3), || {
            let request = Request::post("/v1/chat/completions", body.to_string()).key(&self.account.key);
            Some(self.gateway.ask(&request)).filter(|reply| reply.status != 429)
        })
    }

    /// The bill of everything: what was answered, and the beginning of what was cut. And nothing is left.
    fn end(&self) {
        for level in
            ["weir_requests_in_flight", "weir_ledger_open_holds", "weir_drains", "weir_buffered_body_bytes"]
        {
            wait_for(level, Duration::from_secs(3), || (metric(&self.gateway, level) < 0.5).then_some(()));
        }
        std::thread::sleep(ms(300));
        let rows = crate::support::gateway::rows_of(&self.gateway.cli, &self.account.id);
        for (id, told, streamed) in &self.expected_rows {
            let row = rows.iter().find(|row| row["request_id"] == id.as_str());
            let billed = row.map(|row| row["cost_pico_usd"].as_i64().unwrap());
            match (told, row) {
                (Answered(provider), Some(row)) => {
                    assert_eq!(
                        (&row["outcome"], &row["provider"]),
                        (&json!("completed"), &json!(provider)),
                        "{row}"
                    );
                    assert_eq!(row["usage_source"], "reported", "{row}");
                }
                (Broken(_), Some(row)) => {
                    assert_eq!(
                        (&row["outcome"], &row["usage_source"]),
                        (&json!("upstream_cut"), &json!("counted")),
                        "{row}"
                    );
                    assert!(billed > Some(0) && row["input_tokens"].as_u64() > Some(0), "{row}");
                }
                (Refused(..), None) => {}
                (Refused(status, code), Some(row)) => {
                    let outcome =
                        if *code == "upstream_timeout" { "upstream_timeout" } else { "upstream_error" };
                    assert_eq!((&row["outcome"], billed), (&json!(outcome), Some(0)), "{row}");
                    assert_eq!(row["status"], *status, "{row}");
                }
                (Answered(_) | Broken(_), None) => panic!("no row for {id}: {told:?}, streamed: {streamed}"),
            }
        }
    }
}

/// What an answer tells.
fn told_by(reply: &Reply, streamed: bool) -> Told {
    if reply.status != 200 {
        let error = error_of(&reply.json());
        return Refused(reply.status, known(error["code"].as_str().unwrap_or("null")));
    }
    assert!(reply.whole, "{}", reply.text());
    if !streamed {
        return Answered(by(&reply.json()["choices"][0]["message"]["content"]));
    }
    let events = reply.events();
    if reply.done() {
        return Answered(by(&json!(reply.said())));
    }
    let last: Value = serde_json::from_str(events.last().expect("an event")).unwrap();
    Broken(known(error_of(&last)["code"].as_str().unwrap_or("null")))
}

/// Which provider says this.
fn by(text: &Value) -> &'static str {
    match text.as_str().unwrap_or_default() {
        "Hello from the weir" | "Hello from upstream" => "good",
        SLOW_TEXT => "bad",
        other => panic!("nobody says {other:?}"),
    }
}

/// What a provider says that is slow, but answers.
const SLOW_TEXT: &str = "Better late";

fn known(code: &str) -> &'static str {
    const CODES: [&str; 6] = [
        "upstream_error",
        "upstream_timeout",
        "no_capacity",
        "upstream_stream_truncated",
        "context_length_exceeded",
        "null",
    ];
    CODES.into_iter().find(|have| *have == code).unwrap_or_else(|| panic!("the code {code:?}"))
}
