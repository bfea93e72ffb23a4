//! How much is held for a request: little where there is plenty, what is left where there is not.
//!
//! A hold is the usual estimate of the input and a slice of the output. While the credit is under [`SCARCE_HOLDS`] such holds, the input
//! is taken at its hard bound instead. What cannot be extended on its way, because its answer comes whole, holds the whole output; it may
//! take nine tenths of the credit, and all of it only when credit is scarce. Where that does not cover the output that was asked for, the
//! output is lowered to what it covers, but never below [`Need::output_least`].

use crate::money::Picos;
use crate::price::ModelPrice;
use std::sync::Arc;

/// What a request can take, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// Its input as such requests usually are.
    pub input_usual: u64,
    /// More input than this no request of its size has.
    pub input_bound: u64,
    /// The most output of one choice.
    pub output: u64,
    /// Fewer output tokens of one choice are of no use.
    pub output_least: u64,
    /// Choices that are made; at least 1.
    pub choices: u64,
    /// The hold can be extended while the answer passes.
    pub is_extendable: bool,
}

/// A hold that the credit covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) amount: Picos,
    /// The output of one choice to which the request must be lowered.
    pub(super) output_limit: Option<u64>,
    /// It would be another one if there were more credit.
    pub(super) is_tight: bool,
}

/// What a request is priced by: the dearest of the models that may answer it.
#[derive(Clone, Copy)]
pub(super) struct Rate<'a> {
    pub(super) price: &'a ModelPrice,
    pub(super) stand_ins: &'a [Arc<ModelPrice>],
    pub(super) service_tier: Option<&'a str>,
}

/// Output of one choice that is held at first, and by which a hold is extended, in tokens.
const SLICE_TOKENS: u64 = 1_024;
/// Below so many holds credit is scarce.
const SCARCE_HOLDS: i64 = 10;
/// The part of the credit that one request leaves for others where it is not scarce: one in ten.
const LEFT_FOR_OTHERS: i64 = 10;

impl Need {
    /// The hold that this credit covers. `all` is the credit with what other requests hold of it; `None` where even the least is not
    /// covered.
    pub(super) fn plan(&self, rate: Rate<'_>, spendable: Picos, all: Picos) -> Option<Plan> {
        let is_scarce = spendable.0 / SCARCE_HOLDS < rate.bound(self.input_bound, self.total(self.slice())).0;
        let (input, ceiling) = match is_scarce {
            true => (self.input_bound, spendable),
            false => (self.input_usual, Picos(spendable.0 - spendable.0 / LEFT_FOR_OTHERS)),
        };
        let first = if self.is_extendable { self.slice() } else { self.output };
        let covered = rate.output(input, ceiling)? / self.choices.max(1);
        if covered < self.output_least.min(first) {
            return None;
        }
        let held = first.min(covered);
        let amount = rate.bound(input, self.total(held));
        let most = if self.is_extendable { rate.output(input, all)? / self.choices.max(1) } else { held };
        let output_limit = (most < self.output).then_some(most.max(held));
        Some(Plan { amount, output_limit, is_tight: is_scarce || output_limit.is_some() })
    }

    /// The least with which the request can go on.
    pub(super) fn least(&self, rate: Rate<'_>) -> Picos {
        rate.bound(self.input_bound, self.total(self.output_least.min(self.output)))
    }

    /// The most output over all choices.
    pub(super) fn total_output(&self) -> u64 {
        self.total(self.output)
    }

    /// By how much output over all choices a hold is extended.
    pub(super) fn total_slice(&self) -> u64 {
        self.total(self.slice()).max(1)
    }

    fn slice(&self) -> u64 {
        self.output.min(SLICE_TOKENS)
    }

    fn total(&self, per_choice: u64) -> u64 {
        per_choice.saturating_mul(self.choices)
    }
}

