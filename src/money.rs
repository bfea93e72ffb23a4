//! Amounts of money as integers, and the one rounding rule.
//!
//! Promises: arithmetic is checked, nothing is a float, text in and out is exact to six decimals.
//! Refuses to know: accounts, prices, models.
//!
//! 1 USD = 1,000,000 micro-dollars = 10^12 pico-dollars. A price in micro-dollars per million units is the same
//! number as a price in pico-dollars per unit. Invariant: a request's cost is exact in pico-dollars; whole
//! micro-dollars are cut off it once, when a lease closes, and the remainder is carried on the account.

use std::fmt;

/// Pico-dollars in one micro-dollar.
pub const PICOS_PER_MICRO: i64 = 1_000_000;
/// Micro-dollars in one dollar.
pub const MICROS_PER_USD: i64 = 1_000_000;

/// An amount in micro-dollars (10^-6 USD): balances, top-ups, grants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Micros(pub i64);

/// An amount in pico-dollars (10^-12 USD): costs and holds. Covers up to 9.2 million USD.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Picos(pub i64);

/// A price in pico-dollars per unit, which is micro-dollars per million units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PricePicos(pub i64);

/// Why a text is not an amount of dollars.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseUsdError {
    /// Not digits with an optional decimal point.
    #[error("not a decimal amount of dollars, such as \"10\" or \"0.15\"")]
    NotDecimal,
    /// More than six decimals: finer than a micro-dollar.
    #[error("more than six decimals")]
    TooFine,
    /// Above what 64 bits of micro-dollars hold.
    #[error("too large")]
    TooLarge,
}

impl Micros {
    /// Parses a non-negative decimal amount of dollars with at most six decimals. No sign, no exponent, no separators.
    pub fn parse_usd(text: &str) -> Result<Self, ParseUsdError> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
        let ends_in_point = text.ends_with('.');
        if whole.is_empty() || ends_in_point || !digits(whole) || !digits(fraction) {
            return Err(ParseUsdError::NotDecimal);
        }
        if fraction.len() > 6 {
            return Err(ParseUsdError::TooFine);
        }
        let whole: i64 = whole.parse().map_err(|_| ParseUsdError::TooLarge)?;
        let fraction: i64 = format!("{fraction:0<6}").parse().map_err(|_| ParseUsdError::NotDecimal)?;
        whole
            .checked_mul(MICROS_PER_USD)
            .and_then(|micros| micros.checked_add(fraction))
            .map(Micros)
            .ok_or(ParseUsdError::TooLarge)
    }

    /// The same amount in pico-dollars, or `None` above 9.2 million USD.
    pub fn to_picos(self) -> Option<Picos> {
        self.0.checked_mul(PICOS_PER_MICRO).map(Picos)
    }
}

impl Picos {
    /// Whole micro-dollars, rounded down, and the remainder in pico-dollars (0 to 999,999).
    pub fn split(self) -> (Micros, Picos) {
        (Micros(self.0.div_euclid(PICOS_PER_MICRO)), Picos(self.0.rem_euclid(PICOS_PER_MICRO)))
    }

    /// The sum, at the largest amount that 64 bits hold if it would not fit.
    pub fn saturating_add(self, other: Picos) -> Picos {
        Picos(self.0.saturating_add(other.0))
    }
}

impl fmt::Display for Micros {
    /// Dollars with six decimals: `12.500000`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let (whole, fraction) = (
            self.0.unsigned_abs() / MICROS_PER_USD.unsigned_abs(),
            self.0.unsigned_abs() % MICROS_PER_USD.unsigned_abs(),
        );
        write!(f, "{sign}{whole}.{fraction:06}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dollars_parse_exactly() {
        assert_eq!(Micros::parse_usd("0.075"), Ok(Micros(75_000)));
        assert_eq!(Micros::parse_usd("10"), Ok(Micros(10_000_000)));
        assert_eq!(Micros::parse_usd("0"), Ok(Micros(0)));
        assert_eq!(Micros::parse_usd("0.000001"), Ok(Micros(1)));
        assert_eq!(Micros::parse_usd("0.0000001"), Err(ParseUsdError::TooFine));
        assert_eq!(Micros::parse_usd("9223372036855"), Err(ParseUsdError::TooLarge));
        for text in ["", ".5", "5.", "-1", "+1", "1e3", "1,000", "0.1.2", " 1", "NaN", "١"] {
            assert_eq!(Micros::parse_usd(text), Err(ParseUsdError::NotDecimal), "{text:?}");
        }
    }

    #[test]
    fn splitting_loses_nothing() {
        for picos in [0, 1, 999_999, 1_000_000, 1_000_001, i64::MAX, -1, -1_000_001] {
            let (whole, rest) = Picos(picos).split();
            assert_eq!(i128::from(whole.0) * 1_000_000 + i128::from(rest.0), i128::from(picos));
            assert!((0..1_000_000).contains(&rest.0));
        }
    }

    #[test]
    fn display_is_six_decimals() {
        assert_eq!(Micros(12_500_000).to_string(), "12.500000");
        assert_eq!(Micros(-1).to_string(), "-0.000001");
    }
}
