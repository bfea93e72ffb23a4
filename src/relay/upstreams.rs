//! The providers as places to connect to.

use super::Silence;
use super::drain::Drains;
use super::peer::{self, Origin, Timeouts};
use super::resolve::{ResolveError, Resolver, Target};
use crate::ids::ProviderName;
use pingora::upstreams::peer::HttpPeer;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long an unused connection to a provider is kept. Most providers close theirs after a minute or more.
const UNUSED_CONNECTION_MAX: Duration = Duration::from_secs(55);
/// The longest write to a provider.
const WRITE_MAX: Duration = Duration::from_secs(60);

/// How long a provider may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a TCP connection.
    pub connect: Duration,
    /// For the TLS handshake after it.
    pub tls: Duration,
    /// From a request to the end of its answer.
    pub total: Duration,
    /// How long it may be silent.
    pub silence: Silence,
    /// What becomes of its answer when the client leaves; `None` leaves that to the model.
    pub on_client_gone: Option<OnClientGone>,
}

/// What becomes of an answer when its client leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnClientGone {
    /// The provider is left, too: it stops, and what passed is billed.
    Cancel,
    /// The provider is read on, within bounds: what it reports is billed.
    Drain,
}

/// One provider's place.
pub struct Upstream {
    /// Its base URL.
    pub origin: Origin,
    /// How long it may take.
    pub patience: Patience,
    target: Arc<Target>,
    /// The group of its connections: another one once a kept connection turned out closed.
    group: Arc<AtomicU64>,
}

/// Every provider's place, by name.
pub struct Upstreams {
    places: HashMap<ProviderName, Upstream>,
    drains: Drains,
    next_group: Arc<AtomicU64>,
}

impl Upstreams {
    /// The places of these providers, their hosts known to the resolver from now on. Those that are read on when their clients have
    /// left are counted by `drains`. A provider that has the same base URL in the places `before` these keeps its connections.
    pub fn new(
        providers: impl IntoIterator<Item = (ProviderName, Origin, Patience)>,
        resolver: &Resolver,
        drains: Drains,
        before: Option<&Upstreams>,
    ) -> Self {
        let next_group = before.map(|before| Arc::clone(&before.next_group)).unwrap_or_default();
        let group = |name: &ProviderName, origin: &Origin| {
            let known = before.and_then(|before| before.get(name)).filter(|known| known.origin == *origin);
            known.map_or_else(
                || Arc::new(AtomicU64::new(next_group.fetch_add(1, Ordering::Relaxed))),
                |known| Arc::clone(&known.group),
            )
        };
        let places = providers.into_iter().map(|(name, origin, patience)| {
            let (target, group) = (resolver.target(&origin.host, origin.port), group(&name, &origin));
            (name, Upstream { origin, patience, target, group })
        });
        Upstreams { places: places.collect(), drains, next_group }
    }

    /// The place of a provider.
    pub fn get(&self, provider: &ProviderName) -> Option<&Upstream> {
        self.places.get(provider)
    }

    /// Where the answer of this provider is to be read on when its client leaves: what it is counted by.
    pub fn drains(&self, upstream: &Upstream, is_reasoning_hidden: bool) -> Option<&Drains> {
        let default = if is_reasoning_hidden { OnClientGone::Drain } else { OnClientGone::Cancel };
        match upstream.patience.on_client_gone.unwrap_or(default) {
            OnClientGone::Drain => Some(&self.drains),
            OnClientGone::Cancel => None,
        }
    }

    /// A peer at one of the place's addresses; with `fresh`, on a connection that no request used before. The connections kept until
    /// then are left alone: where one was closed, others were, too.
    ///
    /// # Errors
    ///
    /// The host has never had an address.
    pub async fn peer(&self, upstream: &Upstream, fresh: bool) -> Result<HttpPeer, ResolveError> {
        let address = upstream.target.address().await?;
        let Patience { connect, tls, silence, total: _, on_client_gone: _ } = upstream.patience;
        let timeouts = Timeouts {
            connect,
            total_connection: connect.saturating_add(tls),
            read: silence.first_byte_timeout.max(silence.idle_timeout) + Duration::from_secs(5),
            write: WRITE_MAX,
            idle: UNUSED_CONNECTION_MAX,
        };
        if fresh {
            upstream.group.store(self.next_group.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        }
        let group = upstream.group.load(Ordering::Relaxed);
        Ok(peer::build(address, &upstream.origin, &timeouts, group))
    }
}

impl Upstream {
    /// This address refused a connection.
    pub fn failed(&self, address: SocketAddr) {
        self.target.failed(address);
    }
}
