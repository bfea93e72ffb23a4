//! A TOML document that people write, read key by key.
//!
//! Promises: all that is wrong with a document is told at once, each problem with its line and a caret; a key that the reader does
//! not ask for is a problem. Refuses to know: what the keys mean, and where the text comes from.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::{Range, RangeInclusive};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// All that is wrong with a document. Printed, it shows each problem beneath its line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    file: String,
    text: String,
    problems: Vec<Problem>,
}

/// One table of a document: asks for keys, and notes what is wrong with their values.
pub struct Table<'a> {
    table: &'a DeTable<'a>,
    /// The place of its head.
    head: Range<usize>,
    /// The keys before it, each with a dot behind.
    path: String,
    asked: Vec<&'static str>,
    notes: &'a Notes,
}

/// One value of a document.
#[derive(Clone, Copy)]
pub struct Value<'a>(&'a DeValue<'a>);

/// What a reading brings up beside its result.
#[derive(Default)]
struct Notes {
    problems: RefCell<Vec<Problem>>,
    keys: RefCell<BTreeSet<String>>,
}

/// Where something stands in a document, for a problem that is found later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place(Range<usize>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Problem {
    /// In bytes of the text.
    at: Range<usize>,
    message: String,
    /// From here on the line is not shown: a secret may stand there.
    hidden_from: Option<usize>,
}

/// What stands for a value that is not shown.
const HIDDEN: &str = "...";
/// Problems shown at most; the rest is counted.
const SHOWN_MAX: usize = 50;

