//! The downstream session in disguise: a request whose body is already here, and an answer that can be held back.
//!
//! Promises: each attempt gets the whole body, without a copy; a provider that is silent for too long is an error; the
//! head of an answer stays here, unsent, until its body says that it may go; a client that waits for more of a stream hears
//! from time to time that there is somebody; a provider can be read on when its client has left.
//! Refuses to know: which provider answers, what is in a body, when to try again.
//!
//! Pingora picks the peer before it reads the body, and replays at most 64 KiB of it. Its `Custom` session is the one
//! door that needs no fork: the engine asks it for the retry buffer at every attempt. That trait is not a stable
//! interface, so Pingora's version is pinned and `tests/it/matrix.rs` holds what is built on it.

mod session;

use std::mem;
use std::pin::Pin;
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::Version;
use http::header::TRANSFER_ENCODING;
use pingora::http::ResponseHeader;
use pingora::protocols::http::{HttpTask, ServerSession};
use pingora::proxy::Session;
use pingora::{Error, ErrorSource, ErrorType, Result};
use tokio::time::{Instant, Sleep};

use super::body::Body;
use super::control::{Control, Settings as Silence};
use super::curfew::{Curfew, Wait};
use super::drain::Place;

/// No answer had begun in time. The engine marks it as a downstream error: look at the type before the source.
pub const FIRST_BYTE_TIMEOUT: ErrorType = ErrorType::Custom("FirstByteTimeout");
/// The answer had begun, and then nothing came for too long. The engine marks it as a downstream error, too.
pub const IDLE_TIMEOUT: ErrorType = ErrorType::Custom("IdleTimeout");
/// The process stops and cannot wait for this answer. The engine marks it as a downstream error, too.
pub const CURFEW: ErrorType = ErrorType::Custom("Curfew");
/// The client has its whole answer, and the provider keeps its side open. The engine marks it as a downstream error, too.
pub const NOT_CLOSED: ErrorType = ErrorType::Custom("NotClosed");
/// The client left, and its provider was read on for as long as that is done. The engine marks it as a downstream error, too.
pub const DRAIN_OVER: ErrorType = ErrorType::Custom("DrainOver");
/// No credit covers more of the answer. The engine marks it as a downstream error, too.
pub const CREDIT_EXHAUSTED: ErrorType = ErrorType::Custom("CreditExhausted");
/// A held answer ended and no body filter saw the end (no body at all, or HTTP/2 trailers). Nothing was written.
pub const EMPTY_ANSWER: ErrorType = ErrorType::Custom("EmptyAnswer");

/// Puts the adapter in the place of the session's downstream. The request body must have been read to its end.
///
/// Keep-alive, the write timeout and the like are set before: Pingora ignores them on a wrapped session. The answer ends when the
/// curfew is called.
pub fn wrap(session: &mut Session, body: Body, settings: Silence, curfew: &Curfew) -> Control {
    let body_empty = body.is_empty();
    let control = Control::new(body, settings);
    let deadline = Instant::now() + settings.first_byte_timeout;
    let knows_chunks = session.req_header().version != Version::HTTP_10;
    let inner = mem::replace(&mut *session.downstream_session, nobody());
    let adapter = Adapter {
        inner,
        control: control.clone(),
        body_empty,
        knows_chunks,
        answer: Answer::Awaited,
        deadline,
        timer: Box::pin(tokio::time::sleep_until(deadline)),
        curfew: curfew.wait(),
        overread: false,
        comments: Comments { every: None, spoke_at: deadline, rest: Bytes::new(), is_under_way: false },
        draining: None,
    };
    *session.downstream_session = ServerSession::new_custom(Box::new(adapter));
    control
}

/// Pingora's own placeholder for a session that is elsewhere.
fn nobody() -> ServerSession {
    ServerSession::new_custom(Box::new(()))
}

/// How far the answer of this attempt has come.
enum Answer {
    /// No final head has arrived.
    Awaited,
    /// The final head is here and waits for its body.
    Held(Box<ResponseHeader>),
    /// The final head was passed on.
    Passed,
    /// The client has it whole; what else the provider sends is left out.
    Ended,
}

/// How long a provider may take to end an answer whose end it has announced, so that its connection can be used again.
const CLOSE_WAIT: Duration = Duration::from_millis(100);

