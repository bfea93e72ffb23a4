//! Connections to providers that speak plain HTTP/1.1, on which the head of a request waits for its body.
//!
//! Promises: both go out in one packet, with one system call; a head whose body does not follow at once goes out alone; nothing waits
//! for time to pass. Refuses to know: what the bytes mean, and when a connection is kept.
//!
//! Pingora's client flushes a head before it has the body: two packets, and a server that wakes for a head that it can do nothing with.
//! A connector for protocols that Pingora does not know may answer with any stream, on which it then speaks HTTP/1.1, and which it
//! keeps as it keeps its own: that door is used here.

use async_trait::async_trait;
use pingora::Result;
use pingora::connectors::http::custom;
use pingora::connectors::{ConnectorOptions, TransportConnector};
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::CustomALPN;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream,
    TimingDigest, UniqueID, UniqueIDType,
};
use pingora::upstreams::peer::Peer;
use std::fmt::{self, Debug};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Connects to providers without TLS.
pub struct JoiningConnector(TransportConnector);

/// A connection to a provider.
struct Joined {
    inner: Stream,
    part: Part,
    /// A head that is held back.
    held: Vec<u8>,
    /// How much of `held` has gone.
    gone: usize,
    /// How often an answer was looked for while a head was held.
    looks: u8,
    /// What was written and not flushed is more than nothing.
    is_unflushed: bool,
}

/// What was written last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Nothing of the exchange to come: a head is next.
    Nothing,
    /// A head.
    Head,
    /// Some of a body.
    Body,
}

/// A head above this size is not held.
const HELD_MAX_BYTES: usize = 16 << 10;
/// So often the head's own task runs before the head goes out without its body. Pingora hands a body that is there from the task's one
/// half to the other between two runs, and looks for an answer in each.
const LOOKS_MAX: u8 = 3;

/// The protocol of peers that [`JoiningConnector`] connects to. It is never spoken: without TLS there is nobody to offer it to.
pub(super) fn protocol() -> ALPN {
    ALPN::Custom(CustomALPN::new(b"weir-joined".to_vec()))
}

impl JoiningConnector {
    /// Connects as Pingora's own connector with these options would.
    pub fn new(options: ConnectorOptions) -> Self {
        JoiningConnector(TransportConnector::new(Some(options)))
    }
}

#[async_trait]
impl custom::Connector for JoiningConnector {
    /// None: on each stream HTTP/1.1 is spoken.
    type Session = ();

    async fn get_http_session<P: Peer + Send + Sync + 'static>(
        &self,
        peer: &P,
    ) -> Result<(custom::Connection<()>, bool)> {
        let joined = Joined::new(self.0.new_stream(peer).await?);
        Ok((custom::Connection::Stream(Box::new(joined)), false))
    }

    async fn reused_http_session<P: Peer + Send + Sync + 'static>(&self, _peer: &P) -> Option<()> {
        None
    }

    async fn release_http_session<P: Peer + Send + Sync + 'static>(
        &self,
        (): (),
        _peer: &P,
        _idle_timeout: Option<Duration>,
    ) {
    }
}

impl Joined {
    fn new(inner: Stream) -> Self {
        Joined { inner, part: Part::Nothing, held: Vec::new(), gone: 0, looks: 0, is_unflushed: false }
    }

    /// Writes what is held, and then what it can of this; tells how much of this has gone.
    fn poll_write_on(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.is_unflushed = true;
        while let Some(held) = self.held.get(self.gone..).filter(|held| !held.is_empty()) {
            let both = [IoSlice::new(held), IoSlice::new(bytes)];
            let written = ready!(Pin::new(&mut self.inner).poll_write_vectored(cx, &both))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_bytes = written.saturating_sub(held.len());
            self.gone += written - of_bytes;
            if of_bytes > 0 {
                self.release();
                return Poll::Ready(Ok(of_bytes));
            }
        }
        self.release();
        if bytes.is_empty() { Poll::Ready(Ok(0)) } else { Pin::new(&mut self.inner).poll_write(cx, bytes) }
    }

    fn poll_flush_on(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.inner).poll_flush(cx))?;
        self.is_unflushed = false;
        Poll::Ready(Ok(()))
    }

    /// Nothing is held any more.
    fn release(&mut self) {
        self.held.clear();
        self.gone = 0;
        self.looks = 0;
    }
}

impl AsyncWrite for Joined {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.part == Part::Nothing && bytes.len() <= HELD_MAX_BYTES {
            this.part = Part::Head;
            this.held.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = ready!(this.poll_write_on(cx, bytes))?;
        this.part = Part::Body;
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // What is held waits for more, or for a look at the answer.
        if this.held.is_empty() { this.poll_flush_on(cx) } else { Poll::Ready(Ok(())) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_write_on(cx, &[]))?;
        Pin::new(&mut this.inner).poll_shutdown(cx)
    }
}

