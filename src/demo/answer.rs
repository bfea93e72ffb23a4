//! What the demo model says: a few sentences, cut where the request's limit is.

use super::ask::{ChatAsk, CompletionAsk, Order};
use super::wire::{Fault, Shape};
use crate::clock::Clock;
use crate::ids::RequestId;
use crate::openai::{Endpoint, prompt_tokens};
use crate::tokens;

/// How much of what was asked is repeated, in characters.
const ECHO_MAX_CHARS: usize = 120;

/// A whole answer, however it is sent.
pub(super) struct Answer {
    pub(super) id: String,
    pub(super) created: i64,
    pub(super) shape: Shape,
    pub(super) choices: Vec<Choice>,
    pub(super) prompt_tokens: u64,
    pub(super) is_stream: bool,
    /// Whether a stream ends in its usage.
    pub(super) with_usage: bool,
}

/// One choice.
pub(super) struct Choice {
    pub(super) text: String,
    pub(super) tokens: u64,
    /// The limit was reached before the end.
    pub(super) is_cut: bool,
}

impl ChatAsk {
    pub(super) fn answer(&self, body: &[u8], clock: &Clock) -> Result<Answer, Fault> {
        let prompt_tokens = prompt_tokens(Endpoint::ChatCompletions, body);
        Ok(answer(Shape::Chat, &self.order()?, prompt_tokens, clock))
    }
}

impl CompletionAsk {
    pub(super) fn answer(&self, body: &[u8], clock: &Clock) -> Result<Answer, Fault> {
        let prompt_tokens = prompt_tokens(Endpoint::Completions, body);
        Ok(answer(Shape::Text, &self.order()?, prompt_tokens, clock))
    }
}

impl Answer {
    /// The output of all choices, in tokens.
    pub(super) fn completion_tokens(&self) -> u64 {
        self.choices.iter().map(|choice| choice.tokens).sum()
    }
}

impl Choice {
    /// The text in pieces of a word each; together they are the text.
    pub(super) fn words(&self) -> impl Iterator<Item = &str> {
        self.text.split_inclusive(' ')
    }
}

fn answer(shape: Shape, order: &Order, prompt_tokens: u64, clock: &Clock) -> Answer {
    let choice = |asked: &String| {
        let (text, tokens, is_cut) = cut(sentences(asked), order.max_tokens);
        Choice { text, tokens, is_cut }
    };
    let choices =
        order.asked.iter().flat_map(|asked| (0..order.choices).map(move |_| choice(asked))).collect();
    Answer {
        id: RequestId::new().0.simple().to_string(),
        created: clock.wall().0 / 1_000_000,
        shape,
        choices,
        prompt_tokens,
        is_stream: order.is_stream,
        with_usage: order.with_usage,
    }
}

fn sentences(asked: &str) -> String {
    let asked = asked.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut echo: String = asked.chars().take(ECHO_MAX_CHARS).collect();
    if echo.len() < asked.len() {
        echo.push('…');
    }
    format!(
        "Hello from the demo model of Weir, which has read your message and understood nothing of it. You wrote: \"{echo}\" \
         A real model would have an answer to that. This one can only show you how an answer comes through the gateway: each word \
         as soon as it is written, each token counted, and the cost taken from your credit when the last one has passed. \
         Run `weir usage --account demo@weir.invalid` to see this request in the books."
    )
}

/// The longest beginning of at most `max` tokens, how many it has, and whether it is not the whole.
fn cut(mut text: String, max: u64) -> (String, u64, bool) {
    let all = tokens::count(&text);
    if all <= max {
        return (text, all, false);
    }
    // Where a word ends its tokens end, but for those of its last characters: a look at each place is exact, and there are few.
    let places: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
    let fits = |at: &usize| tokens::count(&text[..*at]) <= max;
    let end = places[..places.partition_point(fits)].last().copied().unwrap_or(0);
    text.truncate(end);
    let tokens = tokens::count(&text);
    (text, tokens, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_cut_at_its_limit_to_the_token() {
        let whole = tokens::count(&sentences("Hi"));
        for max in [1, 2, 8, 30, whole - 1] {
            let (text, tokens, is_cut) = cut(sentences("Hi"), max);
            assert!(is_cut && sentences("Hi").starts_with(&text), "{text}");
            assert_eq!(tokens, max, "{text}");
        }
        assert_eq!(cut(sentences("Hi"), whole), (sentences("Hi"), whole, false));
    }

    #[test]
    fn words_are_the_text() {
        let text = sentences("one  two");
        let choice = Choice { text: text.clone(), tokens: 0, is_cut: false };
        assert_eq!(choice.words().collect::<String>(), text);
        assert!(choice.words().count() > 50);
    }
}
