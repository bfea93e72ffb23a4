//! The listeners, and their stop: Pingora's service on a runtime of its own, so that the end of the process is ours to decide.
//!
//! Pingora's own `Server` sleeps the whole grace period after SIGTERM, also when nothing is under way, and then ends the process; so
//! its service is started here, and told to stop here.

use super::ServeError;
use crate::proxy::Proxy;
use pingora::apps::HttpServerOptions;
use pingora::proxy::{HttpProxy, http_proxy_service};
use pingora::server::configuration::ServerConf;
use pingora::services::Service as _;
use pingora::services::listening::Service;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Sizes and times of the listeners.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// Threads that carry requests.
    pub(super) threads: usize,
    /// Connections to providers that are kept for reuse.
    pub(super) pool_size: usize,
    /// Candidates and fresh connections that one request may try.
    pub(super) attempts_max: usize,
    /// How long an HTTP/2 connection without a request is kept.
    pub(super) keepalive: Duration,
}

/// The addresses of the listeners.
pub(super) struct Listening {
    addresses: Vec<SocketAddr>,
}

/// Pingora, running.
pub(super) struct Running {
    runtime: Runtime,
    service: JoinHandle<()>,
    /// True: accept nothing more, and close what is idle.
    closing: watch::Sender<bool>,
    addresses: Vec<SocketAddr>,
}

/// Between two looks whether the listeners accept.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Tasks that accept on one listener.
const TASKS_PER_LISTENER: usize = 1;

impl Listening {
    /// Checks that every address is ours to take: Pingora itself would end in a panic on a thread.
    pub(super) fn claim(addresses: &[SocketAddr]) -> Result<Self, ServeError> {
        for address in addresses {
            TcpListener::bind(address)
                .map_err(|cause| ServeError::Listen { address: address.to_string(), cause })?;
        }
        Ok(Listening { addresses: addresses.to_vec() })
    }

    /// Starts Pingora before this proxy.
    pub(super) fn start(self, proxy: Proxy, settings: &Settings) -> Result<Running, ServeError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(settings.threads)
            .thread_name("requests")
            .enable_all()
            .build()?;
        let (closing, is_closing) = watch::channel(false);
        let mut service = self.service(proxy, settings);
        let service =
            runtime.spawn(async move { service.start_service(None, is_closing, TASKS_PER_LISTENER).await });
        Ok(Running { runtime, service, closing, addresses: self.addresses })
    }

    fn service(&self, proxy: Proxy, settings: &Settings) -> Service<HttpProxy<Proxy, ()>> {
        let conf = ServerConf {
            threads: settings.threads,
            upstream_keepalive_pool_size: settings.pool_size,
            max_retries: settings.attempts_max,
            ..ServerConf::default()
        };
        let mut service = http_proxy_service(&Arc::new(conf), proxy);
        if let Some(app) = service.app_logic_mut() {
            let mut options = HttpServerOptions::default();
            options.h2c = true;
            options.h2_idle_timeout = Some(settings.keepalive);
            app.server_options = Some(options);
        }
        for address in &self.addresses {
            service.add_tcp(&address.to_string());
        }
        service
    }
}

impl Running {
    /// Waits until every listener accepts. `false` when the time is over, or Pingora ended.
    pub(super) fn wait_until_ready(&self, most: Duration) -> bool {
        let looks = most.as_millis() / LOOK_EVERY.as_millis();
        self.addresses.iter().all(|address| {
            (0..looks).any(|_| {
                if self.service.is_finished() {
                    return false;
                }
                let accepts = TcpStream::connect_timeout(&reachable(*address), LOOK_EVERY).is_ok();
                if !accepts {
                    std::thread::sleep(LOOK_EVERY);
                }
                accepts
            })
        })
    }

    /// Ends when Pingora does, which before [`Running::close`] is a fault.
    pub(super) async fn ended(&mut self) {
        if let Err(fault) = (&mut self.service).await {
            tracing::error!(%fault, "the listeners ended");
        }
    }

    /// Closes the listeners and idle connections. Requests under way go on.
    pub(super) fn close(&self) {
        self.closing.send_replace(true);
    }

    /// Drops every task that is left, and waits until it is gone, for at most this long. Not to be called on a runtime.
    pub(super) fn stop(self, most: Duration) {
        self.runtime.shutdown_timeout(most);
    }
}

/// An address at which a listener on all addresses answers.
fn reachable(address: SocketAddr) -> SocketAddr {
    let mut address = address;
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            [127, 0, 0, 1].into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    address
}

/// Binds the admin listener.
pub(super) async fn bind(address: &SocketAddr) -> Result<tokio::net::TcpListener, ServeError> {
    tokio::net::TcpListener::bind(address)
        .await
        .map_err(|cause| ServeError::Listen { address: address.to_string(), cause })
}