/// Reads a document. `file` is what messages call it; `reader` asks for every key that the document may have.
///
/// # Errors
///
/// Everything that is wrong with it.
pub fn read<T>(file: &str, text: &str, reader: impl FnOnce(&mut Table<'_>) -> T) -> Result<T, Report> {
    let (result, notes) = read_noting(text, reader);
    let mut problems = notes.problems.into_inner();
    problems.sort_by_key(|problem| problem.at.start);
    match result {
        Some(result) if problems.is_empty() => Ok(result),
        Some(_) | None => Err(Report { file: file.to_owned(), text: text.to_owned(), problems }),
    }
}

/// Every key that `reader` asks for while it reads this document, with its tables before it: `server.threads`.
pub fn keys<T>(text: &str, reader: impl FnOnce(&mut Table<'_>) -> T) -> BTreeSet<String> {
    read_noting(text, reader).1.keys.into_inner()
}

fn read_noting<T>(text: &str, reader: impl FnOnce(&mut Table<'_>) -> T) -> (Option<T>, Notes) {
    let notes = Notes::default();
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        notes.add(error.span().unwrap_or_default(), error.message().to_owned());
    }
    let result = errors.is_empty().then(|| {
        let mut root = Table::new(document.get_ref(), 0..0, String::new(), &notes);
        let result = reader(&mut root);
        root.end();
        result
    });
    (result, notes)
}

impl<'a> Table<'a> {
    fn new(table: &'a DeTable<'a>, head: Range<usize>, path: String, notes: &'a Notes) -> Self {
        Table { table, head, path, asked: Vec::new(), notes }
    }

    /// The value of a key as `parse` understands it; `None` where it is absent or, having been noted, wrong.
    pub fn optional<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(Value<'_>) -> Result<T, String>,
    ) -> Option<T> {
        self.parsed(key, parse, |notes, at, message| notes.add(at, message))
    }

    /// The same of a value that is not shown where it is wrong: somebody may have put a secret there.
    pub fn confidential<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(Value<'_>) -> Result<T, String>,
    ) -> Option<T> {
        self.parsed(key, parse, |notes, at, message| {
            let hidden_from = at.start;
            notes.add_hiding(at, message, hidden_from);
        })
    }

    fn parsed<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(Value<'_>) -> Result<T, String>,
        note: impl FnOnce(&Notes, Range<usize>, String),
    ) -> Option<T> {
        let value = self.find(key)?;
        match parse(Value(value.get_ref())) {
            Ok(parsed) => Some(parsed),
            Err(message) => {
                note(self.notes, value.span(), format!("`{key}`: {message}"));
                None
            }
        }
    }

    /// The same as [`Table::optional`]; an absent key is a problem.
    pub fn required<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(Value<'_>) -> Result<T, String>,
    ) -> Option<T> {
        if !self.has(key) {
            self.problem(format!("`{key}` is missing"));
        }
        self.optional(key, parse)
    }

    /// The values of an array of plain values; those that are wrong are noted and left out.
    pub fn list<T>(
        &mut self,
        key: &'static str,
        mut parse: impl FnMut(Value<'_>) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let value = self.find(key)?;
        let Some(array) = value.get_ref().as_array() else {
            self.notes.add(value.span(), format!("`{key}` is a list: [..]"));
            return None;
        };
        let mut list = Vec::new();
        for item in array.iter() {
            match parse(Value(item.get_ref())) {
                Ok(parsed) => list.push(parsed),
                Err(message) => self.notes.add(item.span(), format!("`{key}`: {message}")),
            }
        }
        Some(list)
    }

    /// What is in a table of that name; an absent one is read as an empty one.
    pub fn table<T>(&mut self, key: &'static str, reader: impl FnOnce(&mut Table<'_>) -> T) -> T {
        let path = format!("{}{key}.", self.path);
        let empty = DeTable::new();
        let found = self.find(key);
        let (table, head) = match found.map(|value| (value.get_ref().as_table(), value.span())) {
            Some((Some(table), head)) => (table, head),
            Some((None, at)) => {
                self.notes.add(at, format!("`{key}` is a table: [{key}]"));
                (&empty, 0..0)
            }
            None => (&empty, 0..0),
        };
        let mut table = Table { table, head, path, asked: Vec::new(), notes: self.notes };
        let result = reader(&mut table);
        table.end();
        result
    }

    /// What is in each table of that name: `[[key]]`, or a list of inline tables. Absent, there is none.
    pub fn tables<T>(&mut self, key: &'static str, mut reader: impl FnMut(&mut Table<'_>) -> T) -> Vec<T> {
        let Some(value) = self.find(key) else { return Vec::new() };
        let expected = format!("`{key}` is a list of tables: [[{}{key}]] or [{{ .. }}]", self.path);
        let Some(array) = value.get_ref().as_array() else {
            self.notes.add(value.span(), expected);
            return Vec::new();
        };
        let mut results = Vec::with_capacity(array.len());
        for item in array.iter() {
            let Some(table) = item.get_ref().as_table() else {
                self.notes.add(item.span(), expected.clone());
                continue;
            };
            let mut table = Table::new(table, item.span(), format!("{}{key}.", self.path), self.notes);
            results.push(reader(&mut table));
            table.end();
        }
        results
    }

    /// Whether the document has this key here.
    pub fn has(&self, key: &str) -> bool {
        self.table.keys().any(|have| have.get_ref() == key)
    }

    /// Whether the document has a list here with nothing in it.
    pub fn is_empty_list(&self, key: &str) -> bool {
        let found = self.table.iter().find(|(have, _)| have.get_ref() == key);
        found
            .and_then(|(_, value)| value.get_ref().as_array())
            .is_some_and(|array| array.iter().next().is_none())
    }

    /// Notes a problem of the table as a whole.
    pub fn problem(&self, message: impl Into<String>) {
        self.notes.add(self.head.clone(), message.into());
    }

    /// Notes a problem at the value of a key; of the table where it is absent.
    pub fn problem_at(&self, key: &str, message: impl Into<String>) {
        self.problem_in(&self.place(key), message);
    }

    /// Where the value of a key stands; the table where it is absent.
    pub fn place(&self, key: &str) -> Place {
        let found = self.table.iter().find(|(have, _)| have.get_ref() == key);
        Place(found.map_or_else(|| self.head.clone(), |(_, value)| value.span()))
    }

    /// Notes a problem at a place of the same document.
    pub fn problem_in(&self, place: &Place, message: impl Into<String>) {
        self.notes.add(place.0.clone(), message.into());
    }

    fn find(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.asked.push(key);
        self.notes.keys.borrow_mut().insert(format!("{}{key}", self.path));
        let table: &'a DeTable<'a> = self.table;
        table.iter().find(|(have, _)| have.get_ref() == key).map(|(_, value)| value)
    }

    /// Notes the keys that nobody asked for.
    fn end(self) {
        for key in self.table.keys().filter(|key| !self.asked.iter().any(|asked| key.get_ref() == asked)) {
            let known = self.asked.join(", ");
            let message = format!("unknown key `{}`; there are: {known}", key.get_ref());
            self.notes.add_hiding(key.span(), message, key.span().end);
        }
    }
}

impl<'a> Value<'a> {
    /// A string.
    pub fn text(self) -> Result<&'a str, String> {
        self.0.as_str().ok_or_else(|| format!("a string is expected, not {}", self.kind()))
    }

    /// A whole number in a range.
    pub fn integer(self, range: RangeInclusive<u64>) -> Result<u64, String> {
        let integer =
            self.0.as_integer().ok_or_else(|| format!("a whole number is expected, not {}", self.kind()))?;
        let parsed = u64::from_str_radix(integer.as_str(), integer.radix()).ok();
        let (least, most) = (*range.start(), *range.end());
        parsed.filter(|number| range.contains(number)).ok_or_else(|| match most {
            u64::MAX => format!("must be {least} or more"),
            _ => format!("must be from {least} to {most}"),
        })
    }

    /// `true` or `false`.
    pub fn boolean(self) -> Result<bool, String> {
        self.0.as_bool().ok_or_else(|| format!("true or false is expected, not {}", self.kind()))
    }

    fn kind(self) -> String {
        let kind = self.0.type_str();
        let article = if kind.starts_with(['a', 'i']) { "an" } else { "a" };
        format!("{article} {kind}")
    }
}

