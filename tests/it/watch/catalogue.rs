//! How much a scrape costs when the catalogue is full.

use super::scrape;
use crate::support::gateway::PROVIDER_MODEL;
use crate::support::{Connection, Gateway, Request, Upstream};
use serde_json::json;
use std::fmt::Write as _;
use std::thread;

const MODELS: usize = 200;
const PROVIDERS: [&str; 3] = ["one", "two", "three"];
/// A scrape may take so long on a busy machine, in an unoptimized build: Prometheus gives up after ten seconds.
const SCRAPE_MAX_MS: u128 = 3_000;
/// And so many bytes: series are bounded by models, providers and our own enums.
const BYTES_MAX: usize = 16 << 20;

/// Prints the measure: `cargo test --test it a_scrape_of_a_full_catalogue -- --nocapture`.
#[test]
fn a_scrape_of_a_full_catalogue_stays_small_and_quick_under_traffic() {
    let upstream = Upstream::start();
    let (mut tables, mut prices) = (String::new(), String::new());
    for model in 0..MODELS {
        let routes: Vec<String> = PROVIDERS
            .iter()
            .map(|provider| format!("{{ provider = \"{provider}\", model = \"{PROVIDER_MODEL}\" }}"))
            .collect();
        let _ = write!(
            tables,
            "\n[[model]]\nname = \"tiny-{model}\"\ncontext_tokens = 128000\nmax_output_tokens = 1000\nroutes = [{}]\n",
            routes.join(", ")
        );
        let _ = write!(
            prices,
            "[[price]]\nmodel = \"tiny-{model}\"\ninput = \"0.15\"\ncache_read = \"0.075\"\noutput = \"0.60\"\n\n"
        );
    }
    let builder = PROVIDERS
        .iter()
        .fold(Gateway::builder(), |builder, name| builder.provider_at(name, upstream.address(), ""));
    let gateway = builder.noted_by(&upstream).lines(&tables).start();
    let file = gateway.directory().join("full.toml");
    std::fs::write(&file, prices).unwrap();
    gateway.cli.json(&["price", "import", file.to_str().unwrap()]);
    crate::support::gateway::within_a_second("the prices to be in force", || {
        (gateway.ask(&ask(&gateway, MODELS - 1, false)).status == 200).then_some(())
    });

    let gateway = &gateway;
    let slowest = thread::scope(|scope| {
        let clients: Vec<_> = (0..4).map(|client| scope.spawn(move || all_models(gateway, client))).collect();
        let mut slowest = std::time::Duration::ZERO;
        while clients.iter().any(|client| !client.is_finished()) {
            slowest = slowest.max(scrape(gateway).1);
        }
        for client in clients {
            client.join().unwrap();
        }
        slowest
    });
    let (text, quiet) = scrape(gateway);
    let series = text.lines().filter(|line| !line.starts_with('#')).count();
    eprintln!(
        "scrape of {MODELS} models x {} providers: {series} series, {} KiB, {quiet:?}; slowest under traffic {slowest:?}",
        PROVIDERS.len(),
        text.len() / 1024,
    );
    assert!(text.matches("weir_route_state{").count() >= MODELS * PROVIDERS.len());
    assert!(text.len() < BYTES_MAX, "{} bytes", text.len());
    assert!(slowest.as_millis() < SCRAPE_MAX_MS, "{slowest:?}");
}

/// Asks every model twice, whole and streamed, on one connection.
fn all_models(gateway: &Gateway, client: usize) {
    let mut connection = Connection::open(gateway.address());
    for turn in 0..MODELS * 2 {
        let request = ask(gateway, (turn / 2 + client * MODELS / 4) % MODELS, turn % 2 == 1);
        let reply = connection.ask(&request).ok();
        gateway.note(&reply);
    }
}

fn ask(gateway: &Gateway, model: usize, stream: bool) -> Request {
    let body = json!({
        "model": format!("tiny-{model}"), "stream": stream, "max_tokens": 10,
        "messages": [{"role": "user", "content": "Hello"}],
    });
    Request::post("/v1/chat/completions", body.to_string()).key(&gateway.account.key)
}
