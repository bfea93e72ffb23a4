//! The admin listener in this process: taken while a start may still fail, shown from when it may be, and closed with a grace for who is being answered.

use super::ServeError;
use super::gauges::Gauges;
use crate::control::admin::{Admin, Readiness};
use std::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// The listener, for this runtime.
pub(super) fn take(books: &Runtime, listener: TcpListener) -> Result<tokio::net::TcpListener, ServeError> {
    let _on_books = books.enter();
    Ok(tokio::net::TcpListener::from_std(listener)?)
}

/// Answers operators from now on, until it is told to close or the runtime goes.
pub(super) fn show(
    books: &Runtime,
    listener: tokio::net::TcpListener,
    readiness: Readiness,
    gauges: Gauges,
    mut closing: watch::Receiver<bool>,
) {
    let admin = Admin::new(readiness, move || gauges.render());
    books.spawn(async move {
        let closed = async move {
            // An end of the sender comes to the same.
            let _ = closing.wait_for(|is_closing| *is_closing).await;
        };
        if let Err(fault) = admin.serve(listener, closed).await {
            tracing::error!(%fault, "the admin listener ended");
        }
    });
}
