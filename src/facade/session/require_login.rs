//! Turns away clients that are not logged in.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::response::{IntoResponse, Redirect, Response};
use http::Request;
use tower::{Layer, Service};

use crate::facade::session::auth_session::AuthSession;
use crate::facade::session::error::Error;

/// Turns away clients that are not logged in, before their request reaches its handler.
///
/// Costs what [`AuthSession`] costs, and handlers that name it as well pay nothing more.
///
/// ```
/// use axum::Router;
/// use axum::routing::get;
/// use regatta::session::RequireLogin;
///
/// # async fn page() {}
/// # async fn data() {}
/// let pages: Router = Router::new().route("/me", get(page)).layer(RequireLogin::redirect_to("/login"));
/// let api: Router = Router::new().route("/api/me", get(data)).layer(RequireLogin::new());
/// let app = pages.merge(api);
/// # let _ = app;
/// ```
#[derive(Debug, Clone, Default)]
pub struct RequireLogin {
    login_path: Option<Arc<str>>,
}

impl RequireLogin {
    /// Answers 401.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sends the client to this path instead, 303.
    #[must_use]
    pub fn redirect_to(path: impl Into<String>) -> Self {
        Self { login_path: Some(Arc::from(path.into())) }
    }
}

impl<S> Layer<S> for RequireLogin {
    type Service = RequireLoginService<S>;

    fn layer(&self, inner: S) -> RequireLoginService<S> {
        RequireLoginService { inner, login_path: self.login_path.clone() }
    }
}

/// A service that only clients who are logged in reach, see [`RequireLogin`].
#[derive(Debug, Clone)]
pub struct RequireLoginService<S> {
    inner: S,
    login_path: Option<Arc<str>>,
}

impl<S> Service<Request<Body>> for RequireLoginService<S>
where
    S: Service<Request<Body>> + Clone + Send + 'static,
    S::Response: IntoResponse,
    S::Future: Send,
{
    type Response = Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The one that is ready goes along; its clone waits for the next request.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let login_path = self.login_path.clone();
        Box::pin(async move {
            let (mut parts, body) = request.into_parts();
            match AuthSession::from_request_parts(&mut parts, &()).await {
                Ok(session) if session.user_id().is_some() => {
                    inner.call(Request::from_parts(parts, body)).await.map(IntoResponse::into_response)
                }
                Ok(_) => Ok(match login_path {
                    Some(path) => Redirect::to(&path).into_response(),
                    None => Error::NotLoggedIn.into_response(),
                }),
                Err(error) => Ok(error.into_response()),
            }
        })
    }
}
