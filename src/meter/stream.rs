//! An answer that comes as events.

use super::output::Output;
use super::{Ending, Fed};
use crate::openai::{Answer, Endpoint, Envelope, Form, UpstreamFault, error_body, error_object};
use crate::refusal::{Kind, Refused};
use crate::sse::{Event, Parser, TooLong};
use crate::usage::Usage;
use memchr::memchr;

/// What a stream's meter has to know of its request.
#[derive(Clone, Copy, Debug)]
pub struct StreamSettings {
    /// Where the request was sent to.
    pub endpoint: Endpoint,
    /// Whether the client asked for the usage at the end.
    pub usage_asked: bool,
    /// The largest event that is taken, in bytes.
    pub max_event_bytes: usize,
}

/// Meters one stream: the provider's bytes in, the client's out.
#[derive(Debug)]
pub struct StreamMeter {
    parser: Parser,
    reading: Reading,
}

/// All but the parser, which lends out the events that are read here.
#[derive(Debug)]
struct Reading {
    settings: StreamSettings,
    output: Output,
    usage: Option<Usage>,
    service_tier: Option<String>,
    /// Of the first chunk.
    envelope: Option<Box<Envelope>>,
    /// Of the last chunk that had one.
    form: Option<Box<Form>>,
    /// Chunks since then that were not of this form.
    formless: u32,
    passed: bool,
}

const DONE: &[u8] = b"[DONE]";
const CREDIT_EXHAUSTED: &str = "This account's credit does not cover more of the answer; what came of it is billed. Add credit to have it whole.";

impl StreamMeter {
    /// A meter at the start of a stream.
    pub fn new(settings: StreamSettings) -> Self {
        let parser = Parser::new(settings.max_event_bytes);
        let output = Output::default();
        let reading = Reading {
            settings,
            output,
            usage: None,
            service_tier: None,
            envelope: None,
            form: None,
            formless: 0,
            passed: false,
        };
        StreamMeter { parser, reading }
    }

    /// Takes a piece of the stream; what goes to the client is appended to `out`. After [`Fed::Ended`] nothing more is to be
    /// fed: what ends the client's stream is for [`StreamMeter::write_end`] to write.
    pub fn feed(&mut self, piece: &[u8], out: &mut Vec<u8>) -> Fed {
        let mut rest = piece;
        loop {
            match self.parser.next(&mut rest) {
                Ok(Some(event)) => {
                    if let Some(ending) = self.reading.read(event, out) {
                        return Fed::Ended(ending);
                    }
                }
                Ok(None) => return Fed::Open,
                Err(TooLong) => return Fed::Ended(Ending::TooLong),
            }
        }
    }

    /// The provider's end of file, while the stream is open: a proper end if every choice is finished.
    pub fn finish(&mut self, out: &mut Vec<u8>) -> Ending {
        // The empty line behind the last event is forgotten by some; half an event is no event.
        if let Some(event) = self.parser.finish().filter(is_whole)
            && let Some(ending) = self.reading.read(event, out)
        {
            return ending;
        }
        if self.reading.output.is_finished() { Ending::Done } else { Ending::Truncated }
    }

    /// Appends what ends the client's stream: `[DONE]`, or the error that it ended in.
    pub fn write_end(&self, ending: &Ending, out: &mut Vec<u8>) {
        let error = match ending {
            Ending::Done => DONE.to_vec(),
            Ending::ErrorEvent(fault) => error_body(&refusal(fault)),
            Ending::Truncated => {
                let message = "The model's provider ended the answer before it was complete.";
                error_object(message, "server_error", None, Some("upstream_stream_truncated"))
            }
            Ending::TooLong => {
                let message = "The model's provider sent an event that is larger than the gateway takes.";
                error_body(&Refused::new(Kind::UpstreamError, message))
            }
            Ending::CreditExhausted(usage) => {
                self.reading.cut_short(usage, out);
                error_body(&Refused::new(Kind::CreditBalanceExhausted, CREDIT_EXHAUSTED))
            }
        };
        write_event(&error, out);
    }

    /// The last usage that the provider reported.
    pub fn usage(&self) -> Option<Usage> {
        self.reading.usage
    }

    /// The bytes of the text that has passed so far: no fewer than its tokens.
    pub fn said_bytes(&self) -> u64 {
        self.reading.output.said_bytes()
    }

    /// Whether every choice that has come is finished.
    pub fn is_finished(&self) -> bool {
        self.reading.output.is_finished()
    }

    /// The tokens of the text that has passed so far. Each text is counted once, however often this is asked.
    pub fn output_tokens(&mut self) -> u64 {
        self.reading.output.tokens()
    }

    /// Whether any text has passed.
    pub fn passed(&self) -> bool {
        self.reading.passed
    }

