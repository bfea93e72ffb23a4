//! What a request asks for, read once, and where in its text each thing stands.
//!
//! Invariant: a body that is taken has one reading. A key that the gateway acts on and that stands twice, in another case or with
//! escapes is refused, for the provider might act on the other one.

use super::edit::Edit;
use super::json::{Fault, array};
use super::keys::{Name, Object, StreamOptions, span};
use super::limit::OutputLimit;
use super::scan::{DEPTH_MAX, Notes};
use super::{Endpoint, affinity, prompt};
use crate::refusal::{Kind, Refused};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::error::Category;
use std::fmt;
use std::hash::{DefaultHasher, Hasher};
use std::ops::Range;

/// A request as far as the gateway acts on it.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Where it was sent to.
    pub endpoint: Endpoint,
    /// The model, as the client calls it. Never empty.
    pub model: String,
    /// Whether the answer is to come as events.
    pub stream: bool,
    /// The most output of one choice, in tokens, where the client says one.
    pub max_output_tokens: Option<u64>,
    /// How many answers will be made, for all prompts together; at least 1.
    pub choices: u64,
    /// The service tier asked for.
    pub service_tier: Option<String>,
    /// Whether the client wants the usage at the end of its stream.
    pub include_usage: bool,
    input_estimate: u64,
    model_at: Range<usize>,
    /// What makes the provider report the usage of a stream.
    usage_edit: Option<Edit>,
    output_limit: OutputLimit,
    output_edits: Vec<Edit>,
    /// What names the conversation, or else begins it.
    conversation: Option<Conversation>,
}

/// Where it stands what conversation a request is part of.
#[derive(Clone, Debug)]
enum Conversation {
    /// The client says it.
    Named(Range<usize>),
    Messages(Range<usize>),
    Prompt(Range<usize>),
}

/// The most choices of one request, as in the API.
const CHOICES_MAX: u64 = 128;
/// The longest name of a service tier, in bytes.
const SERVICE_TIER_MAX_BYTES: usize = 64;

impl Ask {
    /// Reads a body.
    ///
    /// # Errors
    ///
    /// `InvalidJson`, `TooDeep`, `DuplicateKey`, `InvalidValue` or `UnsupportedParameter`, the last three naming the key.
    pub fn parse(endpoint: Endpoint, body: &[u8]) -> Result<Ask, Refused> {
        let text = std::str::from_utf8(body)
            .map_err(|_| Refused::new(Kind::InvalidJson, "The request body is not UTF-8 text."))?;
        let mut notes = Notes::default();
        let keys = Object::read(text, DEPTH_MAX, &mut notes).map_err(|fault| match fault {
            Fault::TooDeep => too_deep(),
            Fault::Syntax => invalid_json(text),
        })?;
        if let Some(name) = keys.ambiguous {
            return Err(ambiguous(name, name));
        }
        refuse_state(&keys, notes.may_name_a_file)?;
        let (model, model_at) = model(&keys, text)?;
        let stream = flag(&keys, Name::Stream)?;
        if stream && !endpoint.has_output() {
            return Err(
                Refused::new(Kind::UnsupportedParameter, "Embeddings cannot be streamed.").param("stream")
            );
        }
        let (include_usage, usage_edit) = usage_asked(&keys, text)?;
        Ok(Ask {
            endpoint,
            model,
            stream,
            max_output_tokens: output_limit(&keys, endpoint)?,
            choices: choices(&keys, endpoint)?,
            service_tier: service_tier(&keys)?,
            include_usage: stream && include_usage,
            input_estimate: notes.input_estimate(text.len()),
            model_at,
            usage_edit: usage_edit.filter(|_| stream),
            output_limit: OutputLimit::find(&keys, text),
            output_edits: Vec::new(),
            conversation: conversation(&keys, text),
        })
    }

    /// The most input tokens that the request can have, more or less; cheap, and generous rather than exact.
    pub fn input_estimate(&self) -> u64 {
        self.input_estimate
    }

    /// A number that the requests of one conversation of one account have in common; `None` where nothing tells. `body` is what this was
    /// read from. It is another one in another release.
    pub fn affinity(&self, account: &[u8], body: &[u8]) -> Option<u64> {
        let mut hasher = DefaultHasher::new();
        hasher.write(account);
        let text = |at: &Range<usize>| body.get(at.clone()).and_then(|text| std::str::from_utf8(text).ok());
        match self.conversation.as_ref()? {
            Conversation::Named(at) => hasher.write(text(at)?.as_bytes()),
            Conversation::Messages(at) => affinity::of_messages(text(at)?, &mut hasher),
            Conversation::Prompt(at) => affinity::of_prompt(text(at)?, &mut hasher),
        }
        Some(hasher.finish())
    }

