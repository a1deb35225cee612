//! `Idempotency-Key`: a request that is sent again is carried out once (draft-ietf-httpapi-idempotency-key-header).
//!
//! Guarantees that of all requests of one client with one key at most one is under way, as long as its worker lives and
//! reaches Redis, whatever the client's cookie was and has become (`names`); that the others get its response, or hear
//! that it is still under way or that it was another request; that no client gets a response, or a cookie, of another
//! client's request; and that a response which may be another one at the next try is not kept. A worker that dies leaves
//! a lease that ends, and the next repetition is carried out. Requests without the header cost nothing.

mod kept;
pub(super) mod key;
mod names;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use axum::body::Body;
use axum::body::to_bytes;
use axum::response::IntoResponse;
use axum::response::Response;
use http::HeaderMap;
use http::Method;
use http::Request;
use http::StatusCode;
use http::header::AUTHORIZATION;

use crate::http::error::Error;
use crate::http::error::Refusal;
use crate::http::exchange::Exchange;
use crate::http::exchange::Origin;
use crate::http::extract::Idempotency;
use crate::http::extract::Verdict;
use crate::http::idempotency::kept::Change;
use crate::http::idempotency::kept::Now;
use crate::http::idempotency::names::Namer;
use crate::http::idempotency::names::Names;
use crate::http::idempotency::names::Sender;
use crate::http::idempotency::names::Standing;
use crate::http::problem::Problem;
use crate::http::state::Core;
use crate::redis;
use crate::redis::begin::SessionReply;
use crate::redis::claim;
use crate::redis::claim::Claim;
use crate::redis::claim::Claimed;
use crate::redis::claim::Kept;

/// The policy that bounds what clients who are not logged in have kept; an application may change or switch it off.
const POLICY: &str = "idempotency";

/// Largest response that is kept, headers and body.
const KEPT_MAX: u64 = 64 * 1024;
/// The same for a client of whom nothing is known, and how long it is kept.
const STRANGER_KEPT_MAX: u64 = 4 * 1024;
const STRANGER_KEPT_FOR: Duration = Duration::from_secs(600);
/// Names outlive the record, whose lifetime begins again when its response is kept.
const NAMES_LONGER: Duration = Duration::from_secs(60);

/// For how long a request is claimed by the worker that carries it out, which renews the claim meanwhile.
const LEASE: Duration = Duration::from_secs(5);
const RENEW_EVERY: Duration = Duration::from_millis(1500);
/// Pause before a response that could not be kept is offered again.
const KEEP_AGAIN: Duration = Duration::from_millis(100);

/// The right to carry a request out.
#[derive(Debug)]
pub(super) struct Execution {
    exchange: Arc<Exchange>,
    key: Idempotency,
    fingerprint: String,
    standing: Standing,
    /// Names that its response is for.
    readers: Vec<String>,
    /// What counts together with the cookie that its response comes with; [`Names::beside`].
    beside: Option<String>,
    record: String,
    owner: String,
}

/// Whether a request asks to be carried out once.
pub(super) fn asks<B>(core: &Core, request: &Request<B>) -> bool {
    matches!(*request.method(), Method::POST | Method::PATCH)
        && request.headers().contains_key(key::HEADER)
        && !core.config.idempotency.ttl.is_zero()
}

/// The request and the right to carry it out, or what is answered in its place.
///
/// Its limits are decided first, because a repetition is a request like any other.
///
/// # Cancel safety
/// A right that was granted and is dropped ends with its lease.
pub(super) async fn admit(
    exchange: &Arc<Exchange>,
    request: Request<Body>,
) -> Result<(Request<Body>, Execution), Response> {
    let (mut parts, body) = request.into_parts();
    let key = key::read(&parts.headers).ok_or_else(|| Error::IdempotencyKey.into_response())?;
    let names = names(exchange, &parts.headers, &key).await.map_err(IntoResponse::into_response)?;
    // The body is bounded already; what is wrong with it is remembered there and told instead of this.
    let body = to_bytes(body, usize::MAX)
        .await
        .map_err(|_| Problem::new(StatusCode::BAD_REQUEST, "the request's body broke off").into_response())?;
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    let fingerprint = key::sha256(&[parts.method.as_str().as_bytes(), target.as_bytes(), &body]);
    let owner = exchange.core.request_id().to_str().unwrap_or_default().to_owned();
    let key = Idempotency::new(key);
    let Names { standing, record, readers, beside, .. } = names.clone();
    let exchange = Arc::clone(exchange);
    let mut execution = Execution { exchange, key, fingerprint, standing, readers, beside, record, owner };
    match execution.claim(&names).await {
        Ok(Claimed::Granted) => {
            parts.extensions.insert(execution.key.clone());
            Ok((Request::from_parts(parts, Body::from(body)), execution))
        }
        Ok(Claimed::Running(left)) => Err(Problem::idempotency_running(seconds(left)).into_response()),
        Ok(Claimed::Other) => Err(Problem::idempotency_other().into_response()),
        // Another client may have sent it: that it was carried out is all that is told.
        Ok(Claimed::Done(kept)) if standing.is_ambiguous() || !kept::is_for(&kept, &names.keys) => {
            Err(Problem::idempotency_carried_out().into_response())
        }
        Ok(Claimed::Done(kept)) => Err(execution.replay(kept).await),
        Err(error) => {
            let mut begun = execution.exchange.begun().await;
            Err(begun.refusal.insert(Refusal::from(&error)).error().into_response())
        }
    }
}

