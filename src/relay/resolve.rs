//! Addresses of the providers' hosts, looked up beside the requests.
//!
//! Promises: a request waits for a look-up only when a host has never been resolved; an address that was good stays in
//! use while its name server is down; an address that failed goes to the end of the line until the next look-up.
//! Refuses to know: what is spoken at an address.
//!
//! Pingora itself resolves with a blocking call, and panics where that fails.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::net::lookup_host;
use tokio::sync::Notify;
use tokio::time::timeout;

/// How names are looked up.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Between two look-ups of a name.
    pub refresh: Duration,
    /// For one look-up.
    pub timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { refresh: Duration::from_secs(30), timeout: Duration::from_secs(5) }
    }
}

/// A name has no address.
#[derive(Debug, thiserror::Error)]
#[error("{host} cannot be resolved: {cause}")]
pub struct ResolveError {
    host: String,
    cause: String,
}

/// All the hosts that the gateway talks to. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Resolver {
    settings: Settings,
    targets: Arc<Mutex<Vec<Arc<Target>>>>,
    /// Told when there is a new one, to be looked up before it is asked for.
    added: Arc<Notify>,
}

/// One host and port.
#[derive(Debug)]
pub struct Target {
    host: String,
    port: u16,
    timeout: Duration,
    literal: bool,
    addresses: ArcSwap<Vec<SocketAddr>>,
    turn: AtomicUsize,
    /// As it was last told in the log.
    is_failing: AtomicBool,
    /// So that many first requests make one look-up.
    looking_up: tokio::sync::Mutex<()>,
}

impl Resolver {
    /// A resolver of no hosts yet.
    pub fn new(settings: Settings) -> Self {
        Resolver { settings, targets: Arc::default(), added: Arc::default() }
    }

    /// The target for a host; the same one for the same host and port. It is kept for as long as somebody else has it.
    pub fn target(&self, host: &str, port: u16) -> Arc<Target> {
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = targets.iter().find(|target| target.host == host && target.port == port) {
            return Arc::clone(known);
        }
        let target = Arc::new(Target::new(host, port, self.settings.timeout));
        targets.push(Arc::clone(&target));
        self.added.notify_one();
        target
    }

    /// Keeps every target's addresses fresh. Never returns: the composition root spawns it and drops it at shutdown.
    pub async fn run(&self) {
        loop {
            self.look_up(|_| true).await;
            let refresh = tokio::time::sleep(self.settings.refresh);
            tokio::pin!(refresh);
            loop {
                tokio::select! {
                    () = &mut refresh => break,
                    () = self.added.notified() => self.look_up(Target::is_unknown).await,
                }
            }
        }
    }

    /// Looks up those of the targets that are still of use.
    async fn look_up(&self, which: impl Fn(&Target) -> bool) {
        let targets = {
            let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
            targets.retain(|target| Arc::strong_count(target) > 1);
            targets.clone()
        };
        for target in targets.iter().filter(|target| !target.literal && which(target)) {
            let found = target.look_up().await;
            target.tell(found.err().as_ref());
        }
    }
}

impl Target {
    fn new(host: &str, port: u16, timeout: Duration) -> Self {
        let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok();
        Target {
            host: host.to_owned(),
            port,
            timeout,
            literal: literal.is_some(),
            addresses: ArcSwap::from_pointee(
                literal.map(|ip| SocketAddr::new(ip, port)).into_iter().collect(),
            ),
            turn: AtomicUsize::new(0),
            is_failing: AtomicBool::new(false),
            looking_up: tokio::sync::Mutex::new(()),
        }
    }

    /// The address for the next attempt. They take turns, within the family that the system prefers.
    ///
    /// # Errors
    ///
    /// The host has never been resolved, and could not be now.
    pub async fn address(&self) -> Result<SocketAddr, ResolveError> {
        if let Some(address) = self.pick() {
            return Ok(address);
        }
        let _one_at_a_time = self.looking_up.lock().await;
        if let Some(address) = self.pick() {
            return Ok(address);
        }
        self.look_up().await?;
        self.pick().ok_or_else(|| self.error("no address"))
    }

    /// This address refused a connection: the others go first until the next look-up.
    pub fn failed(&self, address: SocketAddr) {
        self.addresses.rcu(|known| {
            let (bad, mut good): (Vec<_>, Vec<_>) = known.iter().partition(|other| **other == address);
            good.extend(bad);
            good
        });
    }

    /// Tells the log when looking up begins to fail, and when it no longer does; a name server can be away for hours.
    fn tell(&self, error: Option<&ResolveError>) {
        let was_failing = self.is_failing.swap(error.is_some(), Ordering::Relaxed);
        match error {
            Some(error) if !was_failing && self.is_unknown() => {
                tracing::warn!(%error, "a provider's host has no address; it is looked up again and again");
            }
            Some(error) if !was_failing => {
                tracing::warn!(%error, "keeping the addresses known so far; the host is looked up again and again");
            }
            None if was_failing => tracing::info!(host = self.host, "a provider's host has addresses again"),
            Some(_) | None => {}
        }
    }