    /// Lowers the most output of one choice, which must not be above what was asked for.
    pub fn lower_output(&mut self, tokens: u64) {
        self.output_edits = self.output_limit.lowered_to(tokens, self.endpoint);
        self.max_output_tokens = Some(tokens);
    }

    /// What makes the body one for a provider that calls the model so, that is to report its usage, and to give no more output than it was
    /// lowered to; in the order of the body.
    pub fn edits(&self, upstream_model: &str) -> Vec<Edit> {
        let is_plain = |byte: u8| (b' '..0x7f).contains(&byte) && !matches!(byte, b'"' | b'\\');
        let name = if upstream_model.bytes().all(is_plain) {
            ["\"", upstream_model, "\""].concat()
        } else {
            serde_json::Value::from(upstream_model).to_string()
        };
        let others = usize::from(self.usage_edit.is_some()) + self.output_edits.len();
        let mut edits = Vec::with_capacity(1 + others);
        edits.push(Edit { at: self.model_at.clone(), text: name.into() });
        edits.extend(self.usage_edit.iter().chain(&self.output_edits).cloned());
        // Two that insert in one place keep their order.
        edits.sort_by_key(|edit| edit.at.start);
        edits
    }
}

/// Refuses what would bind the request to what one provider keeps: the next request may go to another.
fn refuse_state(keys: &Object<'_>, may_name_a_file: bool) -> Result<(), Refused> {
    let unsupported = |name: Name| {
        let name = name.as_str();
        Refused::new(
            Kind::UnsupportedParameter,
            format!("{name:?} is not supported: this service does not keep state between requests. Send the whole conversation."),
        )
        .param(name)
    };
    if flag(keys, Name::Store)? {
        return Err(unsupported(Name::Store));
    }
    let kept = [Name::PreviousResponseId, Name::Conversation];
    if let Some(name) = kept.into_iter().find(|name| keys.get(*name).is_some()) {
        return Err(unsupported(name));
    }
    // Rare enough that looking closer costs nothing.
    if may_name_a_file && keys.get(Name::Messages).is_some_and(prompt::names_a_file) {
        let message = "Files kept at a provider are not supported: send the file's content as \"file_data\".";
        return Err(Refused::new(Kind::UnsupportedParameter, message).param("messages"));
    }
    Ok(())
}

/// Inputs of embeddings have no cache to stay with.
fn conversation(keys: &Object<'_>, text: &str) -> Option<Conversation> {
    let at = |name| keys.get(name).map(|value| span(value, text));
    at(Name::PromptCacheKey)
        .map(Conversation::Named)
        .or_else(|| at(Name::Messages).map(Conversation::Messages))
        .or_else(|| at(Name::Prompt).map(Conversation::Prompt))
}

fn model(keys: &Object<'_>, text: &str) -> Result<(String, Range<usize>), Refused> {
    let read = keys.get(Name::Model).and_then(|value| {
        let name = string(value)?;
        (!name.is_empty()).then(|| (name, span(value, text)))
    });
    read.ok_or_else(|| invalid(Name::Model, "must be a string: the name of a model. See GET /v1/models"))
}

/// The text of a JSON string, read as strictly as everybody does.
fn string(value: &str) -> Option<String> {
    let inner = value.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') { serde_json::from_str(value).ok() } else { Some(inner.to_owned()) }
}

fn flag(keys: &Object<'_>, name: Name) -> Result<bool, Refused> {
    match keys.get(name) {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(invalid(name, "must be true or false")),
    }
}

fn output_limit(keys: &Object<'_>, endpoint: Endpoint) -> Result<Option<u64>, Refused> {
    // A completion without output is a way to have the prompt scored.
    let least = if endpoint == Endpoint::Completions { 0 } else { 1 };
    let new = whole_number(keys, Name::MaxCompletionTokens, least, u64::MAX)?;
    let old = whole_number(keys, Name::MaxTokens, least, u64::MAX)?;
    // Where both stand, providers differ on which one counts.
    Ok(new.max(old))
}

fn choices(keys: &Object<'_>, endpoint: Endpoint) -> Result<u64, Refused> {
    let n = whole_number(keys, Name::N, 1, CHOICES_MAX)?.unwrap_or(1);
    // Every one that is made is paid for, however many are shown.
    let made = whole_number(keys, Name::BestOf, 1, CHOICES_MAX)?.unwrap_or(1);
    let prompts = match endpoint {
        Endpoint::Completions => keys.get(Name::Prompt).map_or(1, prompts),
        Endpoint::ChatCompletions | Endpoint::Embeddings => 1,
    };
    Ok(n.max(made).saturating_mul(prompts))
}

