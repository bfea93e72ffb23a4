//! Who may ask: keys, accounts and credit, and how soon a change by the command line counts.

use crate::support::gateway::{hello, within_a_second};
use crate::support::{Answer, Gateway, Request, Upstream};
use serde_json::json;

fn ask_with(gateway: &Gateway, key: &str) -> crate::support::Reply {
    gateway.ask(&Request::post("/v1/chat/completions", hello().to_string()).key(key))
}

#[test]
fn a_request_without_a_good_key_is_401() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let good = &gateway.account.key;
    let flipped = if good.ends_with('0') { '1' } else { '0' };
    let wrong_sum = format!("{}{flipped}", &good[..good.len() - 1]);
    // Right in form and checksum, but nobody's: made by a gateway with books of its own.
    let stranger = Gateway::before(&upstream);
    let unknown = stranger.account.key.clone();
    gateway.keep_secret(&unknown);
    gateway.keep_secret(&wrong_sum);
    for key in
        ["", "sk-weir-", "sk-weir-junk", "sk-other-0123456789", &wrong_sum, &unknown, "sk-weir-\u{e9}\u{e9}"]
    {
        ask_with(&gateway, key).refused(401, "invalid_api_key");
    }

    let bare = Request::post("/v1/chat/completions", hello().to_string());
    gateway.ask(&bare).refused(401, "invalid_api_key");
    gateway.ask(&bare.clone().header("Authorization", "Basic dTpw")).refused(401, "invalid_api_key");
    gateway.ask(&bare.header("Authorization", good)).refused(401, "invalid_api_key");
    gateway.ask(&Request::get("/v1/models")).refused(401, "invalid_api_key");
    assert_eq!(upstream.count(), 0);
}

#[test]
fn two_different_keys_in_one_request_are_refused() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let other = gateway.new_account("1");
    let request = Request::post("/v1/chat/completions", hello().to_string());
    let reply = gateway.ask(&request.key(&gateway.account.key).key(&other.key));
    assert!(matches!(reply.status, 400 | 401), "{}", reply.text());
    assert_eq!(upstream.count(), 0);
}

#[test]
fn the_word_bearer_counts_in_any_case() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let request = Request::post("/v1/chat/completions", hello().to_string());
    gateway.ask(&request.header("authorization", &format!("bearer {}", gateway.account.key))).ok();
}

#[test]
fn a_revoked_key_is_refused_within_a_second() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let (other_id, other) = gateway.new_key(&gateway.account.id, &["--name", "second"]);
    ask_with(&gateway, &other).ok();
    gateway.hello().ok();
    gateway.cli.json(&["key", "revoke", &other_id]);
    let refused = within_a_second("the revoked key to be refused", || {
        Some(ask_with(&gateway, &other)).filter(|reply| reply.status != 200)
    });
    refused.refused(401, "invalid_api_key");
    gateway.hello().ok();
}

#[test]
fn a_key_made_while_serving_works_within_a_second_even_if_it_was_tried_before() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    gateway.hello().ok();
    let account = gateway.new_account("1");
    within_a_second("the new key to be let in", || {
        Some(ask_with(&gateway, &account.key)).filter(|reply| reply.status == 200)
    });
}

#[test]
fn an_expired_key_is_refused() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let soon = {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let text = std::process::Command::new("date")
            .args(["-u", "+%Y-%m-%dT%H:%M:%SZ", "-d", &format!("@{}", now + 3)])
            .output()
            .unwrap();
        String::from_utf8(text.stdout).unwrap().trim().to_owned()
    };
    let (_, key) = gateway.new_key(&gateway.account.id, &["--expires", &soon]);
    ask_with(&gateway, &key).ok();
    // Known and cached: its end must count all the same.
    let refused = crate::support::wait_for("the key to expire", std::time::Duration::from_secs(5), || {
        Some(ask_with(&gateway, &key)).filter(|reply| reply.status != 200)
    });
    refused.refused(401, "invalid_api_key");
}

#[test]
fn a_suspended_account_is_refused_within_a_second_and_let_in_again_when_resumed() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    gateway.hello().ok();
    gateway.cli.json(&["account", "suspend", &gateway.account.id, "--reason", "test"]);
    let refused = within_a_second("the account to be refused", || {
        Some(gateway.hello()).filter(|reply| reply.status != 200)
    });
    refused.refused(403, "account_suspended");
    assert_eq!(gateway.show()["status"], "suspended");
    gateway.cli.json(&["account", "resume", &gateway.account.id]);
    within_a_second("the account to be let in", || Some(gateway.hello()).filter(|reply| reply.status == 200));
}

