//! How the process is told to stop, and how long what is under way may go on.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
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

    /// Waits until no request is under way. `false` when the time is over, or a signal said not to wait.
    pub(super) async fn drain(&mut self, in_flight: &AtomicU64, most: Duration) -> bool {
        let all_ended = async {
            while in_flight.load(Ordering::Acquire) > 0 {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let hurried = async { while self.next().await != Stop::Now {} };
        tokio::select! {
            biased;
            () = all_ended => true,
            () = hurried => false,
            () = tokio::time::sleep(most) => false,
        }
    }
}
