//! The provider of `weir serve --demo`: an HTTP server in the process that speaks the OpenAI API, for trying the gateway without an
//! account anywhere.
//!
//! Promises: it is a provider like any other, over a socket; its usage is what the o200k tokenizer counts in the texts that came and
//! went; limits, choices and streams are obeyed. Refuses to know: that a gateway is in front of it, and anything about the world: its
//! answers are always the same few sentences.

mod answer;
mod ask;
mod embed;
mod wire;

use crate::clock::Clock;
use crate::openai::Endpoint;
use answer::Answer;
use ask::{ChatAsk, CompletionAsk, EmbeddingAsk};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures::stream;
use serde::Serialize;
use std::io;
use std::time::Duration;
use tokio::net::TcpListener;
use wire::{Fault, Shape};

/// The one model that it serves.
pub const MODEL: &str = "demo";
/// The most input and output of a request together, in tokens.
pub const CONTEXT_TOKENS: u64 = 128_000;
/// The most output of one choice, in tokens. No answer is as long.
pub const MAX_OUTPUT_TOKENS: u64 = 4_096;

/// From one word to the next: about as fast as a large model writes.
const WORD_EVERY: Duration = Duration::from_millis(20);
/// The largest body; the gateway in front has a limit of its own.
const BODY_MAX_BYTES: usize = 64 << 20;

/// Answers on this listener until it is dropped.
///
/// # Errors
///
/// The listener itself broke.
pub async fn serve(listener: TcpListener, clock: Clock) -> io::Result<()> {
    let routes = Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(complete))
        .route("/v1/embeddings", post(embed))
        .fallback(async || Fault::unknown_url().into_response())
        .method_not_allowed_fallback(async || Fault::method().into_response())
        .layer(DefaultBodyLimit::max(BODY_MAX_BYTES))
        .with_state(clock);
    axum::serve(listener, routes).await
}

async fn chat(State(clock): State<Clock>, body: Bytes) -> Result<Response, Fault> {
    let made = off_thread(move || ChatAsk::read(&body)?.answer(&body, &clock)).await?;
    Ok(respond(&made))
}

async fn complete(State(clock): State<Clock>, body: Bytes) -> Result<Response, Fault> {
    let made = off_thread(move || CompletionAsk::read(&body)?.answer(&body, &clock)).await?;
    Ok(respond(&made))
}

async fn embed(body: Bytes) -> Result<Response, Fault> {
    let made = off_thread(move || {
        let ask = EmbeddingAsk::read(&body)?;
        embed::answer(&ask, crate::openai::prompt_tokens(Endpoint::Embeddings, &body))
    })
    .await?;
    Ok(json(StatusCode::OK, &made))
}

/// Counting tokens takes milliseconds, and loading the tokenizer for the first time a hundred of them.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Fault::internal())?
}

fn respond(answer: &Answer) -> Response {
    if !answer.is_stream {
        return match answer.shape {
            Shape::Chat => json(StatusCode::OK, &wire::chat(answer)),
            Shape::Text => json(StatusCode::OK, &wire::text(answer)),
        };
    }
    let events = wire::events(answer).into_iter();
    let paced = stream::unfold(events, |mut events| async {
        let event = events.next()?;
        if event.is_word {
            tokio::time::sleep(WORD_EVERY).await;
        }
        Some((Ok::<_, io::Error>(Bytes::from(event.text)), events))
    });
    ([(CONTENT_TYPE, "text/event-stream")], Body::from_stream(paced)).into_response()
}

fn json(status: StatusCode, body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(body) => (status, [(CONTENT_TYPE, "application/json")], body).into_response(),
        // Structs of numbers and strings: there is nothing in them that JSON cannot say.
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        json(self.status(), &self.body())
    }
}
