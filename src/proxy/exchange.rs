//! The relaying of one request: attempts, the answer as it passes, and what ends it.
//!
//! Invariant: the bill is settled before the bytes that end an answer are handed on.

use super::Settings;
use super::answer;
use super::attempts::Attempts;
use super::trace::Trace;
use crate::meter::{Ending, Fed, StreamMeter, StreamSettings, Whole};
use crate::openai::{self, Ask};
use crate::refusal::{Kind, Refused};
use crate::relay::headers::{is_event_stream, json_answer, stream_answer, upstream_request};
use crate::relay::{
    CREDIT_EXHAUSTED, CURFEW, Control, Failure, NOT_CLOSED, TOTAL_TIMEOUT, Upstream, Upstreams, come_back,
    is_timeout,
};
use crate::route::Provider;
use crate::settle::{Bill, STATUS_CLIENT_GONE};
use crate::usage::Outcome;
use bytes::Bytes;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::{FailToProxy, Session};
use pingora::upstreams::peer::{HttpPeer, Peer};
use pingora::{Error, ErrorType, Result};
use std::time::Duration;

/// What a provider's error is told by: its first bytes.
const ERROR_MAX_BYTES: usize = 64 * 1024;

/// An admitted request on its way.
pub(super) struct Exchange {
    bill: Bill,
    attempts: Attempts,
    ask: Ask,
    control: Control,
    outgoing_body: Option<Bytes>,
    answer: Answer,
    /// Something went to some provider.
    was_sent: bool,
}

/// What is known of the answer.
enum Answer {
    /// No head yet.
    Awaited,
    /// Events, handed on as they come.
    Stream,
    /// A JSON answer, kept until its end: only then is it known to be one.
    Whole(Vec<u8>),
    /// An answer that is not a success.
    Refusal { status: u16, body: Vec<u8> },
    /// The client has its end.
    Ended,
}

impl Exchange {
    pub(super) fn new(bill: Bill, attempts: Attempts, ask: Ask, control: Control) -> Self {
        Exchange {
            bill,
            attempts,
            ask,
            control,
            outgoing_body: None,
            answer: Answer::Awaited,
            was_sent: false,
        }
    }

    /// Where the next attempt goes.
    pub(super) async fn peer(&mut self, upstreams: &Upstreams, trace: &mut Trace) -> Result<Box<HttpPeer>> {
        let upstream = place(upstreams, &self.attempts.candidate().provider)?;
        self.control.set_silence(self.attempts.begin(&upstream.patience, trace));
        self.control.set_drains(upstreams.drains(upstream, self.attempts.model().hidden_reasoning).cloned());
        match upstreams.peer(upstream, self.attempts.on_fresh_connection()).await {
            Ok(peer) => Ok(Box::new(peer)),
            Err(unresolved) => {
                let mut error = Error::explain(ErrorType::ConnectError, unresolved.to_string());
                error.as_up();
                Err(self.not_connected(error, trace))
            }
        }
    }

    /// Makes the provider's head and body, and notes that they go.
    pub(super) fn send(&mut self, head: &mut RequestHeader, upstreams: &Upstreams) -> Result<()> {
        let candidate = self.attempts.candidate();
        let origin = &place(upstreams, &candidate.provider)?.origin;
        let Some(body) = self.bill.body() else {
            return Err(Error::explain(ErrorType::InternalError, "an attempt after the body was freed"));
        };
        let edits = candidate.provider.dialect.edits(&self.ask, &candidate.upstream_model);
        let outgoing = Bytes::from(openai::splice(body, &edits));
        let mut ours = upstream_request(
            &candidate.provider,
            origin,
            self.ask.endpoint,
            self.ask.stream,
            outgoing.len(),
        )?;
        ours.version = head.version;
        *head = ours.into();
        self.outgoing_body = Some(outgoing);
        if let Some((model, price)) = self.attempts.served() {
            self.bill.serve_as(&model.name, price);
        }
        self.bill.sent(&candidate.provider.name, &candidate.upstream_model);
        self.was_sent = true;
        Ok(())
    }

