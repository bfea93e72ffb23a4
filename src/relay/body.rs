//! The request body: read whole, bounded in bytes, time and in what all requests hold together.
//!
//! Promises: a body too large is refused before it is read where its length is told; a slow sender is refused; every
//! byte held is charged to one budget and given back with the body; an early answer is left readable.
//! Refuses to know: what is in a body, and whose it is.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, EXPECT};
use pingora::ErrorType;
use pingora::http::RequestHeader;
use pingora::proxy::Session;
use tokio::time::{Instant, timeout_at};

use crate::refusal::{Kind, Limit, Refused};

/// What a body may cost.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The largest body, in bytes.
    pub max_bytes: usize,
    /// For the whole body, from the first read.
    pub deadline: Duration,
    /// Once the grace is over, the average since then may not fall below this; 0 sets no minimum.
    pub min_bytes_per_s: u64,
    /// How long a sender may take to get going.
    pub grace: Duration,
}

/// How long an early answer is kept readable; see [`linger`].
#[derive(Clone, Copy, Debug)]
pub struct Linger {
    /// At most this many bytes of the unread body are thrown away.
    pub max_bytes: u64,
    /// For at most this long.
    pub max_time: Duration,
    /// And until the client has been silent for this long.
    pub max_idle: Duration,
}

impl Default for Linger {
    fn default() -> Self {
        Linger { max_bytes: 64 << 20, max_time: Duration::from_secs(10), max_idle: Duration::from_secs(2) }
    }
}

/// Why there is no body.
#[derive(Debug)]
pub enum Unread {
    /// The client is to be told; see [`linger`] for what follows the answer.
    Refused(Refused),
    /// The client left in the middle of its body: nobody is there to be told.
    ClientGone,
}

impl From<Refused> for Unread {
    fn from(refused: Refused) -> Self {
        Unread::Refused(refused)
    }
}

/// The bytes that all requests together may hold. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    max_bytes: AtomicUsize,
    used_bytes: AtomicUsize,
}

impl Budget {
    /// A budget of this many bytes.
    pub fn new(max_bytes: usize) -> Self {
        Budget(Arc::new(Pool { max_bytes: AtomicUsize::new(max_bytes), used_bytes: AtomicUsize::new(0) }))
    }

    /// From now on it is this many bytes, for every clone. What is held above that stays until it is given back.
    pub fn set_max_bytes(&self, max_bytes: usize) {
        self.0.max_bytes.store(max_bytes, Ordering::Relaxed);
    }

    /// All of it.
    pub fn max_bytes(&self) -> usize {
        self.0.max_bytes.load(Ordering::Relaxed)
    }

    /// Bytes held now, for the metric.
    pub fn used_bytes(&self) -> usize {
        self.0.used_bytes.load(Ordering::Relaxed)
    }

    /// Whether this many bytes would fit now. Takes nothing.
    fn fits(&self, bytes: usize) -> bool {
        self.used_bytes().saturating_add(bytes) <= self.max_bytes()
    }

    fn charge(&self) -> Charge {
        Charge { budget: self.clone(), bytes: 0 }
    }
}

/// What one body has taken from the budget; gives it back when dropped.
#[derive(Debug)]
struct Charge {
    budget: Budget,
    bytes: usize,
}

