//! What is asked of the demo model, as far as it acts on it. Any other key of a request is taken and means nothing to it.

use super::MODEL;
use super::wire::Fault;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

/// The most choices of one request, as at OpenAI.
const CHOICES_MAX: u64 = 128;
/// The most inputs of one request for embeddings, as at OpenAI.
const INPUTS_MAX: usize = 2_048;
/// The most numbers of an embedding.
const DIMENSIONS_MAX: usize = 3_072;
/// The numbers of an embedding for which none are asked.
const DIMENSIONS: usize = 256;

/// `POST /v1/chat/completions`.
#[derive(Deserialize)]
pub(super) struct ChatAsk {
    model: String,
    messages: Vec<Message>,
    #[serde(default)]
    pub(super) stream: Option<bool>,
    #[serde(default)]
    stream_options: Option<StreamOptions>,
    #[serde(default)]
    max_tokens: Option<u64>,
    #[serde(default)]
    max_completion_tokens: Option<u64>,
    #[serde(default)]
    n: Option<u64>,
}

/// `POST /v1/completions`.
#[derive(Deserialize)]
pub(super) struct CompletionAsk {
    model: String,
    prompt: Input,
    #[serde(default)]
    pub(super) stream: Option<bool>,
    #[serde(default)]
    stream_options: Option<StreamOptions>,
    #[serde(default)]
    max_tokens: Option<u64>,
    #[serde(default)]
    n: Option<u64>,
}

/// `POST /v1/embeddings`.
#[derive(Deserialize)]
pub(super) struct EmbeddingAsk {
    model: String,
    input: Input,
    #[serde(default)]
    dimensions: Option<usize>,
    #[serde(default)]
    pub(super) encoding_format: Encoding,
}

/// How the numbers of an embedding are written.
#[derive(Clone, Copy, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Encoding {
    #[default]
    Float,
    /// Little-endian 32-bit floats, which the official clients ask for.
    Base64,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: Option<bool>,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    #[serde(default)]
    content: Option<Content>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    #[serde(default)]
    text: Option<String>,
}

/// Texts, or texts as tokens.
#[derive(Deserialize)]
#[serde(untagged)]
enum Input {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    TokenLists(Vec<Vec<u32>>),
    Other(IgnoredAny),
}

/// What every request for text comes down to.
pub(super) struct Order {
    /// What to answer, in the asker's words; one for each prompt.
    pub(super) asked: Vec<String>,
    /// Choices for each prompt.
    pub(super) choices: u64,
    /// The most output of one choice, in tokens.
    pub(super) max_tokens: u64,
    pub(super) is_stream: bool,
    pub(super) with_usage: bool,
}

impl ChatAsk {
    pub(super) fn read(body: &[u8]) -> Result<Self, Fault> {
        let ask: ChatAsk = parse(body)?;
        check_model(&ask.model)?;
        if ask.messages.is_empty() {
            return Err(Fault::invalid("There must be at least one message.", "messages"));
        }
        Ok(ask)
    }

    pub(super) fn order(&self) -> Result<Order, Fault> {
        let asked = self.messages.iter().rev().find(|message| message.role == "user").map(Message::text);
        Ok(Order {
            asked: vec![asked.unwrap_or_default()],
            choices: choices(self.n)?,
            max_tokens: limit(self.max_completion_tokens.or(self.max_tokens))?,
            is_stream: self.stream == Some(true),
            with_usage: with_usage(self.stream_options.as_ref()),
        })
    }
}

impl Message {
    fn text(&self) -> String {
        match &self.content {
            Some(Content::Text(text)) => text.clone(),
            Some(Content::Parts(parts)) => {
                parts.iter().filter_map(|part| part.text.as_deref()).collect::<Vec<_>>().join(" ")
            }
            None => String::new(),
        }
    }
}

impl CompletionAsk {
    pub(super) fn read(body: &[u8]) -> Result<Self, Fault> {
        let ask: CompletionAsk = parse(body)?;
        check_model(&ask.model)?;
        Ok(ask)
    }

    pub(super) fn order(&self) -> Result<Order, Fault> {
        Ok(Order {
            asked: self.prompt.texts("prompt")?,
            choices: choices(self.n)?,
            max_tokens: limit(self.max_tokens)?,
            is_stream: self.stream == Some(true),
            with_usage: with_usage(self.stream_options.as_ref()),
        })
    }
}

impl EmbeddingAsk {
    pub(super) fn read(body: &[u8]) -> Result<Self, Fault> {
        let ask: EmbeddingAsk = parse(body)?;
        check_model(&ask.model)?;
        Ok(ask)
    }

    pub(super) fn texts(&self) -> Result<Vec<String>, Fault> {
        self.input.texts("input")
    }

    pub(super) fn dimensions(&self) -> Result<usize, Fault> {
        let dimensions = self.dimensions.unwrap_or(DIMENSIONS);
        if (1..=DIMENSIONS_MAX).contains(&dimensions) {
            return Ok(dimensions);
        }
        Err(Fault::invalid(&format!("dimensions must be from 1 to {DIMENSIONS_MAX}."), "dimensions"))
    }
}

impl Input {
    /// A text for each input; tokens are told by their numbers.
    fn texts(&self, param: &'static str) -> Result<Vec<String>, Fault> {
        let numbers = |tokens: &Vec<u32>| format!("{tokens:?}");
        let texts = match self {
            Input::Text(text) => vec![text.clone()],
            Input::Texts(texts) => texts.clone(),
            Input::Tokens(tokens) => vec![numbers(tokens)],
            Input::TokenLists(lists) => lists.iter().map(numbers).collect(),
            Input::Other(_) => {
                return Err(Fault::invalid(
                    &format!("{param} must be a string, or an array of strings or of tokens."),
                    param,
                ));
            }
        };
        if !(1..=INPUTS_MAX).contains(&texts.len()) {
            return Err(Fault::invalid(&format!("{param} must have from 1 to {INPUTS_MAX} members."), param));
        }
        Ok(texts)
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Fault> {
    serde_json::from_slice(body)
        .map_err(|fault| Fault::invalid(&format!("The body is not what this address takes: {fault}."), None))
}

fn check_model(model: &str) -> Result<(), Fault> {
    if model == MODEL { Ok(()) } else { Err(Fault::model()) }
}

fn choices(n: Option<u64>) -> Result<u64, Fault> {
    let n = n.unwrap_or(1);
    if (1..=CHOICES_MAX).contains(&n) {
        return Ok(n);
    }
    Err(Fault::invalid(&format!("n must be from 1 to {CHOICES_MAX}."), "n"))
}

fn limit(asked: Option<u64>) -> Result<u64, Fault> {
    match asked {
        Some(0) => Err(Fault::invalid("max_tokens must be at least 1.", "max_tokens")),
        Some(tokens) => Ok(tokens.min(super::MAX_OUTPUT_TOKENS)),
        None => Ok(super::MAX_OUTPUT_TOKENS),
    }
}

fn with_usage(options: Option<&StreamOptions>) -> bool {
    options.and_then(|options| options.include_usage) == Some(true)
}