    pub(super) fn take_outgoing_body(&mut self) -> Option<Bytes> {
        self.outgoing_body.take()
    }

    /// Reads the provider's head: an error that another candidate may not give, or the kind of body that follows.
    pub(super) async fn receive_head(
        &mut self,
        head: &mut ResponseHeader,
        settings: &Settings,
        trace: &mut Trace,
    ) -> Result<()> {
        let status = head.status.as_u16();
        trace.provider_answered(status);
        match Failure::of_status(status) {
            Some(failure) => {
                let come_back = come_back(head, self.attempts.wall());
                if self.goes_on(failure, come_back, trace) {
                    let mut error = upstream_error("the provider answered an error");
                    error.set_retry(true);
                    return Err(error);
                }
            }
            None => self.attempts.answered(status, trace),
        }
        self.control.hold_head();
        let is_success = (200..300).contains(&status);
        if is_success && self.ask.stream && is_event_stream(head) {
            self.control.release_body();
            self.control.comment_every(settings.comment_every);
            let meter = StreamMeter::new(StreamSettings {
                endpoint: self.ask.endpoint,
                usage_asked: self.ask.include_usage,
                max_event_bytes: settings.event_max_bytes,
            });
            self.bill.begin_stream(meter).await;
            let mut ours = stream_answer();
            trace.decorate(&mut ours)?;
            *head = ours.into();
            self.answer = Answer::Stream;
        } else if is_success {
            self.answer = Answer::Whole(Vec::new());
        } else {
            self.answer = Answer::Refusal { status, body: Vec::new() };
        }
        Ok(())
    }

    /// A piece of the provider's body in, what goes to the client out.
    pub(super) fn receive_body(
        &mut self,
        piece: Option<&Bytes>,
        is_end: bool,
        settings: &Settings,
        trace: &mut Trace,
    ) -> Result<Option<Bytes>> {
        self.keep_time()?;
        match &mut self.answer {
            Answer::Awaited | Answer::Ended => Ok(None),
            Answer::Stream => Ok(self.pass(piece.map(AsRef::as_ref).unwrap_or_default(), is_end, trace)),
            Answer::Whole(body) => {
                let piece = piece.map(AsRef::as_ref).unwrap_or_default();
                if body.len().saturating_add(piece.len()) > settings.answer_max_bytes {
                    return Err(upstream_error("the answer is larger than the gateway takes"));
                }
                body.extend_from_slice(piece);
                if !is_end {
                    return Ok(None);
                }
                let body = std::mem::take(body);
                self.end_whole(body, trace)
            }
            Answer::Refusal { status, body } => {
                let room = ERROR_MAX_BYTES.saturating_sub(body.len());
                let piece = piece.map(AsRef::as_ref).unwrap_or_default();
                body.extend_from_slice(&piece[..piece.len().min(room)]);
                if !is_end {
                    return Ok(None);
                }
                let refused = self.attempts.candidate().provider.dialect.refusal(*status, body);
                self.attempts.ended(true);
                let refused = self.told_to_wait(refused);
                self.end_refused(&refused, trace)
            }
        }
    }

    /// Holds the provider to the time that it may take for the whole answer: the last silence ends with it.
    fn keep_time(&self) -> Result<()> {
        let Some((left, silence)) = self.attempts.last_silence() else { return Ok(()) };
        if left.is_zero() && !matches!(self.answer, Answer::Ended) {
            let mut error =
                Error::explain(TOTAL_TIMEOUT, "the answer takes longer than the provider may take");
            error.as_up();
            return Err(error);
        }
        self.control.set_silence(silence);
        Ok(())
    }

