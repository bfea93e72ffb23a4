//! The output text of an answer, by choice: kept while that is cheap, counted when it is asked for.

use crate::openai::Said;
use crate::tokens::Counter;

/// Text that is kept uncounted, over all choices, in bytes. Most answers are shorter and tell their usage: they are never counted.
const KEPT_MAX_BYTES: usize = 16 * 1024;

/// Choices told apart. Their text counts beyond it, too, but as one.
const CHOICES_MAX: usize = 1024;

/// What the choices of an answer said, and which of them are finished.
#[derive(Debug, Default)]
pub(super) struct Output {
    choices: Vec<Choice>,
    kept_bytes: usize,
    said_bytes: u64,
    settle_at_bytes: usize,
    /// More choices came than are told apart.
    is_crowded: bool,
}

#[derive(Debug)]
struct Choice {
    index: u32,
    channel: u32,
    text: Counter,
    is_finished: bool,
}

impl Output {
    /// Notes that there is such a choice, and whether it is finished.
    pub(super) fn choice(&mut self, index: u32, is_finished: bool) {
        if let Some(choice) = self.find(index) {
            choice.is_finished |= is_finished;
        }
    }

    /// Takes a piece of text.
    pub(super) fn say(&mut self, said: Said<'_>) {
        let Some(choice) = self.find(said.choice) else { return };
        if choice.channel != said.channel {
            choice.channel = said.channel;
            choice.text.cut();
        }
        choice.text.push(said.text);
        self.kept_bytes += said.text.len();
        self.said_bytes = self.said_bytes.saturating_add(said.text.len() as u64);
        if self.kept_bytes > self.settle_at_bytes.max(KEPT_MAX_BYTES) {
            self.choices.iter_mut().for_each(|choice| choice.text.settle());
            self.recount();
        }
    }

    /// Whether there were choices, and all of them are finished.
    pub(super) fn is_finished(&self) -> bool {
        !self.choices.is_empty() && !self.is_crowded && self.choices.iter().all(|choice| choice.is_finished)
    }

    /// The choices that are not finished; the first one where none has come yet.
    pub(super) fn open(&self) -> Vec<u32> {
        if self.choices.is_empty() {
            return vec![0];
        }
        self.choices.iter().filter(|choice| !choice.is_finished).map(|choice| choice.index).collect()
    }

    /// The bytes of everything that was said: no fewer than its tokens.
    pub(super) fn said_bytes(&self) -> u64 {
        self.said_bytes
    }

    /// The tokens of everything that was said.
    pub(super) fn tokens(&mut self) -> u64 {
        let total = self.choices.iter_mut().map(|choice| choice.text.total()).fold(0, u64::saturating_add);
        self.recount();
        total
    }

    /// The choice of that index; the last one where there are too many.
    fn find(&mut self, index: u32) -> Option<&mut Choice> {
        let known = self.choices.iter().position(|choice| choice.index == index);
        if known.is_none() && self.choices.len() < CHOICES_MAX {
            self.choices.push(Choice { index, channel: 0, text: Counter::default(), is_finished: false });
        }
        self.is_crowded |= known.is_none() && self.choices.last().is_some_and(|last| last.index != index);
        match known {
            Some(position) => self.choices.get_mut(position),
            None => self.choices.last_mut(),
        }
    }

    fn recount(&mut self) {
        self.kept_bytes = self.choices.iter().map(|choice| choice.text.kept_bytes()).sum();
        // What cannot be settled yet is not looked at again before there is as much besides.
        self.settle_at_bytes = self.kept_bytes.saturating_mul(2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens::count;

    fn say(output: &mut Output, choice: u32, channel: u32, text: &str) {
        output.say(Said { choice, channel, text });
    }

    #[test]
    fn choices_and_channels_are_texts_of_their_own() {
        let mut output = Output::default();
        for piece in ["un", "believ", "able"] {
            say(&mut output, 0, 0, piece);
            say(&mut output, 7, 0, piece);
        }
        say(&mut output, 0, 2, "able");
        assert_eq!(output.tokens(), 2 * count("unbelievable") + count("able"));
    }

    #[test]
    fn a_long_answer_is_counted_exactly_in_bounded_memory() {
        let mut output = Output::default();
        let text = "The weir measures what passes, 12345 times; don't ask why.\n\n".repeat(2_000);
        let characters: Vec<char> = text.chars().collect();
        for piece in characters.chunks(7) {
            say(&mut output, 0, 0, &piece.iter().collect::<String>());
            assert!(output.kept_bytes <= KEPT_MAX_BYTES);
        }
        assert_eq!(output.tokens(), count(&text));
        assert_eq!(output.tokens(), count(&text));
    }

    #[test]
    fn a_thousand_choices_are_bounded_and_none_is_free() {
        let mut output = Output::default();
        for index in 0..3_000 {
            output.choice(index, true);
            say(&mut output, index, 0, " water");
        }
        assert!(output.choices.len() <= CHOICES_MAX);
        assert_eq!(output.tokens(), 3_000);
        assert!(!output.is_finished());
    }

    #[test]
    fn an_answer_is_finished_when_every_choice_is() {
        let mut output = Output::default();
        assert!(!output.is_finished());
        output.choice(0, true);
        output.choice(1, false);
        assert!(!output.is_finished());
        output.choice(1, true);
        output.choice(1, false);
        assert!(output.is_finished());
    }
}
