//! The proxy's hand on a session that is in disguise: what the stages of a request tell the adapter, and learn from it.

use super::body::Body;
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::proxy::Session;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a provider may be silent.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// From the request head being sent to the head of the final answer; counted anew for each attempt.
    pub first_byte_timeout: Duration,
    /// From one piece of an answer to the next.
    pub idle_timeout: Duration,
    /// From the request to the end of its answer, however much comes.
    pub answer_max: Duration,
}

/// The proxy's hand on a wrapped session. Cheap to clone.
#[derive(Clone)]
pub struct Control(Arc<Mutex<State>>);

pub(super) struct State {
    pub(super) settings: Settings,
    pub(super) body: Option<Body>,
    pub(super) hold: bool,
    pub(super) replacement: Option<Box<ResponseHeader>>,
    pub(super) head_sent: bool,
    pub(super) client_gone: bool,
    pub(super) ended: bool,
    pub(super) before_end: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
    pub(super) ejected: Option<ServerSession>,
}

impl Control {
    pub(super) fn new(body: Body, settings: Settings) -> Self {
        Control(Arc::new(Mutex::new(State {
            settings,
            body: Some(body),
            hold: false,
            replacement: None,
            head_sent: false,
            client_gone: false,
            ended: false,
            before_end: None,
            ejected: None,
        })))
    }

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

    /// The bytes that the filters let through now are the answer's last: the client's answer ends with them, whatever the provider
    /// still sends, and the provider is waited for no longer than a moment.
    pub fn end(&self) {
        self.state().ended = true;
    }

    /// What the filters let through next does not go to the client before this has ended.
    pub fn wait_before_end(&self, wait: Pin<Box<dyn Future<Output = ()> + Send + Sync>>) {
        self.state().before_end = Some(wait);
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
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
