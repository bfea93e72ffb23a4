//! One request, from its head to its bill: read this file downwards.
//!
//! Promises: each Pingora hook is a stage call and a few lines; what a request holds is in its `Stage`, what is told of it in
//! its `Trace`, and logic never reads the trace. Refuses to know: how a stage does its work, and where settings come from.

mod answer;
mod attempts;
mod candidates;
mod client;
mod exchange;
mod rules;
mod trace;

pub use rules::{Rules, Settings};

use crate::admit::{Admitter, Guard, Order};
use crate::authenticate::{Authenticator, Caller};
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::openai::{self, Ask, Endpoint};
use crate::price::Book;
use crate::refusal::{Kind, Refused};
use crate::relay::{self, Body, Budget, Curfew, Unread};
use crate::route::Model;
use crate::settle::Bill;
use crate::telemetry::Traces;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use attempts::Attempts;
use bytes::Bytes;
use exchange::Exchange;
use http::Method;
use http::header::AUTHORIZATION;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::protocols::Digest;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use trace::Trace;

/// The stages, as the composition root made them.
pub struct Proxy {
    /// The configuration in force. A request takes it with its head and keeps it to its end.
    pub rules: Arc<ArcSwap<Rules>>,
    /// Key to caller.
    pub authenticator: Arc<Authenticator>,
    /// What addresses asked and failed.
    pub guard: Guard,
    /// Limits and credit.
    pub admitter: Arc<Admitter>,
    /// Prices in force.
    pub book: Arc<ArcSwap<Book>>,
    /// What all bodies together may take.
    pub budget: Budget,
    /// Counters.
    pub metrics: Metrics,
    /// Spans, where they are made.
    pub traces: Option<Traces>,
    /// Time.
    pub clock: Clock,
    /// Requests that have arrived and are not logged yet; what a stop waits for.
    pub in_flight: Arc<AtomicU64>,
    /// Ends what is relayed when a stop has waited long enough.
    pub curfew: Curfew,
}

/// What Pingora carries from hook to hook.
pub struct Ctx {
    rules: Arc<Rules>,
    stage: Stage,
    trace: Trace,
    /// Counts the request among those in flight until the context goes.
    _in_flight: InFlight,
}

/// How far a request is.
enum Stage {
    /// The head is there.
    Arrived,
    /// Admitted; attempts are made and an answer may be passing.
    Relaying(Box<Exchange>),
    /// Answered here, without a provider.
    Answered,
}

