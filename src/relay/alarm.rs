//! A timer for a request's deadlines that many requests share.

use std::pin::Pin;
use std::time::Duration;
use tokio::time::Instant;

/// Wakes the watch at or before a deadline. A timer of the runtime would wake its driver for each request that sets one; these are
/// shared by all requests of the same hundredth of a second.
pub(super) struct Alarm {
    pub(super) rings: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
    rings_at: Instant,
}

/// Shared timers are kept until they ring: a far deadline is reached in steps.
const ALARM_MAX: Duration = Duration::from_secs(5);

impl Alarm {
    pub(super) fn at(deadline: Instant) -> Self {
        let wait = deadline.saturating_duration_since(Instant::now()).min(ALARM_MAX);
        Alarm { rings: Box::pin(pingora::time::sleep(wait)), rings_at: Instant::now() + wait }
    }

    /// Rings by then, if it would not anyway.
    pub(super) fn by(&mut self, deadline: Instant) {
        if deadline < self.rings_at {
            *self = Alarm::at(deadline);
        }
    }
}
