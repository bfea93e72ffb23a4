//! Lines on their way out, many to a write.
//!
//! Promises: a line waits for a twentieth of a second at most, and not at all after a while of silence; what cannot be written is dropped
//! and stops nothing; memory is bounded. Refuses to know: what is in a line.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A place to write lines to. Clones write to the same place.
#[derive(Clone)]
pub(super) struct Lines(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    arrived: Condvar,
}

struct State {
    out: Box<dyn Write + Send>,
    waiting: Vec<u8>,
    /// The thread sleeps until something arrives; else it looks by itself.
    is_thread_asleep: bool,
    has_thread: bool,
}

/// How long a line may wait for others.
const WAIT: Duration = Duration::from_millis(50);
/// Beyond so many bytes they are written at once.
const WAITING_MAX_BYTES: usize = 64 * 1024;

impl Lines {
    pub(super) fn to(out: Box<dyn Write + Send>) -> Self {
        let state = State { out, waiting: Vec::new(), is_thread_asleep: false, has_thread: false };
        let lines = Lines(Arc::new(Shared { state: Mutex::new(state), arrived: Condvar::new() }));
        let writer = lines.clone();
        let thread = std::thread::Builder::new().name("log".to_owned()).spawn(move || writer.run());
        // Without the thread each line is written as it comes.
        lines.state().has_thread = thread.is_ok();
        lines
    }

    pub(super) fn flush_now(&self) {
        self.state().write();
    }

    fn run(&self) {
        loop {
            let mut state = self.state();
            state.write();
            state.is_thread_asleep = true;
            while state.waiting.is_empty() {
                state = self.0.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            drop(state);
            std::thread::sleep(WAIT);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn write(&mut self) {
        // A log that leads nowhere is no reason to stop.
        let _written = self.out.write_all(&self.waiting);
        self.waiting.clear();
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.state();
        state.waiting.extend_from_slice(bytes);
        if state.waiting.len() > WAITING_MAX_BYTES || !state.has_thread {
            state.write();
        } else if std::mem::take(&mut state.is_thread_asleep) {
            self.0.arrived.notify_one();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flush_now();
        Ok(())
    }
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lines")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_line_comes_out_once_and_in_order() {
        let kept = Kept::default();
        let mut lines = Lines::to(Box::new(kept.clone()));
        let mut want = Vec::new();
        for number in 0..10_000 {
            let line = format!("{number}\n");
            lines.write_all(line.as_bytes()).unwrap();
            want.extend_from_slice(line.as_bytes());
        }
        lines.flush_now();
        assert!(*kept.0.lock().unwrap() == want);
    }

    #[test]
    fn a_line_comes_out_by_itself() {
        let kept = Kept::default();
        let mut lines = Lines::to(Box::new(kept.clone()));
        lines.write_all(b"alone\n").unwrap();
        for _ in 0..500 {
            if !kept.0.lock().unwrap().is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the line never came out");
    }
}
