//! Starts a process that does not stay a child of this one.
//!
//! A service manager stops a main process in order only where it is its parent: systemd does not wait for the end of one that it did not
//! start and has not taken in, but kills it in the same moment. So the new process of an upgrade is started by another one, the starter,
//! which tells who it is, and how it ended if it does; once the starter is gone, the system gives what it started to the nearest ancestor
//! that takes orphans in (PR_SET_CHILD_SUBREAPER(2const)): the service manager.
//!
//! Promises: what is started is ended with [`Starting`], unless it is let go. Refuses to know: what is started.

use super::handover::Channel;
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

/// A process that is being started.
#[derive(Debug)]
pub(super) struct Starting {
    starter: Child,
    channel: Arc<Channel>,
    process: Option<Pid>,
}

/// What makes this program a starter, as its first argument; the program to start and its arguments follow.
const START: &str = "start-successor";
/// This program, also where its file has been replaced (proc(5)).
const OWN_PROGRAM: &str = "/proc/self/exe";
/// A starter that has nothing to wait for any more ends at once: looks whether it has, and between two of them.
const LOOKS_MAX: u32 = 1_000;
const LOOK_EVERY: Duration = Duration::from_millis(10);

impl Starting {
    /// Starts the starter; the other end of the channel is the standard input of what it starts.
    pub(super) fn begin(
        program: &Path,
        arguments: &[OsString],
        channel: Arc<Channel>,
        theirs: OwnedFd,
    ) -> io::Result<Starting> {
        let starter = Command::new(OWN_PROGRAM)
            .arg0(START)
            .arg(START)
            .arg(program)
            .args(arguments)
            // Of this process; without it the new one takes the watchdog for its own (sd_watchdog_enabled(3)).
            .env_remove("WATCHDOG_PID")
            .stdin(theirs)
            .spawn()?;
        Ok(Starting { starter, channel, process: None })
    }

    /// Waits until the program runs.
    pub(super) fn started(&mut self) -> io::Result<()> {
        self.process = Some(self.channel.hear_started()?);
        Ok(())
    }

    /// From now on it is nobody's here: it goes on, whatever becomes of this process.
    pub(super) fn let_go(mut self) -> io::Result<Pid> {
        let process = self.process.take().ok_or_else(|| io::Error::other("nothing was started"))?;
        self.starter.kill()?;
        self.starter.wait()?;
        Ok(process)
    }

    /// Ends the starter, which ends by itself with what it has started, or if it cannot tell of it.
    fn end(&mut self) -> io::Result<()> {
        for _ in 0..LOOKS_MAX {
            if self.starter.try_wait()?.is_some() {
                return Ok(());
            }
            std::thread::sleep(LOOK_EVERY);
        }
        self.starter.kill()?;
        self.starter.wait().map(drop)
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        // Gone already where it was let go.
        if !matches!(self.starter.try_wait(), Ok(None)) {
            return;
        }
        self.channel.close();
        let killed = self.process.map(|process| kill_process(process, Signal::KILL));
        let ended = self.end();
        tracing::warn!(process_id = ?self.process, ?killed, ?ended, "the new process is ended");
    }
}

/// Does the work of a starter, if this process is one by these arguments: starts the program, tells who it is, and waits for its end.
pub fn start_successor(arguments: &[OsString]) -> Option<io::Result<()>> {
    let [_, start, program, arguments @ ..] = arguments else { return None };
    (start == START).then(|| start_and_wait(program.as_ref(), arguments))
}

fn start_and_wait(program: &Path, arguments: &[OsString]) -> io::Result<()> {
    let channel = Channel::from_stdin()?;
    let mut child = match Command::new(program).args(arguments).spawn() {
        Ok(child) => child,
        Err(cause) => return channel.say_ended(&format!("{}: {cause}", program.display())),
    };
    if let Err(nobody) = channel.say_started(child.id()) {
        child.kill()?;
        child.wait()?;
        return Err(nobody);
    }
    let status = child.wait()?;
    channel.say_ended(&format!("{status}; its own messages tell why"))
}
