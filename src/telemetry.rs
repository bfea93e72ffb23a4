//! Spans of requests and attempts, sent to an OpenTelemetry collector where the operator wants that.
//!
//! Promises: a request never waits for a collector, nor fails for one: what does not fit into the queue is dropped and counted; spans
//! carry names of the catalogue, numbers and our own words, never content, a key, or a text that a client sent. Refuses to know: why a
//! request was refused or routed as it was; it is told.
//!
//! Attribute names are those of the GenAI semantic conventions (open-telemetry/semantic-conventions-genai, status Development); what they
//! have no name for begins in `weir.`. OTLP is HTTP with protobuf, without TLS: a collector is a neighbour.

mod export;
mod span;

pub use span::{Parent, Remote};

use crate::clock::UnixMicros;
use crate::ids::{AccountId, RequestId};
use crate::metrics::{Attempt, Billed};
use crate::openai::Endpoint;
use crate::refusal::Kind;
use export::Exporter;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Where spans go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The collector's base URL, `http://` and without a path: `/v1/traces` is appended.
    pub endpoint: String,
    /// What a client's `traceparent` is to the spans of its request.
    pub parent: Parent,
}

/// Takes requests that have ended. Cheap to clone; clones have one queue.
#[derive(Clone, Debug)]
pub struct Traces {
    queue: mpsc::Sender<Message>,
    parent: Parent,
    counts: Arc<Counts>,
}

/// Spans since the start.
#[derive(Debug, Default)]
struct Counts {
    exported: AtomicU64,
    dropped: AtomicU64,
}

/// The exporter cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("[telemetry] otlp_endpoint: {0}")]
pub struct BadEndpoint(String);

/// One request, as it ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Names the trace, too, where the client did not.
    pub request_id: RequestId,
    /// The client's span.
    pub remote: Option<Remote>,
    /// When its head came.
    pub created_at: UnixMicros,
    /// From its head to its end.
    pub latency: Duration,
    /// What was asked for.
    pub endpoint: Option<Endpoint>,
    /// The name in the catalogue of the model that was asked for.
    pub model: Option<String>,
    /// Whose it was.
    pub account: Option<AccountId>,
    /// Whether its answer was asked for as a stream.
    pub stream: bool,
    /// The HTTP status that the client was sent.
    pub status: u16,
    /// Why it was refused or failed.
    pub kind: Option<Kind>,
    /// From its head to the first output.
    pub ttft: Option<Duration>,
    /// The bill, if something was sent to a provider.
    pub bill: Option<Billed>,
    /// The attempts at providers, in order.
    pub attempts: Vec<Attempt>,
}

enum Message {
    Finished(Box<Finished>),
    Flush(oneshot::Sender<()>),
}

/// Requests whose spans wait for the collector at most; a few kilobytes each.
const QUEUE_MAX: usize = 4_096;
/// Requests of one export at most.
const BATCH_MAX: usize = 512;
/// How long requests wait for others.
const WAIT: Duration = Duration::from_millis(500);
/// How long one export may take; then its spans are dropped.
const EXPORT_MAX: Duration = Duration::from_secs(5);
/// How long a stop waits for the last export.
const FLUSH_MAX: Duration = Duration::from_secs(2);

impl Traces {
    /// A queue, and the work of exporting what comes into it. The work has to be run where Tokio is, and ends with the last clone.
    ///
    /// # Errors
    ///
    /// The endpoint is none.
    pub fn new(
        settings: &Settings,
    ) -> Result<(Self, impl Future<Output = ()> + Send + 'static), BadEndpoint> {
        let exporter = Exporter::new(&settings.endpoint, EXPORT_MAX).map_err(BadEndpoint)?;
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        let counts = Arc::new(Counts::default());
        let work = run(exporter, waiting, Arc::clone(&counts));
        Ok((Traces { queue, parent: settings.parent, counts }, work))
    }

    /// What a client says with `traceparent`, where it is heeded.
    pub fn remote(&self, traceparent: Option<&[u8]>) -> Option<Remote> {
        Remote::parse(traceparent?, self.parent)
    }

    /// Takes a request that has ended; drops it where the queue is full.
    pub fn request_ended(&self, finished: Finished) {
        if finished.remote.as_ref().is_some_and(Remote::is_unsampled) {
            return;
        }
        let spans = finished.spans();
        if self.queue.try_send(Message::Finished(Box::new(finished))).is_err() {
            self.counts.dropped.fetch_add(spans, Ordering::Relaxed);
        }
    }

    /// Spans that the collector took, and those that it did not get, since the start.
    pub fn counts(&self) -> (u64, u64) {
        (self.counts.exported.load(Ordering::Relaxed), self.counts.dropped.load(Ordering::Relaxed))
    }

    /// Sends what is waiting, for two seconds at most.
    pub async fn close(&self) {
        let (done, flushed) = oneshot::channel();
        let flush = async { self.queue.send(Message::Flush(done)).await.is_ok() && flushed.await.is_ok() };
        if !tokio::time::timeout(FLUSH_MAX, flush).await.unwrap_or(false) {
            tracing::warn!("the last spans did not reach the collector in time");
        }
    }
}

impl Finished {
    fn spans(&self) -> u64 {
        1 + self.attempts.len() as u64
    }
}

/// Exports in batches until the last sender has gone.
async fn run(exporter: Exporter, mut waiting: mpsc::Receiver<Message>, counts: Arc<Counts>) {
    let mut is_failing = false;
    loop {
        let mut messages = Vec::new();
        if waiting.recv_many(&mut messages, BATCH_MAX).await == 0 {
            return;
        }
        let is_flush = |messages: &[Message]| messages.iter().any(|one| matches!(one, Message::Flush(_)));
        if messages.len() < BATCH_MAX && !is_flush(&messages) {
            // More may come; a flush ends the wait.
            let more = async {
                while messages.len() < BATCH_MAX && !is_flush(&messages) {
                    match waiting.recv().await {
                        Some(message) => messages.push(message),
                        None => return,
                    }
                }
            };
            let _waited = tokio::time::timeout(WAIT, more).await;
        }
        let (mut batch, mut flushes) = (Vec::new(), Vec::new());
        for message in messages {
            match message {
                Message::Finished(finished) => batch.push(*finished),
                Message::Flush(done) => flushes.push(done),
            }
        }
        let spans = batch.iter().map(Finished::spans).sum();
        if !batch.is_empty() {
            match exporter.export(batch).await {
                Ok(()) => {
                    counts.exported.fetch_add(spans, Ordering::Relaxed);
                    is_failing = false;
                }
                Err(fault) => {
                    counts.dropped.fetch_add(spans, Ordering::Relaxed);
                    // Once for each time that it begins to fail.
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::warn!(%fault, spans, "the collector did not take spans");
                    }
                }
            }
        }
        for done in flushes {
            // Who asked may have gone.
            let _told = done.send(());
        }
    }
}
