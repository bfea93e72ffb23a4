//! `weir price`: the price book.

use super::failure::Failure;
use super::output::Report;
use super::table::{Table, or_dash};
use super::{Books, values};
use crate::clock::UnixMicros;
use crate::money::Micros;
use crate::price::{Book, NOTICE, Rise, file, rises};
use crate::store::PriceRow;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The largest price file.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// How many rises a refusal names.
const RISES_NAMED_MAX: usize = 10;

/// Import and list prices
#[derive(Debug, clap::Subcommand)]
pub(super) enum Price {
    Import(Import),
    List(List),
}

/// Import prices, in dollars per million tokens
///
/// Each model in the file gets the prices in the file and loses all others; models that are not in it keep theirs. Requests under
/// way keep the prices that they were admitted at. A rise needs seven days of notice, or --force.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  weir price import conf/prices.toml
  weir price import rise.toml --effective 2030-01-31T00:00:00Z

A file:
  [[price]]
  model = \"gpt-4o-mini\"
  input = \"0.15\"
  cache_read = \"0.075\"
  output = \"0.60\"")]
pub(super) struct Import {
    /// The prices, as TOML
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// When they come into force (RFC 3339); without it, now
    #[arg(long, value_name = "TIME", value_parser = values::time)]
    effective: Option<UnixMicros>,
    /// Let prices rise with less than seven days of notice
    #[arg(long)]
    force: bool,
}

/// List every price in force and coming
#[derive(Debug, clap::Args)]
pub(super) struct List {}

#[derive(Serialize)]
struct Imported {
    price_version: u64,
}

#[derive(Serialize)]
struct Listed<'a> {
    model: &'a str,
    service_tier: Option<&'a str>,
    above_input_tokens: u64,
    class: &'static str,
    /// For a unit, which is micro-dollars for a million.
    price_pico_usd: i64,
    usd_per_million: String,
    effective_at: String,
    in_force: bool,
    price_version: u64,
}

impl Price {
    pub(super) async fn run(self, books: &Books<'_>) -> Result<Report, Failure> {
        match self {
            Price::Import(import) => import.run(books).await,
            Price::List(list) => list.run(books).await,
        }
    }
}

