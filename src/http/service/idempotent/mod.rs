//! `Idempotency-Key`: a request that is sent again is carried out once (draft-ietf-httpapi-idempotency-key-header).
//!
//! Guarantees that of all requests of one client with one key at most one is under way, as long as its worker lives and
//! reaches Redis, whatever the client's cookie was and has become (`request_names`); that the others get its response, or a
//! problem because it is still under way or was another request; that no client gets a response, or a cookie, of another
//! client's request; and that a response which may differ at the next try is not stored. A worker that dies leaves
//! a lease that ends, and the next repetition is carried out. Requests without the header cost nothing.

mod request_names;
mod stored_response;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, to_bytes};
use axum::response::{IntoResponse, Response};
use http::header::AUTHORIZATION;
use http::{HeaderMap, Method, Request, StatusCode};

use crate::digest::sha256_of_parts;
use crate::http::error::{RequestError, StateError};
use crate::http::header_names::IDEMPOTENCY_KEY;
use crate::http::idempotency::{Idempotency, ResponseRetention};
use crate::http::idempotency_key;
use crate::http::problem::Problem;
use crate::http::request_state::{RequestState, SessionOrigin};
use crate::http::service::idempotent::request_names::{
    RequestNamer, RequestNames, SenderIdentification, SenderIdentity,
};
use crate::http::service::idempotent::stored_response::{RecordedSessionChange, SessionAfterResponse};
use crate::http::services::state::StateServices;
use crate::idempotency::{self, ClaimOutcome, ClaimRequest, StoredResponse};
use crate::redis;
use crate::sessions::query::SessionLookup;

/// The policy that bounds what is stored for clients who are not logged in; an application may change or switch it off.
const IDEMPOTENCY_POLICY: &str = "idempotency";

/// Largest response that is stored, headers and body.
const STORED_RESPONSE_MAX: u64 = 64 * 1024;
/// The same for a client of whom nothing is known, and how long it is kept.
const UNIDENTIFIED_RESPONSE_MAX: u64 = 4 * 1024;
const UNIDENTIFIED_RETENTION: Duration = Duration::from_secs(600);
/// Names outlive the record, whose lifetime begins again when its response is kept.
const NAME_EXTRA_LIFETIME: Duration = Duration::from_secs(60);

/// For how long a request is claimed by the worker that carries it out, which renews the claim meanwhile.
const LEASE: Duration = Duration::from_secs(5);
const RENEW_EVERY: Duration = Duration::from_millis(1500);
/// Pause before a failed attempt to store a response is repeated.
const STORE_RETRY_PAUSE: Duration = Duration::from_millis(100);

/// The right to carry a request out.
#[derive(Debug)]
pub(in crate::http) struct ExecutionLease {
    state: Arc<RequestState>,
    key: Idempotency,
    fingerprint: String,
    identification: SenderIdentification,
    /// Names that its response is for.
    readers: Vec<String>,
    /// What counts together with the cookie that its response comes with; [`RequestNames`].
    bound_authorization: Option<String>,
    record: String,
    owner: String,
}

/// Whether a request has a key and is to be carried out once.
pub(in crate::http) fn is_requested<B>(services: &StateServices, request: &Request<B>) -> bool {
    matches!(*request.method(), Method::POST | Method::PATCH)
        && request.headers().contains_key(IDEMPOTENCY_KEY)
        && !services.idempotency_ttl.is_zero()
}

/// The request and the right to carry it out, or what is answered in its place.
///
/// Its limits are decided first, because a repetition is a request like any other.
///
/// # Cancel safety
/// A right that was granted and is dropped ends with its lease.
pub(in crate::http) async fn claim_execution(
    state: &Arc<RequestState>,
    request: Request<Body>,
) -> Result<(Request<Body>, ExecutionLease), Response> {
    let (mut parts, body) = request.into_parts();
    let key = idempotency_key::parse_key(&parts.headers)
        .ok_or_else(|| RequestError::InvalidIdempotencyKey.into_response())?;
    let names = request_names(state, &parts.headers, &key).await.map_err(IntoResponse::into_response)?;
    // The body is bounded already; what is wrong with it is recorded there and answered instead of this.
    let body = to_bytes(body, usize::MAX)
        .await
        .map_err(|_| Problem::new(StatusCode::BAD_REQUEST, "the request's body broke off").into_response())?;
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    let fingerprint = sha256_of_parts(&[parts.method.as_str().as_bytes(), target.as_bytes(), &body]);
    let owner = state.services.worker.request_id().to_str().unwrap_or_default().to_owned();
    let key = Idempotency::new(key);
    let RequestNames { identification, record, readers, bound_authorization, .. } = names.clone();
    let state = Arc::clone(state);
    let mut lease = ExecutionLease {
        state,
        key,
        fingerprint,
        identification,
        readers,
        bound_authorization,
        record,
        owner,
    };
    match lease.claim(&names).await {
        Ok(ClaimOutcome::Granted) => {
            parts.extensions.insert(lease.key.clone());
            Ok((Request::from_parts(parts, Body::from(body)), lease))
        }
        Ok(ClaimOutcome::InProgress(left)) => {
            Err(Problem::idempotency_in_progress(retry_after_seconds(left)).into_response())
        }
        Ok(ClaimOutcome::KeyReused) => Err(Problem::idempotency_key_reused().into_response()),
        // Another client may have sent it: the response reveals only that it was carried out.
        Ok(ClaimOutcome::Completed(kept))
            if identification.is_ambiguous() || !stored_response::is_readable_by(&kept, &names.keys) =>
        {
            Err(Problem::idempotency_already_executed().into_response())
        }
        Ok(ClaimOutcome::Completed(kept)) => Err(lease.replay(kept).await),
        Err(error) => {
            let mut inner = lease.state.lock().await;
            Err(inner.failure.insert(StateError::from(&error)).to_request_error().into_response())
        }
    }
}

