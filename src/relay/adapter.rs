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
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
use tokio::time::{Instant, Sleep};

use super::body::Body;

/// No answer had begun in time. The engine marks it as a downstream error: look at the type before the source.
pub const FIRST_BYTE_TIMEOUT: ErrorType = ErrorType::Custom("FirstByteTimeout");
/// The answer had begun, and then nothing came for too long. The engine marks it as a downstream error, too.
pub const IDLE_TIMEOUT: ErrorType = ErrorType::Custom("IdleTimeout");
/// A held answer ended and no body filter saw the end (no body at all, or HTTP/2 trailers). Nothing was written.
pub const EMPTY_ANSWER: ErrorType = ErrorType::Custom("EmptyAnswer");

/// How long a provider may be silent.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// From the request head being sent to the head of the final answer; counted anew for each attempt.
    pub first_byte_timeout: Duration,
    /// From one piece of an answer to the next.
    pub idle_timeout: Duration,
}

/// The proxy's hand on a wrapped session. Cheap to clone.
#[derive(Clone)]
pub struct Control(Arc<Mutex<State>>);

struct State {
    settings: Settings,
    body: Option<Body>,
    hold: bool,
    replacement: Option<Box<ResponseHeader>>,
    head_sent: bool,
    client_gone: bool,
    ejected: Option<ServerSession>,
}

/// Puts the adapter in the place of the session's downstream. The request body must have been read to its end.
///
/// Keep-alive, the write timeout and the like are set before: Pingora ignores them on a wrapped session.
pub fn wrap(session: &mut Session, body: Body, settings: Settings) -> Control {
    let body_empty = body.is_empty();
    let control = Control(Arc::new(Mutex::new(State {
        settings,
        body: Some(body),
        hold: false,
        replacement: None,
        head_sent: false,
        client_gone: false,
        ejected: None,
    })));
    let deadline = Instant::now() + settings.first_byte_timeout;
    let inner = mem::replace(&mut *session.downstream_session, nobody());
    let adapter = Adapter {
        inner,
        control: control.clone(),
        body_empty,
        answer: Answer::Awaited,
        deadline,
        timer: Box::pin(tokio::time::sleep_until(deadline)),
        overread: false,
    };
    *session.downstream_session = ServerSession::new_custom(Box::new(adapter));
    control
}

impl Control {
    /// Puts the client's own session back. Does nothing the second time.
    ///
    /// Called in `logging`, so that the connection can be kept alive, and first thing in `fail_to_proxy`, so that an
    /// answer is written to the client's own session.
    pub fn unwrap(&self, session: &mut Session) {
        let Some(adapter) = session.downstream_session.as_custom_mut() else { return };
        // The trait has no way back to its implementor; this hook is one that the engine calls only for sessions that
        // have a message writer, and the adapter says that it has none.
        drop(adapter.take_custom_message_reader());
        let ejected = self.state().ejected.take();
        if let Some(original) = ejected {
            *session.downstream_session = original;
        }
    }

    /// How long the provider of the next attempt may be silent.
    pub fn set_silence(&self, settings: Settings) {
        self.state().settings = settings;
    }

    /// Frees the request body and its share of the budget. After that no attempt can be made: the answer has begun.
    pub fn release_body(&self) {
        let body = self.state().body.take();
        drop(body);
    }

    /// Whether another attempt would have a body to send.
    pub fn can_replay(&self) -> bool {
        let state = self.state();
        state.body.is_some() && !state.head_sent
    }

    /// From now on the head of the final answer waits for the first body bytes that the filters let through, or for
    /// the end. Stays on for later attempts.
    pub fn hold_head(&self) {
        self.state().hold = true;
    }

    /// Sends this head in the place of the provider's. False when a head has gone to the client already.
    pub fn replace_head(&self, head: ResponseHeader) -> bool {
        let mut state = self.state();
        if state.head_sent {
            return false;
        }
        state.replacement = Some(Box::new(head));
        true
    }

