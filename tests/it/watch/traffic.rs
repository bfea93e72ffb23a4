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
            .provider_at("broken-too", broken.address(), "")
            .provider_at("broken-as-well", broken.address(), "")
            .model_in_order("tiny", &["spare", "main"])
            .model("rich", &[("main", 1)])
            .model_in_order("dear", &["broken", "broken-too", "broken-as-well"])
            .model("embed", &[("main", 1)])
            .lines("[[tier]]\nname = \"narrow\"\nrequests_per_minute = 1\n")
            .lines("[routing]\nattempts_max = 2\ncircuit_open_ms = 600000\ncircuit_open_max_ms = 600000\n")
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
        self.counted();
    }

    /// Waits until every request is counted, and gives the metrics.
    pub(super) fn counted(&self) -> String {
        wait_for("every request to be counted", Duration::from_secs(2), || {
            let metrics = self.gateway.metrics();
            let is_done = ["weir_requests_in_flight 0\n", "weir_ledger_open_holds 0\n"]
                .iter()
                .all(|line| metrics.contains(line));
            is_done.then_some(metrics)
        })
    }

    /// Answers whole and streamed, with cached and reasoned tokens, one above its hold, embeddings.
    fn good(&self) {
        let gateway = &self.gateway;
        for _ in 0..3 {
            gateway.hello().ok();
            gateway.hello_stream().ok();
        }
        let mut detailed = usage(2_000, 40);
        detailed["prompt_tokens_details"] = json!({"cached_tokens": 1_500, "audio_tokens": 7});
        detailed["completion_tokens_details"] = json!({"reasoning_tokens": 30});
        // Neither has a price for audio.
        for (model, provider) in [("rich", &self.main), ("tiny", &self.spare)] {
            provider.next(Answer::json(200, &chat("Thought about it", &detailed)));
            gateway.chat(&of(model, &hello())).ok();
        }
        gateway.post("/v1/embeddings", &json!({"model": "embed", "input": "Hello"})).ok();
        gateway.ask(&Request::get("/v1/models").key(&gateway.account.key)).ok();
    }

    /// A failover, a circuit that opens, a model without a route, an answer that breaks off, clients that leave.
    fn failing(&self) {
        let gateway = &self.gateway;
        for _ in 0..2 {
            self.spare.next(Answer::json(503, &json!({"error": {"message": "not now"}})));
            gateway.hello().ok();
        }
        // Two of its three routes are tried, so that the limit on attempts denies the third.
        for _ in 0..6 {
            assert_eq!(gateway.chat(&of("dear", &hello())).status, 502);
        }
        self.main.next(Answer::stream().event(&chunk("a")).close());
        gateway.chat(&of("rich", &hello_stream()));
        self.main.next(Answer::stream().event(&chunk("b")).wait_for_end());
        let (mut connection, _) = gateway.begin(&of("rich", &hello_stream()));
        connection.chunk().unwrap();
        drop(connection);
        let asked = self.main.count();
        self.main.next(Answer::never());
        let connection = gateway.send(&of("rich", &hello()));
        wait_for("the provider to be asked", Duration::from_secs(5), || {
            (self.main.count() > asked).then_some(())
        });
        drop(connection);
        // More than the account has: the rest is owed.
        self.main.next(Answer::json(200, &chat("A long one", &usage(12, 50_000))));
        let reply = gateway.ask(&chat_of(&self.poor, &of("rich", &hello())));
        assert!([200, 402].contains(&reply.status), "{}", reply.text());
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
