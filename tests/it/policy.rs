//! What a key and an account may take: spend limits, addresses, tiers, service tiers, the last cents of an account, and the bound of the
//! whole process.

use crate::support::gateway::{hello, hello_stream, within_a_second};
use crate::support::upstream::{Gate, chat, chunk, last_chunk, usage, usage_chunk};
use crate::support::{Answer, Gateway, Reply, Request, Upstream, ms, wait_for};
use serde_json::{Value, json};
use std::time::Duration;

fn ask_with(gateway: &Gateway, key: &str, body: &Value) -> Reply {
    gateway.ask(&Request::post("/v1/chat/completions", body.to_string()).key(key))
}

/// A gateway whose account has so little, before an upstream that reports this usage.
fn poor(upstream: &Upstream, credit: &str) -> Gateway {
    Gateway::builder().provider("main", upstream).standard_models("main").credit(credit).start()
}

fn answer(is_stream: bool) -> Answer {
    let used = usage(20, 60);
    match is_stream {
        false => Answer::json(200, &chat("hi", &used)),
        true => Answer::stream().event(&chunk("hi")).event(&last_chunk()).event(&usage_chunk(&used)).done(),
    }
}

/// Asks until the credit is gone, and tells how often it was answered.
fn ask_until_the_end(gateway: &Gateway, body: &Value) -> usize {
    let mut answered = 0;
    loop {
        let reply = gateway.chat(body);
        match (reply.status, reply.status == 402 && reply.text().contains("credit_in_flight")) {
            (200, _) => answered += 1,
            (402, true) => std::thread::sleep(ms(10)),
            (402, false) => {
                reply.refused(402, "credit_balance_exhausted");
                return answered;
            }
            (other, _) => panic!("{other}: {}", reply.text()),
        }
    }
}

#[test]
fn fifty_clients_on_the_last_two_cents_spend_nearly_all_of_it_and_nothing_more() {
    for is_stream in [false, true] {
        let upstream = Upstream::start();
        upstream.always(answer(is_stream));
        let gateway = poor(&upstream, "0.02");
        let mut body = if is_stream { hello_stream() } else { hello() };
        body["max_tokens"] = json!(200);
        let answered: usize = std::thread::scope(|scope| {
            let clients: Vec<_> =
                (0..50).map(|_| scope.spawn(|| ask_until_the_end(&gateway, &body))).collect();
            clients.into_iter().map(|client| client.join().unwrap()).sum()
        });
        let spent_pico = i64::try_from(answered).unwrap() * (20 * 150_000 + 60 * 600_000);
        assert!(spent_pico <= 20_000_000_000, "{answered} answers for two cents");
        assert!(spent_pico >= 17_000_000_000, "{answered} answers are less than 85 % of two cents");
        let shown = wait_for("the books", Duration::from_secs(2), || {
            Some(gateway.show()).filter(|shown| shown["held_micro_usd"] == 0)
        });
        assert_eq!(shown["owed_micro_usd"], 0, "{shown}");
    }
}

#[test]
fn an_answer_that_credit_does_not_cover_is_lowered_to_what_it_covers() {
    for (limit, key) in [(Some("max_tokens"), "max_tokens"), (None, "max_completion_tokens")] {
        for is_stream in [false, true] {
            let upstream = Upstream::start();
            upstream.always(answer(is_stream));
            let gateway = poor(&upstream, "0.005");
            let mut body = if is_stream { hello_stream() } else { hello() };
            body["model"] = json!("rich");
            body.as_object_mut().unwrap().remove("max_tokens");
            if let Some(limit) = limit {
                body[limit] = json!(4_000);
            }
            let reply = gateway.chat(&body).ok();
            let told: u64 =
                reply.header("x-weir-max-output-tokens").expect("the limit is told").parse().unwrap();
            // At 9.10 dollars per million tokens, the dearest of an output, besides some hundred bytes of input.
            assert!((500..=550).contains(&told), "{told}");
            assert_eq!(upstream.only().json()[key], told);
        }
    }
}

