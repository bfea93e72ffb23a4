//! What a request is billed in the end: one table of endings.
//!
//! Promises: a request that was sent is settled exactly once, by value on the ordinary way and by `Drop` on every other; what the
//! provider counted is billed when its answer was whole, else the input and what passed. Refuses to know: sockets, the wire.

use crate::admit::{Admission, Permit};
use crate::clock::Clock;
use crate::ids::{ModelName, ProviderName};
use crate::ledger::{End, Extending, Hold, Settled, Synced};
use crate::meter::{Ending, Fed, StreamMeter, Whole};
use crate::openai::{Endpoint, prompt_tokens};
use crate::price::ModelPrice;
use crate::relay::Body;
use crate::usage::{Outcome, Usage, UsageSource};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The open bill of one request: its credit, what was asked and what has passed.
#[must_use]
pub struct Bill {
    /// `None` once settled.
    hold: Option<Hold>,
    permit: Permit,
    prompt: Prompt,
    stream: Option<StreamMeter>,
    clock: Clock,
    arrived: Instant,
    first_output: Option<Instant>,
    marks: Marks,
    cover: Cover,
    is_sent: bool,
    /// What the end of the answer has to wait for, where the operator wants it on the disk first.
    synced: Option<Synced>,
}

/// When the journal was last told how far a stream is.
#[derive(Clone, Copy)]
struct Marks {
    marked_at: Instant,
    pieces: u32,
}

/// How far the answer is covered by credit.
#[derive(Default)]
struct Cover {
    /// Before so many bytes of text nothing is to be looked at: they are no fewer than its tokens.
    look_at_bytes: u64,
    /// More credit is being asked for. What passes until the answer waits for it is one batch of the engine.
    is_asked: Arc<AtomicBool>,
    asking: Option<Extending>,
}

/// The input, as far as it is needed to count it.
enum Prompt {
    /// The body is still there; counting it is put off until it is needed.
    Kept {
        endpoint: Endpoint,
        body: Body,
    },
    Counted(u64),
}

/// A settled bill, for the trace.
#[derive(Clone, Copy, Debug)]
pub struct Settlement {
    /// What was billed.
    pub usage: Usage,
    /// Who counted it.
    pub source: UsageSource,
    /// How the request ended.
    pub outcome: Outcome,
    /// What it cost, and what of it was above the lease.
    pub settled: Settled,
}

/// A streamed request's body up to this size is kept while its answer passes, so that its input is counted only if the provider
/// is silent about it; a larger one is counted and freed at the answer's first byte.
const PROMPT_KEPT_MAX_BYTES: usize = 64 * 1024;

/// The journal is told how far a stream is at least so often: what a killed process loses of it.
const MARK_EVERY: Duration = Duration::from_secs(1);
/// And after so many pieces, each of which is a token or so.
const MARK_PIECES: u32 = 256;

/// The status in a row whose client left before there was one (nginx's number for it).
pub const STATUS_CLIENT_GONE: u16 = 499;

impl Bill {
    /// Opens the bill of an admitted request.
    pub fn open(
        admission: Admission,
        endpoint: Endpoint,
        body: Body,
        clock: Clock,
        arrived: Instant,
    ) -> Self {
        let Admission { hold, permit } = admission;
        Bill {
            hold: Some(hold),
            permit,
            prompt: Prompt::Kept { endpoint, body },
            stream: None,
            clock,
            arrived,
            first_output: None,
            marks: Marks { marked_at: arrived, pieces: 0 },
            cover: Cover::default(),
            is_sent: false,
            synced: None,
        }
    }

    /// The place of the request among the account's.
    pub fn permit(&self) -> &Permit {
        &self.permit
    }

    /// The client's body, until [`Bill::begin_stream`] may free it.
    pub fn body(&self) -> Option<&Body> {
        match &self.prompt {
            Prompt::Kept { body, .. } => Some(body),
            Prompt::Counted(_) => None,
        }
    }

    /// From now on another model answers: it is billed at its own price. What is held covers the dearest of those that may.
    pub fn serve_as(&mut self, model: &ModelName, price: &Arc<ModelPrice>) {
        if let Some(hold) = &mut self.hold {
            hold.serve_as(model, price);
        }
    }

    /// Notes that the next byte goes to this provider. Call before it goes.
    pub fn sent(&mut self, provider: &ProviderName, upstream_model: &str) {
        self.is_sent = true;
        if let Some(hold) = &mut self.hold {
            hold.sent(provider, upstream_model);
        }
    }

