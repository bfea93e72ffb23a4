//! A log event as one line of JSON.
//!
//! The subscriber's own formatter takes seven times as many instructions for a request's line, a tenth of what a small request takes
//! in all: it goes through a serializer for each field, and this writes them as they come, into one text.

use jiff::Timestamp;
use std::fmt::{self, Write};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Time, level, the event's fields, target.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Json {
    /// Before each line stands its priority, as the journal of systemd takes it (sd-daemon(3)).
    pub(super) has_priority: bool,
}

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let normalized = tracing_log::NormalizeEvent::normalized_metadata(event);
        let metadata = normalized.as_ref().unwrap_or_else(|| event.metadata());
        let mut line = String::with_capacity(LINE_BYTES);
        if self.has_priority {
            line.push_str(priority(*metadata.level()));
        }
        write!(line, "{{\"timestamp\":\"{:.6}\",\"level\":\"{}\"", Timestamp::now(), metadata.level())?;
        let mut fields = Fields { line, result: Ok(()) };
        event.record(&mut fields);
        let Fields { mut line, result } = fields;
        result?;
        line.push_str(",\"target\":");
        text(&mut line, metadata.target());
        line.push_str("}\n");
        out.write_str(&line)
    }
}

/// The priority of a level, by the numbers of syslog(3).
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        _ => "<7>",
    }
}

/// Room for the line of a request, as most of them are.
const LINE_BYTES: usize = 1024;

struct Fields {
    line: String,
    result: fmt::Result,
}

impl Fields {
    fn field(&mut self, field: &Field, value: impl FnOnce(&mut String) -> fmt::Result) {
        // What a bridge from the `log` crate adds tells where in a library a line is from.
        if self.result.is_err() || field.name().starts_with("log.") {
            return;
        }
        // A name is one of Rust's: nothing in it is escaped.
        self.line.push_str(",\"");
        self.line.push_str(field.name());
        self.line.push_str("\":");
        self.result = value(&mut self.line);
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.field(field, |line| {
            text(line, value);
            Ok(())
        });
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.field(field, |line| write!(line, "{value}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.field(field, |line| write!(line, "{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.field(field, |line| write!(line, "{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.field(field, |line| {
            line.push('"');
            write!(Escaped(line), "{value:?}")?;
            line.push('"');
            Ok(())
        });
    }
}

/// A JSON string (RFC 8259 section 7).
fn text(line: &mut String, text: &str) {
    line.push('"');
    escape(line, text);
    line.push('"');
}

/// Escapes what goes through.
struct Escaped<'a>(&'a mut String);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        escape(self.0, text);
        Ok(())
    }
}

fn escape(line: &mut String, text: &str) {
    // Without a branch for each byte, so that it is done with vectors: next to nothing has an escape.
    if !text.bytes().fold(false, |found, byte| found | is_special(byte)) {
        return line.push_str(text);
    }
    for character in text.chars() {
        match character {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\0'..'\x20' => line.push_str(&format!("\\u{:04x}", u32::from(character))),
            plain => line.push(plain),
        }
    }
}

fn is_special(byte: u8) -> bool {
    (byte < 0x20) | (byte == b'"') | (byte == b'\\')
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::sync::{Arc, Mutex};
    use tracing::subscriber::with_default;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[derive(Deserialize)]
    struct Line {
        timestamp: String,
        level: String,
        message: String,
        text: String,
        number: i64,
        yes: bool,
        shown: String,
        target: String,
    }

    #[test]
    fn a_line_is_one_json_object_whatever_is_in_it() {
        let odd = "a \"quoted\" \\ path\n\tand \u{1} control, ünïcödé";
        let kept = Kept::default();
        let writer = kept.clone();
        let log = tracing_subscriber::fmt()
            .event_format(Json::default())
            .with_writer(move || writer.clone())
            .finish();
        with_default(log, || {
            let left_out: Option<u64> = None;
            tracing::info!(target: "weir::test", text = odd, number = -5, yes = true, shown = %odd, left_out, "what {}", 7);
        });
        let bytes = kept.0.lock().unwrap().clone();
        assert_eq!(bytes.iter().filter(|byte| **byte == b'\n').count(), 1);
        let line: Line = serde_json::from_slice(&bytes).unwrap();
        assert!(line.timestamp.parse::<Timestamp>().unwrap() > Timestamp::UNIX_EPOCH);
        assert_eq!((line.level.as_str(), line.message.as_str()), ("INFO", "what 7"));
        assert_eq!((line.text.as_str(), line.shown.as_str()), (odd, odd));
        assert_eq!((line.number, line.yes, line.target.as_str()), (-5, true, "weir::test"));
    }

    #[test]
    fn a_line_for_the_journal_begins_with_its_priority() {
        let kept = Kept::default();
        let writer = kept.clone();
        let log = tracing_subscriber::fmt().event_format(Json { has_priority: true });
        with_default(log.with_max_level(Level::TRACE).with_writer(move || writer.clone()).finish(), || {
            tracing::error!("e");
            tracing::warn!("w");
            tracing::info!("i");
            tracing::debug!("d");
        });
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        let begins: Vec<&str> = text.lines().map(|line| &line[..4]).collect();
        assert_eq!(begins, ["<3>{", "<4>{", "<6>{", "<7>{"]);
    }
}