struct Adapter {
    inner: ServerSession,
    control: Control,
    /// As the client sent it: stays false when a body was released.
    body_empty: bool,
    /// The client speaks HTTP/1.1 or later.
    knows_chunks: bool,
    answer: Answer,
    /// When the provider's silence becomes an error.
    deadline: Instant,
    /// Wakes at or before the deadline; it is set anew only when it fires, not at every piece of an answer.
    timer: Pin<Box<Sleep>>,
    curfew: Wait,
    /// The client sent more after its request: the connection can neither be watched nor used again.
    overread: bool,
    comments: Comments,
    /// The client has left, and the provider is read on.
    draining: Option<Draining>,
}

/// What a client hears while its provider is silent.
struct Comments {
    /// How often; never, where nothing stands here: before the head has gone, and in answers that are no streams.
    every: Option<Duration>,
    /// When the client was last sent something.
    spoke_at: Instant,
    /// What is still to be sent of a comment that has been begun.
    rest: Bytes,
    is_under_way: bool,
}

/// A comment of the event stream format: every client skips it.
const COMMENT: Bytes = Bytes::from_static(b": keep-alive\n\n");

struct Draining {
    until: Instant,
    bytes_left: usize,
    _place: Place,
}

/// What the client's side did.
enum Client {
    Left(Box<Error>),
    SentMore,
    HeardComment,
}

impl Adapter {
    /// Decides what goes to the client now. The head waits while it is held.
    fn arrange(&mut self, tasks: Vec<HttpTask>) -> Result<Vec<HttpTask>> {
        if matches!(self.answer, Answer::Ended) {
            return Ok(Vec::new());
        }
        if self.control.state().ended {
            return Ok(self.conclude(tasks));
        }
        if matches!(self.answer, Answer::Passed) {
            return Ok(tasks);
        }
        let mut ready = Vec::with_capacity(tasks.len() + 1);
        for task in tasks {
            match task {
                HttpTask::Header(head, _) if head.status.is_informational() => {
                    ready.push(HttpTask::Header(head, false));
                }
                HttpTask::Header(head, end) if !self.control.state().hold => ready.push(self.pass(head, end)),
                HttpTask::Header(_, true) => return Err(unseen_end("no body")),
                HttpTask::Header(head, false) => self.answer = Answer::Held(head),
                HttpTask::Body(data, end) => {
                    let empty = data.as_ref().is_none_or(Bytes::is_empty);
                    if empty && !end && matches!(self.answer, Answer::Held(_)) {
                        continue;
                    }
                    ready.extend(self.release());
                    ready.push(HttpTask::Body(data, end));
                }
                HttpTask::Done | HttpTask::Trailer(_) if matches!(self.answer, Answer::Held(_)) => {
                    return Err(unseen_end("no end of body"));
                }
                HttpTask::Failed(error) if matches!(self.answer, Answer::Awaited | Answer::Held(_)) => {
                    return Err(error);
                }
                other @ (HttpTask::Done
                | HttpTask::Trailer(_)
                | HttpTask::Failed(_)
                | HttpTask::UpgradedBody(..)) => ready.push(other),
            }
        }
        Ok(ready)
    }

    /// What there is of the answer, its last bytes marked as such.
    fn conclude(&mut self, tasks: Vec<HttpTask>) -> Vec<HttpTask> {
        let mut ready: Vec<HttpTask> = self.release().into_iter().collect();
        for task in tasks {
            match task {
                HttpTask::Header(head, _) => ready.push(self.pass(head, false)),
                HttpTask::Body(Some(data), _) if !data.is_empty() => {
                    ready.push(HttpTask::Body(Some(data), false))
                }
                HttpTask::Body(..)
                | HttpTask::Done
                | HttpTask::Trailer(_)
                | HttpTask::Failed(_)
                | HttpTask::UpgradedBody(..) => {}
            }
        }
        match ready.last_mut() {
            Some(HttpTask::Body(_, end)) => *end = true,
            Some(_) | None => ready.push(HttpTask::Body(None, true)),
        }
        self.answer = Answer::Ended;
        self.deadline = Instant::now() + CLOSE_WAIT;
        self.timer.as_mut().reset(self.deadline);
        ready
    }

    /// The held head, if there is one, as a task that goes before what released it.
    fn release(&mut self) -> Option<HttpTask> {
        match mem::replace(&mut self.answer, Answer::Awaited) {
            Answer::Held(head) => Some(self.pass(head, false)),
            before @ (Answer::Awaited | Answer::Passed | Answer::Ended) => {
                self.answer = before;
                None
            }
        }
    }

