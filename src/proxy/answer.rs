//! Answers that the gateway gives itself.

use super::trace::Trace;
use crate::openai;
use crate::refusal::Refused;
use crate::relay::headers::{json_answer, value};
use crate::relay::{self, Linger};
use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, RETRY_AFTER};
use http::response::Parts;
use http::{HeaderMap, HeaderValue};
use pingora::Result;
use pingora::proxy::Session;
use std::time::Duration;

/// The longest wait that the official Python SDK obeys; above it, it gives up (openai-python 3.54, `_base_client.py`).
const RETRY_AFTER_MAX: Duration = Duration::from_secs(120);

/// Sends a JSON success.
pub(super) async fn send_json(session: &mut Session, trace: &mut Trace, body: Vec<u8>) -> Result<()> {
    let mut head = json_answer(200, body.len())?;
    trace.decorate(&mut head)?;
    trace.answered(200);
    write(session, head, body).await
}

/// Sends a refusal of the request itself. Where its body was not read, the connection is closed behind the answer, slowly
/// enough for the client to read it.
pub(super) async fn refuse(
    session: &mut Session,
    trace: &mut Trace,
    refused: &Refused,
    limits: &Linger,
) -> Result<()> {
    trace.refused(refused);
    let is_unread = trace.is_body_unread();
    if is_unread {
        session.set_keepalive(None);
    }
    write_refusal(session, trace, refused).await?;
    if is_unread {
        relay::linger(session, limits).await;
    }
    Ok(())
}

/// Writes a refusal to a client that has no answer yet.
pub(super) async fn write_refusal(session: &mut Session, trace: &mut Trace, refused: &Refused) -> Result<()> {
    let body = openai::error_body(refused);
    let status = refused.kind.wire().status;
    let mut head = json_answer(status, body.len())?;
    advise(&mut head.headers, refused)?;
    trace.decorate(&mut head)?;
    if trace.is_body_unread() {
        head.headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    trace.answered(status);
    write(session, head, body).await
}

/// The headers that tell a client whether and when to try again.
pub(super) fn advise(headers: &mut HeaderMap, refused: &Refused) -> Result<()> {
    if let Some(should_retry) = refused.kind.wire().should_retry {
        headers
            .insert("x-should-retry", HeaderValue::from_static(if should_retry { "true" } else { "false" }));
    }
    if let Some(request) = refused.original {
        headers.insert("x-weir-original-request-id", value(request.to_string())?);
    }
    if refused.kind == crate::refusal::Kind::MethodNotAllowed {
        let allowed = if refused.public.contains("GET") { "GET" } else { "POST" };
        headers.insert(ALLOW, HeaderValue::from_static(allowed));
    }
    if let Some(wait) = refused.retry_after {
        // Never 0: one of the official SDKs would come back at once, for ever.
        let wait = wait.clamp(Duration::from_millis(50), RETRY_AFTER_MAX);
        headers.insert("retry-after-ms", value(wait.as_millis().to_string())?);
        headers.insert(RETRY_AFTER, value(wait.as_millis().div_ceil(1_000).max(1).to_string())?);
    }
    Ok(())
}

async fn write(session: &mut Session, head: Parts, body: Vec<u8>) -> Result<()> {
    session.write_response_header(Box::new(head.into()), false).await?;
    session.write_response_body(Some(Bytes::from(body)), true).await
}