impl Rate<'_> {
    /// The most that so many tokens cost.
    pub(super) fn bound(self, input: u64, output: u64) -> Picos {
        let bound = |price: &ModelPrice| price.bound(input, output, self.service_tier);
        self.stand_ins.iter().map(|price| bound(price)).fold(bound(self.price), Picos::max)
    }

    /// The output that an amount covers besides the input.
    pub(super) fn output(self, input: u64, amount: Picos) -> Option<u64> {
        let output = |price: &ModelPrice| price.affordable_output(input, amount, self.service_tier);
        self.stand_ins.iter().map(|price| output(price)).fold(output(self.price), Option::min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::price::Book;
    use crate::store::PriceRow;
    use crate::usage::Class;
    use proptest::prelude::*;

    /// 2 an input token, 10 an output token.
    fn price() -> Arc<ModelPrice> {
        let row = |class, price| PriceRow {
            version: 1,
            effective_at: crate::clock::UnixMicros(0),
            model: "m".into(),
            service_tier: None,
            above_input_tokens: 0,
            class,
            price: crate::money::PricePicos(price),
        };
        let book = Book::build(vec![row(Class::Input, 2), row(Class::Output, 10)]);
        book.model("m", crate::clock::UnixMicros(1)).unwrap()
    }

    const WHOLE: Need = Need {
        input_usual: 25,
        input_bound: 100,
        output: 5_000,
        output_least: 64,
        choices: 1,
        is_extendable: false,
    };
    const STREAM: Need = Need { is_extendable: true, ..WHOLE };

    fn plan(need: Need, spendable: i64, all: i64) -> Option<(i64, Option<u64>, bool)> {
        let price = price();
        let rate = Rate { price: &price, stand_ins: &[], service_tier: None };
        let plan = need.plan(rate, Picos(spendable), Picos(all))?;
        Some((plan.amount.0, plan.output_limit, plan.is_tight))
    }

    #[test]
    fn where_there_is_plenty_a_stream_holds_a_slice_and_a_whole_answer_all_of_it() {
        assert_eq!(plan(STREAM, 1_000_000, 1_000_000), Some((50 + 10_240, None, false)));
        assert_eq!(plan(WHOLE, 1_000_000, 1_000_000), Some((50 + 50_000, None, false)));
    }

    #[test]
    fn a_whole_answer_leaves_a_tenth_until_credit_is_scarce_and_is_lowered_to_what_there_is() {
        // Eleven holds of 10,440 are left: 90 % of it.
        assert_eq!(
            plan(Need { output: 50_000, ..WHOLE }, 120_000, 120_000),
            Some((108_000, Some(10_795), true))
        );
        // Under ten: the hard bound of the input, and all that is left.
        assert_eq!(plan(WHOLE, 20_000, 20_000), Some((20_000, Some(1_980), true)));
        assert_eq!(plan(WHOLE, 60_000, 60_000), Some((50_200, None, true)));
    }

    #[test]
    fn below_64_tokens_or_what_was_asked_for_nothing_is_sold() {
        assert_eq!(plan(WHOLE, 200 + 639, 10_000), None);
        assert_eq!(plan(WHOLE, 200 + 640, 10_000), Some((840, Some(64), true)));
        let short = Need { output: 5, output_least: 5, ..WHOLE };
        assert_eq!(plan(short, 250, 250), Some((250, None, true)));
        assert_eq!(plan(short, 249, 10_000), None);
        let embedding = Need { output: 0, output_least: 0, ..WHOLE };
        assert_eq!(plan(embedding, 200, 200), Some((200, None, true)));
        assert_eq!(plan(embedding, 199, 200), None);
    }

    #[test]
    fn a_stream_is_lowered_only_where_all_credit_of_the_account_does_not_cover_it() {
        assert_eq!(plan(STREAM, 5_200, 60_000), Some((5_200, None, true)));
        assert_eq!(plan(STREAM, 5_200, 30_200), Some((5_200, Some(3_000), true)));
    }

    proptest! {
        #[test]
        fn a_plan_is_within_the_credit_and_covers_what_it_lets_through(
            usual in 0..1_000u64, more in 0..4_000u64, output in 0..20_000u64, choices in 1..5u64, spendable in 0..5_000_000i64,
            held in 0..100_000i64, is_extendable: bool,
        ) {
            let need = Need {
                input_usual: usual, input_bound: usual + more, output, output_least: output.min(64), choices, is_extendable,
            };
            let price = price();
            let rate = Rate { price: &price, stand_ins: &[], service_tier: None };
            if let Some(plan) = need.plan(rate, Picos(spendable), Picos(spendable + held)) {
                prop_assert!(plan.amount.0 <= spendable);
                let limit = plan.output_limit.unwrap_or(output);
                prop_assert!(limit <= output && limit >= need.output_least);
                if !is_extendable {
                    prop_assert!(rate.bound(usual, limit * choices) <= plan.amount);
                }
            } else {
                prop_assert!(Picos(spendable) < need.least(rate) || spendable / 10 < need.least(rate).0);
            }
        }
    }
}