    fn is_unknown(&self) -> bool {
        self.addresses.load().is_empty()
    }

    fn pick(&self) -> Option<SocketAddr> {
        let known = self.addresses.load();
        let first = known.first()?;
        let alike = known.iter().take_while(|other| other.is_ipv4() == first.is_ipv4()).count();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        known.get(turn.checked_rem(alike)?).copied()
    }

    async fn look_up(&self) -> Result<(), ResolveError> {
        let found = timeout(self.timeout, lookup_host((self.host.as_str(), self.port)))
            .await
            .map_err(|_| self.error("the name server did not answer in time"))?
            .map_err(|e| self.error(e))?
            .collect::<Vec<_>>();
        if found.is_empty() {
            return Err(self.error("no address"));
        }
        self.addresses.store(Arc::new(found));
        Ok(())
    }

    fn error(&self, cause: impl fmt::Display) -> ResolveError {
        ResolveError { host: self.host.clone(), cause: cause.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(target: &Target, of: &[&str]) {
        target.addresses.store(Arc::new(of.iter().map(|text| text.parse().unwrap()).collect()));
    }

    #[tokio::test]
    async fn a_literal_address_needs_no_look_up() {
        let resolver = Resolver::new(Settings { timeout: Duration::ZERO, ..Settings::default() });
        assert_eq!(
            resolver.target("127.0.0.1", 80).address().await.unwrap(),
            "127.0.0.1:80".parse().unwrap()
        );
        assert_eq!(resolver.target("[::1]", 443).address().await.unwrap(), "[::1]:443".parse().unwrap());
        assert_eq!(resolver.target("::1", 443).address().await.unwrap(), "[::1]:443".parse().unwrap());
    }

    #[tokio::test]
    async fn a_name_is_looked_up_once_for_all_who_ask() {
        let resolver = Resolver::new(Settings::default());
        assert!(Arc::ptr_eq(&resolver.target("localhost", 80), &resolver.target("localhost", 80)));
        assert!(resolver.target("localhost", 80).address().await.unwrap().ip().is_loopback());
    }

    #[tokio::test]
    async fn known_addresses_outlive_a_failed_look_up() {
        let target = Target::new("weir.invalid", 80, Duration::from_secs(5));
        addresses(&target, &["10.0.0.1:80"]);
        assert!(target.look_up().await.is_err());
        assert_eq!(target.address().await.unwrap(), "10.0.0.1:80".parse().unwrap());
    }

    #[tokio::test]
    async fn a_failure_that_lasts_is_told_once_and_its_end_too() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let log = Told(Arc::clone(&told));
        let subscriber = tracing_subscriber::fmt().without_time().with_writer(move || log.clone()).finish();
        let _in_this_thread = tracing::subscriber::set_default(subscriber);
        let target = Target::new("weir.invalid", 80, Duration::from_secs(5));
        for known in [&[][..], &["10.0.0.1:80"]] {
            addresses(&target, known);
            for _ in 0..3 {
                target.tell(Some(&target.error("no such name")));
            }
            for _ in 0..3 {
                target.tell(None);
            }
        }
        let lines = String::from_utf8(told.lock().unwrap().clone()).unwrap();
        let count = |text: &str| lines.matches(text).count();
        assert_eq!(
            (
                count("host has no address"),
                count("keeping"),
                count("has addresses again"),
                lines.lines().count()
            ),
            (1, 1, 2, 4),
            "{lines}"
        );
    }

    #[derive(Clone)]
    struct Told(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Told {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn addresses_take_turns_within_the_preferred_family() {
        let target = Target::new("weir.invalid", 80, Duration::from_secs(5));
        addresses(&target, &["10.0.0.1:80", "10.0.0.2:80", "[::1]:80"]);
        let picked: Vec<_> =
            (0..4).filter_map(|_| target.pick()).map(|address| address.to_string()).collect();
        assert_eq!(picked, ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.1:80", "10.0.0.2:80"]);
    }

    #[tokio::test]
    async fn an_address_that_failed_goes_to_the_end_of_the_line() {
        let target = Target::new("weir.invalid", 80, Duration::from_secs(5));
        addresses(&target, &["[::1]:80", "10.0.0.1:80"]);
        target.failed("[::1]:80".parse().unwrap());
        assert_eq!(target.pick(), Some("10.0.0.1:80".parse().unwrap()));
        assert_eq!(target.pick(), Some("10.0.0.1:80".parse().unwrap()));
    }
}
