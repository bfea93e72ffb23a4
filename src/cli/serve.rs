//! `weir serve`.

use super::failure::Failure;
use super::output::Report;
use crate::config::Loaded;
use crate::server::{self, Launch, TAKE_OVER};
use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Serve requests until SIGTERM or Ctrl-C
///
/// Clients connect to `server.listen` (http://127.0.0.1:8080/v1 unless configured), operators to `admin.listen` (/metrics, /healthz,
/// /readyz). On SIGTERM it stops accepting, lets the requests under way finish, and closes the books. On SIGHUP it reads its configuration
/// again: one with a mistake changes nothing, and what waits for a restart is told in the log; without --config there is
/// nothing to read, and nothing changes. An empty price book is filled from the
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
    /// Take the listeners over from the process that started this one; `weir upgrade` uses it
    #[arg(long, hide = true)]
    take_over: bool,
}

impl Serve {
    /// `arguments` are all of the process, the first of them its program.
    pub(super) fn run(self, path: Option<PathBuf>, arguments: &[OsString]) -> Result<Report, Failure> {
        let launch = Launch {
            program: program(arguments.first())
                .map_err(|error| Failure::new("system", format!("the path of this program: {error}")))?,
            arguments: arguments.iter().skip(1).filter(|argument| *argument != TAKE_OVER).cloned().collect(),
            takes_over: self.take_over,
        };
        let loaded = Loaded::read(path.as_deref())?;
        server::run(loaded, path, self.demo, &launch)?;
        Report::done("")
    }
}

/// Where this program was started from: a path stays as it was told, so that a link that is set to another version leads there.
fn program(told: Option<&OsString>) -> std::io::Result<PathBuf> {
    match told.map(Path::new) {
        Some(path) if path.components().count() > 1 || path.is_absolute() => std::path::absolute(path),
        _ => env::current_exe(),
    }
}
