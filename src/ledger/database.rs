//! The database as the writer and the recovery need it: a seam, so that a simulated one can lose answers and go away.

use crate::clock::UnixMicros;
use crate::ids::{RequestId, SessionId};
use crate::store::{Batch, BatchError, SessionState, Store, StoreError};
use async_trait::async_trait;

/// What settlements are written to.
#[async_trait]
pub trait Database: Send + Sync {
    /// Applies a batch if the watermark is where it begins; see [`Store::apply_batch`].
    async fn apply_batch(&self, batch: &Batch<'_>, at: UnixMicros) -> Result<(), BatchError>;
    /// Charges one row that is refused, and keeps it beside the tables.
    async fn quarantine(
        &self,
        batch: &Batch<'_>,
        record: &[u8],
        error: &str,
        at: UnixMicros,
    ) -> Result<(), BatchError>;
    /// Collects what leases did not cover.
    async fn collect_over(&self, session: SessionId, at: UnixMicros) -> Result<(), StoreError>;
    /// How a session is, and its watermark; `None` where it is not known.
    async fn session(&self, session: SessionId) -> Result<Option<(SessionState, u64)>, StoreError>;
    /// Takes a session that is not known for one of the time after the backup from which the database was put back; `false` where it
    /// cannot be one.
    async fn adopt_session(&self, session: SessionId, at: UnixMicros) -> Result<bool, StoreError>;
    /// Whether the database was put back from a backup after this session began.
    async fn was_put_back_after(&self, session: SessionId) -> Result<bool, StoreError>;
    /// Whether the request has a row.
    async fn has_request(&self, request: RequestId) -> Result<bool, StoreError>;
    /// Ends a session and returns its leases.
    async fn end_session(
        &self,
        session: SessionId,
        end: SessionState,
        applied_seq: u64,
        at: UnixMicros,
    ) -> Result<(), StoreError>;
}

#[async_trait]
impl Database for Store {
    async fn apply_batch(&self, batch: &Batch<'_>, at: UnixMicros) -> Result<(), BatchError> {
        Store::apply_batch(self, batch, at).await
    }

    async fn quarantine(
        &self,
        batch: &Batch<'_>,
        record: &[u8],
        error: &str,
        at: UnixMicros,
    ) -> Result<(), BatchError> {
        Store::quarantine(self, batch, record, error, at).await
    }

    async fn collect_over(&self, session: SessionId, at: UnixMicros) -> Result<(), StoreError> {
        Store::collect_over(self, session, at).await
    }

    async fn session(&self, session: SessionId) -> Result<Option<(SessionState, u64)>, StoreError> {
        Store::session(self, session).await
    }

    async fn adopt_session(&self, session: SessionId, at: UnixMicros) -> Result<bool, StoreError> {
        Store::adopt_session(self, session, at).await
    }

    async fn was_put_back_after(&self, session: SessionId) -> Result<bool, StoreError> {
        Store::was_put_back_after(self, session).await
    }

    async fn has_request(&self, request: RequestId) -> Result<bool, StoreError> {
        Store::has_request(self, request).await
    }

    async fn end_session(
        &self,
        session: SessionId,
        end: SessionState,
        applied_seq: u64,
        at: UnixMicros,
    ) -> Result<(), StoreError> {
        Store::end_session(self, session, end, applied_seq, at).await
    }
}
