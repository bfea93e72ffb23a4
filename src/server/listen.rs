//! The listeners, and their stop: Pingora on a thread of its own, so that the end of the process is ours to decide.

use super::ServeError;
use crate::proxy::Proxy;
use async_trait::async_trait;
use pingora::apps::HttpServerOptions;
use pingora::proxy::http_proxy_service;
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server, ShutdownSignal, ShutdownSignalWatch};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;
use tokio::sync::watch;

/// How the listeners are told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// Not yet.
    Serving,
    /// SIGTERM: close the listeners, let requests end within the drain time.
    Drain,
    /// SIGINT: end requests now; their bills are settled with what passed.
    Now,
}

/// Sizes and times of the listeners.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// Threads that carry requests.
    pub(super) threads: usize,
    /// How long requests may go on after SIGTERM.
    pub(super) drain: Duration,
    /// Connections to providers that are kept for reuse, per thread.
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
    thread: JoinHandle<()>,
    addresses: Vec<SocketAddr>,
}

struct StopSignal(watch::Receiver<Stop>);

/// Between two looks whether the listeners accept.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How long Pingora waits for its runtimes once their tasks have been dropped.
const RUNTIME_STOP_SECONDS: u64 = 1;

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
    pub(super) fn start(
        self,
        proxy: Proxy,
        settings: Settings,
        stop: watch::Receiver<Stop>,
    ) -> Result<Running, ServeError> {
        let addresses = self.addresses.clone();
        let thread = Builder::new().name("pingora".to_owned()).spawn(move || self.serve(proxy, &settings, stop))?;
        Ok(Running { thread, addresses })
    }

    fn serve(self, proxy: Proxy, settings: &Settings, stop: watch::Receiver<Stop>) {
        let conf = ServerConf {
            threads: settings.threads,
            upstream_keepalive_pool_size: settings.pool_size,
            max_retries: settings.attempts_max,
            grace_period_seconds: Some(settings.drain.as_secs().max(1)),
            graceful_shutdown_timeout_seconds: Some(RUNTIME_STOP_SECONDS),
            ..ServerConf::default()
        };
        let mut server = Server::new_with_opt_and_conf(None, conf);
        server.bootstrap();
        let mut service = http_proxy_service(&server.configuration, proxy);
        if let Some(app) = service.app_logic_mut() {
            let mut options = HttpServerOptions::default();
            options.h2c = true;
            options.h2_idle_timeout = Some(settings.keepalive);
            app.server_options = Some(options);
        }
        for address in &self.addresses {
            service.add_tcp(&address.to_string());
        }
        server.add_service(service);
        server.run(RunArgs { shutdown_signal: Box::new(StopSignal(stop)) });
    }
}

impl Running {
    /// Waits until every listener accepts. `false` when the time is over, or Pingora ended.
    pub(super) fn wait_until_ready(&self, most: Duration) -> bool {
        let looks = most.as_millis() / LOOK_EVERY.as_millis();
        self.addresses.iter().all(|address| {
            (0..looks).any(|_| {
                if self.has_ended() {
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

    /// Whether Pingora is no longer there.
    pub(super) fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until Pingora has dropped every task.
    pub(super) fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("the thread of the listeners ended in a panic");
        }
    }
}

/// An address at which a listener on all addresses answers.
fn reachable(address: SocketAddr) -> SocketAddr {
    let mut address = address;
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() });
    }
    address
}

#[async_trait]
impl ShutdownSignalWatch for StopSignal {
    async fn recv(&self) -> ShutdownSignal {
        let mut stop = self.0.clone();
        let stop = stop.wait_for(|stop| *stop != Stop::Serving).await.map(|stop| *stop);
        match stop {
            Ok(Stop::Now) => ShutdownSignal::FastShutdown,
            // The sender is gone only when the process is about to be.
            Ok(Stop::Serving | Stop::Drain) | Err(_) => ShutdownSignal::GracefulTerminate,
        }
    }
}

/// Binds the admin listener.
pub(super) async fn bind(address: &SocketAddr) -> Result<tokio::net::TcpListener, ServeError> {
    tokio::net::TcpListener::bind(address)
        .await
        .map_err(|cause| ServeError::Listen { address: address.to_string(), cause })
}

