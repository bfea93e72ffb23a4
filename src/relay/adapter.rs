//! The downstream session in disguise: a request whose body is already here, and an answer that can be held back.
//!
//! Promises: each attempt gets the whole body, without a copy; a provider that is silent for too long is an error; the
//! head of an answer stays here, unsent, until its body says that it may go.
//! Refuses to know: which provider answers, what is in a body, when to try again.
//!
//! Pingora picks the peer before it reads the body, and replays at most 64 KiB of it. Its `Custom` session is the one
//! door that needs no fork: the engine asks it for the retry buffer at every attempt. That trait is not a stable
//! interface, so Pingora's version is pinned and `tests/it/matrix.rs` holds what is built on it.

use std::mem;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderMap;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::protocols::http::custom::CustomMessageWrite;
use pingora::protocols::http::custom::server::Session as CustomSession;
use pingora::protocols::http::{HttpTask, ServerSession};
use pingora::protocols::l4::socket::SocketAddr;
use pingora::proxy::Session;
use pingora::{Error, ErrorSource, ErrorType, Result};
use tokio::time::Instant;

use super::alarm::Alarm;
use super::body::Body;
use super::control::{Control, Settings as Silence};
use super::curfew::{Curfew, Wait};

/// No answer had begun in time. The engine marks it as a downstream error: look at the type before the source.
pub const FIRST_BYTE_TIMEOUT: ErrorType = ErrorType::Custom("FirstByteTimeout");
/// The answer had begun, and then nothing came for too long. The engine marks it as a downstream error, too.
pub const IDLE_TIMEOUT: ErrorType = ErrorType::Custom("IdleTimeout");
/// The process stops and cannot wait for this answer. The engine marks it as a downstream error, too.
pub const CURFEW: ErrorType = ErrorType::Custom("Curfew");
/// The client has its whole answer, and the provider keeps its side open. The engine marks it as a downstream error, too.
pub const NOT_CLOSED: ErrorType = ErrorType::Custom("NotClosed");
/// A held answer ended and no body filter saw the end (no body at all, or HTTP/2 trailers). Nothing was written.
pub const EMPTY_ANSWER: ErrorType = ErrorType::Custom("EmptyAnswer");