impl Notes {
    fn add(&self, at: Range<usize>, message: String) {
        self.problems.borrow_mut().push(Problem { at, message, hidden_from: None });
    }

    fn add_hiding(&self, at: Range<usize>, message: String, from: usize) {
        self.problems.borrow_mut().push(Problem { at, message, hidden_from: Some(from) });
    }
}

impl Report {
    /// The messages alone, in the order of the document.
    pub fn messages(&self) -> impl Iterator<Item = &str> {
        self.problems.iter().map(|problem| problem.message.as_str())
    }
}

impl std::error::Error for Report {}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, problem) in self.problems.iter().take(SHOWN_MAX).enumerate() {
            if number > 0 {
                f.write_str("\n\n")?;
            }
            problem.show(f, &self.file, &self.text)?;
        }
        match self.problems.len().saturating_sub(SHOWN_MAX) {
            0 => Ok(()),
            more => write!(f, "\n\nand {more} more problems in {}", self.file),
        }
    }
}

impl Problem {
    /// The message, the place, the line, and carets beneath it.
    fn show(&self, f: &mut fmt::Formatter<'_>, file: &str, text: &str) -> fmt::Result {
        let start = floor(text, self.at.start);
        let before = &text[..start];
        let number = before.matches('\n').count() + 1;
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let line = text[line_start..].lines().next().unwrap_or_default();
        let indent: String =
            text[line_start..start].chars().map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        let end = floor(text, self.at.end).clamp(start, (line_start + line.len()).max(start));
        let shown = self.shown(line, line_start);
        let carets = match self.hidden_from {
            Some(from) if from <= start => HIDDEN.len(),
            Some(_) | None => text[start..end].chars().count().max(1),
        };
        let carets = "^".repeat(carets);
        let column = indent.chars().count() + 1;
        let margin = " ".repeat(number.to_string().len());
        write!(f, "{}\n{margin}--> {file}:{number}:{column}\n{margin} |\n", self.message)?;
        write!(f, "{number} | {shown}\n{margin} | {indent}{carets}")
    }
}

