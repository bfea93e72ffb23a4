//! The way to the collector.

use super::Finished;
use opentelemetry::InstrumentationScope;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanExporter as _;
use std::time::Duration;

pub(super) struct Exporter {
    inner: SpanExporter,
    scope: InstrumentationScope,
    timeout: Duration,
}

impl Exporter {
    pub(super) fn new(endpoint: &str, timeout: Duration) -> Result<Self, String> {
        let mut inner = SpanExporter::builder()
            .with_http()
            .with_http_client(HyperClient::with_default_connector(timeout, None))
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .with_timeout(timeout)
            .build()
            .map_err(|fault| fault.to_string())?;
        let version = opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        inner.set_resource(
            &Resource::builder_empty().with_service_name("weir").with_attributes([version]).build(),
        );
        let scope = InstrumentationScope::builder("weir").with_version(env!("CARGO_PKG_VERSION")).build();
        Ok(Exporter { inner, scope, timeout })
    }

    /// Within the timeout, or not at all.
    pub(super) async fn export(&self, batch: Vec<Finished>) -> Result<(), String> {
        let spans = batch.iter().flat_map(|finished| finished.to_spans(&self.scope)).collect();
        match tokio::time::timeout(self.timeout, self.inner.export(spans)).await {
            Ok(exported) => exported.map_err(|fault| fault.to_string()),
            Err(_) => Err("it did not answer in time".to_owned()),
        }
    }
}
