//! What the engine asks of a session: a little is answered by the adapter, the rest by the client's own session.

use super::{Adapter, Answer, CREDIT_EXHAUSTED, is_end, nobody, unseen_end};
use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderMap;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::protocols::http::HttpTask;
use pingora::protocols::http::custom::CustomMessageWrite;
use pingora::protocols::http::custom::server::Session as CustomSession;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::{Error, ErrorType, Result};
use std::mem;
use std::time::Duration;
use tokio::time::Instant;

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
        self.set_timer();
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
        let (before_end, credit) = {
            let mut state = self.control.state();
            (state.before_end.take(), state.credit.take())
        };
        if let Some(wait) = before_end {
            wait.await;
        }
        let done = self.hand_on(ready).await?;
        if let Some(wait) = credit
            && !matches!(self.answer, Answer::Ended)
            && !wait.await
        {
            return Error::e_explain(CREDIT_EXHAUSTED, "no credit covers more of the answer");
        }
        if matches!(self.answer, Answer::Ended) {
            // The engine goes on until the provider's side has ended, too, so that its connection can be used again.
            return Ok(is_last);
        }
        // A head that informs only is no answer: the provider can hold a request open with those for ever.
        if !matches!(self.answer, Answer::Awaited) {
            self.deadline = Instant::now() + self.control.state().settings.idle_timeout;
            if self.wake_at() < self.timer.deadline() {
                self.set_timer();
            }
        }
        Ok(done)
    }

    async fn finish(&mut self) -> Result<()> {
        match self.answer {
            Answer::Held(_) => Err(unseen_end("no end")),
            Answer::Awaited | Answer::Passed | Answer::Ended if self.draining.is_some() => Ok(()),
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