impl Import {
    async fn run(self, books: &Books<'_>) -> Result<Report, Failure> {
        let Import { file, effective, force } = self;
        let name = file.display().to_string();
        let text = read(&file).map_err(|error| Failure::new("unreadable", format!("{name}: {error}")))?;
        let prices =
            file::parse(&text, &name).map_err(|error| Failure::new("invalid_prices", error.to_string()))?;
        let now = books.clock.wall();
        // Prices do not reach into the past: a request's price is that of its time.
        let effective_at = effective.map_or(now, |at| at.max(now));
        if !force {
            let book = Book::build(books.store.price_rows().await?);
            refuse_rises(&rises(&book, &prices, effective_at, now))?;
        }
        let version = books.store.import_prices(&prices, effective_at, now).await?;
        let people = format!(
            "{} prices of {name} are version {version} of the book, in force from {} on.",
            prices.len(),
            values::to_the_second(effective_at)
        );
        Report::new(&Imported { price_version: version }, people)
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("larger than {FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}

fn refuse_rises(rises: &[Rise]) -> Result<(), Failure> {
    if rises.is_empty() {
        return Ok(());
    }
    let mut lines: Vec<String> = rises.iter().take(RISES_NAMED_MAX).map(|rise| format!("  {rise}")).collect();
    if let more @ 1.. = rises.len().saturating_sub(RISES_NAMED_MAX) {
        lines.push(format!("  and {more} more"));
    }
    let message = format!(
        "these prices would rise with less than {} days of notice; give a later --effective, or --force:\n{}",
        NOTICE.as_secs() / (24 * 3600),
        lines.join("\n")
    );
    Err(Failure::new("rise_without_notice", message))
}

impl List {
    async fn run(self, books: &Books<'_>) -> Result<Report, Failure> {
        let List {} = self;
        let now = books.clock.wall();
        let rows = in_force_and_coming(books.store.price_rows().await?, now);
        let listed: Vec<Listed<'_>> = rows.iter().map(|row| listed(row, now)).collect();
        let people = if rows.is_empty() {
            "The price book is empty: `weir price import FILE` fills it, and so does the first `weir serve`."
                .to_owned()
        } else {
            people(&rows, now)
        };
        Report::new(&listed, people)
    }
}

/// Of each model the set of prices in force and those announced, in that order. Of sets that begin together the one that was
/// imported last stands, as in the book.
fn in_force_and_coming(rows: Vec<PriceRow>, now: UnixMicros) -> Vec<PriceRow> {
    let mut models: BTreeMap<String, BTreeMap<UnixMicros, Vec<PriceRow>>> = BTreeMap::new();
    for row in rows {
        let set = models.entry(row.model.clone()).or_default().entry(row.effective_at).or_default();
        match set.first().map(|first| first.version) {
            Some(version) if version > row.version => continue,
            Some(version) if version < row.version => set.clear(),
            Some(_) | None => {}
        }
        set.push(row);
    }
    let standing = models.into_values().flat_map(|mut sets| {
        if let Some(in_force) = sets.range(..=now).next_back().map(|(at, _)| *at) {
            sets = sets.split_off(&in_force);
        }
        sets.into_values()
    });
    let mut standing: Vec<PriceRow> = standing.flatten().collect();
    standing.sort_by(|a, b| {
        let order = |row: &PriceRow| (row.effective_at, row.above_input_tokens, row.class);
        (&a.model, &a.service_tier, order(a)).cmp(&(&b.model, &b.service_tier, order(b)))
    });
    standing
}

fn listed(row: &PriceRow, now: UnixMicros) -> Listed<'_> {
    Listed {
        model: &row.model,
        service_tier: row.service_tier.as_deref(),
        above_input_tokens: row.above_input_tokens,
        class: row.class.as_str(),
        price_pico_usd: row.price.0,
        usd_per_million: Micros(row.price.0).to_string(),
        effective_at: values::rfc3339(row.effective_at),
        in_force: row.effective_at <= now,
        price_version: row.version,
    }
}

fn people(rows: &[PriceRow], now: UnixMicros) -> String {
    let mut table = Table::new(&[
        "model",
        "service tier",
        ">above input",
        "class",
        ">USD per million",
        "from",
        "",
        ">version",
    ]);
    for row in rows {
        table.row([
            row.model.clone(),
            or_dash(row.service_tier.as_deref()),
            row.above_input_tokens.to_string(),
            row.class.as_str().to_owned(),
            Micros(row.price.0).to_string(),
            values::to_the_second(row.effective_at),
            if row.effective_at <= now { "in force" } else { "announced" }.to_owned(),
            row.version.to_string(),
        ]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::money::PricePicos;
    use crate::usage::Class;

    fn row(model: &str, version: u64, effective_at: i64, class: Class) -> PriceRow {
        PriceRow {
            version,
            model: model.into(),
            service_tier: None,
            above_input_tokens: 0,
            class,
            price: PricePicos(1),
            effective_at: UnixMicros(effective_at),
        }
    }

    #[test]
    fn the_list_has_the_set_in_force_and_those_announced() {
        let rows = vec![
            row("m", 1, 0, Class::Input),
            row("m", 1, 0, Class::Output),
            row("m", 3, 10, Class::Input),
            row("m", 2, 10, Class::Output),
            row("m", 4, 90, Class::Input),
            row("later", 5, 60, Class::Input),
        ];
        let versions = |now| -> Vec<u64> {
            in_force_and_coming(rows.clone(), UnixMicros(now)).iter().map(|row| row.version).collect()
        };
        assert_eq!(versions(5), [5, 1, 1, 3, 4]);
        assert_eq!(versions(10), [5, 3, 4]);
        assert_eq!(versions(90), [5, 4]);
        assert!(in_force_and_coming(Vec::new(), UnixMicros(0)).is_empty());
    }

    #[test]
    fn a_refusal_of_rises_names_some_and_counts_the_rest() {
        let rise = Rise {
            model: "m".into(),
            service_tier: None,
            above_input_tokens: 0,
            class: Class::Input,
            from: PricePicos(1),
            to: PricePicos(2),
        };
        assert!(refuse_rises(&[]).is_ok());
        let failure = refuse_rises(&vec![rise; RISES_NAMED_MAX + 2]).unwrap_err();
        assert_eq!(failure.code, "rise_without_notice");
        assert!(failure.message.contains("--force") && failure.message.ends_with("and 2 more"), "{failure}");
    }
}
