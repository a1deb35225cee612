//! The store behind a request's `Session`, bound to the request's other uses of state.
//!
//! Guarantees that a visitor never gets two sessions from one request, in whichever order a handler counts the view
//! and writes to the session.

use std::sync::Arc;

use async_trait::async_trait;
use tower_sessions::session::Id;
use tower_sessions::session::Record;
use tower_sessions::session_store;
use tower_sessions::session_store::SessionStore;

use crate::http::error::Error;
use crate::http::exchange::Exchange;
use crate::http::exchange::Origin;
use crate::redis;
use crate::redis::begin::SessionReply;
use crate::session::store::Outcome;
use crate::session::store::RequestStore;
use crate::session::store::Source;
use crate::session::store::Unread;

/// One request's store.
#[derive(Debug)]
pub(super) struct Store {
    exchange: Arc<Exchange>,
    inner: RequestStore<Begin>,
}

/// Reads a session through the request's one call.
#[derive(Debug)]
pub(super) struct Begin(Arc<Exchange>);

impl Source for Begin {
    async fn begun(&self, id: &Id) -> Result<SessionReply, Unread> {
        self.0.session(*id).await.map_err(|error| match error {
            Error::Denied => Unread::Denied,
            other => Unread::Redis(redis::Error::Unavailable { reason: other.to_string() }),
        })
    }
}

impl Store {
    pub(super) fn new(exchange: &Arc<Exchange>) -> Self {
        let core = &exchange.core;
        let inner = RequestStore::new(
            Begin(Arc::clone(exchange)),
            core.redis.clone(),
            Arc::clone(&core.prefix),
            core.lifetimes,
        );
        Self { exchange: Arc::clone(exchange), inner }
    }

    /// What became of the handler's changes.
    pub(super) fn outcome(&self) -> Outcome {
        self.inner.outcome()
    }
}

#[async_trait]
impl SessionStore for Store {
    async fn create(&self, record: &mut Record) -> session_store::Result<()> {
        let made = {
            let begun = self.exchange.begun().await;
            begun.current.filter(|_| begun.origin == Origin::Made)
        };
        // A view of this request made a session that nobody else knows: the handler's data go there.
        if let Some(id) = made {
            record.id = id;
            return self.inner.save(record).await;
        }
        // Creating is a use of state like any other: the limits are asked first.
        if self.exchange.decide().await.is_err() {
            return Err(session_store::Error::Backend("the request was refused".to_owned()));
        }
        self.inner.create(record).await?;
        let mut begun = self.exchange.begun().await;
        begun.current = Some(record.id);
        Ok(())
    }

    async fn save(&self, record: &Record) -> session_store::Result<()> {
        let saved = self.inner.save(record).await;
        // Whatever became of it, what was read before is not known to be true any more.
        self.exchange.forget(record.id);
        saved
    }

    async fn load(&self, id: &Id) -> session_store::Result<Option<Record>> {
        self.inner.load(id).await
    }

    async fn delete(&self, id: &Id) -> session_store::Result<()> {
        let current = self.exchange.begun().await.current;
        // `cycle_id` of a visitor without a session deletes an id that never was.
        if current != Some(*id) {
            return Ok(());
        }
        if self.exchange.decide().await.is_err() {
            return Err(session_store::Error::Backend("the request was refused".to_owned()));
        }
        let deleted = self.inner.delete(id).await;
        self.exchange.forget(*id);
        deleted?;
        let mut begun = self.exchange.begun().await;
        begun.current = None;
        begun.origin = Origin::Deleted;
        Ok(())
    }
}
