//! What is served: models with a price and a route, under the names of the catalogue.

use crate::support::gateway::{PROVIDER_MODEL, hello};
use crate::support::{Gateway, Request, Upstream};
use serde_json::{Value, json};

#[test]
fn an_unknown_model_is_404_and_nothing_is_billed() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    for name in ["gpt-nobody", PROVIDER_MODEL, "TINY", "tiny ", "../tiny", "tiny\u{0}", &"x".repeat(5000)] {
        let mut body = hello();
        body["model"] = json!(name);
        let error = gateway.chat(&body).refused(404, "model_not_found");
        assert_eq!(error["param"], "model");
    }
    assert_eq!(upstream.count(), 0);
    gateway.no_rows();
}

#[test]
fn a_model_without_a_price_is_neither_served_nor_listed() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let mut body = hello();
    body["model"] = json!("unpriced");
    gateway.chat(&body).refused(404, "model_not_found");
    let key = &gateway.account.key;
    gateway.ask(&Request::get("/v1/models/unpriced").key(key)).refused(404, "model_not_found");
    assert!(!names(&gateway).contains(&"unpriced".to_owned()));
    assert_eq!(upstream.count(), 0);
}

#[test]
fn a_model_is_served_within_a_second_of_getting_a_price() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let file = gateway.directory().join("more.toml");
    std::fs::write(&file, "[[price]]\nmodel = \"unpriced\"\ninput = \"0\"\noutput = \"0\"\n").unwrap();
    let before = names(&gateway);
    gateway.cli.json(&["price", "import", file.to_str().unwrap()]);
    crate::support::gateway::within_a_second("the model to be listed", || {
        (names(&gateway).len() == before.len() + 1).then_some(())
    });
}

#[test]
fn the_model_list_has_the_shape_that_the_clients_read() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let key = &gateway.account.key;
    let list = gateway.ask(&Request::get("/v1/models?beta=true").key(key)).ok().json();
    assert_eq!(list["object"], "list");
    for model in list["data"].as_array().unwrap() {
        shape(model);
    }
    let mut have = names(&gateway);
    have.sort_unstable();
    assert_eq!(have, ["dear", "embed", "rich", "tiny"]);
    let one = gateway.ask(&Request::get("/v1/models/tiny").key(key)).ok().json();
    shape(&one);
    assert_eq!(one["id"], "tiny");
    gateway.ask(&Request::get("/v1/models/nobody").key(key)).refused(404, "model_not_found");
    assert_eq!(upstream.count(), 0);
}

fn shape(model: &Value) {
    assert_eq!(model["object"], "model", "{model}");
    assert!(model["id"].is_string() && model["created"].is_u64() && model["owned_by"].is_string(), "{model}");
}

fn names(gateway: &Gateway) -> Vec<String> {
    let list = gateway.ask(&Request::get("/v1/models").key(&gateway.account.key)).ok().json();
    list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_provider_is_asked_for_its_own_name_of_the_model() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    gateway.hello().ok();
    assert_eq!(upstream.only().json()["model"], PROVIDER_MODEL);
    let row = gateway.row();
    assert_eq!(row["model"], "tiny");
    assert_eq!(row["provider"], "main");
}

#[test]
fn all_endpoints_reach_the_provider_under_its_base_url() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    gateway.hello().ok();
    gateway.post("/v1/completions", &json!({"model": "tiny", "prompt": "Hello", "max_tokens": 5})).ok();
    gateway.post("/v1/embeddings", &json!({"model": "embed", "input": ["a", "b"]})).ok();
    gateway.post("/v1/chat/completions?beta=true", &hello()).ok();
    let paths: Vec<String> = upstream
        .received()
        .iter()
        .map(|received| received.path().split('?').next().unwrap().to_owned())
        .collect();
    assert_eq!(paths, ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/chat/completions"]);
    let rows = gateway.rows_when(4);
    assert_eq!(rows[1]["model"], "embed");
    assert_eq!(rows[1]["usage"], json!({"input": 5}));
    assert_eq!(rows[1]["output_tokens"], 0);
}

#[test]
fn other_urls_are_404_and_other_methods_405() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let key = &gateway.account.key;
    for path in [
        "/",
        "/v1",
        "/v1/nothing",
        "/chat/completions",
        "/v1/chat/completions/",
        "/v1/../v1/models",
        "/metrics",
    ] {
        gateway.ask(&Request::get(path).key(key)).refused(404, "unknown_url");
    }
    gateway.ask(&Request::get("/v1/chat/completions").key(key)).refused(405, "method_not_allowed");
    gateway
        .ask(&Request::get("/v1/chat/completions").method("DELETE").key(key))
        .refused(405, "method_not_allowed");
    gateway.ask(&Request::post("/v1/models", "{}").key(key)).refused(405, "method_not_allowed");
    assert_eq!(upstream.count(), 0);
}