/// Under which names the request is found; decides its limits and reads its session.
async fn request_names(
    state: &RequestState,
    headers: &HeaderMap,
    key: &str,
) -> Result<RequestNames, RequestError> {
    let policies = state.services.limiter.policies();
    let anonymous_policy = policies.find(IDEMPOTENCY_POLICY).map(|(number, _)| number);
    match anonymous_policy {
        Some(policy) if state.visitor.user().is_none() => state.apply_policy(policy, None).await?,
        _ => state.decide_limits().await?,
    }
    // A provisional cookie has one id, and its session is created when the handler uses it.
    let stored_id = {
        let inner = state.lock().await;
        inner.stored_session_id().filter(|_| inner.provisional.is_none())
    };
    let session = match stored_id {
        Some(id) => Some(state.lookup_session(id).await?),
        None => None,
    };
    // A cookie whose session is no more names no user, but it is still the cookie that a request was sent with.
    let user = state.lock().await.user.map(|user| user.to_string());
    if let (Some(policy), None, Some(_)) = (anonymous_policy, &user, state.visitor.user()) {
        state.apply_policy(policy, None).await?;
    }
    let client = state.client.limit_subject(state.services.ipv6_prefix);
    let sender = SenderIdentity {
        user: user.as_deref(),
        authorization: headers.get(AUTHORIZATION).map(http::HeaderValue::as_bytes),
        session: state.visitor.digest(),
        lineage: session.as_ref().and_then(lineage),
        client: &client,
    };
    Ok(RequestNamer { prefix: &state.services.prefix, key }.for_sender(&sender))
}

/// The first hashed id of a session that was given another one since.
fn lineage(session: &SessionLookup) -> Option<&str> {
    match session {
        SessionLookup::Found { attributes: Some(own), .. } => own.lineage.as_deref(),
        _ => None,
    }
}

impl ExecutionLease {
    async fn claim(&mut self, names: &RequestNames) -> Result<ClaimOutcome, redis::RedisError> {
        let redis = &self.state.services.redis;
        let (lifetime, fingerprint) = (self.retention(), self.fingerprint.as_str());
        if names.own_count > 0 {
            let names = idempotency::IdempotencyNames {
                keys: &names.keys,
                own_count: names.own_count,
                fingerprint,
                record: &names.record,
                lifetime: lifetime + NAME_EXTRA_LIFETIME,
            };
            self.record = redis.find_record(&names).await?;
        }
        let (key, owner) = (&self.record, &self.owner);
        redis
            .claim(&ClaimRequest { key, fingerprint, owner, lease: LEASE, lifetime: lifetime.max(LEASE) })
            .await
    }

    /// How long the response is stored.
    fn retention(&self) -> Duration {
        let ttl = self.state.services.idempotency_ttl;
        if self.is_unidentified() { ttl.min(UNIDENTIFIED_RETENTION) } else { ttl }
    }

    fn is_unidentified(&self) -> bool {
        matches!(self.identification, SenderIdentification::Anonymous | SenderIdentification::Guessable)
    }

    /// Waits for the response and renews the lease meanwhile.
    pub(in crate::http) async fn while_renewing(&self, response: impl Future<Output = Response>) -> Response {
        tokio::select! {
            response = response => response,
            never = self.renew() => match never {},
        }
    }

    async fn renew(&self) -> Infallible {
        loop {
            tokio::time::sleep(RENEW_EVERY).await;
            match self.state.services.redis.renew_claim(&self.record, &self.owner, LEASE).await {
                Ok(true) => {}
                Ok(false) => {
                    tracing::warn!("a request that was to be carried out once took longer than its lease")
                }
                Err(error) => tracing::debug!(%error, "a lease was not renewed: {error}"),
            }
        }
    }

