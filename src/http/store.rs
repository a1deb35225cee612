//! The store behind a request's `Session`, bound to the request's other uses of state.
//!
//! Guarantees that a visitor never gets two sessions from one request, in whichever order a handler counts the view,
//! logs somebody in and writes to the session; and that a session which a handler ended ends, even if the client does
//! not wait for the response.

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
use crate::session;
use crate::session::store::Newcomer;
use crate::session::store::Outcome;
use crate::session::store::RequestStore;
use crate::session::store::Source;

/// One request's store.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) exchange: Arc<Exchange>,
    pub(super) inner: RequestStore<Begin>,
}

/// Reads a session through the request's one call.
#[derive(Debug)]
pub(super) struct Begin(Arc<Exchange>);

impl Source for Begin {
    async fn begun(&self, id: &Id) -> Result<SessionReply, session::Error> {
        self.0.session(*id).await.map_err(|error| match error {
            Error::Denied => session::Error::Denied,
            other => session::Error::Redis(redis::Error::Unavailable { reason: other.to_string() }),
        })
    }

    async fn newcomer(&self) -> Newcomer {
        self.0.newcomer().await
    }
}

impl Store {
    pub(super) fn new(exchange: &Arc<Exchange>) -> Self {
        let core = &exchange.core;
        let inner =
            RequestStore::new(Begin(Arc::clone(exchange)), core.redis.clone(), Arc::clone(&core.setup));
        Self { exchange: Arc::clone(exchange), inner }
    }

    /// What became of the handler's changes.
    pub(super) fn outcome(&self) -> Outcome {
        self.inner.outcome()
    }

    /// Whether nothing is left to be done, and nothing of what was done failed.
    pub(super) fn is_settled(&self) -> bool {
        self.inner.is_settled()
    }

    /// Whether `Session` let its id go and nothing was done about it yet.
    pub(super) fn has_left(&self) -> bool {
        self.inner.left().is_some()
    }
}

#[async_trait]
impl SessionStore for Store {
    async fn create(&self, record: &mut Record) -> session_store::Result<()> {
        let made = {
            let begun = self.exchange.begun().await;
            if begun.is_rotated() {
                return Err(self.inner.refuse());
            }
            // A new session's data of such a request are not kept, as if its client had no cookies.
            if self.exchange.makes_nothing && begun.stored().is_none() && !self.has_left() {
                return Ok(());
            }
            begun.current.filter(|_| begun.origin == Origin::Made)
        };
        // This request made a session that nobody else knows: the handler's data go there.
        if let Some(id) = made {
            self.inner.end_left().await?;
            return self.inner.adopt(record, id).await;
        }
        // Creating is a use of state like any other: the limits are asked first.
        if self.exchange.decide().await.is_err() {
            return Err(session_store::Error::Backend("the request was refused".to_owned()));
        }
        self.inner.create(record).await?;
        // A new id keeps its user, a new session has none.
        self.exchange.became(Some(record.id), self.inner.user()).await;
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
        let Some(present) = self.inner.present(*id) else { return Ok(()) };
        // `cycle_id` of a visitor without a session deletes an id that never was.
        if self.exchange.begun().await.current != Some(present) {
            return Ok(());
        }
        if self.exchange.decide().await.is_err() {
            return Err(session_store::Error::Backend("the request was refused".to_owned()));
        }
        // Read now, because afterwards the request has no session that could be read.
        self.inner.read(present).await?;
        let deleted = self.inner.delete(id).await;
        self.exchange.forget(*id);
        deleted?;
        self.exchange.became(None, None).await;
        Ok(())
    }
}

/// A client that leaves takes its request with it. A session that was to be ended ends all the same.
impl Drop for Store {
    fn drop(&mut self) {
        let (Some(left), Ok(runtime)) = (self.inner.left(), tokio::runtime::Handle::try_current()) else {
            return;
        };
        let (redis, prefix) = (self.exchange.core.redis.clone(), Arc::clone(&self.exchange.core.prefix));
        runtime.spawn(async move {
            if let Err(error) = redis.end_session(&prefix, &session::digest(left), None, false).await {
                tracing::warn!(%error, "a session of a request that was abandoned was not ended: {error}");
            }
        });
    }
}
