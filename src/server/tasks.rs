//! What runs beside the requests for as long as the process does.
//!
//! Nothing here has to be finished at a stop: each task is dropped with its runtime.

use crate::authenticate::Authenticator;
use crate::feed::Feed;
use crate::metrics::{Level, Metrics};
use crate::price::Book;
use crate::relay::Resolver;
use crate::store::{Change, Store, Subject};
use arc_swap::ArcSwap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

/// How often key uses are written down.
const KEY_USE_EVERY: Duration = Duration::from_secs(2);
/// How often the whole of the accounts is looked at.
const OPEN_ITEMS_EVERY: Duration = Duration::from_secs(30);
/// Between two tries to read the price book.
const BOOK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Watches the feed from before `book` is read, and reads it again whenever prices have changed.
pub(super) async fn follow_prices(mut changes: Receiver<Change>, store: Store, book: Arc<ArcSwap<Book>>) {
    loop {
        match changes.recv().await {
            Ok(Change { subject: Subject::Prices, .. }) | Err(RecvError::Lagged(_)) => {}
            Ok(Change { subject: Subject::Account(_) | Subject::Key(_) | Subject::Recall(_), .. }) => {
                continue;
            }
            Err(RecvError::Closed) => return,
        }
        loop {
            match store.price_rows().await {
                Ok(rows) => {
                    book.store(Arc::new(Book::build(rows)));
                    tracing::info!("the price book has changed and has been read");
                    break;
                }
                Err(error) => {
                    tracing::warn!(%error, "the price book has changed and cannot be read yet; the old one stays in force");
                    tokio::time::sleep(BOOK_AGAIN_AFTER).await;
                }
            }
        }
    }
}

/// Writes down again and again when keys were last used.
pub(super) async fn keep_key_uses(authenticator: Arc<Authenticator>, store: Store) {
    loop {
        tokio::time::sleep(KEY_USE_EVERY).await;
        note_key_uses(&authenticator, &store).await;
    }
}

/// Writes down when keys were last used, since it was written last. What cannot be written is lost: it tells people which keys are
/// in use, and the next use tells it again.
pub(super) async fn note_key_uses(authenticator: &Authenticator, store: &Store) {
    let uses = authenticator.last_used();
    if uses.is_empty() {
        return;
    }
    if let Err(error) = store.note_key_uses(&uses).await {
        tracing::warn!(%error, keys = uses.len(), "the last use of keys could not be written down");
    }
}

/// Notes again and again what in the books waits for a person. While the database is away, the last numbers stand.
pub(super) async fn watch_open_items(store: Store, metrics: Metrics) {
    loop {
        match store.open_items().await {
            Ok(open) => {
                metrics.set(Level::OwedUsd, open.owed.0 as f64 / 1e6);
                metrics.set(Level::OwingAccounts, open.owing_accounts as f64);
                metrics.set(Level::QuarantineRows, open.quarantined as f64);
            }
            Err(error) => tracing::warn!(%error, "what accounts owe could not be read"),
        }
        tokio::time::sleep(OPEN_ITEMS_EVERY).await;
    }
}

/// Watches what changes in the database.
pub(super) async fn watch_database(feed: Feed) {
    feed.run().await;
}

/// Keeps the addresses of providers fresh.
pub(super) async fn resolve(resolver: Resolver) {
    resolver.run().await;
}
