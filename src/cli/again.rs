//! How a command is typed again: what is told to be typed next is for the same books.

use std::fmt;
use std::path::Path;

/// The program and its configuration, as a shell takes them.
pub(super) struct Again<'a>(pub(super) Option<&'a Path>);

impl fmt::Display for Again<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(config) = self.0 else { return f.write_str("weir") };
        let config = config.display().to_string();
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@%".contains(c);
        if !config.is_empty() && config.chars().all(is_plain) {
            return write!(f, "weir --config {config}");
        }
        // Within single quotes a shell leaves all but those alone (POSIX, Shell Command Language, 2.2.2).
        write!(f, "weir --config '{}'", config.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_again_names_the_same_configuration() {
        for (config, typed) in [
            (None, "weir"),
            (Some("/etc/weir/weir.toml"), "weir --config /etc/weir/weir.toml"),
            (Some("my weir.toml"), "weir --config 'my weir.toml'"),
            (Some("o'clock$.toml"), r"weir --config 'o'\''clock$.toml'"),
        ] {
            assert_eq!(Again(config.map(Path::new)).to_string(), typed);
        }
    }
}