#[test]
fn an_answer_that_credit_covers_is_as_long_as_it_was_asked_for() {
    let upstream = Upstream::start();
    upstream.always(answer(false));
    let gateway = Gateway::before(&upstream);
    let reply = gateway.hello().ok();
    assert_eq!(reply.header("x-weir-max-output-tokens"), None);
    assert_eq!(upstream.only().json()["max_tokens"], 50);
}

#[test]
fn fewer_than_64_tokens_are_not_sold_unless_fewer_were_asked_for() {
    let upstream = Upstream::start();
    upstream.always(Answer::json(200, &chat("hi", &usage(5, 5))));
    let gateway = poor(&upstream, "0.0004");
    let mut body = hello();
    body["model"] = json!("rich");
    gateway
        .chat(&{
            let mut long = body.clone();
            long["max_tokens"] = json!(100);
            long
        })
        .refused(402, "credit_balance_exhausted");
    assert_eq!(upstream.count(), 0);
    body["max_tokens"] = json!(5);
    gateway.chat(&body).ok();
}

#[test]
fn a_key_spends_no_more_than_its_limit_and_neither_a_kill_nor_a_restart_forgets_it() {
    let upstream = Upstream::start();
    upstream.always(answer(false));
    let mut gateway = Gateway::before(&upstream);
    let (id, key) =
        gateway.new_key(&gateway.account.id, &["--spend-limit-usd", "0.001", "--spend-window", "month"]);
    let mut body = hello();
    body["max_tokens"] = json!(60);
    let mut answered = 0_i64;
    let refused = loop {
        let reply = ask_with(&gateway, &key, &body);
        if reply.status != 200 {
            break reply;
        }
        answered += 1;
    };
    refused.refused(402, "key_spend_limit_reached");
    assert_eq!(refused.header("x-should-retry"), Some("false"));
    let spent = answered * 39;
    assert!((900..=1_000).contains(&spent), "{spent} micro-dollars of 1,000");
    // What is not in the database yet is in the journal.
    gateway.kill();
    gateway.serve();
    ask_with(&gateway, &key, &body).refused(402, "key_spend_limit_reached");
    // The account has more, for other keys.
    gateway.hello().ok();
    let shown = |gateway: &Gateway| -> Value {
        let list = gateway.cli.json(&["key", "list", "--account", &gateway.account.id]);
        list.as_array().unwrap().iter().find(|entry| entry["key_id"] == id.as_str()).unwrap().clone()
    };
    let listed = wait_for("what the key has spent", Duration::from_secs(2), || {
        Some(shown(&gateway)).filter(|listed| listed["spent_micro_usd"] == spent)
    });
    assert_eq!((&listed["spend_limit_micro_usd"], &listed["spend_window"]), (&json!(1_000), &json!("month")));

    gateway.stop();
    gateway.serve();
    ask_with(&gateway, &key, &body).refused(402, "key_spend_limit_reached");
    gateway.hello().ok();
}

#[test]
fn what_a_keys_own_requests_hold_counts_against_its_limit() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let (_, key) = gateway.new_key(&gateway.account.id, &["--spend-limit-usd", "0.0001"]);
    let gate = Gate::new();
    let text = chat("done", &usage(10, 5)).to_string();
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        text.len()
    );
    upstream.next(Answer::silent().gate(&gate).write(head + &text));
    let mut body = hello();
    body["max_tokens"] = json!(100);
    let mut first = gateway.connect();
    let request = Request::post("/v1/chat/completions", body.to_string()).key(&key);
    first.send(&request.to_bytes(gateway.address())).unwrap();
    wait_for("the first to be under way", Duration::from_secs(5), || (upstream.count() == 1).then_some(()));
    ask_with(&gateway, &key, &body).refused(402, "credit_in_flight");
    gate.open();
    gateway.note(&first.reply().unwrap().ok());
}

