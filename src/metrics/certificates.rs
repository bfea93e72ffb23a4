//! When the certificates of the listeners end.

use prometheus::{GaugeVec, Opts, Registry};

/// One gauge for each certificate of the configuration.
pub(super) struct Certificates(GaugeVec);

impl Certificates {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let family = GaugeVec::new(
            Opts::new(
                "weir_certificate_expiry_timestamp_seconds",
                "When a certificate of the configuration ends, in seconds since 1970.",
            ),
            &["certificate"],
        )?;
        registry.register(Box::new(family.clone()))?;
        Ok(Certificates(family))
    }

    /// Those that are not among them are forgotten.
    pub(super) fn set<'a>(&self, expiries: impl Iterator<Item = (&'a str, i64)>) {
        self.0.reset();
        for (name, at_s) in expiries {
            self.0.with_label_values(&[name]).set(at_s as f64);
        }
    }
}
