//! Sessions around any axum router.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::response::Response;
use http::{Extensions, Request};
use tower::{Layer, Service};
use tower_sessions::Session;
use tower_sessions::cookie::SameSite;

use crate::config::settings::{CookieSecurity, Secret, SessionConfig};
use crate::facade::session::error::Error;
use crate::http::request_scope::RequestScope;
use crate::http::response;
use crate::http::services::WorkerServices;
use crate::http::standalone::redis::Redis;
use crate::sessions::LIFETIME_MAX;
use crate::sessions::cookie::CookieAttributes;
use crate::sessions::services::SessionServices;

/// Shortest life of a session.
const LIFETIME_MIN: Duration = Duration::from_secs(1);

/// A cookie and a store of sessions for any axum router; its names are those of tower-sessions' `SessionManagerLayer`.
///
/// Handlers below it name `Session`, `SessionFields`, `AuthSession`, `PageView`. It goes outside of the limits and of all else
/// that needs the session, which means that it is added after them: then limits and session are one round trip. Inside of a
/// limit that is decided before the handler it costs one more. A request that uses no state costs none. Without signing keys one is generated and kept in Redis: until Redis was reached for the first
/// time, requests that use state are answered 503.
///
/// The cookie is `HttpOnly`, and secure where a trusted proxy says that the client came over TLS
/// ([`SessionLayer::with_secure`] where TLS ends in the program). The session is stored when the handler has returned its
/// response, unless that is an error of the server.
///
/// *Inside a fleet*, whose requests have the sessions of its configuration, it does nothing.
///
/// ```no_run
/// use std::time::Duration;
/// use axum::{Router, routing::post};
/// use regatta::Redis;
/// use regatta::session::{SessionFields, SessionLayer};
///
/// async fn add(fields: SessionFields) -> Result<String, regatta::session::Error> {
///     Ok(format!("{} in the cart\n", fields.incr("items", 1).await?))
/// }
///
/// # fn app(redis: Redis) -> Router {
/// let sessions = SessionLayer::new(&redis).with_name("sid").with_idle_timeout(Duration::from_secs(3600));
/// Router::new().route("/cart", post(add)).layer(sessions)
/// # }
/// ```
///
/// With keys of its own, a cookie for every host of a domain, and all else that can be said:
///
/// ```no_run
/// use std::time::Duration;
///
/// use regatta::Redis;
/// use regatta::session::{Error, SameSite, SessionLayer};
///
/// fn sessions(redis: &Redis, signing: &[[u8; 32]], encryption: &[[u8; 32]]) -> Result<SessionLayer, Error> {
///     let layer = SessionLayer::new(redis)
///         .with_signing_keys(signing)?
///         .with_encryption_keys(encryption)?
///         .with_secure(true)
///         .with_same_site(SameSite::Strict)
///         .with_domain("example.org")
///         .with_path("/shop")
///         .with_absolute_timeout(Duration::from_secs(7 * 24 * 3600))
///         .with_max_per_user(5)
///         .with_strict_fields(["balance"]);
///     Ok(layer)
/// }
/// # let _ = sessions;
/// ```
#[derive(Clone)]
pub struct SessionLayer {
    redis: Redis,
    config: SessionConfig,
    attributes: CookieAttributes,
    /// What its requests share, made with the first route and shared by all of them.
    services: Arc<OnceLock<Arc<WorkerServices>>>,
}

impl fmt::Debug for SessionLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionLayer")
            .field("name", &self.config.cookie)
            .field("redis", &self.redis)
            .finish_non_exhaustive()
    }
}

impl SessionLayer {
    /// Sessions with the defaults of the configuration: the cookie `sid`, a day without use, 30 days in all.
    pub fn new(redis: &Redis) -> Self {
        Self {
            redis: redis.clone(),
            config: redis.services().session_config.clone(),
            attributes: CookieAttributes::default(),
            services: Arc::default(),
        }
    }

    fn with_config(mut self, change: impl FnOnce(&mut SessionConfig)) -> Self {
        change(&mut self.config);
        Self { services: Arc::default(), ..self }
    }

    fn with_attributes(mut self, change: impl FnOnce(&mut CookieAttributes)) -> Self {
        change(&mut self.attributes);
        Self { services: Arc::default(), ..self }
    }

