//! Price files: what `weir price import` reads, and what an empty book begins with.
//!
//! ```toml
//! [[price]]
//! model = "gpt-4o-mini"
//! service_tier = "priority"     # absent: the default tier
//! above_input_tokens = 200000   # absent: any input
//! input = "0.15"                # USD per million units, one line for each class
//! ```

use crate::document::{self, Place, Report, Table, Value};
use crate::money::{MICROS_PER_USD, Micros, PricePicos};
use crate::store::NewPrice;
use crate::usage::Class;
use std::collections::HashSet;

/// Why a price file is not one. Printed, it shows each problem beneath its line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub struct PriceFileError(#[from] Report);

/// The longest name of a model, in bytes.
const NAME_MAX_BYTES: usize = 256;
/// The dearest price, in USD per million units: a hundred dollars apiece.
const PRICE_MAX_USD: i64 = 100_000_000;
/// The highest threshold, in tokens.
const THRESHOLD_MAX: u64 = 1_000_000_000;

/// Which requests an entry is for.
#[derive(PartialEq, Eq, Hash)]
struct Scope {
    model: String,
    service_tier: Option<String>,
    above_input_tokens: u64,
}

/// One `[[price]]`, as far as it could be read.
struct Entry {
    scope: Scope,
    prices: Vec<(Class, PricePicos)>,
    /// Also where its price is wrong, which is a problem of its own.
    has_input: bool,
    place: Place,
}

/// Reads a price file. `file_name` is what messages call it.
///
/// # Errors
///
/// All that is wrong with it: unknown keys, prices that are not decimal strings of at most six places, an entry without a model or
/// without a price, the same entry twice, a model whose entries say nothing of plain input, no entry at all.
pub fn parse(text: &str, file_name: &str) -> Result<Vec<NewPrice>, PriceFileError> {
    let entries = document::read(file_name, text, |root| {
        let entries: Vec<Entry> = root.tables("price", read_entry).into_iter().flatten().collect();
        if !root.has("price") {
            root.problem("no price: a price file has one or more [[price]]");
        }
        check(root, &entries);
        entries
    })?;
    let new = |Entry { scope: Scope { model, service_tier, above_input_tokens }, prices, .. }: Entry| {
        prices.into_iter().map(move |(class, price)| NewPrice {
            model: model.clone(),
            service_tier: service_tier.clone(),
            above_input_tokens,
            class,
            price,
        })
    };
    Ok(entries.into_iter().flat_map(new).collect())
}

fn read_entry(entry: &mut Table<'_>) -> Option<Entry> {
    let model = entry.required("model", name);
    let service_tier = entry.optional("service_tier", name);
    let above_input_tokens =
        entry.optional("above_input_tokens", |value| value.integer(1..=THRESHOLD_MAX)).unwrap_or(0);
    let own = |class: Class| Some((class, entry.optional(class.as_str(), price)?));
    let prices: Vec<(Class, PricePicos)> = Class::ALL.into_iter().filter_map(own).collect();
    if !Class::ALL.iter().any(|class| entry.has(class.as_str())) {
        entry.problem("an entry without a price; what is free says so: input = \"0\"");
    }
    let scope = Scope { model: model?, service_tier, above_input_tokens };
    Some(Entry { scope, prices, has_input: entry.has(Class::Input.as_str()), place: entry.place("model") })
}

/// What only all entries together show.
fn check(root: &Table<'_>, entries: &[Entry]) {
    let is_for_all = |scope: &Scope| scope.service_tier.is_none() && scope.above_input_tokens == 0;
    let priced: HashSet<&str> = entries
        .iter()
        .filter(|entry| entry.has_input && is_for_all(&entry.scope))
        .map(|entry| entry.scope.model.as_str())
        .collect();
    let mut seen = HashSet::new();
    for Entry { scope, place, .. } in entries {
        let model = scope.model.as_str();
        if !seen.insert(scope) {
            root.problem_in(
                place,
                format!("`{model}` has an entry of this service tier and threshold already"),
            );
        } else if !priced.contains(model) {
            root.problem_in(
                place,
                format!("`{model}` has no price of `input` in an entry without service tier and threshold"),
            );
        }
    }
}

fn name(value: Value<'_>) -> Result<String, String> {
    let name = value.text()?;
    let is_name = (1..=NAME_MAX_BYTES).contains(&name.len())
        && !name.chars().any(|c| c.is_control() || c.is_whitespace());
    is_name
        .then(|| name.to_owned())
        .ok_or_else(|| format!("a name of 1 to {NAME_MAX_BYTES} bytes without spaces is expected"))
}

