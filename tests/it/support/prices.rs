//! The price book of the tests.

use std::fmt::Write as _;

/// Dollars per million units, by class, of each priced model of the standard gateway. Odd numbers, so that rounding
/// anywhere would show.
pub(crate) const PRICES: [(&str, &[(&str, &str)]); 4] = [
    ("tiny", &[("input", "0.15"), ("cache_read", "0.075"), ("output", "0.60")]),
    (
        "rich",
        &[("input", "1.234567"), ("cache_read", "0.123457"), ("output", "7.654321"), ("reasoning", "9.1")],
    ),
    ("dear", &[("input", "150"), ("output", "600")]),
    ("embed", &[("input", "0.02")]),
];

/// The same as a file for `weir price import`.
pub(in crate::support) fn price_file() -> String {
    let mut text = String::new();
    for (model, classes) in PRICES {
        let _ = write!(text, "[[price]]\nmodel = \"{model}\"\n");
        for (class, usd) in classes {
            let _ = writeln!(text, "{class} = \"{usd}\"");
        }
        text.push('\n');
    }
    text
}
