//! Requests of every kind, so that nearly every metric has something to show.

use crate::support::gateway::{Account, hello, hello_stream};
use crate::support::upstream::{chat, chunk, usage};
use crate::support::{Answer, Gateway, Request, Upstream, wait_for};
use serde_json::{Value, json};
use std::time::Duration;

/// A gateway before a good provider, one that can be told to fail, and one that is broken.
pub(super) struct Scene {
    pub(super) gateway: Gateway,
    main: Upstream,
    spare: Upstream,
    broken: Upstream,
    narrow: Account,
    poor: Account,
}

impl Scene {
    pub(super) fn start() -> Scene {
        Scene::with("")
    }

    /// With these tables in the configuration besides.
    pub(super) fn with(lines: &str) -> Scene {
        let (main, spare, broken) = (Upstream::start(), Upstream::start(), Upstream::start());
        broken.always(Answer::json(500, &json!({"error": {"message": "broken"}})));
        let gateway = Gateway::builder()
            .provider("main", &main)
            .provider("spare", &spare)
            .provider("broken", &broken)
            .model_in_order("tiny", &["spare", "main"])
            .model("rich", &[("main", 1)])
            .model("dear", &[("broken", 1)])
            .model("embed", &[("main", 1)])
            .lines("[[tier]]\nname = \"narrow\"\nrequests_per_minute = 1\n")
            .lines("[routing]\ncircuit_open_ms = 600000\ncircuit_open_max_ms = 600000\n")
            .lines(lines)
            .start();
        let narrow = gateway.new_account_in(Some("narrow"), "1");
        let poor = gateway.new_account("0.01");
        Scene { gateway, main, spare, broken, narrow, poor }
    }

    /// One round of everything.
    pub(super) fn play(&self) {
        self.good();
        self.failing();
        self.refused();
        wait_for("every request to be counted", Duration::from_secs(2), || {
            let metrics = self.gateway.metrics();
            (metrics.contains("weir_requests_in_flight 0\n")
                && metrics.contains("weir_ledger_open_holds 0\n"))
            .then_some(())
        });
    }

    /// Answers whole and streamed, with cached and reasoned tokens, one above its hold, embeddings.
    fn good(&self) {
        let gateway = &self.gateway;
        for _ in 0..3 {
            gateway.hello().ok();
            gateway.hello_stream().ok();
        }
        let mut detailed = usage(2_000, 40);
        detailed["prompt_tokens_details"] = json!({"cached_tokens": 1_500});
        detailed["completion_tokens_details"] = json!({"reasoning_tokens": 30});
        self.main.next(Answer::json(200, &chat("Thought about it", &detailed)));
        gateway.chat(&of("rich", &hello())).ok();
        gateway.post("/v1/embeddings", &json!({"model": "embed", "input": "Hello"})).ok();
        gateway.ask(&Request::get("/v1/models").key(&gateway.account.key)).ok();
    }

    /// A failover, a circuit that opens, a model without a route, an answer that breaks off, a client that leaves.
    fn failing(&self) {
        let gateway = &self.gateway;
        for _ in 0..2 {
            self.spare.next(Answer::json(503, &json!({"error": {"message": "not now"}})));
            gateway.hello().ok();
        }
        for _ in 0..3 {
            assert_eq!(gateway.chat(&of("dear", &hello())).status, 502);
        }
        self.main.next(Answer::stream().event(&chunk("a")).close());
        gateway.chat(&of("rich", &hello_stream()));
        self.main.next(Answer::stream().event(&chunk("b")).wait_for_end());
        let (mut connection, _) = gateway.begin(&of("rich", &hello_stream()));
        connection.chunk().unwrap();
        drop(connection);
        // More than the account has: the rest is owed.
        self.main.next(Answer::json(200, &chat("A long one", &usage(12, 50_000))));
        gateway.ask(&chat_of(&self.poor, &of("rich", &hello()))).ok();
        assert!(self.broken.count() > 0);
    }

    fn refused(&self) {
        let gateway = &self.gateway;
        for _ in 0..2 {
            gateway.ask(&chat_of(&self.narrow, &hello()));
        }
        gateway.chat_bytes("{");
        gateway.chat(&of("made-up", &hello())).refused(404, "model_not_found");
        gateway.ask(&Request::post("/v1/chat/completions", "{}").key("sk-weir-none"));
    }
}

fn of(model: &str, body: &Value) -> Value {
    let mut body = body.clone();
    body["model"] = json!(model);
    body
}

fn chat_of(account: &Account, body: &Value) -> Request {
    Request::post("/v1/chat/completions", body.to_string()).key(&account.key)
}
