//! Spans at a collector that decodes what it gets: their names and numbers, what they never say, and a collector that is away.

use super::traffic;
use crate::support::gateway::{Gateway, hello, hello_stream};
use crate::support::ports::Port;
use crate::support::{Answer, Connection, Request, Upstream, wait_for};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use serde_json::json;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A collector, and the spans that it was sent.
struct Collector {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Span>>>,
}

impl Collector {
    fn start() -> Collector {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let spans: Arc<Mutex<Vec<Span>>> = Arc::default();
        let noted = Arc::clone(&spans);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let noted = Arc::clone(&noted);
                std::thread::spawn(move || {
                    let mut connection = Connection::over(stream, address);
                    while let Ok(Some((head, body))) = connection.request() {
                        assert!(head.first_line.starts_with("POST /v1/traces "), "{head:?}");
                        assert_eq!(head.header("content-type"), Some("application/x-protobuf"));
                        let export = ExportTraceServiceRequest::decode(body.as_slice()).expect("protobuf");
                        let resources = export.resource_spans.into_iter().flat_map(|of| of.scope_spans);
                        noted.lock().unwrap().extend(resources.flat_map(|of| of.spans));
                        let answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n";
                        if connection.send(answer).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Collector { address, spans }
    }

    fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap().clone()
    }

    /// All once there are this many.
    fn spans_when(&self, count: usize) -> Vec<Span> {
        wait_for("the spans to arrive", Duration::from_secs(5), || {
            Some(self.spans()).filter(|spans| spans.len() >= count)
        })
    }
}

fn telemetry(address: SocketAddr, more: &str) -> String {
    format!("[telemetry]\notlp_endpoint = \"http://{address}\"\n{more}\n")
}

/// An attribute as text.
fn attribute(span: &Span, key: &str) -> Option<String> {
    let value = span.attributes.iter().find(|have| have.key == key)?.value.clone()?.value?;
    Some(match value {
        Any::StringValue(text) => text,
        Any::IntValue(number) => number.to_string(),
        Any::BoolValue(flag) => flag.to_string(),
        Any::DoubleValue(number) => number.to_string(),
        other @ (Any::ArrayValue(_)
        | Any::KvlistValue(_)
        | Any::BytesValue(_)
        | Any::StringValueStrindex(_)) => {
            panic!("{key}: {other:?}")
        }
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_request_and_its_attempts_are_spans_with_genai_names_and_never_content() {
    let (first, second) = (Upstream::start(), Upstream::start());
    let collector = Collector::start();
    let gateway = Gateway::builder()
        .provider("first", &first)
        .provider("second", &second)
        .model_in_order("tiny", &["first", "second"])
        .lines(&telemetry(collector.address, ""))
        .start();
    first.next(Answer::json(503, &json!({"error": {"message": "not now"}})));
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let request = Request::post("/v1/chat/completions", hello_stream().to_string())
        .key(&gateway.account.key)
        .header("traceparent", traceparent);
    let reply = gateway.ask(&request).ok();
    let spans = collector.spans_when(3);
    assert_eq!(spans.len(), 3, "{spans:#?}");
    let (whole, attempts) = spans.split_first().unwrap();
    assert_eq!((whole.name.as_str(), whole.kind), ("chat tiny", 2), "a server's span");
    let id = reply.header("x-request-id").unwrap();
    assert_eq!(hex(&whole.trace_id), id.replace('-', ""), "the trace has the request's number");
    assert!(whole.parent_span_id.is_empty() && whole.links.is_empty(), "{whole:#?}");
    for (key, value) in [
        ("weir.request.id", id),
        ("weir.account.id", gateway.account.id.as_str()),
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.request.model", "tiny"),
        ("gen_ai.response.model", "tiny"),
        ("gen_ai.provider.name", "second"),
        ("gen_ai.request.stream", "true"),
        ("gen_ai.usage.input_tokens", "12"),
        ("gen_ai.usage.output_tokens", "3"),
        ("http.response.status_code", "200"),
        ("weir.outcome", "completed"),
    ] {
        assert_eq!(attribute(whole, key).as_deref(), Some(value), "{key}");
    }
    assert!(attribute(whole, "gen_ai.response.time_to_first_chunk").is_some());
    assert_eq!(attribute(whole, "error.type"), None);
    let told = |span: &Span, key| attribute(span, key).unwrap_or_default();
    let outcomes: Vec<(String, String)> = attempts
        .iter()
        .map(|span| (told(span, "gen_ai.provider.name"), told(span, "weir.attempt.outcome")))
        .collect();
    let wanted = [("first", "answered_error"), ("second", "answered")];
    assert_eq!(outcomes, wanted.map(|(provider, outcome)| (provider.to_owned(), outcome.to_owned())));
    for span in attempts {
        assert_eq!((span.kind, &span.trace_id, &span.parent_span_id), (3, &whole.trace_id, &whole.span_id));
        assert!(whole.start_time_unix_nano <= span.start_time_unix_nano);
        assert!(span.end_time_unix_nano <= whole.end_time_unix_nano, "{span:#?}");
    }
    assert!(attempts[0].end_time_unix_nano <= attempts[1].start_time_unix_nano);
    let all = format!("{spans:?}");
    for secret in ["Hello, weir", "upstream", gateway.account.key.as_str(), "sk-"] {
        assert!(!all.contains(secret), "{secret} is in {all}");
    }
    wait_for("the spans to be counted", Duration::from_secs(2), || {
        gateway.metrics().contains("weir_trace_spans_exported_total 3\n").then_some(())
    });
}

#[test]
fn a_clients_trace_is_a_link_or_the_parent_where_that_is_asked_for() {
    let (trace, span) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    for parent in ["link", "parent"] {
        let (upstream, collector) = (Upstream::start(), Collector::start());
        let gateway = Gateway::builder()
            .provider("main", &upstream)
            .standard_models("main")
            .lines(&telemetry(collector.address, &format!("traceparent = \"{parent}\"")))
            .start();
        let ask = |traceparent: String| {
            let request = Request::post("/v1/chat/completions", hello().to_string())
                .key(&gateway.account.key)
                .header("traceparent", &traceparent);
            gateway.ask(&request).ok();
        };
        // Where the client decides, a trace that it does not sample has no spans.
        if parent == "parent" {
            ask(format!("00-{trace}-{span}-00"));
        }
        ask(format!("00-{trace}-{span}-01"));
        let spans = collector.spans_when(2);
        let whole = &spans[0];
        if parent == "parent" {
            assert_eq!((hex(&whole.trace_id).as_str(), hex(&whole.parent_span_id).as_str()), (trace, span));
            assert_eq!(spans.len(), 2, "{spans:#?}");
        } else {
            let link = &whole.links[0];
            assert_eq!((hex(&link.trace_id).as_str(), hex(&link.span_id).as_str()), (trace, span));
            assert_ne!(hex(&whole.trace_id), trace);
        }
        assert!(upstream.received().iter().all(|got| got.head.header("traceparent").is_none()));
    }
}

#[test]
fn a_collector_that_is_away_or_never_answers_costs_no_request_and_no_stop() {
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let away = Port::take();
    for (address, is_counted) in [(away.address(), true), (silent.local_addr().unwrap(), false)] {
        let scene = traffic::Scene::with(&telemetry(address, ""));
        scene.play();
        if is_counted {
            wait_for("the spans to be counted as dropped", Duration::from_secs(5), || {
                let metrics = scene.gateway.metrics();
                let dropped =
                    metrics.lines().find_map(|line| line.strip_prefix("weir_trace_spans_dropped_total "));
                dropped.is_some_and(|spans| spans.parse::<f64>().unwrap() > 10.0).then_some(())
            });
        }
        let begun = Instant::now();
        drop(scene);
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    }
}

#[test]
fn the_spans_of_the_last_requests_are_sent_at_a_stop() {
    let (upstream, collector) = (Upstream::start(), Collector::start());
    let mut gateway = Gateway::builder()
        .provider("main", &upstream)
        .standard_models("main")
        .lines(&telemetry(collector.address, ""))
        .start();
    for _ in 0..20 {
        gateway.hello().ok();
    }
    assert!(gateway.stop().is_some_and(|status| status.success()));
    assert_eq!(collector.spans().len(), 40);
}
