//! The demo model's answers as JSON and as events.

use super::MODEL;
use super::answer::{Answer, Choice};
use axum::http::StatusCode;
use serde::Serialize;

/// Which endpoint's words an answer is in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Chat,
    Text,
}

/// A request that is not answered, in OpenAI's form.
pub(super) struct Fault {
    status: StatusCode,
    message: String,
    param: Option<&'static str>,
    code: Option<&'static str>,
}

#[derive(Serialize)]
pub(super) struct FaultBody<'a> {
    error: FaultError<'a>,
}

#[derive(Serialize)]
struct FaultError<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'static str>,
    code: Option<&'static str>,
}

impl Fault {
    pub(super) fn invalid(message: &str, param: impl Into<Option<&'static str>>) -> Self {
        Fault {
            status: StatusCode::BAD_REQUEST,
            message: message.to_owned(),
            param: param.into(),
            code: None,
        }
    }

    pub(super) fn model() -> Self {
        Fault {
            status: StatusCode::NOT_FOUND,
            message: format!("The only model here is {MODEL:?}."),
            param: Some("model"),
            code: Some("model_not_found"),
        }
    }

    pub(super) fn unknown_url() -> Self {
        let message = "There is nothing at this address.".to_owned();
        Fault { status: StatusCode::NOT_FOUND, message, param: None, code: Some("unknown_url") }
    }

    pub(super) fn method() -> Self {
        let message = "This address takes POST only.".to_owned();
        Fault {
            status: StatusCode::METHOD_NOT_ALLOWED,
            message,
            param: None,
            code: Some("method_not_allowed"),
        }
    }

    pub(super) fn internal() -> Self {
        let message = "The demo model failed.".to_owned();
        Fault { status: StatusCode::INTERNAL_SERVER_ERROR, message, param: None, code: None }
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    pub(super) fn body(&self) -> FaultBody<'_> {
        let Fault { status, message, param, code } = self;
        let r#type = if status.is_server_error() { "server_error" } else { "invalid_request_error" };
        FaultBody { error: FaultError { message, r#type, param: *param, code: *code } }
    }
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    completion_tokens: Option<u64>,
    total_tokens: u64,
}

impl Usage {
    fn of(answer: &Answer) -> Self {
        let (prompt_tokens, completion_tokens) = (answer.prompt_tokens, answer.completion_tokens());
        Usage {
            prompt_tokens,
            completion_tokens: Some(completion_tokens),
            total_tokens: prompt_tokens.saturating_add(completion_tokens),
        }
    }
}

/// A whole answer, or a chunk of a streamed one.
#[derive(Serialize)]
pub(super) struct Object<C: Serialize> {
    id: String,
    object: &'static str,
    created: i64,
    model: &'static str,
    choices: Vec<C>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

#[derive(Serialize)]
pub(super) struct ChatChoice<'a> {
    index: usize,
    message: Said<'a>,
    logprobs: Option<()>,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct Said<'a> {
    role: &'static str,
    content: &'a str,
    refusal: Option<()>,
}

#[derive(Serialize)]
pub(super) struct TextChoice<'a> {
    index: usize,
    text: &'a str,
    logprobs: Option<()>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
struct ChunkChoice<'a> {
    index: usize,
    delta: Delta<'a>,
    logprobs: Option<()>,
    finish_reason: Option<&'static str>,
}

#[derive(Default, Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

/// The whole answer to a chat.
pub(super) fn chat(answer: &Answer) -> Object<ChatChoice<'_>> {
    let choices = answer.choices.iter().enumerate().map(|(index, choice)| ChatChoice {
        index,
        message: Said { role: "assistant", content: &choice.text, refusal: None },
        logprobs: None,
        finish_reason: finish_reason(choice),
    });
    object(answer, "chat.completion", choices.collect(), Some(Usage::of(answer)))
}

/// The whole answer to a prompt.
pub(super) fn text(answer: &Answer) -> Object<TextChoice<'_>> {
    let choices = answer.choices.iter().enumerate().map(|(index, choice)| TextChoice {
        index,
        text: &choice.text,
        logprobs: None,
        finish_reason: Some(finish_reason(choice)),
    });
    object(answer, "text_completion", choices.collect(), Some(Usage::of(answer)))
}

/// One event of a streamed answer, framed.
pub(super) struct Event {
    pub(super) text: String,
    /// It took time to write.
    pub(super) is_word: bool,
}