/// Under which names the request is found; decides its limits and reads its session.
async fn names(exchange: &Exchange, headers: &HeaderMap, key: &str) -> Result<Names, Error> {
    let policies = exchange.core.limits.policies();
    let bounded = policies.named(POLICY).map(|(number, _)| number);
    match bounded {
        Some(policy) if exchange.visitor.user().is_none() => exchange.limit(policy, None).await?,
        _ => exchange.decide().await?,
    }
    // A ticket has one id, and its session is made when the handler uses it.
    let stored = {
        let begun = exchange.begun().await;
        begun.stored().filter(|_| begun.ticket.is_none())
    };
    let session = match stored {
        Some(id) => Some(exchange.session(id).await?),
        None => None,
    };
    // A cookie whose session is no more names no user, but it is still the cookie that a request was sent with.
    let user = exchange.begun().await.user.map(|user| user.to_string());
    if let (Some(policy), None, Some(_)) = (bounded, &user, exchange.visitor.user()) {
        exchange.limit(policy, None).await?;
    }
    let client = exchange.client.subject(exchange.core.config.ipv6_prefix);
    let sender = Sender {
        user: user.as_deref(),
        authorization: headers.get(AUTHORIZATION).map(http::HeaderValue::as_bytes),
        session: exchange.visitor.digest(),
        lineage: session.as_ref().and_then(lineage),
        client: &client,
    };
    Ok(Namer { prefix: &exchange.core.prefix, key }.of(&sender))
}

/// The first hashed id of a session that was given another one since.
fn lineage(session: &SessionReply) -> Option<&str> {
    match session {
        SessionReply::Live { own: Some(own), .. } => own.lineage.as_deref(),
        _ => None,
    }
}

impl Execution {
    async fn claim(&mut self, names: &Names) -> Result<Claimed, redis::Error> {
        let redis = &self.exchange.core.redis;
        let (lifetime, fingerprint) = (self.lifetime(), self.fingerprint.as_str());
        if names.own > 0 {
            let names = claim::Names {
                keys: &names.keys,
                own: names.own,
                fingerprint,
                record: &names.record,
                lifetime: lifetime + NAMES_LONGER,
            };
            self.record = redis.record_of(&names).await?;
        }
        let (key, owner) = (&self.record, &self.owner);
        redis.claim(&Claim { key, fingerprint, owner, lease: LEASE, lifetime: lifetime.max(LEASE) }).await
    }

    /// How long the response is kept.
    fn lifetime(&self) -> Duration {
        let ttl = self.exchange.core.config.idempotency.ttl;
        if self.is_of_a_stranger() { ttl.min(STRANGER_KEPT_FOR) } else { ttl }
    }

    fn is_of_a_stranger(&self) -> bool {
        matches!(self.standing, Standing::Anonymous | Standing::Guessable)
    }

    /// Waits for the response and keeps the right to make it.
    pub(super) async fn hold(&self, response: impl Future<Output = Response>) -> Response {
        tokio::select! {
            response = response => response,
            never = self.renew() => match never {},
        }
    }

    async fn renew(&self) -> Infallible {
        loop {
            tokio::time::sleep(RENEW_EVERY).await;
            match self.exchange.core.redis.prolong(&self.record, &self.owner, LEASE).await {
                Ok(true) => {}
                Ok(false) => {
                    tracing::warn!("a request that was to be carried out once took longer than its lease")
                }
                Err(error) => tracing::debug!(%error, "a lease was not renewed: {error}"),
            }
        }
    }