impl Charge {
    fn take(&mut self, bytes: usize) -> Result<(), Refused> {
        let pool = &self.budget.0;
        let max_bytes = self.budget.max_bytes();
        let taken = pool.used_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(bytes).filter(|total| *total <= max_bytes)
        });
        match taken {
            Ok(_) => {
                self.bytes += bytes;
                Ok(())
            }
            Err(used) => Err(no_room(used)),
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.0.used_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A whole request body. Its bytes are charged to the budget until its last clone is dropped; a clone of the bytes alone is not.
#[derive(Clone, Debug)]
pub struct Body {
    bytes: Bytes,
    _charge: Arc<Charge>,
}

impl Deref for Body {
    type Target = Bytes;

    fn deref(&self) -> &Bytes {
        &self.bytes
    }
}

/// Reads the whole body of a request.
///
/// # Errors
///
/// `UnsupportedMediaType` for an encoded body, `RequestTooLarge`, `NoCapacity` when the budget is used up,
/// `RequestTimeout`, `InvalidValue` for broken framing; or [`Unread::ClientGone`].
pub async fn read_body(session: &mut Session, settings: &Settings, budget: &Budget) -> Result<Body, Unread> {
    let declared = declared(session.req_header(), settings, budget)?;
    if session.is_body_empty() {
        return Ok(Body { bytes: Bytes::new(), _charge: Arc::new(budget.charge()) });
    }
    invite(session).await?;
    let start = Instant::now();
    let mut charge = budget.charge();
    let mut whole = BytesMut::new();
    loop {
        let wait_until = patience(start, whole.len(), settings);
        let Some(piece) = next_piece(session, wait_until).await? else { break };
        if whole.len() + piece.len() > settings.max_bytes {
            return Err(too_large(settings.max_bytes).into());
        }
        charge.take(piece.len())?;
        if whole.is_empty() && session.is_body_done() {
            // The common case: the body came in one piece, and is not copied again.
            return Ok(Body { bytes: piece, _charge: Arc::new(charge) });
        }
        if whole.capacity() - whole.len() < piece.len() {
            // Room for a told length is made only once it has begun to come, and is given back with the body.
            whole.reserve(declared.saturating_sub(whole.len()).max(piece.len()));
        }
        whole.extend_from_slice(&piece);
        if session.is_body_done() {
            break;
        }
    }
    Ok(Body { bytes: whole.freeze(), _charge: Arc::new(charge) })
}

/// Lets the client read an answer that was given before its body was read.
///
/// A connection closed with unread bytes in it is reset, and a reset takes the answer away from a client that is
/// still sending. So: say that nothing more will come, and throw away what still arrives, within bounds. Called once
/// the answer is written to its end, on an unwrapped session, before `request_filter` or `fail_to_proxy` returns;
/// does nothing when the body has been read. HTTP/2 needs none of it: the stream is reset with `NO_ERROR`.
pub async fn linger(session: &mut Session, limits: &Linger) {
    if session.as_http1().is_none() || session.is_body_done() {
        return;
    }
    session.set_keepalive(None);
    session.downstream_session.shutdown().await;
    let until = Instant::now() + limits.max_time;
    let mut left = limits.max_bytes;
    loop {
        let wait_until = until.min(Instant::now() + limits.max_idle);
        // Every other outcome ends it: the end of the body, a client that left, broken framing, no more patience.
        let Ok(Ok(Some(piece))) = timeout_at(wait_until, session.read_request_body()).await else { return };
        left = left.saturating_sub(u64::try_from(piece.len()).unwrap_or(u64::MAX));
        if left == 0 || session.is_body_done() {
            return;
        }
    }
}

/// The told length, or 0 where none is; refused here if it cannot be taken.
fn declared(head: &RequestHeader, settings: &Settings, budget: &Budget) -> Result<usize, Refused> {
    let encoded = head.headers.get_all(CONTENT_ENCODING).iter();
    if encoded.into_iter().any(|value| !value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity")) {
        return Err(Refused::new(
            Kind::UnsupportedMediaType,
            "Request bodies must not be compressed: send the JSON as it is, without Content-Encoding.",
        ));
    }
    let Some(value) = head.headers.get(CONTENT_LENGTH) else { return Ok(0) };
    // Pingora has made sure that it is a number, and the same one wherever it is repeated.
    let first = value.as_bytes().split(|byte| *byte == b',').next().unwrap_or_default().trim_ascii();
    let length = std::str::from_utf8(first).ok().and_then(|digits| digits.parse::<usize>().ok());
    let length = length.unwrap_or(usize::MAX);
    if length > settings.max_bytes {
        return Err(too_large(settings.max_bytes));
    }
    if !budget.fits(length) {
        return Err(no_room(budget.used_bytes()));
    }
    Ok(length)
}

/// Answers `Expect: 100-continue`.
async fn invite(session: &mut Session) -> Result<(), Unread> {
    let expects = session
        .get_header(EXPECT)
        .is_some_and(|value| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"100-continue"));
    if !expects {
        return Ok(());
    }
    // Pingora turns keep-alive off with any head that goes out before the body is in, this one among them.
    let keepalive = session.get_keepalive();
    session.write_continue_response().await.map_err(|_| Unread::ClientGone)?;
    if keepalive.is_some() {
        session.set_keepalive(keepalive);
    }
    Ok(())
}