    /// The service tier that the answer names.
    pub fn service_tier(&self) -> Option<&str> {
        self.reading.service_tier.as_deref()
    }
}

impl Reading {
    /// Reads an event, and passes it on if it is the client's.
    fn read(&mut self, event: Event<'_>, out: &mut Vec<u8>) -> Option<Ending> {
        let data = event.data.trim_ascii();
        if data.is_empty() || is_ping(event.name) {
            return None;
        }
        if data == DONE {
            return Some(Ending::Done);
        }
        let text = std::str::from_utf8(data).ok();
        if let Some(text) = text
            && event.name.is_empty()
            && self.read_by_form(text)
        {
            write_event(event.data, out);
            return None;
        }
        let answer = text.and_then(|text| Answer::parse(text).ok());
        let Some(answer) = answer.filter(|answer| !answer.is_error() && event.name != b"error") else {
            return Some(Ending::ErrorEvent(UpstreamFault::parse(data)));
        };
        let text = text.unwrap_or_default();
        if self.envelope.is_none() && answer.has_choices() {
            self.envelope = Some(Box::new(Envelope::of(text)));
        }
        self.note(&answer);
        self.learn_form(text, &answer);
        let is_usage_alone = answer.has_usage() && !answer.has_choices();
        if self.settings.usage_asked || !is_usage_alone {
            write_event(event.data, out);
        }
        None
    }

    /// Appends what tells that the choices end here, and what was used where that was asked for.
    fn cut_short(&self, usage: &Usage, out: &mut Vec<u8>) {
        let envelope = self.envelope.as_deref().cloned().unwrap_or_default();
        let open = self.output.open();
        if !open.is_empty() {
            write_event(&envelope.cut_short(self.settings.endpoint, open.into_iter()), out);
        }
        if self.settings.usage_asked {
            write_event(&envelope.usage(usage), out);
        }
    }

    /// Reads a chunk that differs from an earlier one in its text alone. Whether it does.
    fn read_by_form(&mut self, chunk: &str) -> bool {
        let Reading { output, form: Some(form), formless, passed, .. } = self else { return false };
        let is_read = form.read(chunk, |said| output.say(said));
        if is_read {
            *formless = 0;
            *passed = true;
        }
        is_read
    }

    /// Learns the form of a chunk; ever more seldom where it is of no use.
    fn learn_form(&mut self, chunk: &str, answer: &Answer<'_>) {
        self.formless = self.formless.saturating_add(1);
        if self.formless.is_power_of_two() {
            self.form = Form::of(chunk, answer).map(Box::new).or_else(|| self.form.take());
        }
    }

    fn note(&mut self, answer: &Answer<'_>) {
        let Reading { settings, output, usage, service_tier, passed, .. } = self;
        *usage = answer.usage(settings.endpoint).or(*usage);
        if let Some(tier) = answer.service_tier()
            && service_tier.as_deref() != Some(&*tier)
        {
            *service_tier = Some(tier.into_owned());
        }
        answer.each_choice(|choice| {
            output.choice(choice.index, choice.is_finished);
            choice.each_text(|said| {
                *passed = true;
                output.say(said);
            });
        });
    }
}

/// Whether the end of a stream left the event whole: its JSON has an end of its own.
fn is_whole(event: &Event<'_>) -> bool {
    let data = event.data.trim_ascii();
    data == DONE || serde_json::from_slice::<serde::de::IgnoredAny>(data).is_ok()
}

fn is_ping(name: &[u8]) -> bool {
    matches!(name, b"ping" | b"heartbeat" | b"keepalive" | b"keep-alive")
}

/// Writes an event as every client understands it: `data` lines that end in line feeds, and nothing else.
fn write_event(data: &[u8], out: &mut Vec<u8>) {
    out.reserve(data.len() + 8);
    let mut rest = data;
    loop {
        let end = memchr(b'\n', rest);
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(&rest[..end.unwrap_or(rest.len())]);
        out.push(b'\n');
        match end {
            Some(end) => rest = &rest[end + 1..],
            None => break,
        }
    }
    out.push(b'\n');
}

/// What the client is told of a provider's error, in our words: the provider's own may name its operator's account.
fn refusal(fault: &UpstreamFault) -> Refused {
    let said = [&fault.code, &fault.r#type].into_iter().flatten().map(String::as_str);
    if said.into_iter().any(|name| matches!(name, "context_length_exceeded" | "exceed_context_size_error")) {
        return Refused::new(
            Kind::ContextLengthExceeded,
            "The conversation is longer than the model can take.",
        );
    }
    Refused::new(Kind::UpstreamError, "The model's provider failed in the middle of its answer.")
}

#[cfg(test)]
mod tests;
