//! Prometheus and promtool of Debian's package, as `make prometheus` unpacks them.

use std::path::{Path, PathBuf};
use std::process::Command;

/// One of its programs.
pub(super) fn command(program: &str) -> Command {
    Command::new(directory().join("usr/bin").join(program))
}

fn directory() -> PathBuf {
    let directory = std::env::var_os("WEIR_PROMETHEUS_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/prometheus"), PathBuf::from);
    assert!(
        directory.join("installed").is_file(),
        "Prometheus is not in {}: `make prometheus` unpacks it there",
        directory.display()
    );
    directory
}