    fn pass(&mut self, head: Box<ResponseHeader>, end: bool) -> HttpTask {
        let replacement = {
            let mut state = self.control.state();
            state.head_sent |= self.draining.is_none();
            self.comments.every = state.comment_every;
            state.replacement.take()
        };
        self.answer = Answer::Passed;
        let mut head = replacement.unwrap_or(head);
        if !self.knows_chunks && head.headers.contains_key(TRANSFER_ENCODING) {
            // The end of the connection is the end of the answer (RFC 9112, sections 6.1 and 6.3).
            head.remove_header(&TRANSFER_ENCODING);
            self.inner.set_keepalive(None);
        }
        HttpTask::Header(head, end)
    }

    /// A head that the proxy writes itself, past the engine's tasks.
    fn written(&mut self, head: &ResponseHeader) {
        if !head.status.is_informational() {
            self.control.state().head_sent = true;
            self.answer = Answer::Passed;
        }
    }

    /// The client has left, says this error. It is not one where the provider is read on.
    fn gone(&mut self, mut error: Box<Error>) -> Result<()> {
        let place = {
            let mut state = self.control.state();
            state.client_gone = true;
            state.drains.take().and_then(|drains| drains.begin())
        };
        let Some(place) = place else {
            error.as_down();
            return Err(error);
        };
        let bounds = place.settings();
        let until = Instant::now() + bounds.max_time;
        self.draining = Some(Draining { until, bytes_left: bounds.max_bytes, _place: place });
        self.inner.set_keepalive(None);
        self.set_timer();
        Ok(())
    }

    /// Takes what would go to a client that has left.
    fn swallow(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let mut is_last = false;
        for task in tasks {
            is_last |= is_end(&task);
            match task {
                HttpTask::Failed(error) => return Err(error),
                HttpTask::Body(Some(data), _) | HttpTask::UpgradedBody(Some(data), _) => {
                    let Some(draining) = &mut self.draining else { continue };
                    draining.bytes_left = draining.bytes_left.checked_sub(data.len()).ok_or_else(|| {
                        drain_over("the provider sent more than is read on for a client that has left")
                    })?;
                }
                HttpTask::Header(..)
                | HttpTask::Body(None, _)
                | HttpTask::UpgradedBody(None, _)
                | HttpTask::Trailer(_)
                | HttpTask::Done => {}
            }
        }
        Ok(is_last)
    }

    /// Hands on to the client, as far as there is one. Tells whether that was the end of the answer.
    async fn hand_on(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        if tasks.is_empty() {
            return Ok(false);
        }
        if self.draining.is_some() {
            return self.swallow(tasks);
        }
        let is_last = tasks.iter().any(is_end);
        let speaks = tasks.iter().any(|task| !matches!(task, HttpTask::Body(None, _)));
        let written = match self.finish_comment().await {
            Ok(()) => self.inner.response_duplex_vec(tasks).await,
            Err(error) => Err(error),
        };
        if speaks {
            self.comments.spoke_at = Instant::now();
        }
        match written {
            Ok(done) => Ok(done),
            Err(e) if *e.esource() == ErrorSource::Upstream => Err(e),
            Err(e) => self.gone(e).map(|()| is_last),
        }
    }

    /// Writes what is left of a comment, so that something else can follow it.
    async fn finish_comment(&mut self) -> Result<()> {
        if self.comments.is_under_way {
            write_comment(&mut self.inner, &mut self.comments.rest).await?;
            self.comments.is_under_way = false;
        }
        Ok(())
    }

    /// When the client is to hear that there is somebody.
    fn comment_at(&self) -> Option<Instant> {
        let is_waiting =
            matches!(self.answer, Answer::Passed) && self.draining.is_none() && !self.comments.is_under_way;
        self.comments.every.filter(|_| is_waiting).map(|every| self.comments.spoke_at + every)
    }

    /// The next instant at which something is to be done.
    fn wake_at(&self) -> Instant {
        let end = self.draining.as_ref().map_or(self.deadline, |draining| draining.until.min(self.deadline));
        self.comment_at().map_or(end, |at| at.min(end))
    }

    fn set_timer(&mut self) {
        let wake_at = self.wake_at();
        self.timer.as_mut().reset(wake_at);
    }

