//! The hour at which every answer under way has to end: the process stops and has waited long enough.
//!
//! Promises: whoever waits hears it, also who begins to wait after it was called; waiting costs a place in a list. Refuses to know:
//! what is still under way, and what becomes of it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

/// Called once, for all. Cheap to clone; clones are called together.
#[derive(Clone, Debug, Default)]
pub struct Curfew(Arc<Bell>);

#[derive(Debug, Default)]
struct Bell {
    is_called: AtomicBool,
    bell: Arc<Notify>,
}

/// Ends when the curfew is called. Can be polled again afterwards.
#[derive(Debug)]
pub(super) struct Wait {
    curfew: Curfew,
    rung: Pin<Box<OwnedNotified>>,
}

impl Curfew {
    /// Ends everything that is under way and everything that is yet to begin.
    pub fn call(&self) {
        self.0.is_called.store(true, Ordering::SeqCst);
        self.0.bell.notify_waiters();
    }

    pub(super) fn wait(&self) -> Wait {
        // From its making on it hears the bell; what rang before is in the flag.
        Wait { rung: Box::pin(Arc::clone(&self.0.bell).notified_owned()), curfew: self.clone() }
    }
}

impl Future for Wait {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.curfew.0.is_called.load(Ordering::SeqCst) {
            return Poll::Ready(());
        }
        self.rung.as_mut().poll(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn it_is_heard_by_those_who_wait_and_those_who_come_later() {
        let curfew = Curfew::default();
        let mut early = curfew.wait();
        let silent = tokio::time::timeout(Duration::from_millis(5), &mut early).await;
        assert!(silent.is_err());
        curfew.call();
        early.await;
        let mut late = curfew.wait();
        (&mut late).await;
        late.await;
    }
}
