//! The prices of one model: which apply to a request, and what it costs by them.
//!
//! A set has prices of the default service tier, of which `input` is one, and may have others: of a named service tier, above an
//! input threshold, or both. Which price a class has in a request:
//!
//! 1. its own in the tier that the answer names, at the highest threshold that the request's whole input exceeds;
//! 2. its own in the default tier, likewise;
//! 3. for `cache_read` that of `input`, for `reasoning` that of `output`;
//! 4. the dearest price of a token; for what is no token, the dearest of all. This is a fallback to be alarmed.

use crate::money::{Picos, PricePicos};
use crate::usage::{Class, Usage};

/// The prices of a model from one import.
#[derive(Debug, PartialEq, Eq)]
pub struct ModelPrice {
    version: u64,
    /// The default tier first, then the named ones.
    tiers: Vec<Tier>,
}

/// What a request costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// At most what 64 bits hold.
    pub cost: Picos,
    /// Whether a class was used that has no price, nor one that by rule stands for it.
    pub fallback: bool,
}

/// The prices of plain input and output, as a record that outlives the process needs them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    /// Of a fresh input token.
    pub input: PricePicos,
    /// Of an output token.
    pub output: PricePicos,
}

/// A price as it stands in a set: service tier, threshold in input tokens, class, price.
pub(super) type SetPrice<'a> = (Option<&'a str>, u64, Class, PricePicos);

#[derive(Debug, PartialEq, Eq)]
struct Tier {
    /// `None` is the default tier.
    name: Option<String>,
    /// By threshold; the first is for every input.
    tables: Vec<Table>,
}

/// The prices of every class, from one threshold to the next.
#[derive(Debug, PartialEq, Eq)]
struct Table {
    above_input_tokens: u64,
    classes: [ClassPrice; Class::ALL.len()],
    /// The dearest price of an input token that has a price.
    input_dearest: PricePicos,
    /// The dearest price of an output token that has a price.
    output_dearest: PricePicos,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ClassPrice {
    price: PricePicos,
    basis: Basis,
}

/// Where the price of a class comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Basis {
    Own,
    /// The class that by rule stands for it.
    Kin,
    Dearest,
}

const INPUT_SIDE: [Class; 6] = [
    Class::Input,
    Class::CacheRead,
    Class::CacheWrite5m,
    Class::CacheWrite1h,
    Class::AudioIn,
    Class::ImageIn,
];
const OUTPUT_SIDE: [Class; 4] = [Class::Output, Class::Reasoning, Class::AudioOut, Class::ImageOut];