/// The instant by which more bytes must have come: the deadline, or the one at which the average falls too low.
fn patience(start: Instant, received_bytes: usize, settings: &Settings) -> Instant {
    let deadline = start + settings.deadline;
    if settings.min_bytes_per_s == 0 {
        return deadline;
    }
    let received = u64::try_from(received_bytes).unwrap_or(u64::MAX);
    let earned = Duration::from_millis(received.saturating_mul(1000) / settings.min_bytes_per_s);
    deadline.min(start + settings.grace.saturating_add(earned))
}

async fn next_piece(session: &mut Session, wait_until: Instant) -> Result<Option<Bytes>, Unread> {
    match timeout_at(wait_until, session.read_request_body()).await {
        Ok(Ok(piece)) => Ok(piece),
        Ok(Err(e)) if *e.etype() == ErrorType::ReadTimedout => Err(too_slow().into()),
        Ok(Err(e)) if matches!(e.etype(), ErrorType::ReadError | ErrorType::ConnectionClosed) => {
            Err(Unread::ClientGone)
        }
        Ok(Err(e)) => {
            Err(Refused::new(Kind::InvalidValue, "The request body is not framed as HTTP requires.")
                .internal(e.etype().as_str())
                .into())
        }
        Err(_) => Err(too_slow().into()),
    }
}

fn too_large(max_bytes: usize) -> Refused {
    Refused::new(
        Kind::RequestTooLarge,
        format!("The request body is larger than {max_bytes} bytes, the most that is accepted."),
    )
}

fn too_slow() -> Refused {
    Refused::new(Kind::RequestTimeout, "The request body did not arrive in time; send it again.")
}

fn no_room(used_bytes: usize) -> Refused {
    Refused::new(Kind::NoCapacity, "The gateway holds as many request bodies as it can; try again shortly.")
        .retry_after(Duration::from_secs(1))
        .limit(Limit::BufferedBytes)
        .internal(format!("request body budget used up: {used_bytes} bytes held"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            max_bytes: 1000,
            deadline: Duration::from_secs(60),
            min_bytes_per_s: 100,
            grace: Duration::from_secs(5),
        }
    }

    #[test]
    fn what_a_body_takes_comes_back_when_it_is_dropped() {
        let budget = Budget::new(10);
        let mut first = budget.charge();
        first.take(6).unwrap();
        let mut second = budget.charge();
        assert_eq!(second.take(5).unwrap_err().kind, Kind::NoCapacity);
        second.take(4).unwrap();
        assert_eq!(budget.used_bytes(), 10);
        drop(first);
        drop(second);
        assert_eq!(budget.used_bytes(), 0);
    }

    #[tokio::test]
    async fn patience_grows_with_what_arrived_up_to_the_deadline() {
        let start = Instant::now();
        assert_eq!(patience(start, 0, &settings()), start + Duration::from_secs(5));
        assert_eq!(patience(start, 300, &settings()), start + Duration::from_secs(8));
        assert_eq!(patience(start, usize::MAX, &settings()), start + Duration::from_secs(60));
        assert_eq!(
            patience(start, 0, &Settings { min_bytes_per_s: 0, ..settings() }),
            start + Duration::from_secs(60)
        );
    }

    #[test]
    fn a_told_length_is_refused_before_it_is_read() {
        let refused = |name: &'static str, value: &str, budget: usize| {
            let mut head = RequestHeader::build("POST", b"/", None).unwrap();
            head.insert_header(name, value).unwrap();
            declared(&head, &settings(), &Budget::new(budget)).map_err(|refused| refused.kind)
        };
        assert_eq!(refused("content-length", "1000", 1000), Ok(1000));
        assert_eq!(refused("content-length", "7, 7", 1000), Ok(7));
        assert_eq!(refused("content-length", "1001", 2000), Err(Kind::RequestTooLarge));
        assert_eq!(refused("content-length", "99999999999999999999999", 2000), Err(Kind::RequestTooLarge));
        assert_eq!(refused("content-length", "1000", 999), Err(Kind::NoCapacity));
        assert_eq!(refused("content-encoding", "gzip", 1000), Err(Kind::UnsupportedMediaType));
        assert_eq!(refused("content-encoding", "identity", 1000), Ok(0));
    }
}
