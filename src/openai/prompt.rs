//! The tokens of a request's input, counted where a provider does not say.
//!
//! By the published rule of OpenAI's models: three tokens a message, its role and its content, one more with a name, three for the
//! answer to come. How tools are shown to a model is not published; they count as the text that they are. Media count as a fixed
//! number each.

use super::Endpoint;
use super::text::{each_text, string};
use crate::tokens;
use serde::Deserialize;
use serde_json::value::RawValue;

/// What each message takes besides its text, and the answer once.
const MESSAGE_TOKENS: u64 = 3;
/// What a name takes besides its text.
const NAME_TOKENS: u64 = 1;
/// What an image, a recording or a file is counted as: OpenAI's number for a picture of 1024 by 1024 in high detail.
const MEDIUM_TOKENS: u64 = 765;

#[derive(Deserialize)]
struct Input<'a> {
    #[serde(borrow, default)]
    messages: Option<&'a RawValue>,
    #[serde(borrow, default)]
    tools: Option<&'a RawValue>,
    #[serde(borrow, default)]
    functions: Option<&'a RawValue>,
    #[serde(borrow, default)]
    prompt: Option<&'a RawValue>,
    #[serde(borrow, default)]
    suffix: Option<&'a RawValue>,
    #[serde(borrow, default)]
    input: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    role: Option<&'a RawValue>,
    #[serde(borrow, default)]
    name: Option<&'a RawValue>,
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    refusal: Option<&'a RawValue>,
    #[serde(borrow, default)]
    reasoning_content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    tool_calls: Option<Vec<ToolCall<'a>>>,
    #[serde(borrow, default)]
    function_call: Option<Function<'a>>,
}

#[derive(Deserialize)]
struct ToolCall<'a> {
    #[serde(borrow, default)]
    function: Option<Function<'a>>,
}

#[derive(Deserialize)]
struct Function<'a> {
    #[serde(borrow, default)]
    name: Option<&'a RawValue>,
    #[serde(borrow, default)]
    arguments: Option<&'a RawValue>,
}

/// The input tokens of a body that was taken. Some 50 ns a byte of text.
pub fn prompt_tokens(endpoint: Endpoint, body: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(body);
    let Ok(input) = serde_json::from_str::<Input<'_>>(&text) else { return tokens::count(&text) };
    match endpoint {
        Endpoint::ChatCompletions => {
            let messages = input.messages.map_or(0, messages_tokens);
            let tools =
                [input.tools, input.functions].into_iter().flatten().map(|raw| tokens::count(raw.get()));
            tools.fold(messages.saturating_add(MESSAGE_TOKENS), u64::saturating_add)
        }
        Endpoint::Completions => [input.prompt, input.suffix].into_iter().flatten().map(plain_tokens).sum(),
        Endpoint::Embeddings => input.input.map_or(0, plain_tokens),
    }
}

/// Whether a part of a message names a file that a provider keeps.
pub(super) fn names_a_file(messages: &str) -> bool {
    #[derive(Deserialize)]
    struct Parts<'a> {
        #[serde(borrow, default)]
        content: Option<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct Part<'a> {
        #[serde(borrow, default)]
        file: Option<File<'a>>,
    }
    #[derive(Deserialize)]
    struct File<'a> {
        #[serde(borrow, default)]
        file_id: Option<&'a RawValue>,
    }
    let messages: Vec<&RawValue> = serde_json::from_str(messages).unwrap_or_default();
    messages
        .iter()
        .filter_map(|message| serde_json::from_str::<Parts<'_>>(message.get()).ok()?.content)
        .filter_map(|content| serde_json::from_str::<Vec<&RawValue>>(content.get()).ok())
        .flatten()
        .filter_map(|part| serde_json::from_str::<Part<'_>>(part.get()).ok()?.file)
        .any(|file| file.file_id.is_some())
}

fn messages_tokens(raw: &RawValue) -> u64 {
    // What a provider takes though it is not shaped as messages are counts as the text that it is.
    let Ok(messages) = serde_json::from_str::<Vec<Message<'_>>>(raw.get()) else {
        return tokens::count(raw.get());
    };
    messages.iter().map(message_tokens).fold(0, u64::saturating_add)
}

