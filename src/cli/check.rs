//! `weir check`: whether a server would start with this configuration, and what it would leave out.

use super::Books;
use super::failure::Failure;
use super::output::Report;
use crate::clock::UnixMicros;
use crate::config::{Config, Loaded};
use crate::price::{Book, SEED, SEED_NAME, file};
use crate::store::{NewPrice, PriceRow, Store};
use serde::Serialize;

/// Check the configuration, and warn of what would not work
///
/// A server that starts, or is told by SIGHUP to read its configuration again, checks it in the same way. What is wrong is told all at
/// once, with line and caret, and exit status 3; a secret, a certificate or a file of countries that cannot be used is wrong, too, so run it as the user of the server and in
/// its environment. Warnings, on standard error, do not change the exit status: models without a price, which are not served, are one.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Example:
  weir --config weir.toml check")]
pub(super) struct Check {}

#[derive(Serialize)]
struct Checked<'a> {
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    warnings: &'a [String],
}

impl Check {
    /// The configuration is loaded, and with it the secrets that it names: what is left are the warnings.
    pub(super) async fn run(self, loaded: &Loaded, books: &Books<'_>) -> Result<Report, Failure> {
        let Check {} = self;
        let config = books.config;
        let now = books.clock.wall();
        let mut warnings = loaded.warnings(now);
        warnings.extend(unpriced(config, &books.store, now).await?);
        let people = format!(
            "The configuration is good, with {}: {}, {}, {}.",
            counted(warnings.len(), "warning"),
            counted(config.providers.len(), "provider"),
            counted(config.models.len(), "model"),
            counted(config.tiers.len(), "tier"),
        );
        let report = Report::new(&Checked { warnings: &warnings }, people)?;
        Ok(report.with_warnings(warnings))
    }
}

/// The models that are not served, since they have no price, in words.
pub(super) async fn unpriced(
    config: &Config,
    store: &Store,
    now: UnixMicros,
) -> Result<Vec<String>, Failure> {
    let book = book(store.price_rows().await?, now)?;
    Ok(config.unpriced(|model| book.model(model, now).is_some()))
}

/// The book, or where it is empty the one that a server would begin with.
fn book(mut rows: Vec<PriceRow>, now: UnixMicros) -> Result<Book, Failure> {
    if rows.is_empty() {
        let seed = file::parse(SEED, SEED_NAME)
            .map_err(|error| Failure::new("invalid_prices", error.to_string()))?;
        rows = seed.into_iter().map(|price| seeded(price, now)).collect();
    }
    Ok(Book::build(rows))
}

fn seeded(price: NewPrice, now: UnixMicros) -> PriceRow {
    let NewPrice { model, service_tier, above_input_tokens, class, price } = price;
    PriceRow { version: 1, model, service_tier, above_input_tokens, class, price, effective_at: now }
}

fn counted(count: usize, noun: &str) -> String {
    match count {
        0 => format!("no {noun}s"),
        1 => format!("1 {noun}"),
        _ => format!("{count} {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_book_is_checked_as_the_server_would_fill_it() {
        let now = UnixMicros(1);
        let seeded = book(Vec::new(), now).unwrap();
        let model = seeded.models().next().expect("the seed has prices");
        assert!(seeded.model(model, now).is_some());
    }
}
