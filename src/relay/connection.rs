//! A client's connection, as Pingora sees it: a socket with a small write buffer, and a watch on how long a request head takes.
//!
//! Promises: what is written goes out with the next flush, in one system call where it can; a head that is not whole in time, or too
//! large, ends the connection; the address is that of the client, whoever stands in between.
//! Refuses to know: what the bytes mean, and whether TLS lies above.
//!
//! Pingora's own stream keeps a read buffer of 64 KiB for each connection and gives a client 60 seconds for every single read of a first
//! head, and no end on a connection that is used again.

use async_trait::async_trait;
use pingora::Result;
use pingora::http::ResponseHeader;
use pingora::protocols::l4::socket::SocketAddr as PeerAddress;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest,
    UniqueID, UniqueIDType,
};
use pingora::proxy::Session;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Sleep, sleep};

/// The bytes of a connection.
#[derive(Debug)]
pub enum Socket {
    /// Over the network.
    Tcp(TcpStream),
    /// On this machine.
    Unix(UnixStream),
}

/// What a client may take of a connection.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// For a request's head, from its first byte, or from the accept, to its last.
    pub head_timeout: Duration,
    /// For a head, in bytes. Heads that are parsed are held to [`super::head::MAX_HEAD_BYTES`]; this ends one that never ends.
    pub head_max_bytes: usize,
    /// Until it takes any of what is written to it.
    pub write_timeout: Duration,
}

/// A client's connection.
#[derive(Debug)]
pub struct Connection {
    socket: Socket,
    /// Bytes that were read before anybody asked for them.
    ahead: Vec<u8>,
    unwritten: Vec<u8>,
    /// How much of `unwritten` has gone.
    gone: usize,
    digest: Arc<SocketDigest>,
    phase: Arc<Phase>,
    /// Carries the phase to the requests of the connection: the one place in Pingora's sessions for a word of ours.
    told: Arc<ProxyDigest>,
    limits: ConnectionLimits,
    head_bytes: usize,
    head_deadline: Option<Pin<Box<Sleep>>>,
    write_deadline: Option<Pin<Box<Sleep>>>,
}

/// A connection whose handshake is under way: it has a deadline of its own.
#[derive(Debug)]
pub struct Secured(Arc<Phase>);

/// What a connection is doing, as far as its head is concerned. Told by the requests on it.
#[derive(Debug, Default)]
struct Phase(AtomicU8);

/// A head is awaited or being read.
const HEAD: u8 = 0;
/// A request is under way; its body has limits of its own.
const REQUEST: u8 = 1;
/// Nothing has come since the last answer; the keep-alive timeout ends it.
const IDLE: u8 = 2;
/// HTTP/2, or TLS above: heads are frames among others.
const FRAMES: u8 = 3;

/// So much is gathered before it is written; a larger piece is written as it is.
const GATHERED_MAX_BYTES: usize = 16 << 10;
/// So much of the write buffer stays with an idle connection.
const KEPT_BYTES: usize = 2 << 10;
/// So much is read at once before the version of HTTP is known: most heads whole.
const FIRST_READ_BYTES: usize = 4 << 10;
/// What a client of HTTP/2 sends first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A head has come: its connection is no longer held to the limits of heads.
pub fn head_read(session: &Session) {
    // Over TLS it is known only now that HTTP/2 is really spoken.
    let phase = if session.as_http2().is_some() { FRAMES } else { REQUEST };
    set_phase(session, HEAD, phase);
    set_phase(session, IDLE, phase);
}

/// A request is over: the next bytes on its connection are a head.
pub fn await_head(session: &Session) {
    set_phase(session, REQUEST, IDLE);
}

impl Connection {
    /// Takes a socket that was accepted from this address, and of which these bytes have been read; a head is awaited on it at once. Call
    /// where the socket's runtime is.
    pub fn new(
        socket: Socket,
        peer: Option<SocketAddr>,
        ahead: Vec<u8>,
        limits: ConnectionLimits,
    ) -> Result<Self> {
        let digest = SocketDigest::from_raw_fd(socket.as_fd().as_raw_fd());
        // The cell is new: nothing can be in it.
        let _ = digest.peer_addr.set(peer.map(PeerAddress::Inet));
        let phase = Arc::<Phase>::default();
        let no_answer = ResponseHeader::build(200, None)?;
        let told = ProxyDigest::new(Box::new(no_answer), Some(Box::new(Arc::clone(&phase))));
        Ok(Connection {
            socket,
            ahead,
            unwritten: Vec::new(),
            gone: 0,
            digest: Arc::new(digest),
            phase,
            told: Arc::new(told),
            limits,
            head_bytes: 0,
            head_deadline: None,
            write_deadline: None,
        })
    }

    /// The switch that tells the connection what kind of bytes passes when TLS lies above it.
    pub fn secured(&self) -> Secured {
        self.phase.0.store(FRAMES, Ordering::Relaxed);
        Secured(Arc::clone(&self.phase))
    }