    /// Streamed events, metered and framed anew.
    fn pass(&mut self, piece: &[u8], is_end: bool, trace: &mut Trace) -> Option<Bytes> {
        let mut out = Vec::with_capacity(piece.len() + 64);
        let ending = match self.bill.feed(piece, &mut out) {
            Fed::Ended(ending) => Some(ending),
            Fed::Open if is_end => self.bill.finish(&mut out),
            Fed::Open => None,
        };
        if let Some(ending) = ending {
            self.end_stream(&ending, &mut out, trace);
        } else if let Some(asking) = self.bill.take_asking() {
            self.control.wait_for_credit(asking);
        }
        (!out.is_empty()).then(|| Bytes::from(out))
    }

    fn end_stream(&mut self, ending: &Ending, out: &mut Vec<u8>, trace: &mut Trace) {
        trace.stream_ended(ending);
        self.attempts.ended(!matches!(ending, Ending::ErrorEvent(_) | Ending::Truncated | Ending::TooLong));
        let left = self.left(trace);
        trace.settled(self.bill.settle_stream(ending, left), self.bill.ttft_ms());
        self.wait_until_synced();
        self.bill.write_end(ending, out);
        self.control.end();
        self.answer = Answer::Ended;
    }

    /// The whole answer is there: is it one, and what did it use?
    fn end_whole(&mut self, body: Vec<u8>, trace: &mut Trace) -> Result<Option<Bytes>> {
        if self.ask.stream {
            let refused = Refused::new(Kind::UpstreamError, NOT_AN_ANSWER).internal("not an event stream");
            self.attempts.ended(false);
            return self.end_refused(&refused, trace);
        }
        match Whole::read(self.ask.endpoint, &body) {
            Ok(whole) => {
                self.attempts.ended(true);
                let mut head = json_answer(200, body.len())?;
                trace.decorate(&mut head)?;
                let left = self.left(trace);
                trace.settled(self.bill.settle_whole(&whole, left), self.bill.ttft_ms());
                self.wait_until_synced();
                self.control.replace_head(head.into());
                self.answer = Answer::Ended;
                Ok(Some(Bytes::from(body)))
            }
            Err(fault) => {
                let refused = Refused::new(Kind::UpstreamError, NOT_AN_ANSWER).internal(fault);
                self.attempts.ended(false);
                self.end_refused(&refused, trace)
            }
        }
    }

    /// The status of a client that has left: what it had been sent by then. The trace is told.
    fn left(&self, trace: &mut Trace) -> Option<u16> {
        if !self.control.client_gone() {
            return None;
        }
        let status = if self.control.head_sent() { 200 } else { STATUS_CLIENT_GONE };
        trace.client_left(status);
        Some(status)
    }

    /// The bytes that end the answer wait for the disk, where the operator wants that.
    fn wait_until_synced(&mut self) {
        if let Some(synced) = self.bill.take_synced() {
            self.control.wait_before_end(synced);
        }
    }

    fn end_refused(&mut self, refused: &Refused, trace: &mut Trace) -> Result<Option<Bytes>> {
        let body = openai::error_body(refused);
        let status = refused.kind.wire().status;
        let mut head = json_answer(status, body.len())?;
        trace.refused(refused);
        answer::advise(&mut head.headers, refused)?;
        trace.decorate(&mut head)?;
        let (outcome, status) = match self.left(trace) {
            Some(status) => (Outcome::ClientGone, status),
            None => (unanswered(refused.kind), status),
        };
        trace.settled(self.bill.settle_free(outcome, status), None);
        self.control.replace_head(head.into());
        self.answer = Answer::Ended;
        Ok(Some(Bytes::from(body)))
    }

    /// The provider's next connection goes to another of its addresses, where it has several.
    pub(super) fn refused_at(&mut self, peer: &HttpPeer, upstreams: &Upstreams) -> &mut Self {
        let upstream = upstreams.get(&self.attempts.candidate().provider.name);
        if let (Some(upstream), Some(address)) = (upstream, peer.address().as_inet()) {
            upstream.failed(*address);
        }
        self
    }

