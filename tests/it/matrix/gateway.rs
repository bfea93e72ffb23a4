//! A small proxy made of the relay's public parts. Request headers tell it what to do, so that one serves every case.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use pingora::apps::{HttpServerOptions, ServerApp};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::l4::stream::Stream;
use pingora::proxy::{FailToProxy, ProxyHttp, Session};
use pingora::server::configuration::ServerConf;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType, Result};
use tokio::net::TcpListener;
use tokio::sync::watch;
use weir::relay::{
    self, Budget, Control, Curfew, Linger, Origin, Resolver, ResolverSettings, Timeouts, Unread, head,
};

/// What the matrix asks for in the place of the body's first byte, longer than it.
pub(super) const REWRITTEN: &[u8] = b"{\"model\":\"provider/a-long-name\",";

/// Where a case's peers are.
pub(super) type Peers = HashMap<&'static str, (SocketAddr, bool)>;

/// What `logging` saw of one case.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcome {
    pub(super) attempts: usize,
    pub(super) error: Option<String>,
    pub(super) client_gone: bool,
    pub(super) head_sent: bool,
    pub(super) ended: bool,
}

#[derive(Clone)]
pub(super) struct Gateway {
    pub(super) address: SocketAddr,
    pub(super) budget: Budget,
    outcomes: Arc<Mutex<HashMap<String, Outcome>>>,
}

impl Gateway {
    /// Serves HTTP/1.1 and h2c on a free port, in tasks of the calling runtime.
    pub(super) async fn start(peers: Peers) -> Gateway {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gateway = Gateway {
            address: listener.local_addr().unwrap(),
            budget: Budget::new(512 << 20),
            outcomes: Arc::default(),
        };
        let proxy =
            Proxy { peers, gateway: gateway.clone(), resolver: Resolver::new(ResolverSettings::default()) };
        let made = tokio::task::spawn_blocking(|| relay::engine(proxy, ServerConf::default()));
        let mut app = made.await.unwrap().unwrap();
        let mut options = HttpServerOptions::default();
        options.h2c = true;
        app.server_options = Some(options);
        let app = Arc::new(app);
        tokio::spawn(async move {
            let (_open, shutdown) = watch::channel(false);
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                tcp.set_nodelay(true).unwrap();
                let (app, shutdown) = (Arc::clone(&app), shutdown.clone());
                tokio::spawn(async move { app.process_new(Box::new(Stream::from(tcp)), &shutdown).await });
            }
        });
        gateway
    }

    /// Waits for a case to be logged.
    pub(super) async fn outcome(&self, case: &str) -> Outcome {
        for _ in 0..500 {
            if let Some(outcome) = self.outcomes.lock().unwrap().get(case) {
                return outcome.clone();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{case} was never logged");
    }
}

struct Proxy {
    peers: Peers,
    gateway: Gateway,
    resolver: Resolver,
}

#[derive(Default)]
struct Ctx {
    control: Option<Control>,
    /// Set once a request has got as far as its body.
    hold: String,
    rewrite: bool,
    attempt: usize,
    plan: Vec<(SocketAddr, bool)>,
    whole: Vec<u8>,
    ended: bool,
}

fn told<'a>(session: &'a Session, name: &str) -> &'a str {
    session.req_header().headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
}

fn told_ms(session: &Session, name: &str, otherwise: u64) -> Duration {
    Duration::from_millis(told(session, name).parse().unwrap_or(otherwise))
}

