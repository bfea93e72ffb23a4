//! The book: for each model its sets of prices, in the order in which they come into force.

use super::ModelPrice;
use crate::clock::UnixMicros;
use crate::store::PriceRow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Every price there is, past, present and announced. Immutable: a change of prices is another book.
#[derive(Debug, Default)]
pub struct Book(BTreeMap<String, Vec<Set>>);

/// A model's prices from one import.
#[derive(Debug)]
struct Set {
    effective_at: UnixMicros,
    /// `None` where the rows do not make a price: the model is then not served, rather than served at an older price.
    price: Option<Arc<ModelPrice>>,
}

impl Book {
    /// The book of these rows, in any order.
    pub fn build(rows: Vec<PriceRow>) -> Book {
        let mut sets: BTreeMap<String, BTreeMap<(UnixMicros, u64), Vec<PriceRow>>> = BTreeMap::new();
        for row in rows {
            let of_model = sets.entry(row.model.clone()).or_default();
            of_model.entry((row.effective_at, row.version)).or_default().push(row);
        }
        Book(sets.into_iter().map(|(model, sets)| (model, in_order(sets))).collect())
    }

    /// The prices of a model in force at `now`; `None` for a model that has no usable price then. Allocates nothing.
    pub fn model(&self, name: &str, now: UnixMicros) -> Option<Arc<ModelPrice>> {
        let sets = self.0.get(name)?;
        let begun = sets.partition_point(|set| set.effective_at <= now);
        sets.get(begun.checked_sub(1)?)?.price.clone()
    }

    /// The names of all models that have prices now, had, or will have.
    pub fn models(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// One set for each date, the one with the highest version, by date.
fn in_order(sets: BTreeMap<(UnixMicros, u64), Vec<PriceRow>>) -> Vec<Set> {
    let mut ordered: Vec<Set> = Vec::with_capacity(sets.len());
    for ((effective_at, version), rows) in sets {
        let prices = rows
            .iter()
            .map(|row| (row.service_tier.as_deref(), row.above_input_tokens, row.class, row.price));
        let set = Set { effective_at, price: ModelPrice::new(version, prices).map(Arc::new) };
        match ordered.last_mut() {
            Some(last) if last.effective_at == effective_at => *last = set,
            Some(_) | None => ordered.push(set),
        }
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::money::PricePicos;
    use crate::usage::Class;

    fn row(model: &str, version: u64, effective_at: i64, class: Class, price: i64) -> PriceRow {
        PriceRow {
            version,
            model: model.into(),
            service_tier: None,
            above_input_tokens: 0,
            class,
            price: PricePicos(price),
            effective_at: UnixMicros(effective_at),
        }
    }

    fn input_at(book: &Book, model: &str, now: i64) -> Option<(u64, i64)> {
        let price = book.model(model, UnixMicros(now))?;
        Some((price.version(), price.rates(1, None).input.0))
    }

    #[test]
    fn the_set_in_force_is_the_latest_that_has_begun() {
        let book = Book::build(vec![
            row("m", 2, 100, Class::Input, 20),
            row("m", 1, 0, Class::Input, 10),
            row("m", 3, 50, Class::Input, 15),
            row("other", 4, 0, Class::Input, 1),
        ]);
        assert_eq!(input_at(&book, "m", -1), None);
        assert_eq!(input_at(&book, "m", 0), Some((1, 10)));
        assert_eq!(input_at(&book, "m", 99), Some((3, 15)));
        assert_eq!(input_at(&book, "m", 100), Some((2, 20)));
        assert_eq!(input_at(&book, "nobody", 100), None);
        assert_eq!(book.models().collect::<Vec<_>>(), ["m", "other"]);
    }

    #[test]
    fn of_two_sets_that_begin_together_the_later_import_stands() {
        let book = Book::build(vec![row("m", 9, 5, Class::Input, 9), row("m", 8, 5, Class::Input, 8)]);
        assert_eq!(input_at(&book, "m", 5), Some((9, 9)));
    }

    #[test]
    fn an_import_replaces_the_whole_set_of_a_model() {
        let book = Book::build(vec![
            row("m", 1, 0, Class::Input, 10),
            row("m", 1, 0, Class::Output, 99),
            row("m", 2, 1, Class::Input, 10),
            row("m", 2, 1, Class::Images, 1),
        ]);
        assert_eq!(book.model("m", UnixMicros(0)).unwrap().rates(1, None).output.0, 99);
        assert_eq!(book.model("m", UnixMicros(1)).unwrap().rates(1, None).output.0, 10);
    }

    #[test]
    fn a_set_without_an_input_price_is_no_price() {
        let book = Book::build(vec![row("m", 1, 0, Class::Input, 1), row("m", 2, 1, Class::Output, 1)]);
        assert!(book.model("m", UnixMicros(0)).is_some());
        assert!(book.model("m", UnixMicros(1)).is_none());
    }
}