/// Puts the adapter in the place of the session's downstream. The request body must have been read to its end.
///
/// Keep-alive, the write timeout and the like are set before: Pingora ignores them on a wrapped session. The answer ends when the
/// curfew is called.
pub fn wrap(session: &mut Session, body: Body, settings: Silence, curfew: &Curfew) -> Control {
    let body_empty = body.is_empty();
    let control = Control::new(body, settings);
    let now = Instant::now();
    let ends_at = now + settings.answer_max;
    let deadline = ends_at.min(now + settings.first_byte_timeout);
    let inner = mem::replace(&mut *session.downstream_session, nobody());
    let adapter = Adapter {
        inner,
        control: control.clone(),
        body_empty,
        answer: Answer::Awaited,
        deadline,
        ends_at,
        alarm: Alarm::at(deadline),
        curfew: curfew.wait(),
        overread: false,
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
    answer: Answer,
    /// When the provider's silence becomes an error.
    deadline: Instant,
    /// When the answer has taken too long, however much comes.
    ends_at: Instant,
    /// Rings at or before the deadline; it is set anew when it rings, not at every piece of an answer.
    alarm: Alarm,
    curfew: Wait,
    /// The client sent more after its request: the connection can neither be watched nor used again.
    overread: bool,
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
        self.alarm.by(self.deadline);
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
            state.head_sent = true;
            state.replacement.take()
        };
        self.answer = Answer::Passed;
        HttpTask::Header(replacement.unwrap_or(head), end)
    }

    /// A head that the proxy writes itself, past the engine's tasks.
    fn written(&mut self, head: &ResponseHeader) {
        if !head.status.is_informational() {
            self.control.state().head_sent = true;
            self.answer = Answer::Passed;
        }
    }

    /// Marks the client as gone and the error as its doing.
    fn gone(&self, mut error: Box<Error>) -> Box<Error> {
        self.control.state().client_gone = true;
        error.as_down();
        error
    }

    fn silence(&self) -> Box<Error> {
        match self.answer {
            Answer::Awaited => {
                Error::explain(FIRST_BYTE_TIMEOUT, "the provider did not begin to answer in time")
            }
            Answer::Ended => {
                Error::explain(NOT_CLOSED, "the provider keeps an answer open that it has ended")
            }
            Answer::Held(_) | Answer::Passed if self.ends_at <= Instant::now() => {
                Error::explain(IDLE_TIMEOUT, "the answer took longer than any may")
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
            let is_watched = !self.overread && !matches!(self.answer, Answer::Ended);
            tokio::select! {
                biased;
                read = self.inner.read_body_or_idle(true), if is_watched => match read {
                    // More bytes where none belong: a next request sent early. This one is still served.
                    Ok(_) => self.stop_watching(),
                    Err(e) if *e.etype() == ErrorType::ConnectError => self.stop_watching(),
                    Err(e) => return self.gone(e),
                },
                () = self.alarm.rings.as_mut() => {
                    // It rings once.
                    self.alarm = Alarm::at(self.deadline);
                    if self.deadline <= Instant::now() {
                        return self.silence();
                    }
                }
                () = &mut self.curfew => return Error::explain(CURFEW, "the gateway stops"),
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

#[async_trait]
impl CustomSession for Adapter {
    // What the adapter answers itself.

    fn is_body_done(&mut self) -> bool {
        true
    }

    fn is_body_empty(&mut self) -> bool {
        self.body_empty
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        Ok(None)
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        Ok(())
    }

    /// The engine calls it at the start of every attempt, once the request head is on its way.
    fn enable_retry_buffering(&mut self) {
        let patience = self.control.state().settings.first_byte_timeout;
        self.deadline = self.ends_at.min(Instant::now() + patience);
        self.alarm.by(self.deadline);
        self.control.state().replacement = None;
        if !matches!(self.answer, Answer::Passed | Answer::Ended) {
            self.answer = Answer::Awaited;
        }
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        self.control.state().body.as_ref().filter(|body| !body.is_empty()).map(|body| Bytes::clone(body))
    }

    fn retry_buffer_truncated(&self) -> bool {
        self.control.state().body.is_none()
    }

    async fn read_body_or_idle(&mut self, _no_body_expected: bool) -> Result<Option<Bytes>> {
        if matches!(self.answer, Answer::Awaited) && self.retry_buffer_truncated() {
            return Error::e_explain(ErrorType::InternalError, "an attempt after the body was released");
        }
        Err(self.watch().await)
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let is_last = tasks.iter().any(is_end);
        let ready = self.arrange(tasks)?;
        let before_end = self.control.state().before_end.take();
        if let Some(wait) = before_end {
            wait.await;
        }
        let done = if ready.is_empty() {
            false
        } else {
            match self.inner.response_duplex_vec(ready).await {
                Ok(done) => done,
                Err(e) if *e.esource() == ErrorSource::Upstream => return Err(e),
                Err(e) => return Err(self.gone(e)),
            }
        };
        if matches!(self.answer, Answer::Ended) {
            // The engine goes on until the provider's side has ended, too, so that its connection can be used again.
            return Ok(is_last);
        }
        // A head that informs only is no answer: the provider can hold a request open with those for ever.
        if !matches!(self.answer, Answer::Awaited) {
            let patience = self.control.state().settings.idle_timeout;
            self.deadline = self.ends_at.min(Instant::now() + patience);
            self.alarm.by(self.deadline);
        }
        Ok(done)
    }

    async fn finish(&mut self) -> Result<()> {
        match self.answer {
            Answer::Held(_) => Err(unseen_end("no end")),
            Answer::Awaited | Answer::Passed | Answer::Ended => self.inner.finish_body().await,
        }
    }

    /// Hands the client's session to the control; see [`Control::unwrap`].
    fn take_custom_message_reader(
        &mut self,
    ) -> Option<Box<dyn futures::Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>> {
        let inner = mem::replace(&mut self.inner, nobody());
        self.control.state().ejected = Some(inner);
        None
    }

    fn restore_custom_message_reader(
        &mut self,
        _reader: Box<dyn futures::Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>,
    ) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        None
    }

    fn restore_custom_message_writer(&mut self, _writer: Box<dyn CustomMessageWrite>) -> Result<()> {
        Ok(())
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn is_upgrade_req(&self) -> bool {
        false
    }

    fn was_upgraded(&self) -> bool {
        false
    }

    // What the client's session answers.

    async fn write_response_header(&mut self, head: Box<ResponseHeader>, _end: bool) -> Result<()> {
        self.written(&head);
        self.inner.write_response_header(head).await
    }

    async fn write_response_header_ref(&mut self, head: &ResponseHeader, _end: bool) -> Result<()> {
        self.written(head);
        self.inner.write_response_header_ref(head).await
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        self.inner.write_response_body(data, end).await
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.inner.write_response_trailers(trailers).await
    }

    async fn shutdown(&mut self, _code: u32, _context: &str) {
        self.inner.shutdown().await;
    }

    fn req_header(&self) -> &RequestHeader {
        self.inner.req_header()
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        self.inner.req_header_mut()
    }

    fn request_summary(&self) -> String {
        self.inner.request_summary()
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.inner.response_written()
    }

    fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.inner.set_read_timeout(timeout);
    }

    fn get_read_timeout(&self) -> Option<Duration> {
        self.inner.get_read_timeout()
    }

    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.inner.set_write_timeout(timeout);
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.inner.get_write_timeout()
    }

    fn set_total_drain_timeout(&mut self, timeout: Option<Duration>) {
        self.inner.set_total_drain_timeout(timeout);
    }

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        self.inner.get_total_drain_timeout()
    }

    fn body_bytes_sent(&self) -> usize {
        self.inner.body_bytes_sent()
    }

    fn body_bytes_read(&self) -> usize {
        self.inner.body_bytes_read()
    }

    fn digest(&self) -> Option<&Digest> {
        self.inner.digest()
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        self.inner.digest_mut()
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        self.inner.client_addr()
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        self.inner.server_addr()
    }

    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        self.inner.to_h1_raw()
    }
}