impl ModelPrice {
    /// The prices of a set; `None` where the default tier has no price of input. Prices below zero count as zero.
    pub(super) fn new<'a>(version: u64, prices: impl IntoIterator<Item = SetPrice<'a>>) -> Option<Self> {
        let prices: Vec<SetPrice<'a>> = prices.into_iter().collect();
        let is_priced = prices
            .iter()
            .any(|(tier, above, class, _)| tier.is_none() && *above == 0 && *class == Class::Input);
        if !is_priced {
            return None;
        }
        let mut names: Vec<Option<&str>> = prices.iter().map(|(tier, ..)| *tier).chain([None]).collect();
        names.sort_unstable();
        names.dedup();
        let tiers = names.into_iter().map(|name| Tier::new(name, &prices)).collect();
        Some(ModelPrice { version, tiers })
    }

    /// The version of the import that the prices came with.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The most that a request with so many tokens can cost, for a hold: each at the dearest price of its side. A service tier
    /// that the client asks for counts where it is dearer than the default one, which the provider may serve instead.
    pub fn bound(&self, input_tokens: u64, output_tokens: u64, service_tier: Option<&str>) -> Picos {
        let asked =
            self.tiers.iter().filter(|tier| tier.name.is_none() || tier.name.as_deref() == service_tier);
        let reachable = asked.flat_map(|tier| &tier.tables).filter(|table| table.reaches(input_tokens));
        let cost = |table: &Table| {
            times(input_tokens, table.input_dearest)
                .saturating_add(times(output_tokens, table.output_dearest))
        };
        saturate(reachable.map(cost).max().unwrap_or(0))
    }

    /// The most output tokens for which [`ModelPrice::bound`] stays within an amount; `None` where the input alone is above it.
    pub fn affordable_output(
        &self,
        input_tokens: u64,
        amount: Picos,
        service_tier: Option<&str>,
    ) -> Option<u64> {
        let asked =
            self.tiers.iter().filter(|tier| tier.name.is_none() || tier.name.as_deref() == service_tier);
        let reachable = asked.flat_map(|tier| &tier.tables).filter(|table| table.reaches(input_tokens));
        let output = |table: &Table| {
            let left = i128::from(amount.0).saturating_sub(times(input_tokens, table.input_dearest));
            let left = u128::try_from(left).ok()?;
            let price = u128::from(table.output_dearest.0.unsigned_abs());
            Some(left.checked_div(price).map_or(u64::MAX, |tokens| u64::try_from(tokens).unwrap_or(u64::MAX)))
        };
        reachable.map(output).min().flatten()
    }

    /// What this usage costs, exactly. The tier is the one that the answer names; one without prices here is the default tier.
    /// Above a threshold the whole request is priced higher. Never fails, and never costs less for more of the same prices.
    pub fn cost(&self, usage: &Usage, service_tier: Option<&str>) -> Cost {
        let table = self.table(usage.input_total(), service_tier);
        let mut cost: i128 = 0;
        let mut fallback = false;
        for ((_, units), class) in usage.by_class().into_iter().zip(&table.classes) {
            cost = cost.saturating_add(times(units, class.price));
            fallback |= units > 0 && class.basis == Basis::Dearest;
        }
        Cost { cost: saturate(cost), fallback }
    }

    /// The prices of plain input and output of a request with so many input tokens.
    pub fn rates(&self, input_tokens: u64, service_tier: Option<&str>) -> Rates {
        let table = self.table(input_tokens, service_tier);
        Rates { input: table.price(Class::Input), output: table.price(Class::Output) }
    }

    /// The named service tiers that have prices of their own, and every threshold in use.
    pub(super) fn shape(&self) -> (Vec<&str>, Vec<u64>) {
        let names = self.tiers.iter().filter_map(|tier| tier.name.as_deref()).collect();
        let thresholds =
            self.tiers.iter().flat_map(|tier| &tier.tables).map(|table| table.above_input_tokens);
        (names, thresholds.collect())
    }

    /// The price of a class just above a threshold, and whether it is the class's own.
    pub(super) fn class_above(
        &self,
        class: Class,
        above: u64,
        service_tier: Option<&str>,
    ) -> (PricePicos, bool) {
        let found = self.table(above.saturating_add(1), service_tier).classes[class as usize];
        (found.price, found.basis == Basis::Own)
    }

    fn table(&self, input_tokens: u64, service_tier: Option<&str>) -> &Table {
        let named =
            service_tier.and_then(|name| self.tiers.iter().find(|tier| tier.name.as_deref() == Some(name)));
        let tables = &named.unwrap_or(&self.tiers[0]).tables;
        let above = tables.partition_point(|table| table.reaches(input_tokens));
        &tables[above.saturating_sub(1)]
    }
}