    /// Does what is due. The error is the end.
    fn rung(&mut self) -> Result<()> {
        let now = Instant::now();
        if self.draining.as_ref().is_some_and(|draining| draining.until <= now) {
            return Err(drain_over("the provider took longer than is waited for a client that has left"));
        }
        if self.deadline <= now {
            return Err(self.silence());
        }
        if self.comment_at().is_some_and(|at| at <= now) {
            self.comments.rest = COMMENT;
            self.comments.is_under_way = true;
            self.comments.spoke_at = now;
        }
        self.set_timer();
        Ok(())
    }

    fn silence(&self) -> Box<Error> {
        match self.answer {
            Answer::Awaited => {
                Error::explain(FIRST_BYTE_TIMEOUT, "the provider did not begin to answer in time")
            }
            Answer::Ended => {
                Error::explain(NOT_CLOSED, "the provider keeps an answer open that it has ended")
            }
            Answer::Held(_) | Answer::Passed => {
                Error::explain(IDLE_TIMEOUT, "the provider stopped in the middle of its answer")
            }
        }
    }

    /// Waits for the client to leave, for the provider to have been silent for too long, or for the curfew; never ends otherwise.
    async fn watch(&mut self) -> Box<Error> {
        loop {
            // A client that has its whole answer may send its next request: that is not to be read here.
            let is_there = self.draining.is_none() && !matches!(self.answer, Answer::Ended);
            let comment = self.comments.is_under_way.then_some(&mut self.comments.rest);
            let client = client(&mut self.inner, comment, !self.overread);
            let ended = tokio::select! {
                biased;
                seen = client, if is_there => match seen {
                    Client::SentMore => {
                        // More bytes where none belong: a next request sent early. This one is still served.
                        self.stop_watching();
                        Ok(())
                    }
                    Client::HeardComment => {
                        self.comments.is_under_way = false;
                        self.set_timer();
                        Ok(())
                    }
                    Client::Left(error) => self.gone(error),
                },
                () = self.timer.as_mut() => self.rung(),
                () = &mut self.curfew => Err(Error::explain(CURFEW, "the gateway stops")),
            };
            if let Err(error) = ended {
                return error;
            }
        }
    }

    fn stop_watching(&mut self) {
        self.overread = true;
        self.inner.set_keepalive(None);
    }
}

/// Whether nothing follows from the provider.
fn is_end(task: &HttpTask) -> bool {
    match task {
        HttpTask::Header(_, end) | HttpTask::Body(_, end) | HttpTask::UpgradedBody(_, end) => *end,
        HttpTask::Trailer(_) | HttpTask::Done | HttpTask::Failed(_) => true,
    }
}

fn unseen_end(what: &'static str) -> Box<Error> {
    let mut error = Error::explain(EMPTY_ANSWER, what);
    error.as_up();
    error
}

fn drain_over(what: &'static str) -> Box<Error> {
    Error::explain(DRAIN_OVER, what)
}

/// Tells the client what there is to tell, else watches it. Can be dropped and made anew at any time.
async fn client(inner: &mut ServerSession, comment: Option<&mut Bytes>, is_watched: bool) -> Client {
    if let Some(rest) = comment {
        return match write_comment(inner, rest).await {
            Ok(()) => Client::HeardComment,
            Err(error) => Client::Left(error),
        };
    }
    if !is_watched {
        return std::future::pending().await;
    }
    match inner.read_body_or_idle(true).await {
        Ok(_) => Client::SentMore,
        Err(error) if *error.etype() == ErrorType::ConnectError => Client::SentMore,
        Err(error) => Client::Left(error),
    }
}

/// Writes the rest of a comment. What is dropped in the middle goes on where it stopped when it is called again: half a comment would
/// swallow the event behind it.
async fn write_comment(inner: &mut ServerSession, rest: &mut Bytes) -> Result<()> {
    if inner.as_http1().is_some() {
        if !rest.is_empty() {
            inner.send_downstream_proxy_task(HttpTask::Body(Some(mem::take(rest)), false));
        }
        return inner.write_downstream_proxy_tasks().await.map(drop);
    }
    // An HTTP/2 stream tells what it has sent of a write only when it has sent all; of a byte it sends all or nothing.
    while !rest.is_empty() {
        inner.write_response_body(rest.slice(..1), false).await?;
        rest.advance(1);
    }
    Ok(())
}
