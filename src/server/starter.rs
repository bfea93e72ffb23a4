//! Starts a process that does not stay a child of this one.
//!
//! A service manager stops a main process in order only where it is its parent: systemd does not wait for the end of one that it did not
//! start and has not taken in, but kills it in the same moment. So the new process of an upgrade is started by another one, the starter,
//! which tells who it is, and how it ended if it does; once the starter is gone, the system gives what it started to the nearest ancestor
//! that takes orphans in (PR_SET_CHILD_SUBREAPER(2const)): the service manager.
//!
//! Promises: what is started is ended with [`Starting`], unless it is let go, whatever has become of the starter, and nothing else is
//! ever signalled in its place. Refuses to know: what is started.

use super::handover::Channel;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
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
    process: Option<Process>,
    is_let_go: bool,
}

/// A process that is no child of this one. Its descriptor was made by its parent, and stands for no other process that gets its id later.
#[derive(Debug)]
pub(super) struct Process {
    id: Pid,
    descriptor: OwnedFd,
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
        Ok(Starting { starter, channel, process: None, is_let_go: false })
    }

    /// Waits until the program runs.
    pub(super) fn started(&mut self) -> io::Result<()> {
        let (id, descriptor) = self.channel.hear_started()?;
        self.process = Some(Process { id, descriptor });
        Ok(())
    }

    /// From now on it is nobody's here: it goes on, whatever becomes of this process.
    pub(super) fn let_go(mut self) -> io::Result<Process> {
        self.starter.kill()?;
        self.starter.wait()?;
        let process = self.process.take().ok_or_else(|| io::Error::other("nothing was started"))?;
        self.is_let_go = true;
        Ok(process)
    }

    /// Ends what was started. The starter ends with it, or when it cannot tell of it; who stops a service may have ended it before.
    fn end(&mut self) -> io::Result<()> {
        if let Some(process) = &self.process {
            process.signal(Signal::KILL)?;
        }
        for _ in 0..LOOKS_MAX {
            if self.is_over()? {
                return Ok(());
            }
            std::thread::sleep(LOOK_EVERY);
        }
        self.starter.kill()?;
        self.starter.wait()?;
        Err(io::Error::other("it does not end"))
    }

    fn is_over(&mut self) -> io::Result<bool> {
        let is_gone = self.process.as_ref().map_or(Ok(true), Process::is_gone)?;
        Ok(is_gone && self.starter.try_wait()?.is_some())
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if self.is_let_go {
            return;
        }
        self.channel.close();
        if matches!(self.is_over(), Ok(true)) {
            return;
        }
        let ended = self.end();
        let process_id = self.process.as_ref().map(Process::id);
        tracing::warn!(process_id, ?ended, "the new process is ended");
    }
}

impl Process {
    pub(super) fn id(&self) -> u32 {
        self.id.as_raw_pid().unsigned_abs()
    }

    /// Signals it, if it has not ended yet.
    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.descriptor, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(fault) => Err(fault.into()),
        }
    }

    fn is_gone(&self) -> io::Result<bool> {
        let mut looked = [PollFd::new(&self.descriptor, PollFlags::IN)];
        match poll(&mut looked, Some(&Timespec::default())) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::INTR) => Ok(false),
            Err(fault) => Err(fault.into()),
        }
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
    if let Err(fault) = tell_of(&child, &channel) {
        child.kill()?;
        child.wait()?;
        // Heard where the fault is not that nobody listens.
        return channel.say_ended(&format!("it cannot be told of: {fault}"));
    }
    let status = child.wait()?;
    channel.say_ended(&format!("{status}; its own messages tell why"))
}

/// Makes the descriptor while this process has not waited for the child, whose id is its own until then.
fn tell_of(child: &Child, channel: &Channel) -> io::Result<()> {
    let id = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let id = id.ok_or_else(|| io::Error::other("a process without an id"))?;
    let descriptor = pidfd_open(id, PidfdFlags::empty())?;
    channel.say_started(child.id(), descriptor.as_fd())
}
