//! Text for people: aligned columns, names with their values, amounts in dollars.

use crate::money::{MICROS_PER_USD, PICOS_PER_MICRO, Picos};
use std::fmt::{self, Write as _};

/// Rows under a line of headings. Columns are as wide as their widest cell.
#[derive(Debug)]
pub(super) struct Table {
    columns: Vec<(&'static str, Side)>,
    rows: Vec<Vec<String>>,
}

#[derive(Clone, Copy, Debug)]
enum Side {
    Left,
    Right,
}

impl Table {
    /// A table with these headings. One that begins with `>` is a column of numbers, aligned to the right.
    pub(super) fn new(headings: &[&'static str]) -> Table {
        let column = |heading: &&'static str| match heading.strip_prefix('>') {
            Some(heading) => (heading, Side::Right),
            None => (*heading, Side::Left),
        };
        Table { columns: headings.iter().map(column).collect(), rows: Vec::new() }
    }

    /// One more row, a cell for each heading.
    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into_iter().map(|cell| printable(&cell)).collect());
    }

    fn width(&self, column: usize) -> usize {
        let heading = self.columns.get(column).map_or(0, |(heading, _)| heading.chars().count());
        self.rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .fold(heading, usize::max)
    }

    fn line<'a>(&self, cells: impl Iterator<Item = &'a str>, widths: &[usize]) -> String {
        let mut line = String::new();
        for ((cell, (_, side)), width) in cells.zip(&self.columns).zip(widths) {
            let _ = match side {
                Side::Left => write!(line, "{cell:<width$}  "),
                Side::Right => write!(line, "{cell:>width$}  "),
            };
        }
        line.truncate(line.trim_end().len());
        line
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths: Vec<usize> = (0..self.columns.len()).map(|column| self.width(column)).collect();
        writeln!(f, "{}", self.line(self.columns.iter().map(|(heading, _)| *heading), &widths))?;
        for row in &self.rows {
            writeln!(f, "{}", self.line(row.iter().map(String::as_str), &widths))?;
        }
        Ok(())
    }
}

/// Names with their values, one a line.
pub(super) fn facts(facts: &[(&str, String)]) -> String {
    let width = facts.iter().map(|(name, _)| name.chars().count()).fold(0, usize::max);
    let mut text = String::new();
    for (name, value) in facts {
        let _ = writeln!(text, "{name:<width$}  {}", printable(value));
    }
    text
}

/// Dollars with all twelve decimals that a cost can have: `0.000012750000`.
pub(super) fn dollars(cost: Picos) -> String {
    let sign = if cost.0 < 0 { "-" } else { "" };
    let picos_per_usd = PICOS_PER_MICRO.unsigned_abs() * MICROS_PER_USD.unsigned_abs();
    let picos = cost.0.unsigned_abs();
    format!("{sign}{}.{:012}", picos / picos_per_usd, picos % picos_per_usd)
}

/// The value, or a dash where there is none.
pub(super) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Text from elsewhere, without the characters that a terminal acts on.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_lines_do_not_end_in_spaces() {
        let mut table = Table::new(&["name", ">usd", "note"]);
        table.row(["a".to_owned(), "1.50".to_owned(), "x".to_owned()]);
        table.row(["longer".to_owned(), "10.00".to_owned(), String::new()]);
        assert_eq!(table.to_string(), "name      usd  note\na        1.50  x\nlonger  10.00\n");
    }

    #[test]
    fn what_a_terminal_would_act_on_is_not_passed_on() {
        let mut table = Table::new(&["name"]);
        table.row(["\u{1b}[31mred\n".to_owned()]);
        assert!(!table.to_string().contains('\u{1b}'));
        assert_eq!(table.to_string().lines().count(), 2);
    }

    #[test]
    fn costs_show_every_decimal() {
        assert_eq!(dollars(Picos(12_750_000)), "0.000012750000");
        assert_eq!(dollars(Picos(-1_500_000_000_000)), "-1.500000000000");
        assert_eq!(dollars(Picos(1)), "0.000000000001");
    }
}
