//! The request's view: counted at most once, in the visitor's session or provisional cookie and in the total, or not at all.

use crate::config::settings::SessionCreation;
use crate::http::error::{RedisFailure, RequestError, StateError};
use crate::http::request_state::cookie_identity::CookieIdentity;
use crate::http::request_state::state::{
    BeginFailure, CountedView, RequestState, RequestStateInner, SessionFreshness, SessionOrigin,
};
use crate::redis::begin::{SessionAccess, SessionLookup};
use crate::sessions::cookie_value::ProvisionalCookie;

impl RequestState {
    /// Counts a view in the visitor's session and in the total. A visitor without one gets a provisional cookie, in
    /// which it is counted; the session is created when that cookie comes back.
    pub(crate) async fn count_view(&self) -> Result<CountedView, RequestError> {
        let mut inner = self.lock_unless_failed().await?;
        let counted = self.count_view_locked(&mut inner).await;
        counted.map_err(|failure| inner.record_failure(failure))
    }

    /// As [`RequestState::count_view`]; `None`: Redis cannot count, so there is no number, and the request goes on with what is
    /// known of its session. Only for safe methods: what others do belongs to a view that was counted.
    pub(crate) async fn count_view_if_possible(&self) -> Result<Option<CountedView>, RequestError> {
        if !self.is_safe_method {
            return self.count_view().await.map(Some);
        }
        let mut inner = self.inner.lock().await;
        if self.visitor == CookieIdentity::TooManyCookies {
            inner.failure.get_or_insert(StateError::TooManyCookies);
        }
        if let Some(refusal) = &inner.failure {
            return Err(refusal.to_request_error());
        }
        let counted = match self.visitor {
            // Without keys the visitor is unknown; limits hold all the same.
            CookieIdentity::Unverifiable => self.send_begin(&mut inner, None, &[]).await.map(|_| None),
            _ => self.count_view_locked(&mut inner).await.map(Some),
        };
        match counted {
            Ok(Some(view)) => Ok(Some(view)),
            Ok(None) => {
                inner.freshness = Some(SessionFreshness::Unknown);
                Ok(None)
            }
            Err(BeginFailure::RedisUnavailable(error)) => {
                Box::pin(self.record_uncounted_view(&mut inner, &error)).await;
                Ok(None)
            }
            Err(failure) => Err(inner.record_failure(failure)),
        }
    }

    async fn count_view_locked(&self, inner: &mut RequestStateInner) -> Result<CountedView, BeginFailure> {
        if let Some(view) = inner.counted_view {
            return Ok(view);
        }
        let counters = &self.services.view_increment;
        let (mut total, mut views) = (None, None);
        if let Some(id) = inner.stored_session_id() {
            let arg = self.session_query(inner, id, SessionAccess::CountView, !self.creates_no_session);
            let (reply, sums) = self.send_begin(inner, Some(&arg), counters).await?;
            total = sums.first().copied();
            views = match reply {
                SessionLookup::Found { views, .. } => Some(views),
                // As for any other visitor without a session: the first.
                SessionLookup::Rotated => Some(1),
                // The first, be it the provisional cookie's own: this request creates nothing, and does not count.
                SessionLookup::Provisional => Some(1),
                _ => None,
            };
            self.record_lookup(inner, id, reply).await;
        }
        let unknown =
            || BeginFailure::HandlerOnly(RedisFailure::unavailable("nothing is known of the session").into());
        // Nothing is stored for a first view: it is counted in the provisional cookie.
        let new = views.is_none();
        if new {
            if total.is_none() {
                total = self.send_begin(inner, None, counters).await?.1.first().copied();
            }
            if inner.current_session_id.is_none()
                && self.services.sessions.creation == SessionCreation::Return
            {
                self.issue_provisional(inner).await?;
            }
        }
        let view = CountedView { views: views.unwrap_or(1), total: total.ok_or_else(unknown)?, is_new: new };
        self.services.worker.cell().count_view();
        // What was read before, while Redis was away, is read anew with the view.
        inner.freshness = None;
        inner.counted_view = Some(view);
        if new && inner.origin == SessionOrigin::Issued {
            // Issued a moment ago, or before, for something else than a view.
            inner.provisional =
                inner.provisional.map(|provisional| ProvisionalCookie { viewed: true, ..provisional });
        }
        Ok(view)
    }
}