fn message_tokens(message: &Message<'_>) -> u64 {
    let mut total = MESSAGE_TOKENS;
    let mut add = |raw: Option<&RawValue>| {
        let Some(raw) = raw else { return };
        let media = each_text(raw.get(), &mut |text| total = total.saturating_add(tokens::count(text)));
        total = total.saturating_add(media.saturating_mul(MEDIUM_TOKENS));
    };
    for raw in [message.role, message.name, message.content, message.refusal, message.reasoning_content] {
        add(raw);
    }
    let calls = message.tool_calls.iter().flatten().filter_map(|call| call.function.as_ref());
    for function in calls.chain(&message.function_call) {
        add(function.name);
        add(function.arguments);
    }
    if message.name.is_some() { total.saturating_add(NAME_TOKENS) } else { total }
}

/// A text, a token, or an array of what is either.
fn plain_tokens(raw: &RawValue) -> u64 {
    if let Some(text) = string(raw.get()) {
        return tokens::count(&text);
    }
    if !raw.get().starts_with('[') {
        // A number is a token of the client's own making.
        return 1;
    }
    let items: Vec<&RawValue> = serde_json::from_str(raw.get()).unwrap_or_default();
    items.into_iter().map(plain_tokens).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens::count;

    fn chat(keys: &str) -> u64 {
        prompt_tokens(Endpoint::ChatCompletions, format!("{{{keys}}}").as_bytes())
    }

    #[test]
    fn a_chat_is_counted_by_the_published_rule() {
        assert_eq!(
            chat(r#""messages":[{"role":"user","content":"Hello, weir"}]"#),
            3 + 1 + count("Hello, weir") + 3
        );
        let named = r#""messages":[{"role":"system","name":"keeper","content":"Be \"brief\"."},{"role":"user","content":null}]"#;
        assert_eq!(chat(named), 3 + 1 + count("keeper") + 1 + count("Be \"brief\".") + 3 + 1 + 3);
        assert_eq!(chat(r#""messages":[]"#), 3);
    }

    #[test]
    fn parts_calls_and_tools_count_as_their_text() {
        let parts = r#""messages":[{"role":"user","content":[{"type":"text","text":"Look"},{"type":"image_url","image_url":{"url":"x"}}]}]"#;
        assert_eq!(chat(parts), 3 + 1 + count("Look") + 765 + 3);
        let call = r#""messages":[{"role":"assistant","tool_calls":[{"id":"1","function":{"name":"level","arguments":"{\"at\":1}"}}]}]"#;
        assert_eq!(chat(call), 3 + 1 + count("level") + count("{\"at\":1}") + 3);
        let tools = r#"[{"type":"function","function":{"name":"level"}}]"#;
        assert_eq!(chat(&format!(r#""messages":[],"tools":{tools}"#)), 3 + count(tools));
        assert_eq!(chat(r#""messages":[7]"#), count("[7]") + 3);
    }

    #[test]
    fn texts_and_tokens_are_counted_one_by_one() {
        let input =
            |json: &str| prompt_tokens(Endpoint::Embeddings, format!(r#"{{"input":{json}}}"#).as_bytes());
        assert_eq!(input(r#""one weir""#), count("one weir"));
        assert_eq!(input(r#"["one weir","two rivers"]"#), count("one weir") + count("two rivers"));
        assert_eq!(input("[1,2,3]"), 3);
        assert_eq!(input("[[1,2],[3]]"), 3);
        let body = br#"{"prompt":"Say","suffix":"hello"}"#;
        assert_eq!(prompt_tokens(Endpoint::Completions, body), count("Say") + count("hello"));
    }
}