fn price(value: Value<'_>) -> Result<PricePicos, String> {
    let text =
        value.text().map_err(|fault| format!("{fault}: dollars per million units, such as \"0.15\""))?;
    let Micros(price) = Micros::parse_usd(text).map_err(|fault| fault.to_string())?;
    if price > PRICE_MAX_USD * MICROS_PER_USD {
        return Err(format!("more than {PRICE_MAX_USD} USD per million units"));
    }
    Ok(PricePicos(price))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::price::{SEED, SEED_NAME};

    /// What is told of a text that is no price file.
    fn told(text: &str) -> String {
        parse(text, "prices.toml").expect_err(text).to_string()
    }

    #[test]
    fn every_class_tier_and_threshold_is_read() {
        let text = "[[price]]\nmodel = \"m\"\ninput = \"0.15\"\noutput = \"0\"\n\
                    [[price]]\nmodel = \"m\"\nservice_tier = \"flex\"\nabove_input_tokens = 200000\ncalls = \"10000\"\n";
        let new = |service_tier: Option<&str>, above_input_tokens, class, price| NewPrice {
            model: "m".into(),
            service_tier: service_tier.map(str::to_owned),
            above_input_tokens,
            class,
            price: PricePicos(price),
        };
        let read = parse(text, "prices.toml").unwrap();
        assert_eq!(
            read,
            [
                new(None, 0, Class::Input, 150_000),
                new(None, 0, Class::Output, 0),
                new(Some("flex"), 200_000, Class::Calls, 10_000_000_000),
            ]
        );
        let all: String = Class::ALL.map(|class| format!("{} = \"1\"\n", class.as_str())).concat();
        assert_eq!(parse(&format!("[[price]]\nmodel = \"m\"\n{all}"), "f").unwrap().len(), Class::ALL.len());
    }

    #[test]
    fn what_is_no_price_is_refused_where_it_stands() {
        let entry = |lines: &str| format!("[[price]]\nmodel = \"m\"\n{lines}\n");
        for (lines, telling) in [
            ("input = 0.15", "string"),
            ("input = 1", "string"),
            ("input = \"0.1234567\"", "six decimals"),
            ("input = \"-1\"", "decimal"),
            ("input = \"1e3\"", "decimal"),
            ("input = \"\"", "decimal"),
            ("input = \"100000001\"", "more than"),
            ("inptu = \"1\"", "inptu"),
            ("input = \"1\"\nabove_input_tokens = 0", "above_input_tokens"),
            ("input = \"1\"\nservice_tier = \"\"", "service_tier"),
            ("output = \"1\"", "no price of `input`"),
            ("input = \"1\"\nservice_tier = \"flex\"", "no price of `input`"),
            ("", "without a price"),
        ] {
            let told = told(&entry(lines));
            assert!(
                told.contains(telling) && told.contains("prices.toml:") && told.contains('^'),
                "{lines}: {told}"
            );
        }
        assert!(told("[[price]]\ninput = \"1\"\n").contains("`model` is missing"));
        assert!(told("").contains("no price"));
        assert!(told("[[prices]]\nmodel = \"m\"\n").contains("unknown key `prices`"));
    }

    #[test]
    fn the_same_entry_twice_is_refused() {
        let one = "[[price]]\nmodel = \"m\"\ninput = \"1\"\n";
        assert!(told(&format!("{one}{one}")).contains("prices.toml:5:9"));
        let flex = "[[price]]\nmodel = \"m\"\nservice_tier = \"flex\"\ninput = \"1\"\n";
        assert!(parse(&format!("{one}{flex}"), "f").is_ok());
        assert!(told(&format!("{one}{flex}{flex}")).contains("already"));
    }

    #[test]
    fn the_seed_is_a_price_file_with_the_demo_model_in_it() {
        let seed = parse(SEED, SEED_NAME).unwrap();
        let price_of = |model: &str, class: Class| {
            seed.iter().find(|new| new.model == model && new.class == class).map(|new| new.price)
        };
        assert_eq!(price_of("gpt-4o-mini", Class::CacheRead), Some(PricePicos(75_000)));
        assert_eq!(price_of("demo", Class::Input), Some(PricePicos(100_000)));
        assert_eq!(price_of("demo", Class::Output), Some(PricePicos(400_000)));
    }
}