    /// Whether the head of a final answer has gone to the client; an informational one does not count.
    pub fn head_sent(&self) -> bool {
        self.state().head_sent
    }

    /// Whether the client was seen to leave: its connection closed, or took no more bytes.
    pub fn client_gone(&self) -> bool {
        self.state().client_gone
    }

    /// The lock guards a few words and is never held across an await; a panic cannot leave them half written.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
}

struct Adapter {
    inner: ServerSession,
    control: Control,
    /// As the client sent it: stays false when a body was released.
    body_empty: bool,
    answer: Answer,
    /// When the provider's silence becomes an error.
    deadline: Instant,
    /// Wakes at or before the deadline; it is set anew only when it fires, not at every piece of an answer.
    timer: Pin<Box<Sleep>>,
    /// The client sent more after its request: the connection can neither be watched nor used again.
    overread: bool,
}

impl Adapter {
    /// Decides what goes to the client now. The head waits while it is held.
    fn arrange(&mut self, tasks: Vec<HttpTask>) -> Result<Vec<HttpTask>> {
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
                HttpTask::Failed(error) if !matches!(self.answer, Answer::Passed) => return Err(error),
                other @ (HttpTask::Done
                | HttpTask::Trailer(_)
                | HttpTask::Failed(_)
                | HttpTask::UpgradedBody(..)) => ready.push(other),
            }
        }
        Ok(ready)
    }

    /// The held head, if there is one, as a task that goes before what released it.
    fn release(&mut self) -> Option<HttpTask> {
        match mem::replace(&mut self.answer, Answer::Awaited) {
            Answer::Held(head) => Some(self.pass(head, false)),
            before @ (Answer::Awaited | Answer::Passed) => {
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
            Answer::Held(_) | Answer::Passed => {
                Error::explain(IDLE_TIMEOUT, "the provider stopped in the middle of its answer")
            }
        }
    }

    /// Waits for the client to leave or for the provider to have been silent for too long; never ends otherwise.
    async fn watch(&mut self) -> Box<Error> {
        loop {
            tokio::select! {
                biased;
                read = self.inner.read_body_or_idle(true), if !self.overread => match read {
                    // More bytes where none belong: a next request sent early. This one is still served.
                    Ok(_) => self.stop_watching(),
                    Err(e) if *e.etype() == ErrorType::ConnectError => self.stop_watching(),
                    Err(e) => return self.gone(e),
                },
                () = self.timer.as_mut() => {
                    if self.deadline <= Instant::now() {
                        return self.silence();
                    }
                    self.timer.as_mut().reset(self.deadline);
                }
            }
        }
    }

    fn stop_watching(&mut self) {
        self.overread = true;
        self.inner.set_keepalive(None);
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
        self.deadline = Instant::now() + self.control.state().settings.first_byte_timeout;
        self.timer.as_mut().reset(self.deadline);
        self.control.state().replacement = None;
        if !matches!(self.answer, Answer::Passed) {
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
        let ready = self.arrange(tasks)?;
        let done = if ready.is_empty() {
            false
        } else {
            match self.inner.response_duplex_vec(ready).await {
                Ok(done) => done,
                Err(e) if *e.esource() == ErrorSource::Upstream => return Err(e),
                Err(e) => return Err(self.gone(e)),
            }
        };
        // A head that informs only is no answer: the provider can hold a request open with those for ever.
        if !matches!(self.answer, Answer::Awaited) {
            self.deadline = Instant::now() + self.control.state().settings.idle_timeout;
            if self.deadline < self.timer.deadline() {
                self.timer.as_mut().reset(self.deadline);
            }
        }
        Ok(done)
    }

    async fn finish(&mut self) -> Result<()> {
        match self.answer {
            Answer::Held(_) => Err(unseen_end("no end")),
            Answer::Awaited | Answer::Passed => self.inner.finish_body().await,
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
