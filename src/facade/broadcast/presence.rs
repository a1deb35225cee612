//! How many subscribe to a topic.

use std::fmt;
use std::sync::Arc;

use crate::broadcasts;
use crate::http::standalone::connection::StandaloneConnection;

/// How many subscribe to a topic on all workers; queried once a second while this value lives.
///
/// ```no_run
/// # fn example(fleet: &regatta::FleetHandle) -> Result<(), regatta::broadcast::InvalidTopic> {
/// use regatta::broadcast::Topic;
///
/// let topic: Topic = fleet.broadcast().topic("room")?;
/// let mut presence = topic.presence();
/// let line = presence.count().map_or("?".to_owned(), |count| count.to_string());
/// # let _ = line;
/// fleet.spawn(async move {
///     // Each time that the number changes.
///     let count = presence.next().await;
///     let _ = topic.publish_json(&count).await;
/// });
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Presence {
    presence: broadcasts::Presence,
    /// Nothing is queried without it.
    connection: Option<Arc<StandaloneConnection>>,
}

impl Presence {
    pub(super) fn new(presence: broadcasts::Presence, connection: Option<Arc<StandaloneConnection>>) -> Self {
        Self { presence, connection }
    }

    /// The number of about a second ago; `None` until the first query is answered.
    pub fn count(&self) -> Option<u64> {
        self.presence.count()
    }

    /// Waits until the number differs from the last returned one; the first time until it is known.
    ///
    /// # Cancel safety
    /// Nothing is lost by dropping the future.
    pub async fn next(&mut self) -> u64 {
        self.presence.next().await
    }
}

impl fmt::Debug for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_standalone = self.connection.is_some();
        f.debug_struct("Presence")
            .field("presence", &self.presence)
            .field("is_standalone", &is_standalone)
            .finish()
    }
}