#[test]
fn a_key_is_good_only_from_its_addresses() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let (_, far) = gateway.new_key(&gateway.account.id, &["--addresses", "192.0.2.0/24,2001:db8::/32"]);
    let (_, near) = gateway.new_key(&gateway.account.id, &["--addresses", "192.0.2.0/24,127.0.0.0/8"]);
    ask_with(&gateway, &far, &hello()).refused(403, "address_not_allowed");
    gateway.ask(&Request::get("/v1/models").key(&far)).refused(403, "address_not_allowed");
    assert_eq!(upstream.count(), 0);
    ask_with(&gateway, &near, &hello()).ok();
    for wrong in ["192.0.2.1/24", "192.0.2.0/33", "nowhere"] {
        gateway.cli.fails(2, &["key", "create", "--account", &gateway.account.id, "--addresses", wrong]);
    }
}

#[test]
fn a_keys_tier_applies_besides_that_of_its_account() {
    let upstream = Upstream::start();
    let tier = "\n[[tier]]\nname = \"narrow\"\nrequests_per_minute = 2\ntokens_per_minute = 500";
    let gateway = Gateway::builder().provider_with("main", &upstream, tier).standard_models("main").start();
    let (_, key) = gateway.new_key(&gateway.account.id, &["--tier", "narrow"]);
    for left in ["1", "0"] {
        let reply = ask_with(&gateway, &key, &hello()).ok();
        assert_eq!(reply.header("x-ratelimit-limit-requests"), Some("2"));
        assert_eq!(reply.header("x-ratelimit-remaining-requests"), Some(left));
        assert_eq!(reply.header("x-ratelimit-limit-tokens"), Some("500"));
    }
    let reply = ask_with(&gateway, &key, &hello());
    reply.refused(429, "rate_limit_exceeded");
    let wait: u64 = reply.header("retry-after").expect("Retry-After").parse().unwrap();
    assert!((1..=30).contains(&wait), "{wait}");
    let reply = gateway.hello().ok();
    assert_eq!(reply.header("x-ratelimit-limit-requests"), Some("1000000"));
    gateway.cli.fails(1, &["key", "create", "--account", &gateway.account.id, "--tier", "unheard-of"]);
}

#[test]
fn a_service_tier_has_to_be_allowed() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let (_, key) = gateway.new_key(&gateway.account.id, &["--service-tiers", "flex,priority"]);
    let with = |tier: Value| {
        let mut body = hello();
        body["service_tier"] = tier;
        body
    };
    for tier in [json!("auto"), json!("default"), Value::Null] {
        gateway.chat(&with(tier)).ok();
    }
    let sent = upstream.count();
    let error = gateway.chat(&with(json!("priority"))).refused(400, "unsupported_parameter");
    assert_eq!(error["param"], "service_tier");
    ask_with(&gateway, &key, &with(json!("scale"))).refused(400, "unsupported_parameter");
    assert_eq!(upstream.count(), sent);
    ask_with(&gateway, &key, &with(json!("priority"))).ok();
}

#[test]
fn more_requests_than_the_process_is_to_carry_are_503_at_once() {
    let upstream = Upstream::start();
    let gateway = Gateway::builder()
        .server("max_requests = 4")
        .provider("main", &upstream)
        .standard_models("main")
        .start();
    let gate = Gate::new();
    let text = chat("done", &usage(10, 5)).to_string();
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        text.len()
    );
    upstream.always(Answer::silent().gate(&gate).write(head + &text));
    let mut under_way: Vec<_> = (0..4).map(|_| gateway.send(&hello())).collect();
    wait_for("four to be under way", Duration::from_secs(5), || (upstream.count() == 4).then_some(()));
    let reply = gateway.hello();
    reply.refused(503, "no_capacity");
    assert_eq!(reply.header("retry-after"), Some("1"));
    assert_eq!(upstream.count(), 4);
    gate.open();
    for connection in &mut under_way {
        gateway.note(&connection.reply().unwrap().ok());
    }
    within_a_second("a place to be free", || Some(gateway.hello()).filter(|reply| reply.status == 200));
}