    /// No connection came about.
    pub(super) fn not_connected(&mut self, error: Box<Error>, trace: &mut Trace) -> Box<Error> {
        let mut error = error;
        error.set_retry(self.goes_on(Failure::NotConnected, None, trace));
        error
    }

    /// An attempt broke off after its connection stood.
    pub(super) fn attempt_failed(
        &mut self,
        mut error: Box<Error>,
        client_reused: bool,
        trace: &mut Trace,
    ) -> Box<Error> {
        let is_before_answer = matches!(self.answer, Answer::Awaited);
        if matches!(error.etype(), ErrorType::HTTPStatus(_)) && is_before_answer {
            // The retry that `receive_head` decided.
            return error;
        }
        let is_ours = self.control.client_gone() || [CURFEW, CREDIT_EXHAUSTED].contains(error.etype());
        let goes_on = match is_before_answer {
            _ if is_ours => false,
            true => self.goes_on(Failure::of_error(&error, client_reused), None, trace),
            false => {
                if !matches!(self.answer, Answer::Ended) {
                    self.attempts.ended(false);
                }
                false
            }
        };
        error.set_retry(goes_on);
        error
    }

    /// Whether another attempt follows one that failed before its answer began. Its provider bills nothing then, or is not billed to
    /// the client.
    fn goes_on(&mut self, failure: Failure, come_back: Option<Duration>, trace: &mut Trace) -> bool {
        self.outgoing_body = None;
        let goes_on = self.attempts.failed(failure, come_back, !self.control.client_gone(), trace);
        if goes_on {
            self.bill.attempt_failed();
        }
        goes_on
    }

    /// The request cannot be relayed to its end. Settles, and tells the client what can still be told. The status that the
    /// client has, 0 when it left; its connection is used again only where it has a whole answer.
    pub(super) async fn fail(
        &mut self,
        session: &mut Session,
        error: &Error,
        trace: &mut Trace,
    ) -> FailToProxy {
        let head_sent = self.control.head_sent();
        self.control.unwrap(session);
        if matches!(self.answer, Answer::Ended) && *error.etype() == NOT_CLOSED {
            return FailToProxy { error_code: 200, can_reuse_downstream: true };
        }
        let error_code = self.fail_unfinished(session, error, head_sent, trace).await;
        FailToProxy { error_code, can_reuse_downstream: false }
    }

    async fn fail_unfinished(
        &mut self,
        session: &mut Session,
        error: &Error,
        head_sent: bool,
        trace: &mut Trace,
    ) -> u16 {
        trace.internal(error);
        if self.control.client_gone() {
            let status = if head_sent { 200 } else { STATUS_CLIENT_GONE };
            self.settle_client_gone(status, trace);
            return 0;
        }
        match &self.answer {
            Answer::Ended => 0,
            Answer::Stream if head_sent => {
                let out = self.break_off(error, trace);
                // A client that does not read its last event has it in the bill all the same.
                let _written = session.write_response_body(Some(Bytes::from(out)), true).await;
                200
            }
            Answer::Awaited | Answer::Stream | Answer::Whole(_) | Answer::Refusal { .. } => {
                let refused = self.refusal(error);
                let stops = *error.etype() == CURFEW;
                let outcome = if stops { Outcome::Shutdown } else { unanswered(refused.kind) };
                self.settle_unanswered(&refused, outcome, trace);
                // The same holds for a refusal that finds nobody.
                let _written = answer::write_refusal(session, trace, &refused).await;
                refused.kind.wire().status
            }
        }
    }

