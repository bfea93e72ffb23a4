//! `weir upgrade`.

use super::failure::Failure;
use super::output::Report;
use crate::config::Config;
use crate::server;
use serde::Serialize;

/// Replace the running server with the program that is now at its path, without a connection refused or a stream cut
///
/// The running `weir serve` of this configuration starts its program anew, with the same arguments. The new process opens the books, takes
/// over the listening sockets, and serves; the old one accepts nothing more and ends with its last answer. When the new one does not get
/// ready within `server.upgrade_timeout_ms`, or ends, the old one serves on, and this command fails and says why. SIGUSR2 does the same.
#[derive(Debug, clap::Args)]
pub(super) struct Upgrade {}

#[derive(Serialize)]
struct Upgraded {
    process_id: u32,
}

impl Upgrade {
    pub(super) fn run(self, config: &Config) -> Result<Report, Failure> {
        let Upgrade {} = self;
        let process_id = server::upgrade(config)?;
        let people = format!("Process {process_id} serves; the one before ends with its last answer.");
        Report::new(&Upgraded { process_id }, people)
    }
}