struct InFlight(Arc<AtomicU64>);

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = Ctx;

    fn new_ctx(&self) -> Ctx {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Ctx {
            rules: self.rules.load_full(),
            stage: Stage::Arrived,
            trace: Trace::begin(&self.clock),
            _in_flight: InFlight(Arc::clone(&self.in_flight)),
        }
    }

    /// No compression module: its per-request context would be for nothing.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    /// Everything up to the provider. `true` means that the client has its answer.
    async fn request_filter(&self, session: &mut Session, ctx: &mut Ctx) -> Result<bool> {
        relay::head_read(session);
        // A client of HTTP/1.0 that did not ask for it waits for the end of the connection.
        if session.get_keepalive().is_some() {
            session.set_keepalive(Some(ctx.rules.settings.keepalive_timeout.as_secs().max(1)));
        }
        session.set_write_timeout(Some(ctx.rules.settings.write_timeout));
        let rules = Arc::clone(&ctx.rules);
        match self.receive(&rules, session, ctx).await {
            Ok(Received::Relay(exchange)) => {
                ctx.stage = Stage::Relaying(exchange);
                Ok(false)
            }
            Ok(Received::Answer(body)) => {
                ctx.stage = Stage::Answered;
                answer::send_json(session, &mut ctx.trace, body).await?;
                Ok(true)
            }
            Err(Unread::Refused(refused)) => {
                ctx.stage = Stage::Answered;
                answer::refuse(session, &mut ctx.trace, &refused, &rules.settings.linger).await?;
                Ok(true)
            }
            Err(Unread::ClientGone) => {
                let mut error =
                    Error::explain(ErrorType::ConnectionClosed, "the client left in the middle of its body");
                error.as_down();
                Err(error)
            }
        }
    }

    async fn upstream_peer(&self, _session: &mut Session, ctx: &mut Ctx) -> Result<Box<HttpPeer>> {
        let exchange = ctx.stage.exchange()?;
        exchange.peer(&ctx.rules.upstreams, &mut ctx.trace).await
    }

    async fn connected_to_upstream(
        &self,
        _session: &mut Session,
        reused: bool,
        _peer: &HttpPeer,
        _fd: RawFd,
        _digest: Option<&Digest>,
        ctx: &mut Ctx,
    ) -> Result<()> {
        ctx.trace.connected(reused);
        Ok(())
    }

    /// The head for the provider, and the body with its edits. From here on the provider may have begun to work.
    async fn upstream_request_filter(
        &self,
        _session: &mut Session,
        head: &mut RequestHeader,
        ctx: &mut Ctx,
    ) -> Result<()> {
        ctx.stage.exchange()?.send(head, &ctx.rules.upstreams)
    }

    async fn request_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Ctx,
    ) -> Result<()> {
        if end_of_stream {
            *body = ctx.stage.exchange()?.take_outgoing_body();
        }
        Ok(())
    }

    /// The provider's head: the next candidate's turn, or the way in which its body is read.
    async fn upstream_response_filter(
        &self,
        _session: &mut Session,
        head: &mut ResponseHeader,
        ctx: &mut Ctx,
    ) -> Result<()> {
        if head.status.is_informational() {
            return Ok(());
        }
        ctx.stage.exchange()?.receive_head(head, &ctx.rules.settings, &mut ctx.trace).await
    }

    /// A piece of the provider's body. The bill is settled before the bytes that end the answer are handed on.
    fn response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Ctx,
    ) -> Result<Option<Duration>> {
        let exchange = ctx.stage.exchange()?;
        *body = exchange.receive_body(body.as_ref(), end_of_stream, &ctx.rules.settings, &mut ctx.trace)?;
        Ok(None)
    }

    /// An HTTP/2 answer that ends in trailers ends here.
    async fn response_trailer_filter(
        &self,
        _session: &mut Session,
        _trailers: &mut http::HeaderMap,
        ctx: &mut Ctx,
    ) -> Result<Option<Bytes>> {
        ctx.stage.exchange()?.receive_body(None, true, &ctx.rules.settings, &mut ctx.trace)
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        peer: &HttpPeer,
        ctx: &mut Ctx,
        error: Box<Error>,
    ) -> Box<Error> {
        match &mut ctx.stage {
            Stage::Relaying(exchange) => {
                exchange.refused_at(peer, &ctx.rules.upstreams).not_connected(error, &mut ctx.trace)
            }
            Stage::Arrived | Stage::Answered => error,
        }
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        _session: &mut Session,
        error: Box<Error>,
        ctx: &mut Ctx,
        client_reused: bool,
    ) -> Box<Error> {
        match &mut ctx.stage {
            Stage::Relaying(exchange) => exchange.attempt_failed(error, client_reused, &mut ctx.trace),
            Stage::Arrived | Stage::Answered => error,
        }
    }

    /// The end of a request that could not be relayed to its end: settle, then tell the client what can still be told.
    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, ctx: &mut Ctx) -> FailToProxy {
        match &mut ctx.stage {
            Stage::Relaying(exchange) => exchange.fail(session, error, &mut ctx.trace).await,
            Stage::Arrived | Stage::Answered => {
                FailToProxy { error_code: ctx.trace.client_gone(), can_reuse_downstream: false }
            }
        }
    }

    /// The last hook: nothing is left open, one line is logged, one request is counted.
    async fn logging(&self, session: &mut Session, _error: Option<&Error>, ctx: &mut Ctx) {
        if let Stage::Relaying(exchange) = &mut ctx.stage {
            exchange.close(session, &mut ctx.trace);
        }
        relay::await_head(session);
        ctx.trace.record(&self.metrics, self.traces.as_ref(), &self.clock);
    }

    /// Errors are in the request's own line.
    fn suppress_error_log(&self, _session: &Session, _ctx: &Ctx, _error: &Error) -> bool {
        true
    }

    /// Retries are in the request's own line and in the metrics.
    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _ctx: &Ctx,
        _error: &Error,
        _context: ProxyWarnLogContext,
    ) -> bool {
        true
    }
}

