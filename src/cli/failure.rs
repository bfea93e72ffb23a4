//! Why a command did not do what it was asked: a text for people, a code for programs, an exit status for shells.

use crate::config::{ConfigError, SecretError};
use crate::ledger::{BackupError, LedgerError};
use crate::server::{CommandError, ServeError};
use crate::store::StoreError;

/// Exit statuses other than 0. They are a contract with scripts and service managers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// The command was understood and failed.
    Failed = 1,
    /// The arguments are wrong.
    Usage = 2,
    /// The configuration, or a secret that it names, is wrong.
    Configuration = 3,
}

/// A command that failed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct Failure {
    pub(super) exit: Exit,
    /// One word for programs, such as `not_found`.
    pub(super) code: &'static str,
    /// What happened, to which thing, and what to do.
    pub(super) message: String,
}

impl Failure {
    /// The command was understood and failed.
    pub(super) fn new(code: &'static str, message: impl Into<String>) -> Failure {
        Failure { exit: Exit::Failed, code, message: message.into() }
    }

    /// The arguments are wrong.
    pub(super) fn usage(message: impl Into<String>) -> Failure {
        Failure { exit: Exit::Usage, code: "usage", message: message.into() }
    }

    /// The configuration, or a secret that it names, is wrong.
    pub(super) fn configuration(message: impl Into<String>) -> Failure {
        Failure { exit: Exit::Configuration, code: "configuration", message: message.into() }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Failure {
        Failure::configuration(error.to_string())
    }
}

impl From<SecretError> for Failure {
    fn from(error: SecretError) -> Failure {
        Failure::configuration(error.to_string())
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        Failure::new(error.kind(), error.to_string())
    }
}

impl From<LedgerError> for Failure {
    fn from(error: LedgerError) -> Failure {
        match error {
            LedgerError::Store(error) => error.into(),
            LedgerError::Journal { .. } => Failure::new("journal", error.to_string()),
            LedgerError::Replay { .. } => Failure::new("replay", error.to_string()),
            LedgerError::NotWritten(_) => Failure::new("not_written", error.to_string()),
            LedgerError::Fenced => Failure::new("fenced", error.to_string()),
            LedgerError::TaskEnded(_) => Failure::new("task_ended", error.to_string()),
            LedgerError::InUse(_) => Failure::new("in_use", error.to_string()),
        }
    }
}

impl From<BackupError> for Failure {
    fn from(error: BackupError) -> Failure {
        match error {
            BackupError::Store(error) => error.into(),
            BackupError::Ledger(error) => error.into(),
            BackupError::File { .. } => Failure::new("file", error.to_string()),
            BackupError::Damaged { .. } => Failure::new("damaged", error.to_string()),
            BackupError::InUse(_) => Failure::new("in_use", error.to_string()),
            BackupError::Loss(_) => Failure::new("loss", error.to_string()),
        }
    }
}

impl From<CommandError> for Failure {
    fn from(error: CommandError) -> Failure {
        match error {
            CommandError::Nobody { .. } => Failure::new("not_running", error.to_string()),
            CommandError::Failed(_) => Failure::new("upgrade_failed", error.to_string()),
        }
    }
}

impl From<ServeError> for Failure {
    fn from(error: ServeError) -> Failure {
        match error {
            ServeError::Store(error) => error.into(),
            ServeError::Ledger(error) => error.into(),
            ServeError::Secret(message) => Failure::configuration(message),
            ServeError::Listen { .. } => Failure::new("listen", error.to_string()),
            ServeError::System(_) => Failure::new("system", error.to_string()),
        }
    }
}
