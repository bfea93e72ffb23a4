//! What a key may spend, and the calendar by which that begins anew.
//!
//! Promises: windows begin at midnight UTC; weeks on Monday (ISO 8601). Refuses to know: who spends, and on what.

use crate::clock::UnixMicros;
use crate::money::Micros;
use jiff::civil::{Date, DateTime, Weekday};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

/// The most that may be spent in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpendLimit {
    /// How much; above zero.
    pub amount: Micros,
    /// In which time.
    pub window: SpendWindow,
}

/// After which time a limit begins anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpendWindow {
    /// Never.
    Total,
    /// Each day.
    Day,
    /// Each week, on Monday.
    Week,
    /// Each month.
    Month,
}

impl SpendWindow {
    /// Every window.
    pub const ALL: [SpendWindow; 4] =
        [SpendWindow::Total, SpendWindow::Day, SpendWindow::Week, SpendWindow::Month];

    /// The name on the command line and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            SpendWindow::Total => "total",
            SpendWindow::Day => "day",
            SpendWindow::Week => "week",
            SpendWindow::Month => "month",
        }
    }

    /// The window of that name.
    pub fn parse(name: &str) -> Option<Self> {
        SpendWindow::ALL.into_iter().find(|window| window.as_str() == name)
    }

    /// When the window that this time lies in began. Zero for the one that never ends, and for times that no calendar has.
    pub fn start(self, at: UnixMicros) -> UnixMicros {
        let Ok(at) = Timestamp::from_microsecond(at.0) else { return UnixMicros(0) };
        let day = TimeZone::UTC.to_datetime(at).date();
        let first = match self {
            SpendWindow::Total => return UnixMicros(0),
            SpendWindow::Day => day,
            SpendWindow::Week => monday(day),
            SpendWindow::Month => day.first_of_month(),
        };
        let midnight = TimeZone::UTC.to_timestamp(DateTime::from(first));
        UnixMicros(midnight.map_or(0, Timestamp::as_microsecond))
    }
}

fn monday(day: Date) -> Date {
    let since = i64::from(day.weekday().since(Weekday::Monday));
    day.checked_sub(since.days()).unwrap_or(day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_begin_at_midnight_utc_weeks_on_monday_months_on_the_first() {
        let at = |text: &str| UnixMicros(text.parse::<Timestamp>().unwrap().as_microsecond());
        for (now, day, week, month) in [
            ("2026-07-26T23:59:59.999999Z", "2026-07-26", "2026-07-20", "2026-07-01"),
            ("2026-07-27T00:00:00Z", "2026-07-27", "2026-07-27", "2026-07-01"),
            ("2027-01-01T00:00:00Z", "2027-01-01", "2026-12-28", "2027-01-01"),
            ("2028-02-29T12:00:00+14:00", "2028-02-28", "2028-02-28", "2028-02-01"),
        ] {
            let midnight = |day: &str| at(&format!("{day}T00:00:00Z"));
            assert_eq!(SpendWindow::Day.start(at(now)), midnight(day), "{now}");
            assert_eq!(SpendWindow::Week.start(at(now)), midnight(week), "{now}");
            assert_eq!(SpendWindow::Month.start(at(now)), midnight(month), "{now}");
            assert_eq!(SpendWindow::Total.start(at(now)), UnixMicros(0));
        }
        assert_eq!(SpendWindow::Day.start(UnixMicros(i64::MAX)), UnixMicros(0));
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for window in SpendWindow::ALL {
            assert_eq!(SpendWindow::parse(window.as_str()), Some(window));
        }
        assert_eq!(SpendWindow::parse("year"), None);
    }
}
