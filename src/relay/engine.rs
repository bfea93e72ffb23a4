//! Pingora's proxy before a program of ours, with a connector of Weir's own.
//!
//! Promises: the proxy is in nobody else's hands when it is given out, and nothing that was started for it goes on.
//! Refuses to know: what the program does, and where requests come from.
//!
//! Pingora makes a proxy with another connector only inside a service of its own, and shows it to nobody but the handler of protocols
//! that it does not know. So such a service is started here, on a socket for the one connection by which the proxy comes out.

use super::joined::JoiningConnector;
use pingora::apps::HttpServerOptions;
use pingora::connectors::ConnectorOptions;
use pingora::proxy::{HttpProxy, ProxyHttp, ProxyServiceBuilder};
use pingora::server::configuration::ServerConf;
use pingora::server::{Fds, ListenFds};
use pingora::services::Service as _;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::IntoRawFd as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

/// Pingora's proxy before this program.
pub type Engine<P> = HttpProxy<P, JoiningConnector>;

/// All that happens meanwhile is a connection of this process to itself.
const MAKE_MAX: Duration = Duration::from_secs(10);

/// Makes the proxy. It waits: not to be called on a runtime.
///
/// # Errors
///
/// The system refused a socket or a connection on the loopback interface.
pub fn engine<P>(program: P, conf: ServerConf) -> io::Result<Engine<P>>
where
    P: ProxyHttp + Send + Sync + 'static,
    P::CTX: Send + Sync + 'static,
{
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let shown = runtime.block_on(async { timeout(MAKE_MAX, shown(program, Arc::new(conf))).await });
    // With it goes the service, and all else that holds the proxy.
    drop(runtime);
    let mut engine =
        Arc::into_inner(shown??).ok_or_else(|| io::Error::other("Pingora's proxy is still in use"))?;
    engine.server_options = None;
    Ok(engine)
}

async fn shown<P>(program: P, conf: Arc<ServerConf>) -> io::Result<Arc<Engine<P>>>
where
    P: ProxyHttp + Send + Sync + 'static,
    P::CTX: Send + Sync + 'static,
{
    let connector = JoiningConnector::new(ConnectorOptions::from_server_conf(&conf));
    let (show, mut shown) = mpsc::channel::<Arc<Engine<P>>>(1);
    let to_show = Arc::new(move |engine, _: _, _: &_| {
        // Whoever connects first brings it out; it is the same for all.
        let _ = show.try_send(engine);
        Box::pin(std::future::ready(None)) as _
    });
    let mut options = HttpServerOptions::default();
    options.force_custom = true;
    let mut service =
        ProxyServiceBuilder::new(&conf, program).custom(connector, to_show).server_options(options).build();
    let (address, listening) = listening()?;
    service.add_tcp(&address.to_string());
    let (_goes_on, has_ended) = watch::channel(false);
    tokio::select! {
        () = service.start_service(Some(listening), has_ended, 1) => {
            Err(io::Error::other("Pingora's service ended by itself"))
        }
        engine = async {
            let _connection = TcpStream::connect(address).await.map_err(|error| to_itself(address, &error))?;
            shown.recv().await.ok_or_else(|| io::Error::other("Pingora's service does not show its proxy"))
        } => engine,
    }
}

/// A listening socket that only this process knows of, as Pingora takes one over.
fn listening() -> io::Result<(SocketAddr, ListenFds)> {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listener = TcpListener::bind(any).map_err(|error| to_itself(any, &error))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let mut listening = Fds::new();
    listening.add(address.to_string(), listener.into_raw_fd());
    Ok((address, Arc::new(listening.into())))
}

fn to_itself(address: SocketAddr, error: &io::Error) -> io::Error {
    io::Error::other(format!(
        "this process cannot connect to itself at {address}, the loopback interface: {error}"
    ))
}
