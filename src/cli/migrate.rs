//! `weir migrate`.

use super::Books;
use super::failure::Failure;
use super::output::Report;
use crate::store::Store;
use serde::Serialize;

/// Create the database, or bring its tables up to this version
///
/// Every command does so when it opens the database; this one does nothing else. It refuses while a server of an older version is live.
#[derive(Debug, clap::Args)]
pub(super) struct Migrate {}

#[derive(Serialize)]
struct Migrated {
    schema_version: i64,
}

impl Migrate {
    /// The books are open: the migrations are done.
    pub(super) fn run(self, books: &Books<'_>) -> Result<Report, Failure> {
        let Migrate {} = self;
        let schema_version = Store::schema_version();
        let people =
            format!("The database {} is at schema version {schema_version}.", books.config.store.url);
        Report::new(&Migrated { schema_version }, people)
    }
}
