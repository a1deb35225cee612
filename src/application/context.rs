//! What a worker lends to its application while that is built.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

use crate::facade::rate_limit::{RateLimitLayer, UnknownPolicy};
use crate::http::FleetHandle;

/// What a worker gives its application; `S` is the section `[app]`, deserialised.
///
/// ```no_run
/// use axum::Router;
/// use axum::routing::get;
/// use regatta::{Context, Fleet};
///
/// #[derive(serde::Deserialize)]
/// struct Settings {
///     greeting: String,
/// }
///
/// async fn app(cx: Context<Settings>) -> Router {
///     let greeting = cx.settings().greeting.clone();
///     Router::new().route("/", get(move || async move { greeting }))
/// }
///
/// fn main() -> std::process::ExitCode {
///     Fleet::new(app).run()
/// }
/// ```
pub struct Context<S = NoSettings> {
    settings: Arc<S>,
    fleet: FleetHandle,
}

impl<S> Context<S> {
    pub(crate) fn new(settings: S, fleet: FleetHandle) -> Self {
        Self { settings: Arc::new(settings), fleet }
    }

    /// The program's own settings, as the configuration of this worker's generation has them.
    pub fn settings(&self) -> &S {
        &self.settings
    }

    /// This worker's share of its fleet; clones of it may be kept in the application's state.
    pub fn fleet(&self) -> &FleetHandle {
        &self.fleet
    }

    /// A layer that puts routes under the policy of this name in the configuration, decided in the request's one call
    /// with all others. A policy that is switched off gives a layer that does nothing.
    ///
    /// ```no_run
    /// use axum::Router;
    /// use axum::routing::post;
    /// use regatta::Context;
    /// use regatta::rate_limit::UnknownPolicy;
    ///
    /// # async fn login() {}
    /// async fn app(cx: Context) -> Result<Router, UnknownPolicy> {
    ///     // [limits.login]: rate = "20/min", routes = "layer"
    ///     Ok(Router::new().route("/login", post(login).layer(cx.rate_limit("login")?.cost(5))))
    /// }
    /// ```
    ///
    /// # Errors
    /// [`UnknownPolicy`] names the policies that there are.
    pub fn rate_limit(&self, policy: &str) -> Result<RateLimitLayer, UnknownPolicy> {
        self.fleet.rate_limit(policy)
    }
}

impl<S> Clone for Context<S> {
    fn clone(&self) -> Self {
        Self { settings: Arc::clone(&self.settings), fleet: self.fleet.clone() }
    }
}

/// Without the settings, which may hold secrets.
impl<S> fmt::Debug for Context<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("fleet", &self.fleet).finish_non_exhaustive()
    }
}

/// The settings of a program without `[app]`; a name in that section is a mistake then.
///
/// ```
/// use regatta::{Context, NoSettings};
///
/// /// The same as `_: Context`.
/// async fn app(_: Context<NoSettings>) -> axum::Router {
///     axum::Router::new()
/// }
/// # let _ = app;
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NoSettings;

impl<'de> Deserialize<'de> for NoSettings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let section = Option::<BTreeMap<String, IgnoredAny>>::deserialize(deserializer)?;
        match section.and_then(|settings| settings.into_keys().next()) {
            None => Ok(Self),
            Some(name) => Err(serde::de::Error::custom(format_args!(
                "there is no setting app.{name}: this program has no settings of its own"
            ))),
        }
    }
}
