//! Which prices an import would raise without notice.

use super::{Book, ModelPrice};
use crate::clock::UnixMicros;
use crate::money::{Micros, PricePicos};
use crate::store::NewPrice;
use crate::usage::Class;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

/// How long before it comes into force a rise has to be imported.
pub const NOTICE: Duration = Duration::from_secs(7 * 24 * 3600);

/// A price that would rise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rise {
    /// The model.
    pub model: String,
    /// `None` is the default tier.
    pub service_tier: Option<String>,
    /// The threshold above which it rises, in input tokens.
    pub above_input_tokens: u64,
    /// The class.
    pub class: Class,
    /// In force before.
    pub from: PricePicos,
    /// In force after.
    pub to: PricePicos,
}

/// The prices that rise with less than [`NOTICE`] between `now` and `effective_at`. What counts is what a client pays: a class
/// that loses a cheaper price of its own rises, too. A model that has no price then does not.
pub fn rises(book: &Book, new: &[NewPrice], effective_at: UnixMicros, now: UnixMicros) -> Vec<Rise> {
    if effective_at >= now.saturating_add(NOTICE) {
        return Vec::new();
    }
    let mut sets: BTreeMap<&str, Vec<&NewPrice>> = BTreeMap::new();
    for price in new {
        sets.entry(price.model.as_str()).or_default().push(price);
    }
    let mut rises = Vec::new();
    for (model, set) in sets {
        let prices =
            set.iter().map(|new| (new.service_tier.as_deref(), new.above_input_tokens, new.class, new.price));
        let (before, after) = (book.model(model, effective_at.max(now)), ModelPrice::new(0, prices));
        if let (Some(before), Some(after)) = (before, after) {
            compare(model, &before, &after, &mut rises);
        }
    }
    rises
}

/// Compares all tiers at all thresholds of either set. A rise that goes on above the next threshold is told once.
fn compare(model: &str, before: &ModelPrice, after: &ModelPrice, rises: &mut Vec<Rise>) {
    let ((old_tiers, old_thresholds), (new_tiers, new_thresholds)) = (before.shape(), after.shape());
    let tiers: BTreeSet<Option<&str>> =
        old_tiers.into_iter().chain(new_tiers).map(Some).chain([None]).collect();
    let thresholds: BTreeSet<u64> = old_thresholds.into_iter().chain(new_thresholds).collect();
    for tier in tiers {
        for class in Class::ALL {
            let mut last = None;
            for above in &thresholds {
                let (from, was_own) = before.class_above(class, *above, tier);
                let (to, is_own) = after.class_above(class, *above, tier);
                let pair = Some((from, to));
                if to > from && (was_own || is_own) && last != pair {
                    rises.push(Rise {
                        model: model.to_owned(),
                        service_tier: tier.map(str::to_owned),
                        above_input_tokens: *above,
                        class,
                        from,
                        to,
                    });
                }
                last = pair;
            }
        }
    }
}

impl fmt::Display for Rise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.class.as_str(), self.model)?;
        if let Some(tier) = &self.service_tier {
            write!(f, ", service tier {tier},")?;
        }
        if self.above_input_tokens > 0 {
            write!(f, " above {} input tokens", self.above_input_tokens)?;
        }
        write!(f, " from {} to {} USD per million", Micros(self.from.0), Micros(self.to.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::price::file::parse;
    use crate::store::PriceRow;

    fn new(text: &str) -> Vec<NewPrice> {
        parse(text, "prices.toml").unwrap()
    }

    fn book(text: &str) -> Book {
        let row = |new: NewPrice| PriceRow {
            version: 1,
            model: new.model,
            service_tier: new.service_tier,
            above_input_tokens: new.above_input_tokens,
            class: new.class,
            price: new.price,
            effective_at: UnixMicros(0),
        };
        Book::build(new(text).into_iter().map(row).collect())
    }

    const NOW: UnixMicros = UnixMicros(1_000);

    fn told(before: &str, after: &str) -> Vec<String> {
        rises(&book(before), &new(after), NOW, NOW).iter().map(Rise::to_string).collect()
    }

    #[test]
    fn a_rise_is_told_and_a_fall_is_not() {
        let one = "[[price]]\nmodel = \"m\"\ninput = \"1\"\noutput = \"4\"\n";
        let two = "[[price]]\nmodel = \"m\"\ninput = \"2\"\noutput = \"3\"\n";
        assert_eq!(told(one, two), ["input of m from 1.000000 to 2.000000 USD per million"]);
        assert!(told(two, two).is_empty());
        assert!(told(&one.replace("\"m\"", "\"n\""), two).is_empty());
    }

    #[test]
    fn seven_days_of_notice_are_enough() {
        let one = book("[[price]]\nmodel = \"m\"\ninput = \"1\"\n");
        let two = new("[[price]]\nmodel = \"m\"\ninput = \"2\"\n");
        let far = NOW.saturating_add(NOTICE);
        assert_eq!(rises(&one, &two, far, NOW), []);
        assert_eq!(rises(&one, &two, UnixMicros(far.0 - 1), NOW).len(), 1);
    }

    #[test]
    fn the_loss_of_a_cheaper_price_is_a_rise() {
        let cached = "[[price]]\nmodel = \"m\"\ninput = \"1\"\ncache_read = \"0.1\"\n";
        let plain = "[[price]]\nmodel = \"m\"\ninput = \"1\"\n";
        assert_eq!(told(cached, plain), ["cache_read of m from 0.100000 to 1.000000 USD per million"]);
        assert!(told(plain, cached).is_empty());
    }

    #[test]
    fn a_new_threshold_or_a_dearer_tier_is_a_rise() {
        let plain = "[[price]]\nmodel = \"m\"\ninput = \"1\"\n";
        let long = format!("{plain}[[price]]\nmodel = \"m\"\nabove_input_tokens = 200000\ninput = \"2\"\n");
        let told_long = told(plain, &long);
        assert!(told_long.contains(
            &"input of m above 200000 input tokens from 1.000000 to 2.000000 USD per million".into()
        ));
        let tiered = format!("{plain}[[price]]\nmodel = \"m\"\nservice_tier = \"priority\"\ninput = \"2\"\n");
        assert!(told(plain, &tiered)[0].contains("service tier priority"));
    }
}
