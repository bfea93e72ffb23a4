//! How the process is told to stop, and how long what is under way may go on.

use std::io;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What the process was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// SIGTERM: let requests under way end within the drain time.
    Drain,
    /// SIGINT: end them now.
    Now,
}

/// How a wait for the end of what is under way came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drained {
    /// Nothing is under way.
    All,
    /// The time is over.
    TimeOver,
    /// Whoever is impatient said so: the second signal hurries.
    Told(Stop),
}

/// The signals that stop the process.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// Only heard: a file that may not grow is an error of its write, and not the end of the process.
    _file_size: Signal,
}

/// Between two looks whether the last request has ended.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Its number on Linux (signal(7)).
const SIGXFSZ: i32 = 25;

impl Signals {
    /// From now on no signal ends the process by itself. Call on a runtime.
    pub(super) fn install() -> io::Result<Self> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            _file_size: signal(SignalKind::from_raw(SIGXFSZ))?,
        })
    }

    /// The next one.
    pub(super) async fn next(&mut self) -> Stop {
        tokio::select! {
            _ = self.terminate.recv() => Stop::Drain,
            _ = self.interrupt.recv() => Stop::Now,
        }
    }

    /// Waits until this has ended, which is looked at again and again, for at most so long or until the next signal.
    pub(super) async fn drain(&mut self, has_ended: impl Fn() -> bool, most: Duration) -> Drained {
        let all_ended = async {
            while !has_ended() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::select! {
            biased;
            () = all_ended => Drained::All,
            stop = self.next() => Drained::Told(stop),
            () = tokio::time::sleep(most) => Drained::TimeOver,
        }
    }
}
