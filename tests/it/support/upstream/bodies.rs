//! What providers say.

use super::Answer;
use serde_json::{Value, json};

/// What a healthy provider answers: a short text with exact usage, streamed where the request says so.
pub(super) fn plausible(path: &str, body: &[u8]) -> Answer {
    let asked: Value = serde_json::from_slice(body).unwrap_or_default();
    let streamed = asked["stream"] == true;
    let with_usage = asked["stream_options"]["include_usage"] == true;
    match path.rsplit('/').next().unwrap_or_default() {
        "embeddings" => Answer::json(200, &embeddings(5)),
        "completions" if streamed => {
            let mut answer = Answer::stream();
            for word in HELLO {
                answer = answer.event(&chunk(word));
            }
            answer = answer.event(&last_chunk());
            if with_usage {
                answer = answer.event(&usage_chunk(&usage(12, 3)));
            }
            answer.done()
        }
        _ => Answer::json(200, &chat("Hello from the weir", &usage(12, 5))),
    }
}

/// The words of the healthy stream.
pub(crate) const HELLO: [&str; 3] = ["Hello", " from", " upstream"];

/// A whole chat answer.
pub(crate) fn chat(text: &str, usage: &Value) -> Value {
    json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1_700_000_000, "model": "provider-model",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": usage,
    })
}

/// An embeddings answer that used so many tokens.
pub(crate) fn embeddings(tokens: u64) -> Value {
    json!({
        "object": "list", "model": "provider-model",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    })
}

/// A usage object.
pub(crate) fn usage(prompt: u64, completion: u64) -> Value {
    json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion})
}

/// A chunk of a streamed chat answer with these words.
pub(crate) fn chunk(text: &str) -> Value {
    choice_chunk(&json!([{"index": 0, "delta": {"content": text}, "finish_reason": null}]))
}

/// The chunk that says that the answer is whole.
pub(crate) fn last_chunk() -> Value {
    choice_chunk(&json!([{"index": 0, "delta": {}, "finish_reason": "stop"}]))
}

/// The chunk that carries the usage and no choices.
pub(crate) fn usage_chunk(usage: &Value) -> Value {
    let mut chunk = choice_chunk(&json!([]));
    chunk["usage"] = usage.clone();
    chunk
}

/// A chunk with these choices.
pub(crate) fn choice_chunk(choices: &Value) -> Value {
    json!({
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "provider-model",
        "choices": choices,
    })
}