async fn answer(session: &mut Session, status: u16, text: String, linger: bool) {
    session.set_keepalive(None);
    let mut head = ResponseHeader::build(status, None).unwrap();
    head.insert_header("content-length", text.len().to_string()).unwrap();
    if session.write_response_header(Box::new(head), false).await.is_ok() {
        let _ = session.write_response_body(Some(Bytes::from(text)), true).await;
    }
    if linger {
        relay::linger(session, &Linger::default()).await;
    }
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = Ctx;

    fn new_ctx(&self) -> Ctx {
        Ctx::default()
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Ctx) -> Result<bool> {
        session.set_keepalive(Some(60));
        session.set_write_timeout(Some(Duration::from_secs(10)));
        let linger = told(session, "x-linger") != "no";
        if let Err(refused) = head::check(session) {
            answer(session, refused.kind.wire().status, refused.public, linger).await;
            return Ok(true);
        }
        ctx.plan =
            told(session, "x-peers").split(',').filter_map(|name| self.peers.get(name).copied()).collect();
        ctx.hold = told(session, "x-hold").to_owned();
        ctx.rewrite = told(session, "x-rewrite") == "yes";
        let settings = relay::BodySettings {
            max_bytes: told(session, "x-max-bytes").parse().unwrap_or(32 << 20),
            deadline: Duration::from_secs(60),
            min_bytes_per_s: 1,
            grace: told_ms(session, "x-grace-ms", 30_000),
        };
        let body = match relay::read_body(session, &settings, &self.gateway.budget).await {
            Ok(body) => body,
            Err(Unread::Refused(refused)) => {
                answer(session, refused.kind.wire().status, refused.public, linger).await;
                return Ok(true);
            }
            Err(Unread::ClientGone) => {
                return Err(Error::new_down(ErrorType::ConnectionClosed));
            }
        };
        let settings = relay::Silence {
            first_byte_timeout: told_ms(session, "x-first-byte-ms", 60_000),
            idle_timeout: told_ms(session, "x-idle-ms", 60_000),
        };
        let control = relay::wrap(session, body, settings, &Curfew::default());
        if !ctx.hold.is_empty() {
            control.hold_head();
        }
        ctx.control = Some(control);
        Ok(false)
    }

    async fn upstream_peer(&self, _: &mut Session, ctx: &mut Ctx) -> Result<Box<HttpPeer>> {
        let (address, h2) = ctx.plan[ctx.attempt.min(ctx.plan.len() - 1)];
        ctx.attempt += 1;
        let origin = Origin::parse(&format!("http://{address}/v1")).unwrap();
        let address = self.resolver.target(&origin.host, origin.port).address().await.unwrap();
        let long = Duration::from_secs(60);
        let short = Duration::from_secs(2);
        let timeouts =
            Timeouts { connect: short, total_connection: short, read: long, write: long, idle: long };
        let mut peer = relay::build_peer(address, &origin, &timeouts, 0);
        if h2 {
            peer.options.set_http_version(2, 2);
        }
        Ok(Box::new(peer))
    }

    async fn upstream_request_filter(
        &self,
        _: &mut Session,
        head: &mut RequestHeader,
        ctx: &mut Ctx,
    ) -> Result<()> {
        head.remove_header("transfer-encoding");
        head.remove_header("expect");
        if ctx.rewrite {
            // Told by the filter below once the body is known; here the length has to be known already.
            let sent: usize = head.headers["x-length"].to_str().unwrap().parse().unwrap();
            head.insert_header("content-length", (sent - 1 + REWRITTEN.len()).to_string())?;
        }
        head.insert_header("host", "provider.test")
    }

    async fn request_body_filter(
        &self,
        _: &mut Session,
        body: &mut Option<Bytes>,
        _: bool,
        ctx: &mut Ctx,
    ) -> Result<()> {
        if let Some(whole) = body.as_ref().filter(|_| ctx.rewrite) {
            *body = Some([REWRITTEN, &whole[1..]].concat().into());
        }
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        _: &mut Session,
        head: &mut ResponseHeader,
        ctx: &mut Ctx,
    ) -> Result<()> {
        let control = ctx.control.as_ref().unwrap();
        if head.status.is_informational() {
            return Ok(());
        }
        if head.status.as_u16() >= 500 && ctx.attempt < ctx.plan.len() {
            let mut error = Error::new_up(ErrorType::HTTPStatus(head.status.as_u16()));
            error.set_retry(control.can_replay());
            return Err(error);
        }
        control.release_body();
        Ok(())
    }

    fn response_body_filter(
        &self,
        _: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Ctx,
    ) -> Result<Option<Duration>> {
        ctx.ended |= end;
        let control = ctx.control.as_ref().unwrap();
        match ctx.hold.as_str() {
            "replace" | "pass" => {
                ctx.whole.extend_from_slice(&body.take().unwrap_or_default());
                if end && ctx.hold == "replace" {
                    let text = Bytes::from(format!("replaced {} bytes", ctx.whole.len()));
                    let mut head = ResponseHeader::build(502, None)?;
                    head.insert_header("content-length", text.len().to_string())?;
                    assert!(control.replace_head(head));
                    *body = Some(text);
                } else if end {
                    *body = Some(std::mem::take(&mut ctx.whole).into());
                } else {
                    // An empty piece, as a filter that keeps everything leaves it.
                    *body = Some(Bytes::new());
                }
            }
            _ => {}
        }
        Ok(None)
    }

    fn fail_to_connect(&self, _: &mut Session, _: &HttpPeer, ctx: &mut Ctx, mut e: Box<Error>) -> Box<Error> {
        e.set_retry(ctx.attempt < ctx.plan.len());
        e
    }

    fn error_while_proxy(
        &self,
        _: &HttpPeer,
        _: &mut Session,
        mut e: Box<Error>,
        ctx: &mut Ctx,
        _: bool,
    ) -> Box<Error> {
        let control = ctx.control.as_ref().unwrap();
        let theirs = *e.esource() == ErrorSource::Upstream || *e.etype() == relay::FIRST_BYTE_TIMEOUT;
        e.set_retry(theirs && control.can_replay() && ctx.attempt < ctx.plan.len());
        e
    }

    async fn fail_to_proxy(&self, session: &mut Session, e: &Error, ctx: &mut Ctx) -> FailToProxy {
        let nobody_listens = match &ctx.control {
            Some(control) => {
                control.unwrap(session);
                control.head_sent() || control.client_gone()
            }
            None => *e.etype() == ErrorType::ConnectionClosed,
        };
        if !nobody_listens {
            answer(session, 502, e.etype().as_str().to_owned(), true).await;
        }
        FailToProxy { error_code: 502, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, e: Option<&Error>, ctx: &mut Ctx) {
        if let Some(control) = &ctx.control {
            control.unwrap(session);
            control.unwrap(session);
        }
        let control = ctx.control.as_ref();
        let outcome = Outcome {
            attempts: ctx.attempt,
            error: e.map(|e| e.etype().as_str().to_owned()),
            client_gone: control.is_some_and(Control::client_gone),
            head_sent: control.is_some_and(Control::head_sent),
            ended: ctx.ended,
        };
        self.gateway.outcomes.lock().unwrap().insert(told(session, "x-case").to_owned(), outcome);
    }

    fn suppress_error_log(&self, _: &Session, _: &Ctx, _: &Error) -> bool {
        true
    }
}
