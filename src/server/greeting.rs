//! What is said on standard output once the process serves: where it is, and how to try it.

use super::demonstration::{self, Demonstration};
use crate::config::Config;
use crate::demo;
use std::fmt::Write as _;
use std::io::{self, Write as _};

/// Says it, if anybody listens.
pub(super) fn say(config: &Config, demo: Option<&Demonstration>) {
    let told = io::stdout().lock().write_all(text(config, demo.map(|demo| demo.key.expose())).as_bytes());
    if let Err(fault) = told {
        tracing::warn!(%fault, "standard output takes nothing");
    }
}

/// At most ten lines.
fn text(config: &Config, demo_key: Option<&str>) -> String {
    let listen = &config.server.listen;
    let base_url = listen.first().map_or_else(String::new, |address| format!("http://{address}/v1"));
    let mut text = format!("Weir serves {base_url}");
    if listen.len() > 1 {
        let _infallible = write!(text, " and {} more", listen.len() - 1);
    }
    let _infallible = write!(
        text,
        "\n  operators  http://{}/metrics, /healthz, /readyz\n  books      {}\n",
        config.admin.listen, config.store.url
    );
    if let Some(key) = demo_key {
        let _infallible = write!(
            text,
            "  demo key   {key}   (new at each start; the last one is revoked)\n  try it     \
             curl -sN {base_url}/chat/completions -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \
             -d '{{\"model\": \"{}\", \"stream\": true, \"messages\": [{{\"role\": \"user\", \"content\": \"Hello!\"}}]}}'\n  \
             and then   weir usage --account {}\n",
            demo::MODEL,
            demonstration::EMAIL
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greeting_fits_ten_lines_and_has_a_command_to_try() {
        let text = text(&Config::default(), Some("sk-weir-x"));
        assert!(text.lines().count() <= 10 && text.ends_with('\n'), "{text}");
        assert!(
            text.contains("http://127.0.0.1:8080/v1/chat/completions -H 'Authorization: Bearer sk-weir-x'"),
            "{text}"
        );
        assert!(text.contains("{\"role\": \"user\", \"content\": \"Hello!\"}]}'"), "{text}");
        assert!(super::text(&Config::default(), None).lines().count() == 3);
    }
}
