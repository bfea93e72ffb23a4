//! Lowering how much output a request asks for, where its text says so.

use super::Endpoint;
use super::edit::Edit;
use super::keys::{Name, Object, span};
use std::ops::Range;

/// The keys that limit the output of one choice. Where both stand, providers differ on which one counts.
const NAMES: [Name; 2] = [Name::MaxCompletionTokens, Name::MaxTokens];

/// Where a body says how much output it asks for, or could say it.
#[derive(Clone, Debug)]
pub(super) struct OutputLimit {
    /// Limits that are numbers.
    numbers: Vec<(Range<usize>, u64)>,
    /// A limit that is null.
    null: Option<Range<usize>>,
    /// Behind the opening brace.
    open: usize,
}

impl OutputLimit {
    pub(super) fn find(keys: &Object<'_>, text: &str) -> Self {
        let values = NAMES.iter().filter_map(|name| keys.raw(*name));
        let (nulls, others): (Vec<_>, Vec<_>) = values.partition(|value| *value == "null");
        let number = |value: &str| Some((span(value, text), value.parse().ok()?));
        OutputLimit {
            numbers: others.into_iter().filter_map(number).collect(),
            null: nulls.first().map(|value| span(value, text)),
            // The body has a model, so something follows.
            open: text.find('{').map_or(0, |at| at + 1),
        }
    }

    /// What makes the body ask for no more than this.
    pub(super) fn lowered_to(&self, tokens: u64, endpoint: Endpoint) -> Vec<Edit> {
        if !self.numbers.is_empty() {
            let above = self.numbers.iter().filter(|(_, asked)| *asked > tokens);
            return above.map(|(at, _)| Edit { at: at.clone(), text: tokens.to_string().into() }).collect();
        }
        if let Some(at) = &self.null {
            return vec![Edit { at: at.clone(), text: tokens.to_string().into() }];
        }
        let name = match endpoint {
            Endpoint::ChatCompletions => NAMES[0],
            Endpoint::Completions => NAMES[1],
            Endpoint::Embeddings => return Vec::new(),
        };
        vec![Edit { at: self.open..self.open, text: format!("\"{}\":{tokens},", name.as_str()).into() }]
    }
}

#[cfg(test)]
mod tests {
    use crate::openai::{Ask, Endpoint, splice};

    fn lowered(endpoint: Endpoint, body: &str) -> String {
        let mut ask = Ask::parse(endpoint, body.as_bytes()).unwrap();
        ask.lower_output(70);
        assert_eq!(ask.max_output_tokens, Some(70));
        String::from_utf8(splice(body.as_bytes(), &ask.edits("m"))).unwrap()
    }

    #[test]
    fn the_limit_is_lowered_where_it_stands_and_added_where_it_does_not() {
        for (before, after) in [
            (r#"{"model":"m","max_tokens":100}"#, r#"{"model":"m","max_tokens":70}"#),
            (
                r#"{"max_completion_tokens": 9000 ,"model":"m"}"#,
                r#"{"max_completion_tokens": 70 ,"model":"m"}"#,
            ),
            (
                r#"{"model":"m","max_tokens":60,"max_completion_tokens":100}"#,
                r#"{"model":"m","max_tokens":60,"max_completion_tokens":70}"#,
            ),
            (r#"{"model":"m","max_tokens":null}"#, r#"{"model":"m","max_tokens":70}"#),
            (r#"{"model":"m"}"#, r#"{"max_completion_tokens":70,"model":"m"}"#),
        ] {
            assert_eq!(lowered(Endpoint::ChatCompletions, before), after);
        }
        let text = lowered(Endpoint::Completions, r#"{"model":"m","prompt":"x","stream":true}"#);
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read["max_tokens"], 70, "{text}");
        assert_eq!(read["stream_options"]["include_usage"], true, "{text}");
    }
}
