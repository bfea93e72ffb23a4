//! An answer that came whole.

use super::output::Output;
use crate::openai::{Answer, Endpoint, NotAnAnswer};
use crate::usage::Usage;

/// What is billed of an answer that came whole.
pub struct Whole<'a> {
    answer: Answer<'a>,
    /// What the provider reported, if it can be billed by.
    pub usage: Option<Usage>,
    /// The service tier that the answer names.
    pub service_tier: Option<String>,
}

/// Why a success is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotWhole {
    /// Not UTF-8.
    #[error("the provider's answer is not UTF-8 text")]
    NotText,
    /// Not one JSON object.
    #[error("the provider's answer is not a JSON object")]
    NotAnObject,
    /// An error that came as a success.
    #[error("the provider's answer is an error under a status of success")]
    AnError,
}

impl<'a> Whole<'a> {
    /// Reads an answer in one pass, without a tree of it.
    ///
    /// # Errors
    ///
    /// [`NotWhole`] when it is nothing to bill for.
    pub fn read(endpoint: Endpoint, body: &'a [u8]) -> Result<Self, NotWhole> {
        let text = std::str::from_utf8(body).map_err(|_| NotWhole::NotText)?;
        let answer = Answer::parse(text).map_err(|NotAnAnswer| NotWhole::NotAnObject)?;
        if answer.is_error() && !answer.has_choices() {
            return Err(NotWhole::AnError);
        }
        let usage = answer.usage(endpoint);
        let service_tier = answer.service_tier().map(std::borrow::Cow::into_owned);
        Ok(Whole { answer, usage, service_tier })
    }

    /// The tokens of its text, counted now.
    pub fn output_tokens(&self) -> u64 {
        let mut output = Output::default();
        self.answer.each_choice(|choice| choice.each_text(|said| output.say(said)));
        output.tokens()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens::count;

    fn read(body: &str) -> Result<Whole<'_>, NotWhole> {
        Whole::read(Endpoint::ChatCompletions, body.as_bytes())
    }

    #[test]
    fn usage_tier_and_text_are_read() {
        let body = r#"{"choices":[{"index":0,"message":{"content":"caf\u00e9 noir"}},{"index":1,"message":{"content":"tea"}}],
            "service_tier":"flex","usage":{"prompt_tokens":7,"completion_tokens":3}}"#;
        let whole = read(body).unwrap();
        assert_eq!(whole.usage, Some(Usage { input: 7, output: 3, ..Usage::default() }));
        assert_eq!(whole.service_tier.as_deref(), Some("flex"));
        assert_eq!(whole.output_tokens(), count("café noir") + count("tea"));
    }

    #[test]
    fn an_answer_without_usage_is_still_one() {
        for usage in ["null", "{}", r#"{"prompt_tokens":-5,"completion_tokens":"x"}"#] {
            let body = format!(r#"{{"choices":[{{"message":{{"content":"hi"}}}}],"usage":{usage}}}"#);
            let whole = read(&body).unwrap();
            assert_eq!((whole.usage, whole.output_tokens()), (None, 1), "{usage}");
        }
    }

    #[test]
    fn what_is_no_answer_is_told_apart() {
        for body in ["", "[]", "null", "\"text\"", "<html>", r#"{"choices":[{"mess"#, "{} x"] {
            assert_eq!(read(body).err(), Some(NotWhole::NotAnObject), "{body}");
        }
        assert_eq!(Whole::read(Endpoint::Embeddings, b"\xff").err(), Some(NotWhole::NotText));
        assert_eq!(read(r#"{"error":{"message":"x"}}"#).err(), Some(NotWhole::AnError));
        assert!(read(r#"{"object":"list","data":[{"embedding":[0.5]}],"error":null}"#).is_ok());
    }
}