#[test]
fn a_stream_under_way_goes_on_when_its_account_is_suspended() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let gate = crate::support::upstream::Gate::new();
    let words = crate::support::upstream::chunk("early");
    upstream.next(
        Answer::stream()
            .event(&words)
            .gate(&gate)
            .event(&crate::support::upstream::last_chunk())
            .event(&crate::support::upstream::usage_chunk(&crate::support::upstream::usage(10, 1)))
            .done(),
    );
    let (mut connection, head) = gateway.begin(&crate::support::gateway::hello_stream());
    gateway.cli.json(&["account", "suspend", &gateway.account.id, "--reason", "test"]);
    within_a_second("the account to be refused", || {
        Some(gateway.hello()).filter(|reply| reply.status == 403)
    });
    gate.open();
    let mut text = String::new();
    while let Some(piece) = connection.chunk().unwrap() {
        text.push_str(&String::from_utf8(piece).unwrap());
    }
    assert!(text.ends_with("data: [DONE]\n\n"), "{text:?}");
    // Answers that came before the suspension counted have rows, too.
    let id = head.header("x-request-id").unwrap().to_owned();
    let row = within_a_second("the row of the stream", || {
        gateway.rows().into_iter().find(|row| row["request_id"] == id.as_str())
    });
    assert_eq!(row["outcome"], "completed");
}

#[test]
fn without_credit_the_answer_is_402_until_some_is_added() {
    let upstream = Upstream::start();
    let gateway = Gateway::builder().provider("main", &upstream).standard_models("main").credit("0").start();
    gateway.hello().refused(402, "credit_balance_exhausted");
    gateway.hello_stream().refused(402, "credit_balance_exhausted");
    assert_eq!(upstream.count(), 0);
    gateway.add_credit(&gateway.account.id, "1");
    within_a_second("the credit to count", || Some(gateway.hello()).filter(|reply| reply.status == 200));
}

#[test]
fn credit_that_does_not_cover_the_input_and_64_tokens_is_402_and_spends_nothing() {
    let upstream = Upstream::start();
    let gateway =
        Gateway::builder().provider("main", &upstream).standard_models("main").credit("0.01").start();
    let mut body = hello();
    body["model"] = json!("dear");
    body["max_tokens"] = json!(16_000);
    gateway.chat(&body).refused(402, "credit_balance_exhausted");
    assert_eq!(upstream.count(), 0);
    gateway.hello().ok();
}

#[test]
fn credit_that_is_held_by_other_requests_is_402_credit_in_flight() {
    let upstream = Upstream::start();
    let gateway =
        Gateway::builder().provider("main", &upstream).standard_models("main").credit("0.63").start();
    let gate = crate::support::upstream::Gate::new();
    let answer = crate::support::upstream::chat("done", &crate::support::upstream::usage(10, 5)).to_string();
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        answer.len()
    );
    upstream.next(Answer::silent().gate(&gate).write(head + &answer));
    let body =
        json!({"model": "dear", "max_tokens": 1000, "messages": [{"role": "user", "content": "wait"}]});
    let mut first = gateway.send(&body);
    crate::support::wait_for("the first to be under way", std::time::Duration::from_secs(5), || {
        (upstream.count() == 1).then_some(())
    });
    let reply = gateway.chat(&body);
    reply.refused(402, "credit_in_flight");
    let wait: u64 = reply.header("retry-after").expect("Retry-After").parse().unwrap();
    assert!((1..=120).contains(&wait), "{wait}");
    gate.open();
    gateway.note(&first.reply().unwrap().ok());
}

#[test]
fn a_key_for_some_models_gets_403_for_others_and_does_not_see_them() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let (_, key) = gateway.new_key(&gateway.account.id, &["--models", "tiny,embed"]);
    ask_with(&gateway, &key).ok();
    let mut body = hello();
    body["model"] = json!("rich");
    let reply = gateway.ask(&Request::post("/v1/chat/completions", body.to_string()).key(&key));
    reply.refused(403, "model_not_allowed");
    let list = gateway.ask(&Request::get("/v1/models").key(&key)).ok().json();
    let names: Vec<&str> =
        list["data"].as_array().unwrap().iter().filter_map(|model| model["id"].as_str()).collect();
    assert!(names.contains(&"tiny") && !names.contains(&"rich"), "{names:?}");
}

#[test]
fn the_key_list_tells_what_identifies_a_key_and_not_the_key() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let (id, key) = gateway.new_key(&gateway.account.id, &["--name", "laptop"]);
    let list = gateway.cli.json(&["key", "list", "--account", &gateway.account.id]);
    let found = list
        .as_array()
        .unwrap()
        .iter()
        .find(|entry| entry["key_id"] == id.as_str())
        .expect("the key is listed");
    assert_eq!(found["name"], "laptop");
    assert_eq!(found["status"], "active");
    assert_eq!(found["last_four"], key[key.len() - 4..]);
    assert!(key.starts_with(found["prefix"].as_str().unwrap()), "{found}");
    assert!(!list.to_string().contains(&key));
}