/// How many prompts there are: an array of texts, or of arrays of tokens, is many; an array of tokens is one.
fn prompts(value: &str) -> u64 {
    let is_many = value.strip_prefix('[').is_some_and(|rest| rest.trim_start().starts_with(['"', '[']));
    let mut count = 0;
    if is_many && array(value, |_| count += 1).is_ok() { count } else { 1 }
}

fn service_tier(keys: &Object<'_>) -> Result<Option<String>, Refused> {
    let Some(value) = keys.get(Name::ServiceTier) else { return Ok(None) };
    match string(value) {
        Some(tier) if tier.len() <= SERVICE_TIER_MAX_BYTES => Ok(Some(tier)),
        Some(_) | None => Err(invalid(Name::ServiceTier, "must be the name of a service tier")),
    }
}

/// Whether the client wants to see the usage of its stream, and what has to change for the provider to tell it.
fn usage_asked(keys: &Object<'_>, text: &str) -> Result<(bool, Option<Edit>), Refused> {
    let edit = |at: Range<usize>, text: &'static str| Ok((false, Some(Edit { at, text: text.into() })));
    let Some(value) = keys.raw(Name::StreamOptions) else {
        // The body has a model, so something follows.
        let open = text.find('{').map_or(0, |at| at + 1);
        return edit(open..open, r#""stream_options":{"include_usage":true},"#);
    };
    let at = span(value, text);
    if value == "null" {
        return edit(at, r#"{"include_usage":true}"#);
    }
    let not_options = |_| invalid(Name::StreamOptions, "must be an object");
    let options = StreamOptions::read(value).map_err(not_options)?;
    if options.is_ambiguous {
        return Err(ambiguous("include_usage", Name::StreamOptions.as_str()));
    }
    match options.include_usage {
        None => {
            let open = at.start + 1;
            let is_alone = options.is_empty;
            edit(open..open, if is_alone { r#""include_usage":true"# } else { r#""include_usage":true,"# })
        }
        Some("true") => Ok((true, None)),
        Some(value @ ("false" | "null")) => edit(span(value, text), "true"),
        Some(_) => Err(invalid(Name::StreamOptions, "must have true or false as include_usage")),
    }
}

fn whole_number(keys: &Object<'_>, name: Name, least: u64, most: u64) -> Result<Option<u64>, Refused> {
    let Some(value) = keys.get(name) else { return Ok(None) };
    match value.parse::<u64>() {
        Ok(number) if (least..=most).contains(&number) => Ok(Some(number)),
        Ok(_) | Err(_) if most == u64::MAX => {
            Err(invalid(name, &format!("must be a whole number of at least {least}")))
        }
        Ok(_) | Err(_) => Err(invalid(name, &format!("must be a whole number from {least} to {most}"))),
    }
}

fn invalid(name: Name, must: &str) -> Refused {
    let name = name.as_str();
    Refused::new(Kind::InvalidValue, format!("{name:?} {must}.")).param(name)
}

fn ambiguous(name: &'static str, param: &'static str) -> Refused {
    Refused::new(
        Kind::DuplicateKey,
        format!("{name:?} could be read in two ways. Write it once, in lower case and without escapes."),
    )
    .param(param)
}

fn too_deep() -> Refused {
    Refused::new(Kind::TooDeep, format!("The request body nests more than {DEPTH_MAX} levels deep."))
}

/// What is wrong with a text, as `serde_json` finds it.
fn invalid_json(text: &str) -> Refused {
    let message = match serde_json::from_str::<Members>(text).map_err(|error| (error.classify(), error)) {
        Err((Category::Data, _)) => "The request body must be a JSON object.".to_owned(),
        Err((Category::Eof, _)) => "The request body is not JSON: it ends too early.".to_owned(),
        // Where, and not what: the parser's own words quote the body.
        Err((Category::Syntax | Category::Io, error)) => {
            format!("The request body is not JSON, at line {} column {}.", error.line(), error.column())
        }
        Ok(Members) => "The request body is not JSON.".to_owned(),
    };
    Refused::new(Kind::InvalidJson, message)
}

/// The members of an object, looked at and let go.
struct Members;

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Members)
    }
}

impl<'de> Visitor<'de> for Members {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
        while map.next_entry::<String, IgnoredAny>()?.is_some() {}
        Ok(Members)
    }
}

#[cfg(test)]
mod tests;