impl Tier {
    fn new(name: Option<&str>, prices: &[SetPrice<'_>]) -> Tier {
        let applies = |tier: Option<&str>| tier.is_none() || tier == name;
        let in_use = prices.iter().filter(|(tier, ..)| applies(*tier)).map(|(_, above, ..)| *above);
        let mut thresholds: Vec<u64> = in_use.chain([0]).collect();
        thresholds.sort_unstable();
        thresholds.dedup();
        let tables = thresholds.into_iter().map(|above| Table::new(name, above, prices)).collect();
        Tier { name: name.map(str::to_owned), tables }
    }
}

impl Table {
    fn new(tier: Option<&str>, above: u64, prices: &[SetPrice<'_>]) -> Table {
        let own = Class::ALL
            .map(|class| own(class, tier, above, prices).or_else(|| own(class, None, above, prices)));
        let dearest = |classes: &[Class]| classes.iter().filter_map(|class| own[*class as usize]).max();
        let dearest_token = dearest(&INPUT_SIDE).max(dearest(&OUTPUT_SIDE));
        let dearest_of_all = dearest(&Class::ALL);
        let classes = Class::ALL.map(|class| {
            let is_token = INPUT_SIDE.contains(&class) || OUTPUT_SIDE.contains(&class);
            let last = dearest_token.filter(|_| is_token).or(dearest_of_all).unwrap_or_default();
            let kin = kin(class).and_then(|kin| own[kin as usize]);
            match (own[class as usize], kin) {
                (Some(price), _) => ClassPrice { price, basis: Basis::Own },
                (None, Some(price)) => ClassPrice { price, basis: Basis::Kin },
                (None, None) => ClassPrice { price: last, basis: Basis::Dearest },
            }
        });
        let output_price = classes[Class::Output as usize].price;
        Table {
            above_input_tokens: above,
            classes,
            input_dearest: dearest(&INPUT_SIDE).unwrap_or_default(),
            output_dearest: dearest(&OUTPUT_SIDE).unwrap_or_default().max(output_price),
        }
    }

    fn price(&self, class: Class) -> PricePicos {
        self.classes[class as usize].price
    }

    /// Whether a request with so much input is beyond the threshold.
    fn reaches(&self, input_tokens: u64) -> bool {
        self.above_input_tokens == 0 || input_tokens > self.above_input_tokens
    }
}

/// A class's own price in one tier, at the highest threshold up to this one.
fn own(class: Class, tier: Option<&str>, up_to: u64, prices: &[SetPrice<'_>]) -> Option<PricePicos> {
    let mine =
        prices.iter().filter(|(of, above, priced, _)| *of == tier && *above <= up_to && *priced == class);
    mine.max_by_key(|(_, above, ..)| *above).map(|(.., price)| PricePicos(price.0.max(0)))
}

/// The class whose price stands for that of this one.
fn kin(class: Class) -> Option<Class> {
    match class {
        Class::CacheRead => Some(Class::Input),
        Class::Reasoning => Some(Class::Output),
        Class::Input
        | Class::CacheWrite5m
        | Class::CacheWrite1h
        | Class::AudioIn
        | Class::ImageIn
        | Class::Output
        | Class::AudioOut
        | Class::ImageOut
        | Class::Seconds
        | Class::Characters
        | Class::Images
        | Class::Calls => None,
    }
}

fn times(units: u64, price: PricePicos) -> i128 {
    i128::from(units).saturating_mul(i128::from(price.0))
}

fn saturate(picos: i128) -> Picos {
    Picos(i64::try_from(picos).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn price(prices: &[(Option<&'static str>, u64, Class, i64)]) -> ModelPrice {
        ModelPrice::new(
            7,
            prices.iter().map(|(tier, above, class, price)| (*tier, *above, *class, PricePicos(*price))),
        )
        .unwrap()
    }

    fn mini() -> ModelPrice {
        price(&[
            (None, 0, Class::Input, 150_000),
            (None, 0, Class::CacheRead, 75_000),
            (None, 0, Class::Output, 600_000),
        ])
    }

    fn cost(price: &ModelPrice, usage: Usage, tier: Option<&str>) -> (i64, bool) {
        let Cost { cost, fallback } = price.cost(&usage, tier);
        (cost.0, fallback)
    }

    #[test]
    fn each_class_costs_its_own_price() {
        let usage = Usage { input: 400, cache_read: 600, output: 100, ..Usage::default() };
        assert_eq!(cost(&mini(), usage, None), (400 * 150_000 + 600 * 75_000 + 100 * 600_000, false));
        assert_eq!(mini().version(), 7);
    }

    #[test]
    fn reasoning_and_cached_input_without_a_price_cost_what_output_and_input_do() {
        let usage = Usage { cache_read: 10, reasoning: 10, ..Usage::default() };
        let plain =
            price(&[(None, 0, Class::Input, 3), (None, 0, Class::Output, 5), (None, 0, Class::AudioIn, 90)]);
        assert_eq!(cost(&plain, usage, None), (80, false));
    }

    #[test]
    fn any_other_class_without_a_price_costs_the_dearest_and_is_told() {
        let usage = Usage { audio_in: 900, ..Usage::default() };
        assert_eq!(cost(&mini(), usage, None), (900 * 600_000, true));
        // An image is no token: its price does not stand for that of one.
        let with_images = price(&[(None, 0, Class::Input, 3), (None, 0, Class::Images, 40_000_000_000)]);
        assert_eq!(cost(&with_images, usage, None), (2_700, true));
        let called = Usage { calls: 2, ..Usage::default() };
        assert_eq!(cost(&with_images, called, None), (80_000_000_000, true));
    }

    #[test]
    fn above_a_threshold_the_whole_request_is_priced_higher() {
        let long = price(&[
            (None, 0, Class::Input, 10),
            (None, 0, Class::Output, 20),
            (None, 200, Class::Input, 15),
            (None, 400, Class::Output, 90),
        ]);
        let of = |input, cache_read| Usage { input, cache_read, output: 1, ..Usage::default() };
        assert_eq!(cost(&long, of(200, 0), None).0, 200 * 10 + 20);
        assert_eq!(cost(&long, of(101, 100), None).0, 201 * 15 + 20);
        assert_eq!(cost(&long, of(401, 0), None).0, 401 * 15 + 90);
        assert_eq!(long.rates(200, None), Rates { input: PricePicos(10), output: PricePicos(20) });
        assert_eq!(long.rates(401, None), Rates { input: PricePicos(15), output: PricePicos(90) });
    }

    #[test]
    fn a_service_tier_has_its_own_prices_and_the_default_ones_for_the_rest() {
        let tiered = price(&[
            (None, 0, Class::Input, 10),
            (None, 0, Class::Output, 20),
            (Some("priority"), 0, Class::Output, 40),
            (Some("flex"), 0, Class::Input, 5),
        ]);
        let usage = Usage { input: 1, output: 1, ..Usage::default() };
        for (tier, want) in [(None, 30), (Some("priority"), 50), (Some("flex"), 25), (Some("unheard-of"), 30)]
        {
            assert_eq!(cost(&tiered, usage, tier).0, want, "{tier:?}");
        }
        // A cheaper tier may not be served, a dearer one may.
        assert_eq!(tiered.bound(1, 1, Some("flex")), Picos(30));
        assert_eq!(tiered.bound(1, 1, Some("priority")), Picos(50));
        assert_eq!(tiered.bound(1, 1, None), Picos(30));
    }

    #[test]
    fn a_hold_is_bounded_by_the_dearest_class_of_each_side() {
        let audio = price(&[
            (None, 0, Class::Input, 10),
            (None, 0, Class::CacheWrite1h, 20),
            (None, 0, Class::Output, 40),
            (None, 0, Class::AudioOut, 80),
            (None, 100, Class::Input, 15),
            (None, 100, Class::CacheWrite1h, 30),
        ]);
        assert_eq!(audio.bound(100, 10, None), Picos(100 * 20 + 10 * 80));
        assert_eq!(audio.bound(101, 10, None), Picos(101 * 30 + 10 * 80));
        assert_eq!(mini().bound(u64::MAX, u64::MAX, None), Picos(i64::MAX));
        assert_eq!(mini().bound(0, 0, None), Picos(0));
    }

    fn usages() -> impl Strategy<Value = [u64; 14]> {
        prop::array::uniform14(prop_oneof![Just(0u64), 0..1_000_000u64, Just(u64::MAX)])
    }

    fn usage_of(units: [u64; 14]) -> Usage {
        let [
            input,
            cache_read,
            cache_write_5m,
            cache_write_1h,
            audio_in,
            image_in,
            output,
            reasoning,
            audio_out,
            ..,
        ] = units;
        let [.., image_out, seconds, characters, images, calls] = units;
        Usage {
            input,
            cache_read,
            cache_write_5m,
            cache_write_1h,
            audio_in,
            image_in,
            output,
            reasoning,
            audio_out,
            image_out,
            seconds,
            characters,
            images,
            calls,
        }
    }

    /// A price of each class or none, but for input, which has one.
    fn sets() -> impl Strategy<Value = [Option<i64>; 14]> {
        let price = prop_oneof![Just(None), (0..=600_000_000i64).prop_map(Some), Just(Some(i64::MAX))];
        prop::array::uniform14(price).prop_map(|mut prices| {
            prices[0] = prices[0].or(Some(1));
            prices
        })
    }

    fn priced(prices: [Option<i64>; 14]) -> ModelPrice {
        let rows = Class::ALL.into_iter().zip(prices);
        let own = rows.filter_map(|(class, price)| Some((None, 0, class, PricePicos(price?))));
        ModelPrice::new(1, own).unwrap()
    }

    proptest! {
        #[test]
        fn a_cost_is_the_sum_of_units_times_price(set in sets(), units in usages()) {
            let price = priced(set);
            let naive: f64 = Class::ALL.iter().zip(units).map(|(class, units)| {
                price.class_above(*class, 0, None).0.0 as f64 * units as f64
            }).sum();
            let exact: Option<i128> = Class::ALL.iter().zip(units).try_fold(0i128, |sum, (class, units)| {
                sum.checked_add(i128::from(units).checked_mul(i128::from(price.class_above(*class, 0, None).0.0))?)
            });
            let cost = price.cost(&usage_of(units), None).cost;
            match exact.and_then(|sum| i64::try_from(sum).ok()) {
                Some(sum) => prop_assert_eq!(cost, Picos(sum)),
                None => prop_assert!(cost == Picos(i64::MAX) && naive > 9e18),
            }
        }

        #[test]
        fn more_of_anything_never_costs_less(set in sets(), units in usages(), class in 0..14usize, more in 0..1_000u64) {
            let price = priced(set);
            let mut greater = units;
            greater[class] = greater[class].saturating_add(more);
            let (less, greater) = (price.cost(&usage_of(units), None).cost, price.cost(&usage_of(greater), None).cost);
            prop_assert!(less >= Picos(0) && greater >= less);
        }

        #[test]
        fn a_priced_text_request_never_costs_more_than_its_bound(
            set in sets(), input in 0..1_000_000u64, cached in 0..1_000_000u64, output in 0..1_000_000u64, thought in 0..1_000_000u64,
        ) {
            let price = priced(set);
            let usage = Usage { input, cache_read: cached, output, reasoning: thought, ..Usage::default() };
            prop_assert!(price.cost(&usage, None).cost <= price.bound(input + cached, output + thought, None));
        }

        #[test]
        fn affordable_output_is_the_most_within_an_amount(set in sets(), input in 0..100_000u64, amount in 0..1i64 << 60) {
            let price = priced(set);
            match price.affordable_output(input, Picos(amount), None) {
                Some(output) => prop_assert!(
                    price.bound(input, output, None) <= Picos(amount)
                        && (output == u64::MAX || price.bound(input, output + 1, None) > Picos(amount))
                ),
                None => prop_assert!(price.bound(input, 0, None) > Picos(amount)),
            }
        }

        #[test]
        fn nothing_that_is_used_is_free_unless_it_is_priced_so(set in sets(), class in 0..14usize) {
            let mut units = [0; 14];
            units[class] = 1;
            let cost = priced(set).cost(&usage_of(units), None);
            if set[class].is_none() && set.iter().flatten().all(|price| *price > 0) {
                prop_assert!(cost.cost > Picos(0));
            }
        }
    }
}