/// A step that may refuse the request.
type Judged<T> = std::result::Result<T, Refused>;
/// A step that may refuse the request or find that its client has left.
type Asked<T> = std::result::Result<T, Unread>;

/// What the way up to the provider ends in, when it does not end in a refusal.
enum Received {
    Relay(Box<Exchange>),
    Answer(Vec<u8>),
}

/// What a path and a method ask for.
enum Target<'a> {
    Generate(Endpoint),
    Models,
    Model(&'a str),
}

impl Proxy {
    /// The way of a request up to the provider, in order.
    async fn receive(&self, rules: &Rules, session: &mut Session, ctx: &mut Ctx) -> Asked<Received> {
        relay::head::check(session)?;
        ctx.trace.arrived(session, self.traces.as_ref());
        let address = client::address(session, &rules.settings.forwarders, rules.settings.forwarder_header);
        ctx.trace.came_from(address);
        rules.origins.may_come(address)?;
        self.guard.arrived(&rules.guard, address)?;
        let path = session.req_header().uri.path().to_owned();
        let target = target(&path, &session.req_header().method)?;
        let caller = self.authenticate(rules, session, address).await?;
        ctx.trace.caller(&caller, self.admitter.standing(&rules.terms, &caller));
        match target {
            Target::Generate(endpoint) => {
                self.admit(rules, session, ctx, &caller, endpoint).await.map(Received::Relay)
            }
            Target::Models => Ok(Received::Answer(self.models(rules, &caller))),
            Target::Model(name) => Ok(Received::Answer(self.model(rules, &caller, name)?)),
        }
    }

    async fn authenticate(
        &self,
        rules: &Rules,
        session: &Session,
        address: Option<IpAddr>,
    ) -> Judged<Caller> {
        let mut all =
            session.req_header().headers.get_all(AUTHORIZATION).iter().map(|value| value.as_bytes());
        let authorization = all.next();
        if all.any(|other| Some(other) != authorization) {
            return Err(Refused::new(
                Kind::InvalidApiKey,
                "The request has two different Authorization headers; send one.",
            ));
        }
        match self.authenticator.authenticate(authorization).await {
            Err(refused) if refused.kind == Kind::InvalidApiKey => {
                self.guard.failed(&rules.guard, address).and(Err(refused))
            }
            other => other.and_then(|caller| {
                caller.may_come_from(address)?;
                Ok(caller)
            }),
        }
    }

    /// Head, body, model, credit, candidates: each can refuse, and what was taken before goes back by `Drop`.
    async fn admit(
        &self,
        rules: &Rules,
        session: &mut Session,
        ctx: &mut Ctx,
        caller: &Caller,
        endpoint: Endpoint,
    ) -> Asked<Box<Exchange>> {
        ctx.trace.endpoint(endpoint);
        let idempotency_key = client::idempotency_key(session)?;
        let mut permit = self.admitter.enter(&rules.terms, caller)?;
        ctx.trace.limits(permit.standing());
        let (body, mut ask) =
            self.ask(rules, session, ctx, endpoint).await.inspect_err(|_| permit.forgive_request())?;
        caller.may_use(&ask.model)?;
        let (models, prices) = self.chain(rules, caller, &ask)?;
        let model = &models[0];
        ctx.trace.model(model, &ask);
        let claim = match idempotency_key {
            Some(key) => Some(self.admitter.claim(caller, key, ctx.trace.request_id()).await?),
            None => None,
        };
        let order = Order {
            request_id: ctx.trace.request_id(),
            created_at: ctx.trace.created_at(),
            client_request_id: ctx.trace.client_request_id(),
            model: model.name.clone(),
            max_output_tokens: candidates::longest_output(&models),
            price: Arc::clone(&prices[0]),
            stand_ins: prices[1..].to_vec(),
            claim,
        };
        let plan = self.plan(caller, &ask, &body, models, order.request_id)?;
        let admission = self.admitter.admit(&rules.terms, caller, permit, &ask, order).await?;
        ctx.trace.limits(admission.permit.standing());
        if let Some(tokens) = admission.hold.output_limit() {
            ask.lower_output(tokens);
            ctx.trace.output_limit(tokens);
        }
        let place = rules.upstreams.get(&plan.candidate().provider.name);
        let silence = place.ok_or_else(|| Refused::bug("a provider without a place"))?.patience.silence;
        let control = relay::wrap(session, body.clone(), silence, &self.curfew);
        let bill = Bill::open(admission, endpoint, body, self.clock.clone(), ctx.trace.arrived_at());
        let attempts = Attempts::new(plan, prices, self.clock.clone());
        Ok(Box::new(Exchange::new(bill, attempts, ask, control)))
    }