    /// Notes that the attempt ended and its provider bills nothing for it.
    pub fn attempt_failed(&mut self) {
        self.is_sent = false;
        if let Some(hold) = &mut self.hold {
            hold.attempt_failed();
        }
    }

    /// The answer's head came and it is a stream. A large body is counted, off this thread, and freed.
    pub async fn begin_stream(&mut self, meter: StreamMeter) {
        self.stream = Some(meter);
        if let Some(hold) = &mut self.hold {
            hold.answered();
            self.cover.look_at_bytes = hold.extend_at();
        }
        let Prompt::Kept { endpoint, body } = &self.prompt else { return };
        if body.len() <= PROMPT_KEPT_MAX_BYTES {
            return;
        }
        let (endpoint, body) = (*endpoint, body.clone());
        let counted = tokio::task::spawn_blocking(move || prompt_tokens(endpoint, &body)).await;
        if let Ok(tokens) = counted {
            self.prompt = Prompt::Counted(tokens);
            if let Some(hold) = &mut self.hold {
                hold.set_input(tokens);
            }
        }
    }

    /// Meters a piece of a streamed answer; what goes to the client is appended to `out`.
    pub fn feed(&mut self, piece: &[u8], out: &mut Vec<u8>) -> Fed {
        let Some(meter) = &mut self.stream else { return Fed::Open };
        let fed = meter.feed(piece, out);
        let now = self.clock.now();
        if self.first_output.is_none() && meter.passed() {
            self.first_output = Some(now);
            self.marks.marked_at = now;
        }
        self.marks.pieces += 1;
        let is_due = self.marks.pieces >= MARK_PIECES
            || now.saturating_duration_since(self.marks.marked_at) >= MARK_EVERY;
        if is_due && self.first_output.is_some() && matches!(fed, Fed::Open) {
            self.mark(now);
        }
        if matches!(fed, Fed::Open) {
            self.reach();
        }
        fed
    }

    /// Holds more where the answer comes near the end of what is held. Tokens are counted only when there are bytes enough.
    fn reach(&mut self) {
        let (Some(meter), Some(hold)) = (&mut self.stream, &mut self.hold) else { return };
        let reported = meter.usage().map_or(0, |usage| usage.output_total());
        if meter.said_bytes() < self.cover.look_at_bytes && reported < hold.extend_at() {
            return;
        }
        let output = meter.output_tokens().max(reported);
        let is_covered = hold.extend(output);
        self.cover.look_at_bytes = meter.said_bytes() + hold.extend_at().saturating_sub(output).max(1);
        if is_covered || meter.is_finished() || self.cover.is_asked.swap(true, Ordering::AcqRel) {
            return;
        }
        let (extending, is_asked) = (hold.extending(output), Arc::clone(&self.cover.is_asked));
        self.cover.look_at_bytes = 0;
        self.cover.asking = Some(Box::pin(async move {
            let is_covered = extending.await;
            is_asked.store(false, Ordering::Release);
            is_covered
        }));
    }

    /// What the answer has to wait for before more of it passes; it ends with whether more may. Asked after each piece.
    pub fn take_asking(&mut self) -> Option<Extending> {
        self.cover.asking.take()
    }

    /// The ending of a stream that no credit covers any further.
    pub fn exhausted(&mut self) -> Ending {
        Ending::CreditExhausted(self.passed())
    }

    /// Tells the journal how far the stream is.
    fn mark(&mut self, now: Instant) {
        self.marks = Marks { marked_at: now, pieces: 0 };
        let passed = self.passed();
        if let Some(hold) = &mut self.hold {
            hold.set_input(passed.input);
            hold.progress(passed.output);
        }
    }

    /// The provider's end of file.
    pub fn finish(&mut self, out: &mut Vec<u8>) -> Option<Ending> {
        self.stream.as_mut().map(|meter| meter.finish(out))
    }

    /// Appends what ends the client's stream. Call after the bill is settled.
    pub fn write_end(&mut self, ending: &Ending, out: &mut Vec<u8>) {
        if let Some(meter) = &mut self.stream {
            meter.write_end(ending, out);
        }
    }

    /// Time from the request's arrival to the first output that passed, in milliseconds.
    pub fn ttft_ms(&self) -> Option<u64> {
        self.first_output.map(|at| millis(self.arrived, at))
    }

