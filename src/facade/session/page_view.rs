//! A counted view.

use axum::extract::{FromRequestParts, OptionalFromRequestParts};
use http::request::Parts;

use crate::facade::error::Error;
use crate::http::request_scope::RequestScope;
use crate::http::request_state::CountedView;

/// This request as a view of its visitor: naming it counts one, exactly, in the visitor's session and in the total.
///
/// A visitor without a session gets one. Limits, session, view and total are one round trip. While Redis is away, or
/// takes no writes, nothing can be counted, and no older number stands in: the request is answered 503.
///
/// A page that has more to show than a number names `Option<PageView>`. For GET and HEAD it is then `None` while nothing
/// can be counted; limits hold as far as workers decide them alone, and the header `Session-State` tells how fresh the
/// session is: `stale`, `read-only` or `unknown`.
///
/// ```
/// use regatta::session::PageView;
///
/// async fn page(view: Option<PageView>) -> String {
///     match view {
///         Some(view) if view.is_new() => format!("welcome, with page view number {}", view.total()),
///         Some(view) => format!("your page view number {}", view.count()),
///         None => "views are not counted at the moment".to_owned(),
///     }
/// }
/// # let _: axum::Router = axum::Router::new().route("/", axum::routing::get(page));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageView(CountedView);

impl PageView {
    /// Views of this visitor, this one included.
    pub fn count(&self) -> u64 {
        self.0.views
    }

    /// Views of all visitors of all fleets that share this state, this one included.
    pub fn total(&self) -> i64 {
        self.0.total
    }

    /// Whether the visitor had no session before this view.
    pub fn is_new(&self) -> bool {
        self.0.is_new
    }
}

impl<S: Sync> FromRequestParts<S> for PageView {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Error> {
        Ok(Self(RequestScope::with_sessions(parts)?.state().count_view().await?))
    }
}

impl<S: Sync> OptionalFromRequestParts<S> for PageView {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Option<Self>, Error> {
        Ok(RequestScope::with_sessions(parts)?.state().count_view_if_possible().await?.map(Self))
    }
}