    /// The cookie's name. A secure one is sent as `__Host-NAME`, or with a domain or a path as `__Secure-NAME`.
    ///
    /// Other characters than letters, digits, `-` and `_` are left out; a name of which nothing is left changes nothing.
    #[must_use]
    pub fn with_name(self, name: impl Into<String>) -> Self {
        let name = cookie_text(&name.into(), |c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
        if name.is_empty() { self } else { self.with_config(|config| config.cookie = name) }
    }

    /// Whether the cookie is sent over TLS only; unless it is said, as a trusted proxy reports of each request.
    #[must_use]
    pub fn with_secure(self, secure: bool) -> Self {
        let secure = if secure { CookieSecurity::Always } else { CookieSecurity::Never };
        self.with_config(|config| config.secure = secure)
    }

    /// With which requests of other sites the cookie is sent; `Lax` unless it is said.
    #[must_use]
    pub fn with_same_site(self, same_site: SameSite) -> Self {
        let same_site = match same_site {
            SameSite::Strict => "Strict",
            SameSite::Lax => "Lax",
            SameSite::None => "None",
        };
        self.with_attributes(|attributes| attributes.same_site = same_site)
    }

    /// Sends the cookie to this domain and every host below it.
    #[must_use]
    pub fn with_domain(self, domain: impl Into<String>) -> Self {
        let domain = cookie_text(&domain.into(), |c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'));
        self.with_attributes(|attributes| attributes.domain = Some(domain))
    }

    /// Sends the cookie to this path and what lies below it; `/` unless it is said.
    #[must_use]
    pub fn with_path(self, path: impl Into<String>) -> Self {
        let path = cookie_text(&path.into(), |c| c.is_ascii_graphic() && !matches!(c, ';' | ','));
        self.with_attributes(|attributes| attributes.path = path)
    }

    /// A session that is not used for so long is gone: from a second to 400 days, and what is beyond is taken for the nearest.
    #[must_use]
    pub fn with_idle_timeout(self, time: Duration) -> Self {
        self.with_config(|config| config.idle = lifetime(time))
    }

    /// Any session is gone after this: from a second to 400 days, and what is beyond is taken for the nearest.
    #[must_use]
    pub fn with_absolute_timeout(self, time: Duration) -> Self {
        self.with_config(|config| config.absolute = lifetime(time))
    }

    /// Keys that sign the cookie: the first signs, all verify, so that keys can be replaced without ending sessions.
    ///
    /// # Errors
    /// When a key has fewer than 32 bytes.
    pub fn with_signing_keys<K: AsRef<[u8]>>(self, keys: impl IntoIterator<Item = K>) -> Result<Self, Error> {
        let keys = secrets(keys)?;
        Ok(self.with_config(|config| config.secrets = keys))
    }

    /// Keys that encrypt fields at rest: the first encrypts, all decrypt.
    ///
    /// # Errors
    /// When a key has fewer than 32 bytes.
    pub fn with_encryption_keys<K: AsRef<[u8]>>(
        self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<Self, Error> {
        let keys = secrets(keys)?;
        Ok(self.with_config(|config| config.encryption_keys = keys))
    }

    /// Sessions that one user may have, 1,000 at most: a login beyond that ends the one that would end first.
    #[must_use]
    pub fn with_max_per_user(self, sessions: usize) -> Self {
        self.with_config(|config| config.max_per_user = u64::try_from(sessions).unwrap_or(u64::MAX))
    }

    /// Fields of which no change is ever lost: of two concurrent ones the second is answered 409.
    #[must_use]
    pub fn with_strict_fields<N: Into<String>>(self, names: impl IntoIterator<Item = N>) -> Self {
        let names = names.into_iter().map(Into::into).collect();
        self.with_config(|config| config.strict_fields = names)
    }

    fn services(&self) -> &Arc<WorkerServices> {
        self.services.get_or_init(|| {
            let base = self.redis.services();
            let state = &base.state;
            let sessions = SessionServices::new(
                &self.config,
                self.attributes.clone(),
                &state.prefix,
                &state.redis,
                // Nothing outside a fleet reports how many sessions are active.
                false,
            );
            Arc::new(base.with_state(state.with_sessions(sessions)))
        })
    }
}

/// A lifetime that Redis and browsers can keep.
fn lifetime(time: Duration) -> Duration {
    time.clamp(LIFETIME_MIN, LIFETIME_MAX)
}

/// What may stand in a cookie's attribute, without what would end it.
fn cookie_text(text: &str, allowed: impl Fn(char) -> bool) -> String {
    text.chars().filter(|c| allowed(*c)).collect()
}

fn secrets<K: AsRef<[u8]>>(keys: impl IntoIterator<Item = K>) -> Result<Vec<Secret>, Error> {
    let secret = |key: K| Secret::from_bytes(key.as_ref()).map_err(|_| Error::InvalidKey);
    keys.into_iter().map(secret).collect()
}

impl<S> Layer<S> for SessionLayer {
    type Service = SessionService<S>;

    fn layer(&self, inner: S) -> SessionService<S> {
        SessionService { inner, services: Arc::clone(self.services()) }
    }
}

/// A service whose requests have sessions, see [`SessionLayer`].
#[derive(Debug, Clone)]
pub struct SessionService<S> {
    inner: S,
    services: Arc<WorkerServices>,
}

/// Whether the request has sessions already: of its fleet, or of a session layer outside of this one.
fn has_sessions(extensions: &Extensions) -> bool {
    RequestScope::find(extensions).is_some_and(|scope| scope.services.state.has_sessions)
}

impl<S, B> Service<Request<B>> for SessionService<S>
where
    S: Service<Request<B>, Response = Response> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
{
    type Response = Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let next = self.inner.clone();
        // The clone may not be ready yet; the one that was polled is.
        let mut inner = std::mem::replace(&mut self.inner, next);
        if has_sessions(request.extensions()) {
            return Box::pin(inner.call(request));
        }
        let services = Arc::clone(&self.services);
        Box::pin(async move {
            let (mut parts, body) = request.into_parts();
            let scope = RequestScope::begin(&services, &parts);
            if let Some(outer) = RequestScope::find(&parts.extensions) {
                scope.state().take_over_limits(outer.state()).await;
            }
            let (state, store) = (Arc::clone(scope.state()), Arc::clone(&scope.store));
            let session = Session::new(state.visitor.id(), Arc::clone(&store), None);
            parts.extensions.insert(session.clone());
            scope.insert_into(&mut parts);
            let response = inner.call(Request::from_parts(parts, body)).await?;
            Ok(response::finalize(response, &state, Some((&session, &store))).await)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer() -> SessionLayer {
        SessionLayer::new(&Redis::connect_lazy("redis://127.0.0.1:1").unwrap())
    }

    #[test]
    fn a_short_key_is_refused() {
        assert!(layer().with_signing_keys(["short"]).is_err());
        assert!(layer().with_encryption_keys([[1_u8; 31]]).is_err());
        assert!(layer().with_signing_keys([[1_u8; 32], [2; 32]]).is_ok());
    }

    #[test]
    fn nothing_can_be_smuggled_into_the_cookie() {
        let layer = layer().with_name("s; id").with_path("/shop; Secure").with_domain("example.org\r\n");
        let services = Arc::clone(layer.services());
        let sessions = &services.state.sessions;
        assert_eq!(sessions.cookie_names.get(true), "__Secure-sid");
        assert_eq!(sessions.cookie_attributes.path, "/shopSecure");
        assert_eq!(sessions.cookie_attributes.domain.as_deref(), Some("example.org"));
    }

    #[test]
    fn what_is_out_of_bounds_is_taken_for_the_nearest() {
        let lives = |time| {
            let layer = layer().with_idle_timeout(time).with_absolute_timeout(time);
            (layer.config.idle, layer.config.absolute)
        };
        assert_eq!(lives(Duration::ZERO), (LIFETIME_MIN, LIFETIME_MIN));
        assert_eq!(lives(Duration::MAX), (LIFETIME_MAX, LIFETIME_MAX));
        assert_eq!(layer().with_name("; ").config.cookie, layer().config.cookie);
    }

    #[test]
    fn routes_share_what_their_sessions_need() {
        let layer = layer();
        let [one, other] = [layer.layer(()), layer.clone().layer(())];
        assert!(Arc::ptr_eq(&one.services, &other.services));
        assert!(!Arc::ptr_eq(&one.services, &layer.with_name("id").layer(()).services));
    }
}
