//! What is legal and still not as an operator would want it; `weir check` tells it.

use super::{Config, secrets};
use crate::secret::ExposeSecret;
use std::net::IpAddr;

impl Config {
    /// What is worth a look: plain HTTP beyond this machine, secrets that others may read, settings that have no effect.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for address in self.server.listen.iter().filter(|address| !address.ip().is_loopback()) {
            warnings.push(format!(
                "[server] listen: clients reach {address} by plain HTTP, their keys with it; put a TLS proxy in front"
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
        let secrets =
            self.providers.iter().filter_map(|provider| provider.api_key.as_ref()).chain([&self.auth.pepper]);
        for secret in secrets.filter(|secret| secret.is_open_to_others()) {
            warnings.push(format!("{secret} can be read by others than its owner"));
        }
        warnings
    }

    /// The secrets that a server would miss, each with why and for what. Makes nothing: a pepper that is still to be made is not
    /// missed.
    pub fn missing_secrets(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if let Err(error) = secrets::check_pepper(&self.auth.pepper) {
            missing.push(format!("[auth] pepper: {error}"));
        }
        for provider in &self.providers {
            let Some(reference) = &provider.api_key else { continue };
            match reference.resolve() {
                Err(error) => missing.push(format!("provider {}: api_key: {error}", provider.name)),
                Ok(key) if provider.dialect.authorization(key.expose_secret()).is_none() => {
                    missing.push(format!(
                        "provider {}: api_key: {reference} cannot stand in a header",
                        provider.name
                    ));
                }
                Ok(_) => {}
            }
        }
        missing
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use crate::config::file::parse;

    #[test]
    fn what_is_worth_a_look_is_told() {
        let text = "[server]\nlisten = [\"0.0.0.0:8080\"]\n[admin]\nlisten = \"[::]:9090\"\n[[provider]]\nname = \"p\"\ndialect = \"openai\"\nbase_url = \"http://198.51.100.1/v1\"\n\
                    api_key = \"env:WEIR_NO_SUCH_VARIABLE\"\n";
        let config = parse(text, "weir.toml").unwrap();
        let warnings = config.warnings().join("\n");
        for telling in ["0.0.0.0:8080", "[::]:9090", "198.51.100.1", "no model"] {
            assert!(warnings.contains(telling), "{telling}: {warnings}");
        }
        assert_eq!(config.missing_secrets().len(), 1);
        assert!(config.missing_secrets()[0].contains("WEIR_NO_SUCH_VARIABLE"));
        assert!(parse("", "weir.toml").unwrap().warnings().is_empty());
    }
}
