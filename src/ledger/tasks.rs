//! The tasks of the books, watched: one that ends by itself, by a panic or by returning, is a fault of the process.
//!
//! Promises: an end that nobody asked for is known at once and stays known; stopping them is not taken for one. Refuses to know: what
//! the tasks do.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// Tasks that live as long as the books are open.
#[derive(Default)]
pub(super) struct Tasks {
    handles: Mutex<Vec<JoinHandle<()>>>,
    watch: Arc<Watch>,
    /// How often the writer's loop has turned: it stands still when the writer hangs or is gone, and goes on while the database is away.
    pub(super) writer_turns: AtomicU64,
}

#[derive(Default)]
struct Watch {
    is_stopping: AtomicBool,
    ended: OnceLock<&'static str>,
}

/// Goes with its task, however that ends.
struct Ending {
    name: &'static str,
    watch: Arc<Watch>,
}

impl Tasks {
    /// Starts one. `name` is what is said should it end.
    pub(super) fn start(
        &self,
        on: &Handle,
        name: &'static str,
        task: Pin<Box<dyn Future<Output = ()> + Send>>,
    ) {
        let ending = Ending { name, watch: Arc::clone(&self.watch) };
        let watched = async move {
            let _ending = ending;
            task.await;
        };
        self.handles.lock().unwrap_or_else(PoisonError::into_inner).push(on.spawn(watched));
    }

    /// The first one that ended by itself.
    pub(super) fn ended(&self) -> Option<&'static str> {
        self.watch.ended.get().copied()
    }

    /// Ends them all, and waits until they are gone.
    pub(super) async fn stop(&self) {
        self.watch.is_stopping.store(true, Ordering::SeqCst);
        let handles = std::mem::take(&mut *self.handles.lock().unwrap_or_else(PoisonError::into_inner));
        for handle in handles {
            handle.abort();
            // Aborted on purpose, or ended before, which is known.
            let _aborted = handle.await;
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if !self.watch.is_stopping.load(Ordering::SeqCst) && self.watch.ended.set(self.name).is_ok() {
            tracing::error!(
                task = self.name,
                "a task of the books has ended by itself: nothing more is admitted"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    async fn end_of(task: impl Future<Output = ()> + Send + 'static) -> Tasks {
        let tasks = Tasks::default();
        tasks.start(&Handle::current(), "other", Box::pin(std::future::pending()));
        assert_eq!(tasks.ended(), None);
        tasks.start(&Handle::current(), "writer", Box::pin(task));
        for _ in 0..1_000 {
            if tasks.ended().is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tasks
    }

    #[tokio::test]
    async fn a_task_that_panics_or_returns_is_known_and_one_that_is_stopped_is_not() {
        assert_eq!(end_of(async { panic!("on purpose") }).await.ended(), Some("writer"));
        assert_eq!(end_of(std::future::ready(())).await.ended(), Some("writer"));
        let tasks = Tasks::default();
        tasks.start(&Handle::current(), "writer", Box::pin(std::future::pending()));
        tasks.stop().await;
        assert_eq!(tasks.ended(), None);
    }
}
