//! The listeners, and their stop: Pingora's proxy on a runtime of its own, so that the end of the process is ours to decide.
//!
//! Pingora's own `Server` sleeps the whole grace period after SIGTERM, also when nothing is under way, and then ends the process; so
//! connections are accepted here and handed to it. The sockets are there before anything else is done, and connections queue in the
//! kernel until somebody accepts them.

use super::ServeError;
use super::accept::{self, Before, Connections, Listener, accept};
use super::sockets::Sockets;
use super::tls::{self, Certificates};
use crate::authenticate::Network;
use crate::config::Config;
use crate::proxy::Proxy;
use crate::relay::{Engine, engine};
use pingora::apps::{HttpServerOptions, ServerApp as _};
use pingora::server::configuration::ServerConf;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::task::JoinSet;

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
    /// What connections may take.
    pub(super) accept: accept::Settings,
    /// Networks of balancers whose connections begin with a head of the PROXY protocol.
    pub(super) balancers: Vec<Network>,
}

/// The sockets of the listeners.
pub(super) struct Listening {
    plain: Vec<TcpListener>,
    tls: Vec<TcpListener>,
    unix: Vec<UnixListener>,
}

/// Pingora, running.
pub(super) struct Running {
    runtime: Runtime,
    accepting: JoinSet<()>,
    app: Arc<Engine<Proxy>>,
    /// True: accept nothing more; each connection has at most one more request.
    closing: watch::Sender<bool>,
}

impl Listening {
    /// Takes every address, for plain HTTP and for TLS, and every socket in the file system.
    pub(super) fn claim(config: &Config, sockets: &mut Sockets) -> Result<Self, ServeError> {
        let mut all = |addresses: &[SocketAddr]| {
            addresses.iter().map(|address| sockets.tcp(*address)).collect::<Result<_, _>>()
        };
        let (plain, tls) = (all(&config.server.listen)?, all(&config.tls.listen)?);
        let unix = config.unix.listen.iter().map(|path| sockets.unix(path, config.unix.mode));
        Ok(Listening { plain, tls, unix: unix.collect::<Result<_, _>>()? })
    }

    /// Starts Pingora before this proxy.
    pub(super) fn start(
        self,
        proxy: Proxy,
        connections: &Connections,
        certificates: &Arc<Certificates>,
        settings: &Settings,
    ) -> Result<Running, ServeError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(settings.threads)
            .thread_name("requests")
            .enable_all()
            .build()?;
        let (closing, is_closing) = watch::channel(false);
        let app = Arc::new(app(proxy, settings)?);
        let mut accepting = JoinSet::new();
        let balancers: Arc<[Network]> = settings.balancers.clone().into();
        let plain = Before { balancers: Arc::clone(&balancers), tls: None };
        let acceptor = tls::acceptor(Arc::clone(certificates)).map_err(std::io::Error::other)?;
        let secured = Before { balancers, tls: Some(Arc::new(acceptor)) };
        let listeners: Vec<(Listener, Before)> = {
            let _on_requests = runtime.enter();
            let tcp = |listener| tokio::net::TcpListener::from_std(listener).map(Listener::Tcp);
            let unix = |listener| tokio::net::UnixListener::from_std(listener).map(Listener::Unix);
            let secured = self.tls.into_iter().map(|it| Ok((tcp(it)?, secured.clone())));
            let open = self.plain.into_iter().map(tcp).chain(self.unix.into_iter().map(unix));
            let open = open.map(|listener| Ok((listener?, plain.clone())));
            open.chain(secured).collect::<std::io::Result<_>>()?
        };
        for (listener, before) in listeners {
            let accepting_on =
                accept(listener, Arc::clone(&app), before, connections.clone(), is_closing.clone());
            accepting.spawn_on(accepting_on, runtime.handle());
        }
        Ok(Running { runtime, accepting, app, closing })
    }
}

fn app(proxy: Proxy, settings: &Settings) -> std::io::Result<Engine<Proxy>> {
    let conf = ServerConf {
        threads: settings.threads,
        upstream_keepalive_pool_size: settings.pool_size,
        max_retries: settings.attempts_max,
        ..ServerConf::default()
    };
    let mut app = engine(proxy, conf)?;
    let mut options = HttpServerOptions::default();
    options.h2c = true;
    options.h2_idle_timeout = Some(settings.keepalive);
    app.server_options = Some(options);
    Ok(app)
}

impl Running {
    /// Ends when a listener does, which before [`Running::close`] is a fault.
    pub(super) async fn ended(&mut self) {
        if let Some(Err(fault)) = self.accepting.join_next().await {
            tracing::error!(%fault, "a listener ended");
        }
    }

    /// Closes the listeners. Requests under way go on, and a connection that is idle may have one more.
    pub(super) fn close(&self) {
        self.closing.send_replace(true);
    }

    /// Closes connections that are idle, and every other once its request has ended.
    pub(super) async fn close_idle(&self) {
        self.app.cleanup().await;
    }

    /// Drops every task that is left, and waits until it is gone, for at most this long. Not to be called on a runtime.
    pub(super) fn stop(self, most: Duration) {
        self.runtime.shutdown_timeout(most);
    }
}