    /// Writes what is gathered.
    fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.gone < self.unwritten.len() {
            let attempt = self.socket.poll_write(context, &self.unwritten[self.gone..]);
            let written = ready!(self.poll_in_time(context, attempt))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.gone += written;
        }
        self.gone = 0;
        self.unwritten.clear();
        if self.unwritten.capacity() > KEPT_BYTES {
            self.unwritten = Vec::new();
        }
        Poll::Ready(Ok(()))
    }

    /// What came of writing; an error where the client has taken nothing for too long.
    fn poll_in_time(
        &mut self,
        context: &mut Context<'_>,
        attempt: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if attempt.is_ready() {
            self.write_deadline = None;
            return attempt;
        }
        let timeout = self.limits.write_timeout;
        let deadline = self.write_deadline.get_or_insert_with(|| Box::pin(sleep(timeout)));
        ready!(deadline.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")))
    }

    /// Notes that so many bytes have come.
    fn heard(&mut self, bytes: usize) -> io::Result<()> {
        match self.phase.get() {
            HEAD => self.head_bytes += bytes,
            IDLE if bytes > 0 => {
                self.phase.0.store(HEAD, Ordering::Relaxed);
                self.head_bytes = bytes;
                self.head_deadline = None;
            }
            _ => self.forget_head(),
        }
        if self.head_bytes > self.limits.head_max_bytes {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the request's head is too large"));
        }
        Ok(())
    }

    /// Pending, unless a head is awaited and its time is over.
    fn poll_head_deadline(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.phase.get() != HEAD {
            self.forget_head();
            return Poll::Pending;
        }
        let timeout = self.limits.head_timeout;
        let deadline = self.head_deadline.get_or_insert_with(|| Box::pin(sleep(timeout)));
        ready!(deadline.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the request's head took too long")))
    }

    fn forget_head(&mut self) {
        self.head_bytes = 0;
        self.head_deadline = None;
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let taken = self.ahead.len().min(buffer.remaining());
            buffer.put_slice(&self.ahead[..taken]);
            self.ahead.drain(..taken);
            if self.ahead.is_empty() {
                self.ahead = Vec::new();
            }
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        match self.socket.poll_read(context, buffer) {
            Poll::Ready(read) => {
                read?;
                Poll::Ready(self.heard(buffer.filled().len() - before))
            }
            Poll::Pending => self.poll_head_deadline(context),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes: usize = pieces.iter().map(|piece| piece.len()).sum();
        if self.unwritten.len() + bytes > GATHERED_MAX_BYTES {
            ready!(self.poll_drain(context))?;
            if bytes > GATHERED_MAX_BYTES {
                let attempt = self.socket.poll_write_vectored(context, pieces);
                return self.poll_in_time(context, attempt);
            }
        }
        for piece in pieces {
            self.unwritten.extend_from_slice(piece);
        }
        Poll::Ready(Ok(bytes))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_drain(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(context))?;
        self.socket.poll_shutdown(context)
    }
}

#[async_trait]
impl Peek for Connection {
    /// Tells whether HTTP/2 is spoken: reads on only while what has come may be its preface.
    async fn try_peek(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        let wanted = buffer.len().min(PREFACE.len());
        let mut read = Vec::with_capacity(FIRST_READ_BYTES);
        read.append(&mut self.ahead);
        while read.len() < wanted && PREFACE.starts_with(&read) {
            if tokio::io::AsyncReadExt::read_buf(self, &mut read).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        if read.starts_with(PREFACE) {
            self.phase.0.store(FRAMES, Ordering::Relaxed);
        }
        let shown = read.len().min(buffer.len());
        buffer[..shown].copy_from_slice(&read[..shown]);
        self.ahead = read;
        Ok(true)
    }
}

#[async_trait]
impl Shutdown for Connection {
    async fn shutdown(&mut self) {
        if let Err(error) = AsyncWriteExt::shutdown(self).await {
            tracing::debug!(%error, "a connection could not be closed well");
        }
    }
}

impl UniqueID for Connection {
    fn id(&self) -> UniqueIDType {
        self.socket.as_fd().as_raw_fd()
    }
}

impl Ssl for Connection {}

impl GetTimingDigest for Connection {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for Connection {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        Some(Arc::clone(&self.told))
    }
}

impl GetSocketDigest for Connection {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(Arc::clone(&self.digest))
    }
}

impl Secured {
    /// The handshake has ended: a head is awaited, be it in frames.
    pub fn await_head(&self) {
        self.0.0.store(HEAD, Ordering::Relaxed);
    }
}

fn set_phase(session: &Session, from: u8, to: u8) {
    let told = session.digest().and_then(|digest| digest.proxy_digest.as_ref());
    let phase = told.and_then(|told| told.user_data.as_ref()?.downcast_ref::<Arc<Phase>>());
    if let Some(phase) = phase {
        // Only the requests of a connection of HTTP/1 move it, one at a time.
        let _ = phase.0.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed);
    }
}

impl Phase {
    fn get(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Socket {
    fn poll_read(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Socket::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }

    fn poll_write(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Socket::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Socket::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        &mut self,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Socket::Tcp(stream) => Pin::new(stream).poll_write_vectored(context, pieces),
            Socket::Unix(stream) => Pin::new(stream).poll_write_vectored(context, pieces),
        }
    }

    fn poll_shutdown(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Tcp(stream) => stream.as_fd(),
            Socket::Unix(stream) => stream.as_fd(),
        }
    }
}
