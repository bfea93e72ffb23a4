//! What a running process is told by commands on this machine, over a socket in the journal's directory that only its owner can reach:
//! one line, one line back.
//!
//! Promises: whoever says nothing, or too much, is left within seconds. Refuses to know: how a command is carried out.

use super::upgrade::Asking;
use crate::config::Config;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tokio::sync::watch;

/// The name of the socket.
const NAME: &str = "control.sock";
/// For those who may write to the directory.
pub(super) const MODE: u32 = 0o600;
const UPGRADE: &str = "upgrade";
const OK: &str = "ok ";
const FAILED: &str = "failed ";
/// The longest line that is read from who connects.
const LINE_BYTES_MAX: u64 = 64;
/// For a line.
const PATIENCE: Duration = Duration::from_secs(5);
/// How much longer than an upgrade may take its command waits for the answer.
const MARGIN: Duration = Duration::from_secs(30);

/// Why a running process did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// None answers.
    #[error("no running weir answers at {}: {cause}", path.display())]
    Nobody {
        /// Its socket.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// It refused, or failed.
    #[error("{0}")]
    Failed(String),
}

/// Where the process of this configuration listens.
pub(super) fn path(config: &Config) -> PathBuf {
    config.journal.dir.join(NAME)
}

/// Makes the running process of this configuration start its program anew and hand over to it. The answer is the new process.
pub fn upgrade(config: &Config) -> Result<u32, CommandError> {
    let path = path(config);
    let nobody = |cause| CommandError::Nobody { path: path.clone(), cause };
    let mut stream = UnixStream::connect(&path).map_err(nobody)?;
    let most = config.server.upgrade_timeout + MARGIN;
    let mut answer = String::new();
    stream
        .set_read_timeout(Some(most))
        .and_then(|()| stream.write_all(format!("{UPGRADE}\n").as_bytes()))
        .and_then(|()| BufReader::new(&stream).read_line(&mut answer))
        .map_err(nobody)?;
    let process_id = answer.trim_end().strip_prefix(OK).and_then(|id| id.parse().ok());
    process_id.ok_or_else(|| {
        let reason = answer.trim_end();
        CommandError::Failed(reason.strip_prefix(FAILED).unwrap_or(reason).to_owned())
    })
}

/// Answers until it is told to close; then who is being answered still gets the answer.
pub(super) async fn answer(listener: UnixListener, asking: Asking, mut closing: watch::Receiver<bool>) {
    let mut open = tokio::task::JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            // An end of the sender comes to the same.
            _ = closing.wait_for(|is_closing| *is_closing) => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let asking = asking.clone();
                open.spawn(async move {
                    if let Err(fault) = one(stream, &asking).await {
                        tracing::debug!(%fault, "a command went away");
                    }
                });
            }
            Err(fault) => {
                tracing::warn!(%fault, "no command can be accepted now");
                tokio::time::sleep(PATIENCE).await;
            }
        }
        while open.try_join_next().is_some() {}
    }
    drop(listener);
    while open.join_next().await.is_some() {}
}

async fn one(stream: tokio::net::UnixStream, asking: &Asking) -> io::Result<()> {
    let (from, mut to) = stream.into_split();
    let mut line = String::new();
    let mut from = tokio::io::BufReader::new(from).take(LINE_BYTES_MAX);
    tokio::time::timeout(PATIENCE, from.read_line(&mut line)).await??;
    let answer = match line.trim_end() {
        UPGRADE => asking.ask().await.map(|process_id| process_id.to_string()),
        _ => Err("this command is not known".to_owned()),
    };
    let answer = match answer {
        Ok(done) => format!("{OK}{done}\n"),
        Err(reason) => format!("{FAILED}{}\n", reason.replace('\n', " ")),
    };
    tokio::time::timeout(PATIENCE, to.write_all(answer.as_bytes())).await?
}