impl Problem {
    /// The line, without what may be a secret: a value, in which nothing is wrong that could be seen.
    fn shown<'a>(&self, line: &'a str, line_start: usize) -> Cow<'a, str> {
        let kept = self.hidden_from.and_then(|from| line.split_at_checked(from.checked_sub(line_start)?));
        let Some((kept, rest)) = kept else { return Cow::Borrowed(line) };
        match rest.split_once('=') {
            Some((before, _)) if before.trim().is_empty() => format!("{kept}{before}= {HIDDEN}").into(),
            _ if kept.trim_end().ends_with('=') => format!("{kept}{HIDDEN}").into(),
            _ => Cow::Borrowed(line),
        }
    }
}

/// The nearest character boundary at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of(value: Value<'_>) -> Result<String, String> {
        value.text().map(str::to_owned)
    }

    fn reader(root: &mut Table<'_>) -> (Option<u64>, Vec<Option<String>>) {
        let size = root.table("a", |a| a.optional("size", |value| value.integer(1..=9)));
        (size, root.tables("b", |b| b.required("name", text_of)))
    }

    #[test]
    fn what_is_asked_for_is_read() {
        let read = read("f.toml", "[a]\nsize = 3\n[[b]]\nname = \"x\"\n[[b]]\nname = \"y\"", reader);
        assert_eq!(read, Ok((Some(3), vec![Some("x".into()), Some("y".into())])));
        assert_eq!(super::read("f.toml", "", reader), Ok((None, vec![])));
        let asked = keys("[[b]]", reader);
        assert_eq!(asked.iter().map(String::as_str).collect::<Vec<_>>(), ["a", "a.size", "b", "b.name"]);
    }

    #[test]
    fn every_problem_is_told_with_file_line_and_caret() {
        let text = "[a]\n  sise = 3\nsize = 10\n\n[[b]]\nname = 5\n[[b]]\n";
        let report = read("f.toml", text, reader).unwrap_err();
        let shown = report.to_string();
        assert_eq!(
            shown,
            "unknown key `sise`; there are: size\n --> f.toml:2:3\n  |\n2 |   sise = ...\n  |   ^^^^\n\n\
             `size`: must be from 1 to 9\n --> f.toml:3:8\n  |\n3 | size = 10\n  |        ^^\n\n\
             `name`: a string is expected, not an integer\n --> f.toml:6:8\n  |\n6 | name = 5\n  |        ^\n\n\
             `name` is missing\n --> f.toml:7:1\n  |\n7 | [[b]]\n  | ^^^^^"
        );
        assert_eq!(report.messages().count(), 4);
    }

    #[test]
    fn broken_toml_is_told_by_line_and_nothing_else_is() {
        let shown = read("f.toml", "[a]\nsize = 3\n[b\nnope = 1", reader).unwrap_err().to_string();
        assert!(shown.contains("f.toml:3:") && shown.contains('^') && !shown.contains("unknown"), "{shown}");
    }

    #[test]
    fn a_caret_stands_right_under_text_that_is_not_ascii() {
        let shown = read("f.toml", "a = { \"größe\" = 1 }", reader).unwrap_err().to_string();
        assert!(shown.contains("1 | a = { \"größe\" = ...\n  |       ^^^^^^^"), "{shown}");
    }

    #[test]
    fn a_table_where_a_value_belongs_and_the_like_are_told() {
        for text in [
            "a = 5",
            "[[a]]",
            "b = 5",
            "b = [5]",
            "[b]",
            "a.size = []",
            "a.size = -1",
            "a.size = 1.0",
            "[b.c]",
        ] {
            assert!(read("f.toml", text, reader).is_err(), "{text}");
        }
    }
}
