//! `weir serve`.

use super::failure::Failure;
use super::output::Report;
use crate::config::Loaded;
use crate::server;
use std::path::PathBuf;

/// Serve requests until SIGTERM or Ctrl-C
///
/// Clients connect to `server.listen` (http://127.0.0.1:8080/v1 unless configured), operators to `admin.listen` (/metrics, /healthz,
/// /readyz). On SIGTERM it stops accepting, lets the requests under way finish, and closes the books. On SIGHUP it reads its configuration
/// again: one with a mistake changes nothing, and what waits for a restart is told in the log. An empty price book is filled from the
/// prices that come with the program.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  weir serve --demo
  weir --config weir.toml serve")]
pub(super) struct Serve {
    /// Add a built-in provider with the model `demo`, and a funded account whose new key is printed
    ///
    /// The account is demo@weir.invalid. Each start makes a new key and revokes the last one. Nothing leaves this machine.
    #[arg(long)]
    demo: bool,
}

impl Serve {
    pub(super) fn run(self, path: Option<PathBuf>) -> Result<Report, Failure> {
        let loaded = Loaded::read(path.as_deref())?;
        server::run(loaded, path, self.demo)?;
        Report::done("")
    }
}
