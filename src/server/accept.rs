//! Accepts connections, and hands them to Pingora: the loop before its services, so that what a connection may take is decided before
//! anything is kept for it, and a listening socket stays ours to hand over.
//!
//! Promises: no more connections at once than configured, in all and of one address; a lack of descriptors ends no listener.
//! Refuses to know: what is asked on a connection.

use crate::admit::subscriber;
use crate::authenticate::Network;
use crate::proxy::Proxy;
use crate::relay::proxy_protocol::{self, Head};
use crate::relay::{Connection, ConnectionLimits, Engine, Socket};
use arc_swap::ArcSwap;
use pingora::apps::ServerApp as _;
use pingora::listeners::tls::Acceptor;
use pingora::protocols::Stream;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// What connections may take.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// At once, in this process.
    pub(super) connections_max: usize,
    /// At once, of one address; those of this machine are not counted, nor of clients behind a socket of it.
    pub(super) connections_per_address_max: usize,
    /// Balancers and forwarders, which are not counted as one address.
    pub(super) between: Arc<[Network]>,
    /// For what comes before HTTP: a balancer's word, and a TLS handshake.
    pub(super) begin_timeout: Duration,
    /// What one may take.
    pub(super) connection: ConnectionLimits,
}

/// Where connections come in.
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// What comes before HTTP on a listener.
#[derive(Clone)]
pub(super) struct Before {
    /// Networks of balancers whose connections begin with a head of the PROXY protocol.
    pub(super) balancers: Arc<[Network]>,
    /// TLS, where it is spoken.
    pub(super) tls: Option<Arc<Acceptor>>,
}

/// The connections that are open. Cheap to clone.
#[derive(Clone)]
pub(super) struct Connections(Arc<Inner>);

struct Inner {
    settings: ArcSwap<Settings>,
    open: Mutex<Open>,
    refused_all: AtomicU64,
    refused_address: AtomicU64,
    not_begun: AtomicU64,
}

#[derive(Default)]
struct Open {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// A connection's place among those that are open, until it is dropped.
struct Place {
    connections: Connections,
    address: Option<IpAddr>,
}

/// After the system could not accept, for want of descriptors or memory.
const AGAIN_AFTER: Duration = Duration::from_millis(100);

/// How often the loop turns without a connection. A request's timers are all further away than this, so that none of them is the
/// next one: tokio wakes its driver for each timer that is, by a system call.
const TURN_EVERY: Duration = Duration::from_secs(1);

/// Accepts on one listener until it is told to close.
pub(super) async fn accept(
    listener: Listener,
    app: Arc<Engine<Proxy>>,
    before: Before,
    connections: Connections,
    mut closing: watch::Receiver<bool>,
) {
    let requests = Handle::current();
    let mut turn = interval(TURN_EVERY);
    turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let accepted = tokio::select! {
            biased;
            _ = closing.wait_for(|is_closing| *is_closing) => return,
            accepted = listener.accept() => accepted,
            _ = turn.tick() => continue,
        };
        match accepted {
            Ok((socket, peer)) => {
                // Without a place nothing is sent: whoever opens too many connections would only read more.
                let Some(place) = connections.enter(peer) else { continue };
                let counted = connections.clone();
                let most = connections.0.settings.load().begin_timeout;
                let (app, before, closing) = (Arc::clone(&app), before.clone(), closing.clone());
                requests.spawn(async move {
                    // Until HTTP begins all that a client can do is to be late.
                    // Boxed, so that a handshake takes no room once it is over.
                    let begun = Box::pin(timeout(most, begin(socket, peer, &before, place))).await;
                    if let Ok(Some((stream, place))) = begun {
                        serve(stream, &app, &closing).await;
                        drop(place);
                    } else {
                        counted.0.not_begun.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "no connection can be accepted now");
                tokio::time::sleep(AGAIN_AFTER).await;
            }
        }
    }
}

impl Listener {
    /// The next connection; one of this machine has no address.
    async fn accept(&self) -> io::Result<(Socket, Option<SocketAddr>)> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Socket::Tcp(stream), Some(peer)))
            }
            Listener::Unix(listener) => Ok((Socket::Unix(listener.accept().await?.0), None)),
        }
    }
}

/// Brings a connection to where HTTP begins. Without a word, where it does not come so far: whoever is there speaks something else.
async fn begin(
    mut socket: Socket,
    peer: Option<SocketAddr>,
    before: &Before,
    mut place: Place,
) -> Option<(Stream, Place)> {
    // What is written goes out with its flush, not when the kernel finds it worth while.
    if let Socket::Tcp(stream) = &socket {
        stream.set_nodelay(true).ok()?;
    }
    let (mut client, mut ahead) = (peer, Vec::new());
    if let (Socket::Tcp(stream), Some(balancer)) = (&mut socket, peer)
        && before.balancers.iter().any(|network| network.contains(balancer.ip()))
    {
        client = read_proxy_head(stream, &mut ahead).await?.or(peer);
        place = place.moved_to(client)?;
    }
    let limits = place.connections.0.settings.load().connection;
    let connection = Connection::new(socket, client, ahead, limits).ok()?;
    let Some(tls) = &before.tls else { return Some((Box::new(connection), place)) };
    let secured = connection.secured();
    match tls.tls_handshake(connection).await {
        Ok(stream) => {
            secured.await_head();
            Some((Box::new(stream), place))
        }
        Err(error) => {
            tracing::debug!(%error, client = client.map(|it| tracing::field::display(it.ip())), "a TLS handshake failed");
            None
        }
    }
}

