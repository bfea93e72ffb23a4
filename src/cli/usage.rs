//! `weir usage`: the requests of an account, and what each used and cost.

use super::failure::Failure;
use super::output::Report;
use super::table::{Table, dollars, or_dash};
use super::{Books, values};
use crate::clock::UnixMicros;
use crate::store::UsageRow;
use crate::usage::Usage;
use serde::Serialize;

/// The most rows that one answer has.
const LIMIT_MAX: i64 = 100_000;

/// Show the requests of an account, newest first, with what each used and cost
///
/// A request is shown within two seconds of its last byte. Costs are exact, in dollars with twelve decimals; with --json they are
/// integers in pico-dollars, and `usage` has the disjoint classes from which the cost follows by the price book.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  weir usage --account ada@example.com
  weir usage --account ada@example.com --since 2030-01-31T00:00:00Z --limit 1000 --json")]
pub(super) struct UsageQuery {
    /// Whose: id or e-mail address
    #[arg(long, value_name = "ACCOUNT")]
    account: String,
    /// Only requests from this time on (RFC 3339)
    #[arg(long, value_name = "TIME", value_parser = values::time)]
    since: Option<UnixMicros>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=LIMIT_MAX))]
    limit: u32,
}

/// The names and their order are a contract.
#[derive(Serialize)]
struct Entry<'a> {
    request_id: String,
    created_at: String,
    key_id: String,
    model: &'a str,
    provider: &'a str,
    status: u16,
    outcome: &'a str,
    stream: bool,
    input_tokens: u64,
    cached_tokens: u64,
    output_tokens: u64,
    reasoning_tokens: u64,
    usage: Usage,
    cost_pico_usd: i64,
    price_version: u64,
    usage_source: &'a str,
    latency_ms: u64,
    ttft_ms: Option<u64>,
}

impl UsageQuery {
    pub(super) async fn run(self, books: &Books<'_>) -> Result<Report, Failure> {
        let account = books.store.find_account(&self.account).await?;
        let rows = books.store.usage(account, self.since, self.limit).await?;
        let entries: Vec<Entry<'_>> = rows.iter().map(entry).collect();
        let people = if rows.is_empty() {
            format!("No requests of {} in that time.", self.account)
        } else {
            people(&rows)
        };
        Report::new(&entries, people)
    }
}

fn entry(row: &UsageRow) -> Entry<'_> {
    Entry {
        request_id: row.request_id.to_string(),
        created_at: values::rfc3339(row.created_at),
        key_id: row.key_id.to_string(),
        model: &row.model,
        provider: &row.provider,
        status: row.status,
        outcome: &row.outcome,
        stream: row.stream,
        input_tokens: row.usage.input_total(),
        cached_tokens: row.usage.cache_read,
        output_tokens: row.usage.output_total(),
        reasoning_tokens: row.usage.reasoning,
        usage: row.usage,
        cost_pico_usd: row.cost.0,
        price_version: row.price_version,
        usage_source: &row.usage_source,
        latency_ms: row.latency_ms,
        ttft_ms: row.ttft_ms,
    }
}

fn people(rows: &[UsageRow]) -> String {
    let mut table = Table::new(&[
        "time",
        "request",
        "model",
        "provider",
        ">status",
        "outcome",
        ">input",
        ">cached",
        ">output",
        ">reasoning",
        ">USD",
        "counted by",
        ">ms",
        ">first ms",
    ]);
    for row in rows {
        table.row([
            values::to_the_second(row.created_at),
            row.request_id.to_string(),
            row.model.clone(),
            row.provider.clone(),
            row.status.to_string(),
            row.outcome.clone(),
            row.usage.input_total().to_string(),
            row.usage.cache_read.to_string(),
            row.usage.output_total().to_string(),
            row.usage.reasoning.to_string(),
            dollars(row.cost),
            if row.usage_source == "reported" { "provider" } else { "gateway" }.to_owned(),
            row.latency_ms.to_string(),
            or_dash(row.ttft_ms),
        ]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{KeyId, RequestId};
    use crate::money::Picos;

    fn row() -> UsageRow {
        UsageRow {
            request_id: RequestId::new(),
            created_at: UnixMicros(1),
            key_id: KeyId::new(),
            model: "m".into(),
            provider: "p".into(),
            status: 200,
            outcome: "completed".into(),
            stream: true,
            usage: Usage { input: 3, cache_read: 4, output: 5, reasoning: 6, ..Usage::default() },
            cost: Picos(7),
            price_version: 1,
            usage_source: "reported".into(),
            latency_ms: 2,
            ttft_ms: None,
            client_request_id: Some("theirs".into()),
        }
    }

    #[test]
    fn a_request_has_the_names_of_the_contract_in_its_order() {
        let json = serde_json::to_string(&entry(&row())).unwrap();
        let names = "request_id created_at key_id model provider status outcome stream input_tokens cached_tokens \
                     output_tokens reasoning_tokens usage cost_pico_usd price_version usage_source latency_ms ttft_ms";
        let places: Vec<usize> =
            names.split_whitespace().map(|name| json.find(&format!("\"{name}\":")).expect(name)).collect();
        assert!(places.is_sorted(), "{json}");
        assert!(json.ends_with("\"ttft_ms\":null}"), "{json}");
    }

    #[test]
    fn totals_contain_what_the_classes_have_apart() {
        let json = serde_json::to_string(&entry(&row())).unwrap();
        let totals = "\"input_tokens\":7,\"cached_tokens\":4,\"output_tokens\":11,\"reasoning_tokens\":6,";
        let classes =
            "\"usage\":{\"input\":3,\"cache_read\":4,\"output\":5,\"reasoning\":6},\"cost_pico_usd\":7,";
        assert!(json.contains(&format!("{totals}{classes}")), "{json}");
    }

    #[test]
    fn people_see_the_cost_to_the_last_decimal() {
        let text = people(&[row()]);
        assert!(text.contains("0.000000000007") && text.lines().count() == 2, "{text}");
    }
}
