//! What is legal and still not as an operator would want it; `weir check` tells it.

use super::Config;
use crate::clock::UnixMicros;
use crate::relay::CERTIFICATE_ENDS_SOON_DAYS;
use std::net::IpAddr;

impl Config {
    /// What is worth a look: plain HTTP beyond this machine, secrets that others may read, settings that have no effect.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for address in self.server.listen.iter().filter(|address| !address.ip().is_loopback()) {
            warnings.push(format!(
                "[server] listen: {address} speaks plain HTTP; keys and prompts are in the clear up to the proxy in front of it"
            ));
        }
        if !self.admin.listen.ip().is_loopback() {
            warnings.push(format!(
                "[admin] listen: {} is open to more than this machine, without a key",
                self.admin.listen
            ));
        }
        for provider in &self.providers {
            if !provider.origin.tls && provider.api_key.is_some() && !is_loopback(&provider.origin.host) {
                warnings.push(format!(
                    "provider {}: its key goes to {} by plain HTTP",
                    provider.name, provider.origin.host
                ));
            }
            if !self
                .models
                .iter()
                .flat_map(|model| &model.routes)
                .any(|route| route.provider == provider.name)
            {
                warnings.push(format!("provider {}: no model has a route to it", provider.name));
            }
        }
        if self.tls.listen.is_empty() && !self.certificates.is_empty() {
            warnings.push("[[certificate]]: nothing listens for TLS; see [tls] listen".to_owned());
        }
        let secrets = self
            .providers
            .iter()
            .filter_map(|provider| provider.api_key.as_ref())
            .chain(self.certificates.iter().map(|certificate| &certificate.key))
            .chain([&self.auth.pepper]);
        for secret in secrets.filter(|secret| secret.is_open_to_others()) {
            warnings.push(format!("{secret} can be read by others than its owner"));
        }
        warnings
    }

    /// The models that are not served, since they have no price.
    pub fn unpriced(&self, is_priced: impl Fn(&str) -> bool) -> Vec<String> {
        let unpriced = self.models.iter().filter(|model| !is_priced(model.name.as_str()));
        let told = |name| {
            format!("model {name}: not served, since it has no price; `weir price import` gives it one")
        };
        unpriced.map(|model| told(&model.name)).collect()
    }
}

/// Whether clients refuse a certificate by now, or will soon.
pub(super) fn of_certificate(name: &str, ends_at_s: i64, now: UnixMicros) -> Option<String> {
    match ends_at_s.saturating_sub(now.0 / 1_000_000) {
        left if left <= 0 => Some(format!("certificate {name}: it has expired, and clients refuse it")),
        left if left <= CERTIFICATE_ENDS_SOON_DAYS * 86_400 => {
            Some(format!("certificate {name}: it expires in {} days", left / 86_400))
        }
        _ => None,
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use crate::config::file;
    use crate::config::loaded::Outside;

    #[test]
    fn a_certificate_is_warned_of_two_weeks_before_its_end() {
        let left = |days: i64| super::of_certificate("api", days * 86_400, crate::clock::UnixMicros(0));
        assert_eq!(left(15), None);
        assert_eq!(left(14).unwrap(), "certificate api: it expires in 14 days");
        assert_eq!(left(0).unwrap(), "certificate api: it has expired, and clients refuse it");
    }

    #[test]
    fn what_is_worth_a_look_is_told() {
        let text = "[server]\nplain_http = \"anywhere\"\nlisten = [\"0.0.0.0:8080\"]\n[admin]\nlisten = \"[::]:9090\"\n[[provider]]\nname = \"p\"\ndialect = \"openai\"\nbase_url = \"http://198.51.100.1/v1\"\n\
                    api_key = \"env:WEIR_NO_SUCH_VARIABLE\"\n";
        let config = file::parse(text, "weir.toml", &mut Outside::Named).unwrap();
        let warnings = config.warnings().join("\n");
        for telling in ["0.0.0.0:8080", "[::]:9090", "198.51.100.1", "no model"] {
            assert!(warnings.contains(telling), "{telling}: {warnings}");
        }
        assert!(file::parse("", "weir.toml", &mut Outside::Named).unwrap().warnings().is_empty());
    }
}
