//! The provider: answers at once, whole or as a stream of 100 chunks that come apart.

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Long enough apart to be a read and a write each, as from a model that thinks.
const APART: Duration = Duration::from_millis(1);

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Prints the address that it listens on, then serves for ever.
pub(crate) fn run() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        println!("{}", listener.local_addr().expect("its address"));
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            stream.set_nodelay(true).expect("no delay");
            connections.spawn(async move {
                let served = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer));
                // A connection that its client ends is no failure of ours.
                let _ = served.await;
            });
            while connections.try_join_next().is_some() {}
        }
    });
}

async fn answer(request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let asked = request.into_body().collect().await?.to_bytes();
    let head = &asked[..asked.len().min(512)];
    let streamed = memchr::memmem::find(head, br#""stream":true"#).is_some();
    let with_usage = memchr::memmem::find(head, br#""include_usage":true"#).is_some();
    let (kind, body) = if streamed {
        ("text/event-stream", stream(with_usage))
    } else {
        ("application/json", Full::new(Bytes::from_static(WHOLE.as_bytes())).boxed_unsync())
    };
    Ok(Response::builder().header("content-type", kind).body(body).expect("an answer"))
}

fn stream(with_usage: bool) -> Body {
    let chunks = futures::stream::unfold(0, move |sent| async move {
        if sent > 0 {
            tokio::time::sleep(APART).await;
        }
        let text = match sent {
            0..99 => chunk(&format!(r#"{{"content":"{}"}}"#, WORDS[sent % WORDS.len()]), "null"),
            99 => chunk("{}", "\"stop\"") + if with_usage { USAGE } else { "" } + "data: [DONE]\n\n",
            _ => return None,
        };
        Some((Ok(Frame::data(Bytes::from(text))), sent + 1))
    });
    StreamBody::new(chunks).boxed_unsync()
}

fn chunk(delta: &str, finish: &str) -> String {
    format!(
        "data: {{\"id\":\"chatcmpl-AbCdEfGhIjKlMnOpQrStUvWx\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\
         \"model\":\"upstream-model\",\"service_tier\":\"default\",\"system_fingerprint\":\"fp_0123456789\",\
         \"choices\":[{{\"index\":0,\"delta\":{delta},\"logprobs\":null,\"finish_reason\":{finish}}}]}}\n\n"
    )
}

const WORDS: [&str; 8] = [" The", " weir", " measures", " what", " passes", ";", " always", ".\\n"];

const USAGE: &str = concat!(
    "data: {\"id\":\"chatcmpl-AbCdEfGhIjKlMnOpQrStUvWx\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,",
    "\"model\":\"upstream-model\",\"choices\":[],",
    "\"usage\":{\"prompt_tokens\":230,\"completion_tokens\":99,\"total_tokens\":329}}\n\n"
);

const WHOLE: &str = concat!(
    r#"{"id":"chatcmpl-AbCdEfGhIjKlMnOpQrStUvWx","object":"chat.completion","created":1700000000,"#,
    r#""model":"upstream-model","choices":[{"index":0,"message":{"role":"assistant","content":"#,
    r#""A weir is a low dam across a river that raises the level of the water above it and measures what passes. "#,
    r#"It lets the water through, and yet knows how much of it there was, which is all that can be asked of it.","#,
    r#""refusal":null,"annotations":[]},"logprobs":null,"finish_reason":"stop"}],"#,
    r#""usage":{"prompt_tokens":230,"completion_tokens":45,"total_tokens":275,"#,
    r#""prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},"#,
    r#""completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0}},"#,
    r#""service_tier":"default","system_fingerprint":"fp_0123456789"}"#
);
