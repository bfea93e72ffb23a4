//! The hot functions of reading requests and metering answers. `cargo bench --bench hot`, or `-- --quick` for a rough look.

#![expect(clippy::unwrap_used, reason = "a bench that cannot measure stops")]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;
use weir::clock::Clock;
use weir::ids::{ModelName, ProviderName};
use weir::meter::{StreamMeter, StreamSettings, Whole};
use weir::openai::{Ask, Endpoint, prompt_tokens, splice};
use weir::provider::dialect;
use weir::route::{
    Candidate, Cost, Health, HealthSettings, Model, Order, Plan, Provider, Retry, RetryBudget,
    RetryBudgetSettings, Wanted,
};
use weir::tokens;

criterion_group!(hot, requests, streams, counts, routes);
criterion_main!(hot);

/// A chat of about so many bytes, streamed.
fn body(bytes: usize) -> Vec<u8> {
    let text = "The weir stands in the stream, lets it pass, and measures \\\"what\\\" passes.\\n"
        .repeat(bytes / 76);
    format!(
        r#"{{"model":"gpt-4o-mini","stream":true,"temperature":0.5,"max_tokens":512,"messages":[{{"role":"system","content":"Be brief."}},{{"role":"user","content":"{text}"}}]}}"#
    )
    .into_bytes()
}

/// An event as OpenAI sends it, of some 310 bytes.
fn event(word: &str) -> Vec<u8> {
    format!(
        "data: {{\"id\":\"chatcmpl-Bq3vTt0mJ8h2kQ1rYw9sZx7uLcP4d\",\"object\":\"chat.completion.chunk\",\"created\":1750000000,\"model\":\"gpt-4o-mini-2024-07-18\",\"service_tier\":\"default\",\"system_fingerprint\":\"fp_34a54ae93c\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{word}\"}},\"logprobs\":null,\"finish_reason\":null}}],\"usage\":null,\"obfuscation\":\"x\"}}\n\n"
    )
    .into_bytes()
}

fn requests(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("request");
    for (name, bytes) in [("1k", 1 << 10), ("256k", 256 << 10)] {
        let body = body(bytes);
        group.throughput(Throughput::Bytes(u64::try_from(body.len()).unwrap()));
        group.bench_function(format!("parse {name}"), |bencher| {
            bencher.iter(|| Ask::parse(Endpoint::ChatCompletions, black_box(&body)).unwrap());
        });
        let ask = Ask::parse(Endpoint::ChatCompletions, &body).unwrap();
        group.bench_function(format!("splice {name}"), |bencher| {
            bencher.iter(|| splice(black_box(&body), &ask.edits("gpt-4o-mini-2024-07-18")));
        });
    }
    group.finish();
}

fn streams(criterion: &mut Criterion) {
    let settings =
        StreamSettings { endpoint: Endpoint::ChatCompletions, usage_asked: false, max_event_bytes: 1 << 20 };
    let mut group = criterion.benchmark_group("answer");
    let one = event(" water");
    group.throughput(Throughput::Bytes(u64::try_from(one.len()).unwrap()));
    group.bench_function("event", |bencher| {
        let mut meter = StreamMeter::new(settings);
        let mut out = Vec::with_capacity(1024);
        bencher.iter(|| {
            out.clear();
            meter.feed(black_box(&one), &mut out)
        });
    });
    // Short enough that nothing is counted: the answer is expected to tell its usage.
    group.throughput(Throughput::Elements(100));
    group.bench_function("stream of 100 events", |bencher| {
        bencher.iter(|| {
            let mut meter = StreamMeter::new(settings);
            let mut out = Vec::with_capacity(1024);
            for _ in 0..100 {
                out.clear();
                meter.feed(black_box(&one), &mut out);
            }
            meter
        });
    });
    let text = "Water finds its level. ".repeat(350);
    let whole = format!(
        r#"{{"id":"x","choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}"}},"finish_reason":"stop"}}],"usage":{{"prompt_tokens":10,"completion_tokens":2,"total_tokens":12}}}}"#
    );
    group.throughput(Throughput::Bytes(u64::try_from(whole.len()).unwrap()));
    group.bench_function("whole 8k", |bencher| {
        bencher.iter(|| Whole::read(Endpoint::ChatCompletions, black_box(whole.as_bytes())).unwrap().usage);
    });
    group.finish();
}

fn counts(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("count");
    let text = "The weir stands in the stream, lets it pass, and measures what passes.\n".repeat(115);
    group.throughput(Throughput::Bytes(u64::try_from(text.len()).unwrap()));
    group.bench_function("8k", |bencher| bencher.iter(|| tokens::count(black_box(&text))));
    group.bench_function("8k in pieces", |bencher| {
        bencher.iter_batched_ref(
            tokens::Counter::default,
            |counter| {
                for piece in text.split_inclusive(' ') {
                    counter.push(black_box(piece));
                }
                counter.total()
            },
            BatchSize::SmallInput,
        );
    });
    let prompt = body(1 << 10);
    group.throughput(Throughput::Bytes(u64::try_from(prompt.len()).unwrap()));
    group.bench_function("prompt of 1k", |bencher| {
        bencher.iter(|| prompt_tokens(Endpoint::ChatCompletions, black_box(&prompt)));
    });
    group.finish();
}

/// A model with so many healthy candidates.
fn model(candidates: usize, clock: &Clock) -> Arc<Model> {
    let health = HealthSettings {
        failures_max: 2,
        error_percent: 50,
        error_window: Duration::from_secs(10),
        error_requests_min: 20,
        backoff: Duration::from_secs(1),
        backoff_max: Duration::from_secs(60),
        cool_down_max: Duration::from_secs(60),
    };
    let candidates = (0..candidates).map(|at| Candidate {
        provider: Arc::new(Provider {
            name: ProviderName::from(format!("provider-{at}").as_str()),
            dialect: dialect("openai").unwrap(),
            api_key: None,
            is_drained: false,
        }),
        upstream_model: "gpt-4o-mini-2024-07-18".to_owned(),
        priority: 0,
        weight: 1,
        cost: Cost::default(),
        health: Arc::new(Health::new(health)),
    });
    Arc::new(Model {
        name: ModelName::from("gpt-4o-mini"),
        context_tokens: 128_000,
        max_output_tokens: Some(16_384),
        hidden_reasoning: false,
        candidates: candidates.collect(),
        order: Order::Weight,
        is_sticky: false,
        retry: Retry::Safe,
        attempts_max: 4,
        fallback: Vec::new(),
        budget: RetryBudget::new(RetryBudgetSettings { percent: 20, min_per_second: 10 }, clock.now()),
    })
}

/// The router's whole part in a request: a choice, an answer, an end.
fn routes(criterion: &mut Criterion) {
    let clock = Clock::system();
    let mut group = criterion.benchmark_group("route");
    for candidates in [1, 3] {
        let model = model(candidates, &clock);
        let mut random = 0_u64;
        group.bench_function(format!("{candidates} candidates"), |bencher| {
            bencher.iter(|| {
                random += 1;
                let now = clock.now();
                model.budget.request(now);
                let wanted = Wanted {
                    chain: vec![Arc::clone(&model)],
                    endpoint: Endpoint::ChatCompletions,
                    is_streamed: true,
                    affinity: None,
                    input_tokens: 100,
                    output_tokens: 512,
                    random,
                };
                let mut plan = Plan::begin(wanted, now).ok().unwrap();
                plan.trial().answered(clock.now());
                plan.trial().completed(clock.now());
                black_box(plan.why())
            });
        });
    }
    group.finish();
}
