//! Arguments as types, and times as text: what is typed is parsed once, here, and refused with the reason.

use crate::authenticate::{Network, NetworkError};
use crate::clock::UnixMicros;
use crate::money::Micros;
use crate::spend::SpendWindow;
use jiff::Timestamp;

/// The longest e-mail address (RFC 5321).
const EMAIL_BYTES_MAX: usize = 254;
/// The longest name, reason or idempotency key.
const TEXT_BYTES_MAX: usize = 256;

/// An amount of dollars above zero, with at most six decimals.
pub(super) fn usd(text: &str) -> Result<Micros, String> {
    match Micros::parse_usd(text) {
        Ok(Micros(0)) => Err("the amount must be above zero".to_owned()),
        Ok(amount) => Ok(amount),
        Err(error) => Err(error.to_string()),
    }
}

/// A time of RFC 3339, in any offset.
pub(super) fn time(text: &str) -> Result<UnixMicros, String> {
    let time: Timestamp =
        text.parse().map_err(|_| "not a time of RFC 3339, such as 2030-01-31T12:00:00Z".to_owned())?;
    Ok(UnixMicros(time.as_microsecond()))
}

/// An address or a network in CIDR notation.
pub(super) fn network(text: &str) -> Result<Network, String> {
    text.parse().map_err(|error: NetworkError| error.to_string())
}

/// After which time a limit begins anew.
pub(super) fn spend_window(text: &str) -> Result<SpendWindow, String> {
    SpendWindow::parse(text).ok_or_else(|| {
        let names: Vec<&str> = SpendWindow::ALL.iter().map(|window| window.as_str()).collect();
        format!("must be one of: {}", names.join(", "))
    })
}

/// An e-mail address, as far as its form goes: whether it exists is not asked.
pub(super) fn email(text: &str) -> Result<String, String> {
    let well_formed = text
        .split_once('@')
        .is_some_and(|(local, domain)| !local.is_empty() && !domain.is_empty() && !domain.contains('@'));
    if !well_formed || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("not an e-mail address, such as ada@example.com".to_owned());
    }
    if text.len() > EMAIL_BYTES_MAX {
        return Err(format!("longer than {EMAIL_BYTES_MAX} bytes"));
    }
    Ok(text.to_owned())
}

/// A name, a reason or an idempotency key: one line, not empty.
pub(super) fn line(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("must not be empty".to_owned());
    }
    if text.chars().any(char::is_control) {
        return Err("must be one line without control characters".to_owned());
    }
    if text.len() > TEXT_BYTES_MAX {
        return Err(format!("longer than {TEXT_BYTES_MAX} bytes"));
    }
    Ok(text.to_owned())
}

/// The time for programs: RFC 3339 in UTC, always to the microsecond, so that texts sort as times do.
pub(super) fn rfc3339(time: UnixMicros) -> String {
    format!("{:.6}", timestamp(time))
}

/// The time for people: the same to the second.
pub(super) fn to_the_second(time: UnixMicros) -> String {
    format!("{:.0}", timestamp(time))
}

/// Times outside of the years -9999 to 9999 show as the nearest end.
fn timestamp(time: UnixMicros) -> Timestamp {
    let end = if time.0 < 0 { Timestamp::MIN } else { Timestamp::MAX };
    Timestamp::from_microsecond(time.0).unwrap_or(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_any_offset_come_out_in_utc_and_sort_as_text() {
        let whole = time("2030-01-31T12:00:00Z").unwrap();
        assert_eq!(time("2030-01-31T14:00:00+02:00"), Ok(whole));
        assert_eq!(rfc3339(whole), "2030-01-31T12:00:00.000000Z");
        assert_eq!(to_the_second(whole), "2030-01-31T12:00:00Z");
        let later = UnixMicros(whole.0 + 500_000);
        assert!(rfc3339(whole) < rfc3339(later));
        assert_eq!(time(&rfc3339(later)), Ok(later));
        for text in ["", "tomorrow", "2030-01-31", "2030-01-31T12:00:00", "1700000000"] {
            assert!(time(text).is_err(), "{text}");
        }
        assert!(rfc3339(UnixMicros(i64::MAX)).starts_with("9999"));
    }

    #[test]
    fn amounts_are_above_zero_and_exact() {
        assert_eq!(usd("0.000001"), Ok(Micros(1)));
        for text in ["0", "0.0", "-5", "1e3", "0.0000001", "1,000", ""] {
            assert!(usd(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_an_address_or_a_line_is_refused() {
        assert_eq!(email("demo@weir.invalid").as_deref(), Ok("demo@weir.invalid"));
        for text in ["", "ada", "@x", "ada@", "a@b@c", "a b@c", "a@b\n"] {
            assert!(email(text).is_err(), "{text:?}");
        }
        assert_eq!(line("invoice 1").as_deref(), Ok("invoice 1"));
        assert!(line(" ").is_err() && line("a\nb").is_err() && line(&"x".repeat(300)).is_err());
    }
}