    /// Stores the response, or allows the request to be carried out again.
    pub(in crate::http) async fn store_response(self, response: Response) -> Response {
        let is_stored = match self.key.retention() {
            ResponseRetention::ByStatus => stored_response::is_final(response.status()),
            ResponseRetention::Store => true,
            ResponseRetention::Discard => false,
        };
        let (response, kept) = if is_stored {
            let change = self.session_change().await;
            let sealed = change.as_ref().and_then(|change| self.seal(change));
            let max_bytes =
                if self.is_unidentified() { UNIDENTIFIED_RESPONSE_MAX } else { STORED_RESPONSE_MAX };
            let new_name = change.as_ref().and_then(|change| self.name_after_response(change));
            let readers: Vec<String> = self.readers.iter().chain(&new_name).cloned().collect();
            let (response, kept) =
                stored_response::capture_response(response, max_bytes, &readers, sealed.as_deref()).await;
            if let Some(name) = new_name {
                self.add_name(name).await;
            }
            (response, self.store_with_retry(&kept).await)
        } else {
            (response, self.state.services.redis.abandon_claim(&self.record, &self.owner).await)
        };
        if let Err(error) = kept {
            tracing::warn!(%error, "the response of a request that was carried out once was not stored: {error}");
        }
        response
    }

    /// What the request did with its visitor's session.
    async fn session_change(&self) -> Option<RecordedSessionChange> {
        let inner = self.state.lock().await;
        let previous = self.state.visitor.id();
        let provisional = inner.provisional.filter(|_| inner.origin == SessionOrigin::Issued);
        // Without a provisional cookie an id that was only issued is in no cookie.
        let current = inner
            .current_session_id
            .filter(|_| inner.origin != SessionOrigin::Issued || provisional.is_some());
        let current = match current {
            Some(id) if inner.current_session_id != previous || inner.cookie_age.is_some() => {
                SessionAfterResponse::Active { id, user: inner.user, age: inner.cookie_age, provisional }
            }
            None if previous.is_some() && inner.origin == SessionOrigin::Destroyed => {
                SessionAfterResponse::Destroyed
            }
            _ => return None,
        };
        Some(RecordedSessionChange {
            previous_digest: self.state.visitor.digest().map(ToOwned::to_owned),
            current,
        })
    }

    /// The name that the cookie gives with which the response comes.
    fn name_after_response(&self, change: &RecordedSessionChange) -> Option<String> {
        let session = match change.current {
            SessionAfterResponse::Active { id, .. } => Some(crate::sessions::digest(id)),
            SessionAfterResponse::Destroyed => None,
        };
        let namer = RequestNamer { prefix: &self.state.services.prefix, key: self.key.key() };
        namer.name_after_response(session.as_deref(), self.bound_authorization.as_deref())
    }

    /// From now on the request is found under this name, too.
    async fn add_name(&self, name: String) {
        let names = idempotency::IdempotencyNames {
            keys: &[name],
            own_count: 1,
            fingerprint: &self.fingerprint,
            record: &self.record,
            lifetime: self.retention() + NAME_EXTRA_LIFETIME,
        };
        if let Err(error) = self.state.services.redis.find_record(&names).await {
            tracing::warn!(%error, "a request that was carried out once is not found with its new cookie: {error}");
        }
    }

    /// Stores the response, and retries for as long as no other worker may carry the request out: without a stored
    /// response the request would be carried out twice.
    async fn store_with_retry(&self, kept: &StoredResponse) -> Result<bool, redis::RedisError> {
        let until = Instant::now() + LEASE / 2;
        loop {
            match self
                .state
                .services
                .redis
                .complete_claim(&self.record, &self.owner, self.retention(), kept)
                .await
            {
                Err(_) if Instant::now() < until => tokio::time::sleep(STORE_RETRY_PAUSE).await,
                outcome => return outcome,
            }
        }
    }

    /// The first response once more, with the session that it made if this client may have it.
    async fn replay(&self, kept: StoredResponse) -> Response {
        let change = stored_response::sealed_session_change(&kept).and_then(|sealed| self.unseal(sealed));
        if let Some(change) = change.filter(|change| change.applies_to(self.state.visitor.digest())) {
            match change.current {
                SessionAfterResponse::Active { id, user, age, provisional } => {
                    self.state.set_current_session(Some(id), user).await;
                    let mut inner = self.state.lock().await;
                    inner.cookie_age = age;
                    if provisional.is_some() {
                        // Nothing is stored for it, as at the first time.
                        (inner.provisional, inner.origin) = (provisional, SessionOrigin::Issued);
                    }
                }
                SessionAfterResponse::Destroyed => self.state.set_current_session(None, None).await,
            }
        }
        // Whose response it is depends on the cookie.
        self.state.lock().await.session_accessed = true;
        stored_response::replay(kept)
    }

    /// What is sealed is opened with the client's key and the record's name together: reading Redis is not enough.
    fn sealing_context(&self) -> String {
        format!("{} {}", self.record, self.key.key())
    }

    fn seal(&self, change: &RecordedSessionChange) -> Option<String> {
        let keyring = self.state.services.sessions.signing_keys.keyring()?;
        keyring.encrypt(&self.sealing_context(), change.encode().as_bytes()).ok()
    }

    fn unseal(&self, sealed: &str) -> Option<RecordedSessionChange> {
        let opened =
            self.state.services.sessions.signing_keys.keyring()?.decrypt(&self.sealing_context(), sealed)?;
        RecordedSessionChange::decode(std::str::from_utf8(&opened).ok()?)
    }
}

/// When to retry, s: a live worker is done soon; the rest of a lease matters only if its worker is dead.
fn retry_after_seconds(left: Duration) -> u64 {
    left.as_secs().clamp(1, 2)
}