    /// Keeps the response, or lets the request be carried out again.
    pub(super) async fn conclude(self, response: Response) -> Response {
        let is_kept = match self.key.verdict() {
            Verdict::Undecided => kept::is_final(response.status()),
            Verdict::Keep => true,
            Verdict::Release => false,
        };
        let (response, kept) = if is_kept {
            let change = self.change().await;
            let sealed = change.as_ref().and_then(|change| self.seal(change));
            let most = if self.is_of_a_stranger() { STRANGER_KEPT_MAX } else { KEPT_MAX };
            let afterwards = change.as_ref().and_then(|change| self.name_afterwards(change));
            let readers: Vec<String> = self.readers.iter().chain(&afterwards).cloned().collect();
            let (response, kept) = kept::copy(response, most, &readers, sealed.as_deref()).await;
            if let Some(name) = afterwards {
                self.find_under(name).await;
            }
            (response, self.keep(&kept).await)
        } else {
            (response, self.exchange.core.redis.forget(&self.record, &self.owner).await)
        };
        if let Err(error) = kept {
            tracing::warn!(%error, "the response of a request that was carried out once was not kept: {error}");
        }
        response
    }

    /// What the request did with its visitor's session.
    async fn change(&self) -> Option<Change> {
        let begun = self.exchange.begun().await;
        let before = self.exchange.visitor.id();
        let ticket = begun.ticket.filter(|_| begun.origin == Origin::Issued);
        // Without a ticket an id that was only issued is in no cookie.
        let current = begun.current.filter(|_| begun.origin != Origin::Issued || ticket.is_some());
        let now = match current {
            Some(id) if begun.current != before || begun.cookie_age.is_some() => {
                Now::Is { id, user: begun.user, age: begun.cookie_age, ticket }
            }
            None if before.is_some() && begun.origin == Origin::Deleted => Now::Ended,
            _ => return None,
        };
        Some(Change { before: self.exchange.visitor.digest().map(ToOwned::to_owned), now })
    }

    /// The name that the cookie gives with which the response comes.
    fn name_afterwards(&self, change: &Change) -> Option<String> {
        let session = match change.now {
            Now::Is { id, .. } => Some(crate::session::digest(id)),
            Now::Ended => None,
        };
        let namer = Namer { prefix: &self.exchange.core.prefix, key: self.key.key() };
        namer.afterwards(session.as_deref(), self.beside.as_deref())
    }

    /// From now on the request is found under this name, too.
    async fn find_under(&self, name: String) {
        let names = claim::Names {
            keys: &[name],
            own: 1,
            fingerprint: &self.fingerprint,
            record: &self.record,
            lifetime: self.lifetime() + NAMES_LONGER,
        };
        if let Err(error) = self.exchange.core.redis.record_of(&names).await {
            tracing::warn!(%error, "a request that was carried out once is not found with its new cookie: {error}");
        }
    }

    /// Keeps the response, and tries again for as long as no other worker may carry the request out: a response that
    /// is not kept is a request that is carried out twice.
    async fn keep(&self, kept: &Kept) -> Result<bool, redis::Error> {
        let until = Instant::now() + LEASE / 2;
        loop {
            match self.exchange.core.redis.keep(&self.record, &self.owner, self.lifetime(), kept).await {
                Err(_) if Instant::now() < until => tokio::time::sleep(KEEP_AGAIN).await,
                outcome => return outcome,
            }
        }
    }

    /// The first response once more, with the session that it made if this client may have it.
    async fn replay(&self, kept: Kept) -> Response {
        let change = kept::sealed(&kept).and_then(|sealed| self.open(sealed));
        if let Some(change) = change.filter(|change| change.is_for(self.exchange.visitor.digest())) {
            match change.now {
                Now::Is { id, user, age, ticket } => {
                    self.exchange.became(Some(id), user).await;
                    let mut begun = self.exchange.begun().await;
                    begun.cookie_age = age;
                    if ticket.is_some() {
                        // Nothing is stored for it, as at the first time.
                        (begun.ticket, begun.origin) = (ticket, Origin::Issued);
                    }
                }
                Now::Ended => self.exchange.became(None, None).await,
            }
        }
        // Whose response it is depends on the cookie.
        self.exchange.begun().await.looked = true;
        kept::replay(kept)
    }

    /// What is sealed is opened with the client's key and the record's name together: reading Redis is not enough.
    fn context(&self) -> String {
        format!("{} {}", self.record, self.key.key())
    }

    fn seal(&self, change: &Change) -> Option<String> {
        let keyring = self.exchange.core.keyring()?;
        keyring.seal(&self.context(), change.encode().as_bytes()).ok()
    }

    fn open(&self, sealed: &str) -> Option<Change> {
        let opened = self.exchange.core.keyring()?.open(&self.context(), sealed)?;
        Change::decode(std::str::from_utf8(&opened).ok()?)
    }
}

/// When to ask again, s: a live worker is done soon, and the lease, which it renews, tells only when a dead one's ends.
fn seconds(left: Duration) -> u64 {
    left.as_secs().clamp(1, 2)
}