    /// Ends a stream that the provider has not ended, and gives the event that tells the client.
    fn break_off(&mut self, error: &Error, trace: &mut Trace) -> Vec<u8> {
        let mut out = Vec::new();
        if *error.etype() == CURFEW {
            trace.settled(self.bill.settle_passed(Outcome::Shutdown, 200), self.bill.ttft_ms());
            out = [b"data: ".as_slice(), &openai::error_body(&self.refusal(error)), b"\n\n"].concat();
            self.answer = Answer::Ended;
        } else {
            let ending = match *error.etype() == CREDIT_EXHAUSTED {
                true => self.bill.exhausted(),
                false => Ending::Truncated,
            };
            self.end_stream(&ending, &mut out, trace);
        }
        out
    }

    /// After everything: a request that no hook has ended lost its client.
    pub(super) fn close(&mut self, session: &mut Session, trace: &mut Trace) {
        let head_sent = self.control.head_sent();
        self.control.unwrap(session);
        if !matches!(self.answer, Answer::Ended) {
            let status = if head_sent { 200 } else { STATUS_CLIENT_GONE };
            self.settle_client_gone(status, trace);
        }
    }

    fn settle_client_gone(&mut self, status: u16, trace: &mut Trace) {
        trace.client_left(status);
        let is_refused = matches!(self.answer, Answer::Refusal { .. });
        if self.bill.is_sent() && !is_refused {
            trace.settled(self.bill.settle_passed(Outcome::ClientGone, status), self.bill.ttft_ms());
        } else if self.was_sent {
            trace.settled(self.bill.settle_free(Outcome::ClientGone, status), None);
        }
        self.answer = Answer::Ended;
    }

    fn settle_unanswered(&mut self, refused: &Refused, outcome: Outcome, trace: &mut Trace) {
        trace.refused(refused);
        if self.was_sent {
            let status = refused.kind.wire().status;
            trace.settled(self.bill.settle_free(outcome, status), None);
        }
        self.answer = Answer::Ended;
    }

    /// What the client is told when no candidate is left.
    fn refusal(&self, error: &Error) -> Refused {
        if *error.etype() == CURFEW {
            return Refused::new(Kind::NoCapacity, "The gateway is being restarted; try again.")
                .retry_after(RESTART_WAIT);
        }
        let dialect = self.attempts.candidate().provider.dialect;
        let timed_out = is_timeout(error.etype());
        let refused = match (&self.answer, self.attempts.failure()) {
            (Answer::Refusal { status, .. }, _) => dialect.refusal(*status, b""),
            (Answer::Awaited, Some(Failure::Answered(status))) => dialect.refusal(status, b""),
            (_, Some(Failure::NoFirstByte)) => dialect.refusal(504, b""),
            (_, _) if timed_out => dialect.refusal(504, b""),
            (_, _) => dialect.refusal(502, b""),
        };
        self.told_to_wait(refused).internal(error.etype().as_str())
    }

    /// The client is told to come back when the first of the providers said that it will have room, where one of them did.
    fn told_to_wait(&self, refused: Refused) -> Refused {
        match self.attempts.come_back() {
            Some(wait) if refused.kind == Kind::NoCapacity => refused.retry_after(wait),
            Some(_) | None => refused,
        }
    }
}

fn place<'a>(upstreams: &'a Upstreams, provider: &Provider) -> Result<&'a Upstream> {
    upstreams
        .get(&provider.name)
        .ok_or_else(|| Error::explain(ErrorType::InternalError, "a provider without a place"))
}

/// What a client is told to wait when the gateway stops.
const RESTART_WAIT: Duration = Duration::from_secs(1);
const NOT_AN_ANSWER: &str = "The model's provider sent something that is not an answer; it was not billed.";

fn unanswered(kind: Kind) -> Outcome {
    if kind == Kind::UpstreamTimeout { Outcome::UpstreamTimeout } else { Outcome::UpstreamError }
}

fn upstream_error(text: &'static str) -> Box<Error> {
    let mut error = Error::explain(ErrorType::HTTPStatus(502), text);
    error.as_up();
    error
}
