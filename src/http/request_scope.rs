//! What this library puts into a request's extensions.

use std::sync::Arc;

use http::Extensions;
use http::request::Parts;

use crate::http::error::RequestError;
use crate::http::real_ip::ClientInfo;
use crate::http::request_state::RequestState;
use crate::http::request_state::session_store::RequestSessionStore;
use crate::http::services::WorkerServices;
use crate::http::standalone::began::HasBegun;
use crate::http::standalone::redis::Redis;
use crate::http::standalone::trusted_proxies;

/// A request's state and what it is made of, as extractors and layers find it.
#[derive(Debug, Clone)]
pub(crate) struct RequestScope {
    pub(crate) services: Arc<WorkerServices>,
    /// The store of the request's session, which has the request's state.
    pub(crate) store: Arc<RequestSessionStore>,
}

impl RequestScope {
    /// The scope of the request with these extensions; none outside a fleet.
    pub(crate) fn find(extensions: &Extensions) -> Option<&Self> {
        extensions.get()
    }

    /// The scope of this request, which begins with it outside a fleet, where no layer did.
    ///
    /// # Errors
    /// `MissingRedis`.
    pub(crate) fn from_parts(parts: &mut Parts) -> Result<&Self, RequestError> {
        if Self::find(&parts.extensions).is_none() {
            let redis = parts.extensions.get::<Redis>().ok_or(RequestError::MissingRedis)?;
            let scope = Self::begin(redis.services(), parts);
            scope.insert_into(parts);
        }
        Self::find(&parts.extensions).ok_or(RequestError::MissingRedis)
    }

    /// The same, for what only a worker has.
    ///
    /// # Errors
    /// `OutsideFleet`.
    pub(crate) fn in_fleet(parts: &Parts) -> Result<&Self, RequestError> {
        let scope = Self::find(&parts.extensions).filter(|scope| scope.services.standalone.is_none());
        scope.ok_or(RequestError::OutsideFleet)
    }

    /// The same, for what belongs to a session.
    ///
    /// # Errors
    /// `MissingRedis`, `MissingSessionLayer`.
    pub(crate) fn with_sessions(parts: &mut Parts) -> Result<&Self, RequestError> {
        let scope = Self::from_parts(parts)?;
        match scope.services.state.has_sessions {
            true => Ok(scope),
            false => Err(RequestError::MissingSessionLayer),
        }
    }

    /// The client of the request, which outside a fleet needs no Redis.
    ///
    /// # Errors
    /// `MissingClientAddress`.
    pub(crate) fn from_client(parts: &Parts) -> Result<ClientInfo, RequestError> {
        let client = match Self::find(&parts.extensions) {
            Some(scope) => Some(scope.state().client).filter(|_| scope.state().client_is_known),
            None => trusted_proxies::client(parts),
        };
        client.ok_or(RequestError::MissingClientAddress)
    }

    /// Lets the layers and extractors inside find it.
    pub(crate) fn insert_into(self, parts: &mut Parts) {
        parts.extensions.insert(HasBegun);
        parts.extensions.insert(self);
    }

    /// Begins the state of a request outside a fleet; it costs nothing until it is used.
    pub(crate) fn begin(services: &Arc<WorkerServices>, parts: &Parts) -> Self {
        services.ensure_started();
        let client = trusted_proxies::client(parts);
        let state = Arc::new(RequestState::standalone(Arc::clone(&services.state), client, parts));
        Self { services: Arc::clone(services), store: Arc::new(RequestSessionStore::new(&state)) }
    }

    /// The request's state.
    pub(crate) fn state(&self) -> &Arc<RequestState> {
        &self.store.state
    }
}