/// Reads the head of the PROXY protocol. What was read beyond it stays in `ahead`.
async fn read_proxy_head(stream: &mut TcpStream, ahead: &mut Vec<u8>) -> Option<Option<SocketAddr>> {
    loop {
        match proxy_protocol::parse(ahead) {
            Head::Whole { client, bytes } => {
                ahead.drain(..bytes);
                return Some(client);
            }
            Head::Bad => {
                tracing::warn!("a connection of a balancer does not begin with a head of the PROXY protocol");
                return None;
            }
            Head::Incomplete => {
                if stream.read_buf(ahead).await.ok()? == 0 {
                    return None;
                }
            }
        }
    }
}

/// The requests of a connection, from the first to the last.
async fn serve(stream: Stream, app: &Arc<Engine<Proxy>>, closing: &watch::Receiver<bool>) {
    let mut next = Some(stream);
    while let Some(stream) = next {
        next = app.process_new(stream, closing).await;
    }
}

/// An error that says nothing of the listener: the connection was gone before it was accepted (accept(2)).
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
    )
}

impl Connections {
    pub(super) fn new(settings: Settings) -> Self {
        Connections(Arc::new(Inner {
            settings: ArcSwap::from_pointee(settings),
            open: Mutex::default(),
            refused_all: AtomicU64::new(0),
            refused_address: AtomicU64::new(0),
            not_begun: AtomicU64::new(0),
        }))
    }

    /// From now on these hold. Connections that are open stay, with the time for their heads that they had.
    pub(super) fn replace(&self, settings: Settings) {
        self.0.settings.store(Arc::new(settings));
    }

    /// How many are open.
    pub(super) fn open(&self) -> usize {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner).all
    }

    /// How many were refused so far: because there were too many in all, and too many of one address.
    pub(super) fn refused(&self) -> (u64, u64) {
        (self.0.refused_all.load(Ordering::Relaxed), self.0.refused_address.load(Ordering::Relaxed))
    }

    /// How many ended so far before HTTP began: in a TLS handshake, or in a head of the PROXY protocol.
    pub(super) fn not_begun(&self) -> u64 {
        self.0.not_begun.load(Ordering::Relaxed)
    }

    fn enter(&self, peer: Option<SocketAddr>) -> Option<Place> {
        let settings = self.0.settings.load();
        // Who stands between carries the connections of many.
        let is_between = |ip: &IpAddr| settings.between.iter().any(|network| network.contains(*ip));
        let address = peer.map(|peer| peer.ip().to_canonical());
        let address = address.filter(|ip| !ip.is_loopback() && !is_between(ip)).map(subscriber);
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.all >= settings.connections_max {
            self.0.refused_all.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        if let Some(address) = address {
            let of_address = open.by_address.entry(address).or_default();
            if *of_address >= settings.connections_per_address_max {
                self.0.refused_address.fetch_add(1, Ordering::Relaxed);
                return None;
            }
            *of_address += 1;
        }
        open.all += 1;
        Some(Place { connections: self.clone(), address })
    }
}

impl Place {
    /// The same place, of a client behind the balancer that it was taken for; `None` where that one has too many.
    fn moved_to(self, client: Option<SocketAddr>) -> Option<Place> {
        let connections = self.connections.clone();
        drop(self);
        connections.enter(client)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.connections.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.all -= 1;
        if let Some(address) = self.address
            && let Some(of_address) = open.by_address.get_mut(&address)
        {
            *of_address -= 1;
            if *of_address == 0 {
                open.by_address.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections() -> Connections {
        let connection = ConnectionLimits {
            head_timeout: Duration::from_secs(1),
            head_max_bytes: 1,
            write_timeout: Duration::from_secs(1),
        };
        Connections::new(Settings {
            connections_max: 3,
            connections_per_address_max: 2,
            between: Arc::new(["203.0.113.0/24".parse().unwrap()]),
            begin_timeout: Duration::from_secs(1),
            connection,
        })
    }

    #[test]
    fn an_address_has_no_more_connections_than_its_share_and_gets_its_places_back() {
        let connections = connections();
        let at = |text: &str| text.parse::<SocketAddr>().ok();
        let first = connections.enter(at("192.0.2.1:1")).unwrap();
        let _second = connections.enter(at("[::ffff:192.0.2.1]:2")).unwrap();
        assert!(connections.enter(at("192.0.2.1:3")).is_none());
        assert_eq!(connections.refused(), (0, 1));
        let _between = connections.enter(at("203.0.113.9:1")).unwrap();
        assert_eq!(
            connections.0.open.lock().unwrap().by_address.len(),
            1,
            "a balancer is not counted as one address"
        );
        drop(first);
        assert!(connections.enter(at("192.0.2.1:3")).is_some());
        assert_eq!(connections.open(), 2);
    }

    #[test]
    fn all_addresses_together_have_no_more_connections_than_the_process_takes() {
        let connections = connections();
        let local = "127.0.0.1:1".parse().ok();
        let places: Vec<Place> = (0..3).map(|_| connections.enter(local).unwrap()).collect();
        assert!(connections.enter(local).is_none());
        assert_eq!((connections.open(), connections.refused()), (3, (1, 0)));
        let settings = Settings { connections_max: 4, ..Settings::clone(&connections.0.settings.load()) };
        connections.replace(settings);
        let fourth = connections.enter(local).unwrap();
        assert!(connections.enter(local).is_none());
        drop((places, fourth));
        assert_eq!(connections.open(), 0);
        assert!(connections.0.open.lock().unwrap().by_address.is_empty());
    }
}
