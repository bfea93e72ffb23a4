//! What a command says, and the only place of the command line that writes.
//!
//! Promises: with `--json` exactly one JSON value on standard output, of success or of failure; without, text for people, and failures
//! on standard error; a reader that has gone (`weir usage | head -1`) is no failure. Refuses to know: what the commands do.

use super::failure::{Exit, Failure};
use serde::Serialize;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

/// What a command that was carried out says, in both forms.
#[derive(Debug)]
pub(super) struct Report {
    json: String,
    people: String,
    warnings: Vec<String>,
    good: bool,
}

/// How it is said.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    json: bool,
}

#[derive(Serialize)]
struct Nothing {}

#[derive(Serialize)]
struct ErrorAnswer<'a> {
    error: ErrorObject<'a>,
}

#[derive(Serialize)]
struct ErrorObject<'a> {
    message: &'a str,
    code: &'a str,
}

impl Report {
    /// One value for programs and a text for people.
    pub(super) fn new(value: &impl Serialize, people: impl Into<String>) -> Result<Report, Failure> {
        let json =
            serde_json::to_string(value).map_err(|error| Failure::new("internal", error.to_string()))?;
        Ok(Report { json, people: people.into(), warnings: Vec::new(), good: true })
    }

    /// Nothing that a program has to know.
    pub(super) fn done(people: impl Into<String>) -> Result<Report, Failure> {
        Report::new(&Nothing {}, people)
    }

    /// The same with warnings, which go to standard error in either form.
    pub(super) fn with_warnings(mut self, warnings: Vec<String>) -> Report {
        self.warnings = warnings;
        self
    }

    /// The same, and where what was found is not good, exit status 1 says so.
    pub(super) fn good(mut self, good: bool) -> Report {
        self.good = good;
        self
    }
}

impl Output {
    /// JSON, or text for people.
    pub(super) fn new(json: bool) -> Output {
        Output { json }
    }

    /// Says what came of a command and gives the exit status.
    pub(super) fn say(self, result: &Result<Report, Failure>) -> ExitCode {
        let (written, status) = match result {
            Ok(report) => (self.report(report), u8::from(!report.good)),
            Err(failure) => (self.failure(failure), status(failure.exit)),
        };
        end(written, status)
    }

    /// Says what clap says of the arguments: the help that was asked for, or what is wrong.
    pub(super) fn arguments(self, error: &clap::Error) -> ExitCode {
        let text = error.render();
        if !error.use_stderr() {
            return end(out(&text.to_string()), 0);
        }
        let mut written = err(&text.to_string());
        if self.json {
            let failure = Failure::usage(message_of(&text.to_string()));
            written = written.and_then(|()| self.failure(&failure));
        }
        end(written, status(Exit::Usage))
    }

    fn report(self, report: &Report) -> io::Result<()> {
        for warning in &report.warnings {
            err(&format!("warning: {warning}\n"))?;
        }
        out(&lines(if self.json { &report.json } else { &report.people }))
    }

    fn failure(self, failure: &Failure) -> io::Result<()> {
        if !self.json {
            return err(&format!("error: {}", lines(&failure.message)));
        }
        let error = ErrorObject { message: &failure.message, code: failure.code };
        let json = serde_json::to_string(&ErrorAnswer { error }).map_err(io::Error::other)?;
        out(&lines(&json))
    }
}

/// The sentence of clap's message, without the usage and the hint below it.
fn message_of(rendered: &str) -> String {
    let message = rendered.strip_prefix("error: ").unwrap_or(rendered);
    let message = message.split("\n\nUsage:").next().unwrap_or(message);
    let message = message.split("\n\nFor more information").next().unwrap_or(message);
    message.trim().to_owned()
}

/// The text with one line end, or nothing where there is nothing to say.
fn lines(text: &str) -> String {
    let text = text.trim_end_matches('\n');
    if text.is_empty() { String::new() } else { format!("{text}\n") }
}

fn out(text: &str) -> io::Result<()> {
    let mut stream = io::stdout().lock();
    stream.write_all(text.as_bytes())?;
    stream.flush()
}

fn err(text: &str) -> io::Result<()> {
    io::stderr().lock().write_all(text.as_bytes())
}

fn status(exit: Exit) -> u8 {
    match exit {
        Exit::Failed => 1,
        Exit::Usage => 2,
        Exit::Configuration => 3,
    }
}

/// The exit status, unless the answer could not be written for another reason than that its reader has gone.
fn end(written: io::Result<()>, status: u8) -> ExitCode {
    match written {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            // Where standard error cannot be written either, the exit status alone tells.
            let _ = err(&format!("error: the answer cannot be written: {error}\n"));
            ExitCode::from(status.max(1))
        }
        Ok(()) | Err(_) => ExitCode::from(status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_of_wrong_arguments_is_what_is_wrong_and_no_more() {
        let rendered =
            "error: invalid value 'x' for '--usd <USD>': too large\n\nFor more information, try '--help'.\n";
        assert_eq!(message_of(rendered), "invalid value 'x' for '--usd <USD>': too large");
        let rendered = "error: unexpected argument '--x' found\n\nUsage: weir check\n\nFor more information, try '--help'.\n";
        assert_eq!(message_of(rendered), "unexpected argument '--x' found");
    }

    #[test]
    fn a_reader_that_has_gone_is_no_failure_and_a_full_disk_is() {
        let gone = || Err(ErrorKind::BrokenPipe.into());
        let full = || Err(ErrorKind::StorageFull.into());
        assert_eq!(end(gone(), 0), ExitCode::SUCCESS);
        assert_eq!(end(full(), 0), ExitCode::FAILURE);
        assert_eq!(end(full(), 3), ExitCode::from(3));
    }
}
