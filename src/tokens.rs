//! Counting tokens where a provider does not: OpenAI's `o200k_base`, exactly, for text whole or in pieces.
//!
//! Promises: a text that comes in pieces has the count of the whole, in bounded memory and linear time. The vocabulary (some
//! 70 MB) is loaded at the first count and not before. Refuses to know: which model a text is for.

use bpe_openai::{Tokenizer, o200k_base};

/// The tokens of a text. Some 50 ns a byte; the first call also loads the vocabulary, some 50 ms.
pub fn count(text: &str) -> u64 {
    units(o200k_base().count(text))
}

/// Counts texts that come in pieces. What comes in is only kept; it is counted when asked for, or when too much is kept.
#[derive(Clone, Debug, Default)]
pub struct Counter {
    tokens: u64,
    /// What is not counted yet.
    kept: String,
    /// Offsets in `kept` at which one text ended and another began, ascending.
    cuts: Vec<usize>,
}

/// A text of which the last two pre-tokens are longer than this is cut and counted all the same, in bytes. Only runs without any
/// boundary are so long; each such cut may cost one token.
const PIECE_MAX_BYTES: usize = 4 * 1024;

/// More texts than this are not kept apart uncounted.
const CUTS_MAX: usize = 64;

/// A text that goes on may still change its last two pre-tokens, and no others: the expressions that split it look at one
/// character ahead, and a contraction may join what was an apostrophe of its own.
const PIECES_OPEN: usize = 2;

impl Counter {
    /// Takes the next piece of the text.
    pub fn push(&mut self, piece: &str) {
        self.kept.push_str(piece);
    }

    /// Ends the text: what comes next is another one, whose tokens are not joined with those before.
    pub fn cut(&mut self) {
        let at = self.kept.len();
        if at > 0 && self.cuts.last() != Some(&at) {
            self.cuts.push(at);
        }
        if self.cuts.len() > CUTS_MAX {
            self.settle();
        }
    }

    /// The bytes that are kept uncounted.
    pub fn kept_bytes(&self) -> usize {
        self.kept.len()
    }

    /// The tokens of everything that came so far. What is certain is counted once and let go.
    pub fn total(&mut self) -> u64 {
        self.settle();
        // Asking for a count of nothing must not load the vocabulary.
        let open = if self.kept.is_empty() { 0 } else { count(&self.kept) };
        self.tokens.saturating_add(open)
    }

    /// Counts all that later pieces cannot change, and lets it go. At most some kilobytes stay.
    pub fn settle(&mut self) {
        if self.kept.is_empty() {
            return;
        }
        let mut start = 0;
        for end in std::mem::take(&mut self.cuts) {
            self.add(count(&self.kept[start..end]));
            start = end;
        }
        let (tokens, bytes) = count_stable(o200k_base(), &self.kept[start..]);
        self.add(tokens);
        let open = start + bytes;
        self.kept.drain(..open);
        if self.kept.len() > PIECE_MAX_BYTES {
            self.add(count(&self.kept));
            self.kept.clear();
        }
    }

    fn add(&mut self, tokens: u64) {
        self.tokens = self.tokens.saturating_add(tokens);
    }
}

/// The tokens, and the bytes, of the pre-tokens at the beginning of the text that more text cannot change.
fn count_stable(tokenizer: &Tokenizer, text: &str) -> (u64, usize) {
    let mut open = [""; PIECES_OPEN];
    let (mut tokens, mut bytes) = (0, 0);
    for piece in tokenizer.split(text) {
        open.rotate_left(1);
        let settled = std::mem::replace(&mut open[PIECES_OPEN - 1], piece);
        if !settled.is_empty() {
            tokens += units(tokenizer.bpe.count(settled.as_bytes()));
            bytes += settled.len();
        }
    }
    (tokens, bytes)
}

fn units(tokens: usize) -> u64 {
    u64::try_from(tokens).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn counts_are_those_of_o200k() {
        // From the reference implementation's own tests (openai/tiktoken).
        assert_eq!(count(""), 0);
        assert_eq!(count("hello world"), 2);
        assert_eq!(count("<|endoftext|>"), 7);
    }

    #[test]
    fn a_run_without_end_is_counted_in_bounded_memory() {
        let mut counter = Counter::default();
        let run = "a".repeat(1_000);
        for _ in 0..200 {
            counter.push(&run);
            counter.total();
            assert!(counter.kept_bytes() <= PIECE_MAX_BYTES);
        }
        let (have, want) = (counter.total(), count(&run.repeat(200)));
        assert!(have.abs_diff(want) <= 50, "{have} for {want}");
    }

    #[test]
    fn texts_that_are_cut_apart_are_counted_apart() {
        let mut counter = Counter::default();
        let mut want = 0;
        for _ in 0..200 {
            for text in ["don", "'t", " water", "\n", "\n"] {
                counter.push(text);
                counter.cut();
                want += count(text);
            }
        }
        assert_eq!(counter.total(), want);
    }

    proptest! {
        #[test]
        fn a_text_in_pieces_has_the_count_of_the_whole(
            pieces in prop::collection::vec(
                prop::sample::select(vec![
                    "a", "The", " weir", " ", "  ", "\n", "\r\n", "\t", "'", "'t", "'ll", "L", "123", "4", ".", "...", "/", " //",
                    "川", "の堰", "ü", "e\u{301}", "\u{1f30a}", "\u{a0}", "\u{2003}", "{\"", "\":", "Don", "ÀÉ", "ǅ", "-", "_",
                ]),
                0..120,
            ),
            every in 1..20_usize,
        ) {
            let mut counter = Counter::default();
            for (number, piece) in pieces.iter().enumerate() {
                counter.push(piece);
                if number % every == 0 {
                    counter.settle();
                }
            }
            prop_assert_eq!(counter.total(), count(&pieces.concat()));
        }
    }
}
