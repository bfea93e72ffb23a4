//! Whether each provider can be reached.

use super::finding::Finding;
use crate::clock::{Clock, UnixMicros};
use crate::config::{Config, Provider};
use crate::relay::{Reached, probe as reach};
use futures::future::join_all;
use std::time::Duration;

/// For each step: what takes longer is no use to a request, either.
const STEP_MAX: Duration = Duration::from_secs(5);
/// Certificates of providers are renewed at least so long before they end.
const EXPIRES_SOON_DAYS: i64 = 7;
const SLOW: Duration = Duration::from_secs(1);

pub(super) async fn probe(config: &Config, clock: &Clock) -> Vec<Finding> {
    if config.providers.is_empty() {
        return vec![Finding::warns(
            "providers",
            "there is none: every request is refused",
            "add a [[provider]] and a [[model]] to the configuration, see conf/weir.toml",
        )];
    }
    join_all(config.providers.iter().map(|provider| one(provider, clock))).await
}

async fn one(provider: &Provider, clock: &Clock) -> Finding {
    match reach(&provider.origin, STEP_MAX, clock).await {
        Ok(reached) => found(provider, &reached, clock.wall()),
        Err(error) => Finding::fails(
            "provider",
            format!("{}: {error}", provider.name),
            "look at base_url, name servers, routes, firewalls, the certificates that this machine trusts, and the clock",
        ),
    }
}

fn found(provider: &Provider, reached: &Reached, now: UnixMicros) -> Finding {
    let ms = |time: Duration| time.as_millis();
    let Reached { addresses, connect, tls, expires_at } = reached;
    let mut says = format!(
        "{}: {addresses} {}, connected in {} ms",
        provider.name,
        if *addresses == 1 { "address" } else { "addresses" },
        ms(*connect)
    );
    if let Some(tls) = tls {
        says.push_str(&format!(", TLS in {} ms", ms(*tls)));
    }
    let days = expires_at.map(|at| (at.0 - now.0) / 86_400_000_000);
    if let Some(days) = days {
        says.push_str(&format!(", certificate good for {days} days"));
    }
    if days.is_some_and(|days| days < EXPIRES_SOON_DAYS) {
        return Finding::warns(
            "provider",
            says,
            "ask the provider: its certificate should have been renewed by now",
        );
    }
    if *connect > SLOW || tls.is_some_and(|tls| tls > SLOW) {
        return Finding::warns("provider", says, "it is slow to reach from here: look at the route to it");
    }
    Finding::good("provider", says)
}