/// Every event of a streamed answer, in order: the choices take turns, word by word.
pub(super) fn events(answer: &Answer) -> Vec<Event> {
    let mut events = Vec::new();
    if answer.shape == Shape::Chat {
        for index in 0..answer.choices.len() {
            let delta = Delta { role: Some("assistant"), content: Some("") };
            events.push(chat_event(answer, index, delta, None));
        }
    }
    let mut open: Vec<_> = answer.choices.iter().map(|choice| (choice, choice.words())).enumerate().collect();
    while !open.is_empty() {
        open.retain_mut(|(index, (choice, words))| {
            let word = words.next();
            events.push(match word {
                Some(word) => word_event(answer, *index, word),
                None => last_event(answer, *index, choice),
            });
            word.is_some()
        });
    }
    if answer.with_usage {
        let usage = Some(Usage::of(answer));
        events.push(match answer.shape {
            Shape::Chat => event(&object::<ChunkChoice<'_>>(answer, CHAT_CHUNK, Vec::new(), usage), false),
            Shape::Text => {
                event(&object::<TextChoice<'_>>(answer, "text_completion", Vec::new(), usage), false)
            }
        });
    }
    events.push(Event { text: "data: [DONE]\n\n".to_owned(), is_word: false });
    events
}

const CHAT_CHUNK: &str = "chat.completion.chunk";

fn word_event(answer: &Answer, index: usize, word: &str) -> Event {
    match answer.shape {
        Shape::Chat => chat_event(answer, index, Delta { role: None, content: Some(word) }, None),
        Shape::Text => text_event(answer, index, word, None),
    }
}

fn last_event(answer: &Answer, index: usize, choice: &Choice) -> Event {
    let reason = Some(finish_reason(choice));
    match answer.shape {
        Shape::Chat => chat_event(answer, index, Delta::default(), reason),
        Shape::Text => text_event(answer, index, "", reason),
    }
}

fn chat_event(answer: &Answer, index: usize, delta: Delta<'_>, finish_reason: Option<&'static str>) -> Event {
    let is_word = delta.content.is_some_and(|content| !content.is_empty());
    let choice = ChunkChoice { index, delta, logprobs: None, finish_reason };
    event(&object(answer, CHAT_CHUNK, vec![choice], None), is_word)
}

fn text_event(answer: &Answer, index: usize, text: &str, finish_reason: Option<&'static str>) -> Event {
    let choice = TextChoice { index, text, logprobs: None, finish_reason };
    event(&object(answer, "text_completion", vec![choice], None), !text.is_empty())
}

fn event(data: &impl Serialize, is_word: bool) -> Event {
    // Structs of numbers and strings: there is nothing in them that JSON cannot say.
    let data = serde_json::to_string(data).unwrap_or_default();
    Event { text: format!("data: {data}\n\n"), is_word }
}

fn object<C: Serialize>(
    answer: &Answer,
    object: &'static str,
    choices: Vec<C>,
    usage: Option<Usage>,
) -> Object<C> {
    let prefix = match answer.shape {
        Shape::Chat => "chatcmpl",
        Shape::Text => "cmpl",
    };
    Object {
        id: format!("{prefix}-{}", answer.id),
        object,
        created: answer.created,
        model: MODEL,
        choices,
        usage,
    }
}

fn finish_reason(choice: &Choice) -> &'static str {
    if choice.is_cut { "length" } else { "stop" }
}

/// The answer to a request for embeddings.
#[derive(Serialize)]
pub(super) struct Embeddings {
    object: &'static str,
    data: Vec<Embedding>,
    model: &'static str,
    usage: Usage,
}

#[derive(Serialize)]
pub(super) struct Embedding {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

/// As numbers, or as text that stands for them.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Vector {
    Numbers(Vec<f32>),
    Text(String),
}

impl Embedding {
    pub(super) fn new(index: usize, embedding: Vector) -> Self {
        Embedding { object: "embedding", index, embedding }
    }
}

impl Embeddings {
    pub(super) fn new(data: Vec<Embedding>, prompt_tokens: u64) -> Self {
        let usage = Usage { prompt_tokens, completion_tokens: None, total_tokens: prompt_tokens };
        Embeddings { object: "list", data, model: MODEL, usage }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(shape: Shape, texts: &[&str]) -> Answer {
        let choices = texts.iter().map(|text| Choice { text: (*text).to_owned(), tokens: 2, is_cut: true });
        Answer {
            id: "1".to_owned(),
            created: 7,
            shape,
            choices: choices.collect(),
            prompt_tokens: 3,
            is_stream: true,
            with_usage: true,
        }
    }

    #[test]
    fn choices_take_turns_and_the_stream_ends_in_usage_and_done() {
        let events = events(&answer(Shape::Chat, &["a b", "c"]));
        let texts: String = events.iter().map(|event| event.text.as_str()).collect();
        let order =
            ["\"content\":\"a \"", "\"content\":\"c\"", "\"content\":\"b\"", "\"finish_reason\":\"length\""];
        let places: Vec<usize> = order.iter().map(|part| texts.find(part).unwrap()).collect();
        assert!(places[0] < places[1] && places[1] < places[2], "{texts}");
        assert!(texts.contains(
            "\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4,\"total_tokens\":7}"
        ));
        assert!(texts.ends_with("\n\ndata: [DONE]\n\n"), "{texts}");
        assert_eq!(events.iter().filter(|event| event.is_word).count(), 3);
    }

    #[test]
    fn completions_stream_text() {
        let events = events(&answer(Shape::Text, &["a b"]));
        assert!(
            events[0].text.contains("\"object\":\"text_completion\"")
                && events[0].text.contains("\"text\":\"a \"")
        );
    }
}