impl AsyncRead for Joined {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.held.is_empty() {
            if this.looks < LOOKS_MAX {
                this.looks += 1;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            ready!(this.poll_write_on(cx, &[]))?;
        }
        if this.is_unflushed {
            ready!(this.poll_flush_on(cx))?;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        // An answer to a head whose body is still to come leaves that a body.
        if buf.filled().len() > before && this.part == Part::Body {
            this.part = Part::Nothing;
        }
        Poll::Ready(Ok(()))
    }
}

/// Without what is held: the provider's key is in it.
impl Debug for Joined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Joined").field("inner", &self.inner).field("part", &self.part).finish_non_exhaustive()
    }
}

#[async_trait]
impl Shutdown for Joined {
    async fn shutdown(&mut self) {
        // Whoever gives a connection up does not ask whether that succeeds.
        let _ = tokio::io::AsyncWriteExt::shutdown(self).await;
    }
}

#[async_trait]
impl Peek for Joined {
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        self.inner.try_peek(buf).await
    }
}

impl UniqueID for Joined {
    fn id(&self) -> UniqueIDType {
        self.inner.id()
    }
}

impl Ssl for Joined {}

impl GetTimingDigest for Joined {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.inner.get_timing_digest()
    }

    fn get_read_pending_time(&self) -> Duration {
        self.inner.get_read_pending_time()
    }

    fn get_write_pending_time(&self) -> Duration {
        self.inner.get_write_pending_time()
    }
}

impl GetProxyDigest for Joined {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.inner.get_proxy_digest()
    }
}

impl GetSocketDigest for Joined {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.inner.get_socket_digest()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixStream;

    const HEAD: &[u8] = b"POST / HTTP/1.1\r\ncontent-length: 4\r\n\r\n";

    fn pair() -> (Joined, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        (Joined::new(Box::new(near)), far)
    }

    /// As Pingora's client sends each part.
    async fn send(joined: &mut Joined, part: &[u8]) {
        joined.write_all(part).await.unwrap();
        joined.flush().await.unwrap();
    }

    /// What has arrived, asked of the system itself.
    fn arrived(far: &mut std::os::unix::net::UnixStream) -> Vec<u8> {
        let mut buf = [0; 1024];
        match io::Read::read(far, &mut buf) {
            Ok(length) => buf[..length].to_vec(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Vec::new(),
            Err(error) => panic!("{error}"),
        }
    }

    #[tokio::test]
    async fn a_head_goes_out_with_its_body_in_one_piece_in_every_exchange() {
        let (mut joined, far) = pair();
        let mut far = far.into_std().unwrap();
        for _ in 0..3 {
            send(&mut joined, HEAD).await;
            assert_eq!(arrived(&mut far), b"");
            send(&mut joined, b"body").await;
            assert_eq!(arrived(&mut far), [HEAD, b"body"].concat());
            io::Write::write_all(&mut far, b"answer").unwrap();
            let mut answer = [0; 6];
            joined.read_exact(&mut answer).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_head_without_a_body_goes_out_when_its_answer_is_awaited() {
        let (mut joined, mut far) = pair();
        send(&mut joined, HEAD).await;
        let mut answer = [0; 6];
        let (read, answered) = tokio::join!(joined.read_exact(&mut answer), async {
            let mut head = vec![0; HEAD.len()];
            far.read_exact(&mut head).await.unwrap();
            far.write_all(b"answer").await.unwrap();
            head
        });
        read.unwrap();
        assert_eq!(answered, HEAD);
    }

    #[tokio::test]
    async fn a_body_that_the_socket_cannot_take_at_once_arrives_whole() {
        let (mut joined, mut far) = pair();
        let body: Vec<u8> = (0..1_000_000_u32).map(|at| (at % 251) as u8).collect();
        let (sent, received) = tokio::join!(
            async {
                send(&mut joined, HEAD).await;
                for piece in body.chunks(70_000) {
                    send(&mut joined, piece).await;
                }
                tokio::io::AsyncWriteExt::shutdown(&mut joined).await
            },
            async {
                let mut received = Vec::new();
                far.read_to_end(&mut received).await.unwrap();
                received
            }
        );
        sent.unwrap();
        assert!(received == [HEAD, &body].concat());
    }

    #[tokio::test]
    async fn what_is_held_goes_out_before_the_connection_is_closed() {
        let (mut joined, far) = pair();
        send(&mut joined, HEAD).await;
        Shutdown::shutdown(&mut joined).await;
        assert_eq!(arrived(&mut far.into_std().unwrap()), HEAD);
    }
}
