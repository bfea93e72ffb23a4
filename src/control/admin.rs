//! The listener for operators and their machines: `/metrics`, `/healthz`, `/readyz`.
//!
//! Promises: `/healthz` is 200 while the process can answer at all; `/readyz` is 200 only while every listener accepts and this process
//! can serve, else 503 with a line that says why. Refuses to know: clients. The listener is not for them, and has neither keys nor limits.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderName};
use axum::routing::get;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::net::TcpListener;

/// Whether the process takes requests. Cheap to clone; clones say the same.
#[derive(Clone, Default)]
pub struct Readiness(Arc<Serving>);

#[derive(Default)]
struct Serving {
    is_serving: AtomicBool,
    /// Told by whoever can be in the way of serving.
    obstacle: OnceLock<Box<dyn Fn() -> Option<&'static str> + Send + Sync>>,
}

/// What the listener shows.
#[derive(Clone)]
pub struct Admin {
    readiness: Readiness,
    metrics: Arc<dyn Fn() -> Result<String, String> + Send + Sync>,
}

/// The media type of the Prometheus text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

impl Readiness {
    /// From now on the listeners accept, or not.
    pub fn set(&self, is_serving: bool) {
        self.0.is_serving.store(is_serving, Ordering::Release);
    }

    /// From now on this is asked for what is in the way, as well. The first one stays.
    pub fn ask(&self, obstacle: impl Fn() -> Option<&'static str> + Send + Sync + 'static) {
        self.0.obstacle.get_or_init(|| Box::new(obstacle));
    }

    /// Why the process takes no requests, if it does not.
    pub fn obstacle(&self) -> Option<&'static str> {
        if !self.0.is_serving.load(Ordering::Acquire) {
            return Some("the listeners do not accept: the process starts or stops");
        }
        self.0.obstacle.get().and_then(|obstacle| obstacle())
    }

    /// Whether the process takes requests.
    pub fn is_ready(&self) -> bool {
        self.obstacle().is_none()
    }
}

impl Admin {
    /// Shows this readiness, and what `metrics` gives at the moment that it is asked for.
    pub fn new(
        readiness: Readiness,
        metrics: impl Fn() -> Result<String, String> + Send + Sync + 'static,
    ) -> Self {
        Admin { readiness, metrics: Arc::new(metrics) }
    }

    /// Answers until it is dropped, or told to close: then what is being answered ends by itself.
    ///
    /// # Errors
    ///
    /// The listener itself broke.
    pub async fn serve(
        self,
        listener: TcpListener,
        closed: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<()> {
        axum::serve(listener, self.routes()).with_graceful_shutdown(closed).await
    }

    fn routes(self) -> Router {
        Router::new()
            .route("/metrics", get(metrics))
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(ready))
            .with_state(self)
    }
}

async fn ready(State(admin): State<Admin>) -> (StatusCode, String) {
    match admin.readiness.obstacle() {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(obstacle) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {obstacle}\n")),
    }
}

type Shown = (StatusCode, [(HeaderName, &'static str); 1], String);

async fn metrics(State(admin): State<Admin>) -> Shown {
    let (status, text) = match (admin.metrics)() {
        Ok(text) => (StatusCode::OK, text),
        Err(fault) => (StatusCode::INTERNAL_SERVER_ERROR, fault),
    };
    (status, [(CONTENT_TYPE, METRICS_TYPE)], text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    async fn ask(address: std::net::SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nHost: weir\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn it_says_ready_only_when_it_is_and_alive_always() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let readiness = Readiness::default();
        let serving = Admin::new(readiness.clone(), || Ok("weir_ready 0\n".to_owned()))
            .serve(listener, std::future::pending());
        let asking = async {
            assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 503 "));
            readiness.set(true);
            assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 200 "));
            let is_full = Arc::new(AtomicBool::new(true));
            let told = Arc::clone(&is_full);
            readiness.ask(move || told.load(Ordering::Relaxed).then_some("the journal cannot be written"));
            let answer = ask(address, "/readyz").await;
            assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
            assert!(answer.ends_with("not ready: the journal cannot be written\n"), "{answer}");
            is_full.store(false, Ordering::Relaxed);
            assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 200 "));
            readiness.set(false);
            assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 503 "));
            assert!(ask(address, "/healthz").await.starts_with("HTTP/1.1 200 "));
            let metrics = ask(address, "/metrics").await;
            assert!(metrics.contains(METRICS_TYPE) && metrics.ends_with("weir_ready 0\n"), "{metrics}");
            for path in ["/", "/metrics/", "/v1/models"] {
                assert!(ask(address, path).await.starts_with("HTTP/1.1 404 "), "{path}");
            }
        };
        tokio::select! {
            broken = serving => panic!("{broken:?}"),
            () = asking => {}
        }
    }
}
