//! The OpenAI API on the wire: requests as far as they are acted on, answers as far as they are billed by, errors.
//!
//! Promises: a body that two readers could read differently is refused; what is not ours to change stays byte for byte as it came;
//! no input can exhaust the stack; messages never quote a body. Refuses to know: who asks, which provider answers, what a token
//! costs.

mod affinity;
mod answer;
mod ask;
mod edit;
mod envelope;
mod fault;
mod form;
mod json;
mod keys;
mod limit;
mod prompt;
mod scan;
mod text;
mod usage;

pub use answer::{Answer, Choice, NotAnAnswer, Said};
pub use ask::Ask;
pub use edit::{Edit, splice};
pub use envelope::Envelope;
pub use fault::{UpstreamFault, error_body, error_object};
pub use form::Form;
pub use prompt::prompt_tokens;

use serde::Serialize;

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// Chat.
    ChatCompletions,
    /// Text that goes on from a prompt.
    Completions,
    /// Vectors.
    Embeddings,
}

impl Endpoint {
    /// Every endpoint.
    pub const ALL: [Endpoint; 3] = [Endpoint::ChatCompletions, Endpoint::Completions, Endpoint::Embeddings];

    /// The path behind the base URL; also the name in logs and metrics.
    pub const fn path(self) -> &'static str {
        match self {
            Endpoint::ChatCompletions => "/chat/completions",
            Endpoint::Completions => "/completions",
            Endpoint::Embeddings => "/embeddings",
        }
    }

    /// Whether an answer has output tokens.
    pub const fn has_output(self) -> bool {
        match self {
            Endpoint::ChatCompletions | Endpoint::Completions => true,
            Endpoint::Embeddings => false,
        }
    }
}

/// A model as clients see it.
#[derive(Serialize)]
struct Model<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
}

impl<'a> Model<'a> {
    fn new(id: &'a str) -> Self {
        Model { id, object: "model", created: 0, owned_by: "weir" }
    }
}

/// The answer to `GET /models`.
pub fn model_list<'a>(names: impl Iterator<Item = &'a str>) -> Vec<u8> {
    #[derive(Serialize)]
    struct List<'a> {
        object: &'static str,
        data: Vec<Model<'a>>,
    }
    to_json(&List { object: "list", data: names.map(Model::new).collect() })
}

/// The answer to `GET /models/{name}`.
pub fn model_object(name: &str) -> Vec<u8> {
    to_json(&Model::new(name))
}

/// Writes what cannot fail to be written: structs of strings and numbers.
#[expect(clippy::expect_used, reason = "a struct of strings and numbers has no way to fail in memory")]
fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("strings and numbers are JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_have_the_shape_of_the_api() {
        let one = r#"{"id":"a\"b","object":"model","created":0,"owned_by":"weir"}"#;
        assert_eq!(model_object("a\"b"), one.as_bytes());
        let list = String::from_utf8(model_list(["a\"b"].into_iter())).unwrap();
        assert_eq!(list, format!(r#"{{"object":"list","data":[{one}]}}"#));
    }
}