    /// Settles a stream that ended this way. `left` is the status that a client had been sent when it left before the end. `None`
    /// when it was settled before.
    pub fn settle_stream(&mut self, ending: &Ending, left: Option<u16>) -> Option<Settlement> {
        let outcome = match ending {
            Ending::Done => Outcome::Completed,
            Ending::ErrorEvent(_) | Ending::Truncated | Ending::TooLong => Outcome::UpstreamCut,
            Ending::CreditExhausted(_) => Outcome::CreditExhausted,
        };
        let reported =
            self.stream.as_ref().and_then(StreamMeter::usage).filter(|_| outcome == Outcome::Completed);
        let (outcome, status) = left.map_or((outcome, 200), |status| (Outcome::ClientGone, status));
        match reported {
            Some(usage) => self.settle(usage, UsageSource::Reported, outcome, status),
            None => self.settle_passed(outcome, status),
        }
    }

    /// Settles an answer that came whole, for a client that is there or `left` with this status.
    pub fn settle_whole(&mut self, whole: &Whole<'_>, left: Option<u16>) -> Option<Settlement> {
        let (outcome, status) =
            left.map_or((Outcome::Completed, 200), |status| (Outcome::ClientGone, status));
        let (usage, source) = match whole.usage {
            Some(usage) => (usage, UsageSource::Reported),
            None => {
                let counted =
                    Usage { input: self.input_tokens(), output: whole.output_tokens(), ..Usage::default() };
                (counted, UsageSource::Counted)
            }
        };
        self.settle_in_tier(usage, source, outcome, status, whole.service_tier.clone())
    }

    /// Settles an ending in which the client pays for the input and for what passed.
    pub fn settle_passed(&mut self, outcome: Outcome, status: u16) -> Option<Settlement> {
        let usage = self.passed();
        self.settle(usage, UsageSource::Counted, outcome, status)
    }

    /// Settles an ending for which the client pays nothing.
    pub fn settle_free(&mut self, outcome: Outcome, status: u16) -> Option<Settlement> {
        self.settle(Usage::default(), UsageSource::Counted, outcome, status)
    }

    /// Whether something went to a provider that is not known to be unbilled.
    pub fn is_sent(&self) -> bool {
        self.is_sent
    }

    /// What the end of the answer has to wait for; asked once, after it is settled.
    pub fn take_synced(&mut self) -> Option<Synced> {
        self.synced.take()
    }

    fn settle(
        &mut self,
        usage: Usage,
        source: UsageSource,
        outcome: Outcome,
        status: u16,
    ) -> Option<Settlement> {
        let service_tier = self.stream.as_ref().and_then(|meter| meter.service_tier()).map(str::to_owned);
        self.settle_in_tier(usage, source, outcome, status, service_tier)
    }

    fn settle_in_tier(
        &mut self,
        usage: Usage,
        source: UsageSource,
        outcome: Outcome,
        status: u16,
        service_tier: Option<String>,
    ) -> Option<Settlement> {
        let hold = self.hold.take()?;
        self.permit.used_tokens(usage.input_total().saturating_add(usage.output_total()));
        let (settled, synced) = hold.settle(&End {
            usage,
            source,
            outcome,
            status,
            latency_ms: millis(self.arrived, self.clock.now()),
            ttft_ms: self.ttft_ms(),
            service_tier,
        });
        self.synced = synced;
        Some(Settlement { usage, source, outcome, settled })
    }

    fn passed(&mut self) -> Usage {
        let output = self.stream.as_mut().map_or(0, StreamMeter::output_tokens);
        Usage { input: self.input_tokens(), output, ..Usage::default() }
    }

    fn input_tokens(&mut self) -> u64 {
        let tokens = match &self.prompt {
            Prompt::Kept { endpoint, body } => prompt_tokens(*endpoint, body),
            Prompt::Counted(tokens) => *tokens,
        };
        self.prompt = Prompt::Counted(tokens);
        tokens
    }
}

impl Drop for Bill {
    /// A panic, or a task that was dropped when the process stopped: what passed is billed. What was never sent is not.
    fn drop(&mut self) {
        if self.hold.is_some() && !self.is_sent {
            self.permit.used_tokens(0);
        } else if self.hold.is_some() {
            let status = if self.stream.is_some() { 200 } else { 500 };
            let _settled = self.settle_passed(Outcome::Shutdown, status);
        }
    }
}

fn millis(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.saturating_duration_since(from).as_millis()).unwrap_or(u64::MAX)
}
