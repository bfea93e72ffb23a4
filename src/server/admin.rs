//! The admin listener in this process: shown from when it may be, and closed with a grace for who is being answered.

use super::ServeError;
use super::gauges::Gauges;
use crate::control::admin::{Admin, Readiness};
use std::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// Answers operators from now on, until it is told to close or the runtime goes.
pub(super) fn show(
    books: &Runtime,
    listener: TcpListener,
    readiness: Readiness,
    gauges: Gauges,
    mut closing: watch::Receiver<bool>,
) -> Result<(), ServeError> {
    let listener = {
        let _on_books = books.enter();
        tokio::net::TcpListener::from_std(listener)?
    };
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
    Ok(())
}
