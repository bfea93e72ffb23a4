//! One line of a diagnosis.

use serde::Serialize;
use std::fmt::Write as _;

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    #[serde(rename = "ok")]
    Good,
    #[serde(rename = "warning")]
    Warns,
    #[serde(rename = "failure")]
    Fails,
}

/// What was found of one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) state: State,
    pub(super) what: &'static str,
    pub(super) says: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) todo: Option<String>,
}

/// The widest line.
const WIDTH: usize = 80;
/// Where a finding's text begins.
const INDENT: usize = 20;

impl Finding {
    pub(super) fn good(what: &'static str, says: impl Into<String>) -> Finding {
        Finding { state: State::Good, what, says: says.into(), todo: None }
    }

    pub(super) fn warns(what: &'static str, says: impl Into<String>, todo: impl Into<String>) -> Finding {
        Finding { state: State::Warns, what, says: says.into(), todo: Some(todo.into()) }
    }

    pub(super) fn fails(what: &'static str, says: impl Into<String>, todo: impl Into<String>) -> Finding {
        Finding { state: State::Fails, what, says: says.into(), todo: Some(todo.into()) }
    }

    /// The finding for people, within 80 columns but for words that are longer.
    pub(super) fn shown(&self, is_colored: bool) -> String {
        let (mark, color) = match self.state {
            State::Good => ("ok", "32"),
            State::Warns => ("warn", "33"),
            State::Fails => ("FAIL", "31"),
        };
        let head = format!("{mark:<4} {:<14} ", self.what);
        let head = if is_colored {
            head.replacen(mark, &format!("\u{1b}[{color}m{mark}\u{1b}[0m"), 1)
        } else {
            head
        };
        let mut text = head;
        for (at, line) in wrapped(&self.says, WIDTH - INDENT).iter().enumerate() {
            let indent = if at == 0 { 0 } else { INDENT };
            let _ = writeln!(text, "{:indent$}{line}", "");
        }
        for (at, line) in
            wrapped(self.todo.as_deref().unwrap_or_default(), WIDTH - INDENT - 3).iter().enumerate()
        {
            let _ = writeln!(text, "{:INDENT$}{}{line}", "", if at == 0 { "-> " } else { "   " });
        }
        text
    }
}

/// Colors are for terminals whose users have not said `NO_COLOR`.
pub(super) fn is_colored() -> bool {
    anstream::AutoStream::choice(&std::io::stdout()) != anstream::ColorChoice::Never
}

/// Lines of at most so many characters, broken at spaces; those that the text has stay.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for whole in text.lines() {
        // What points at a place in a line above it must not be moved.
        if whole.starts_with(' ') || whole.contains(" | ") {
            lines.push(whole.to_owned());
            continue;
        }
        let mut line = String::new();
        for word in whole.split(' ') {
            if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_fits_a_terminal_and_says_what_to_do() {
        let says = "a text that is so long that it does not fit into what is left of a line of eighty columns, by far";
        let finding = Finding::fails("journal disk", says, "make room");
        let shown = finding.shown(false);
        assert!(shown.lines().all(|line| line.chars().count() <= WIDTH), "{shown}");
        assert!(shown.starts_with("FAIL journal disk   a text that"), "{shown}");
        assert!(shown.ends_with("                    -> make room\n"), "{shown}");
        assert!(finding.shown(true).starts_with("\u{1b}[31mFAIL\u{1b}[0m journal"));
        assert_eq!(wrapped("7 | listen = 5\n  |     ^", 4), ["7 | listen = 5", "  |     ^"]);
    }
}
