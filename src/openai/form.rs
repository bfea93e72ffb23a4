//! The form of a stream's chunks: a provider writes each as the one before, but for what is said.
//!
//! Promises: what is read of a chunk by its form is what [`Answer`] reads of it, for a tenth of the work; a chunk of
//! another form is not read. Refuses to know: what the form says beside the text, which is none of what is billed by.

use super::json::leading_string;
use super::text::string;
use super::{Answer, Said};
use memchr::{memchr, memmem};
use std::borrow::Cow;
use std::ops::Range;

/// A chunk of one choice and one text, in which that text may be exchanged.
#[derive(Debug)]
pub struct Form {
    chunk: Box<str>,
    choice: u32,
    channel: u32,
    /// Where the text stands in the chunk, with its quotes.
    said: Range<usize>,
    /// Where the string stands, with its quotes, by which OpenAI makes chunks of one length
    /// (`stream_options.include_obfuscation` in its API reference); empty where there is none.
    padding: Range<usize>,
}

/// A larger chunk is no form: most of it is not repeated, and streams are many.
const FORM_MAX_BYTES: usize = 1024;

impl Form {
    /// The form of a chunk: one choice, not finished, with one text, and nothing to bill by. `None` for any other, and where the
    /// place of the text is not certain: it is written with escapes, or stands twice.
    pub fn of(chunk: &str, answer: &Answer<'_>) -> Option<Form> {
        let is_plain = chunk.len() <= FORM_MAX_BYTES && memchr(b'\\', chunk.as_bytes()).is_none();
        if !is_plain || answer.is_error() || answer.has_usage() {
            return None;
        }
        let (mut choices, mut texts, mut finished, mut place) = (0, 0, false, None);
        answer.each_choice(|choice| {
            choices += 1;
            finished |= choice.is_finished;
            choice.each_text(|said| {
                texts += 1;
                let at = only_place(chunk, &format!("\"{}\"", said.text));
                place = at.map(|at| (said.choice, said.channel, at));
            });
        });
        let (choice, channel, said) = place.filter(|_| choices == 1 && texts == 1 && !finished)?;
        let padding = answer.padding().and_then(|padding| only_place(chunk, padding)).unwrap_or_default();
        // Before the text it would have to be looked for first; nobody writes it there.
        let padding = if padding.start >= said.end { padding } else { Range::default() };
        Some(Form { chunk: chunk.into(), choice, channel, said, padding })
    }

    /// Hands on the text of a chunk that has this form and says something. Whether it has.
    pub fn read(&self, chunk: &str, said: impl FnOnce(Said<'_>)) -> bool {
        let Some(text) = self.text(chunk).filter(|text| !text.is_empty()) else { return false };
        said(Said { choice: self.choice, channel: self.channel, text: &text });
        true
    }

    fn text<'a>(&self, chunk: &'a str) -> Option<Cow<'a, str>> {
        let rest = chunk.strip_prefix(&self.chunk[..self.said.start])?;
        let (text, rest) = leading_string(rest)?;
        let behind = if self.padding.is_empty() {
            rest.strip_prefix(&self.chunk[self.said.end..])?
        } else {
            let rest = rest.strip_prefix(&self.chunk[self.said.end..self.padding.start])?;
            let (_, rest) = leading_string(rest)?;
            rest.strip_prefix(&self.chunk[self.padding.end..])?
        };
        if behind.is_empty() { string(text) } else { None }
    }
}

/// Where this string stands, which is given with its quotes, if it does so once.
fn only_place(chunk: &str, string: &str) -> Option<Range<usize>> {
    let mut places = memmem::find_iter(chunk.as_bytes(), string);
    let at = places.next()?;
    places.next().is_none().then(|| at..at + string.len())
}

#[cfg(test)]
mod tests;