    /// The body, whole, and what it asks for.
    async fn ask(
        &self,
        rules: &Rules,
        session: &mut Session,
        ctx: &mut Ctx,
        endpoint: Endpoint,
    ) -> Asked<(Body, Ask)> {
        let body = relay::read_body(session, &rules.settings.body, &self.budget).await?;
        ctx.trace.body_read();
        let ask = Ask::parse(endpoint, &body)?;
        Ok((body, ask))
    }

    /// The models that the caller may use now: configured, priced, allowed.
    fn models(&self, rules: &Rules, caller: &Caller) -> Vec<u8> {
        let usable = rules.catalogue.models().filter(|model| self.is_usable(caller, model));
        openai::model_list(usable.map(|model| model.name.as_str()))
    }

    fn model(&self, rules: &Rules, caller: &Caller, name: &str) -> Judged<Vec<u8>> {
        let model = rules.catalogue.model(name).filter(|model| self.is_usable(caller, model));
        model.map(|model| openai::model_object(model.name.as_str())).ok_or_else(|| model_not_found(name))
    }

    fn is_usable(&self, caller: &Caller, model: &Model) -> bool {
        let is_priced = self.book.load().model(model.name.as_str(), self.clock.wall()).is_some();
        is_priced && caller.may_use(model.name.as_str()).is_ok()
    }
}

/// The endpoint behind a path; the query plays no part.
fn target<'a>(path: &'a str, method: &Method) -> Judged<Target<'a>> {
    let unknown = || {
        Refused::new(
            Kind::UnknownUrl,
            "There is nothing at this address. The base URL ends in /v1; see GET /v1/models for what is served.",
        )
    };
    let rest = path.strip_prefix("/v1").ok_or_else(unknown)?;
    let endpoint = Endpoint::ALL.into_iter().find(|endpoint| endpoint.path() == rest);
    let (target, allowed) = match (endpoint, rest.strip_prefix("/models")) {
        (Some(endpoint), _) => (Target::Generate(endpoint), Method::POST),
        (None, Some("" | "/")) => (Target::Models, Method::GET),
        (None, Some(name)) if name.len() > 1 && name.starts_with('/') => {
            (Target::Model(&name[1..]), Method::GET)
        }
        (None, _) => return Err(unknown()),
    };
    if method != allowed {
        return Err(Refused::new(Kind::MethodNotAllowed, format!("This address takes {allowed} only.")));
    }
    Ok(target)
}

fn model_not_found(name: &str) -> Refused {
    let shown: String = name.chars().take(128).collect();
    Refused::new(
        Kind::ModelNotFound,
        format!("The model {shown:?} does not exist or is not served here. See GET /v1/models."),
    )
    .param("model")
}

impl Stage {
    /// The exchange of a request that was admitted; any other stage here is a fault of the gateway.
    fn exchange(&mut self) -> Result<&mut Exchange> {
        match self {
            Stage::Relaying(exchange) => Ok(exchange),
            Stage::Arrived | Stage::Answered => {
                Err(Error::explain(ErrorType::InternalError, "a hook of the relay without an exchange"))
            }
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
