//! Single fields of the session, changed in a way that no concurrent request can undo.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use http::request::Parts;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tower_sessions::session::Id;

use crate::facade::error::Error as AnyError;
use crate::facade::session::error::Error;
use crate::http::error::RequestError;
use crate::http::request_scope::RequestScope;
use crate::http::request_state::RequestState;
use crate::http::request_state::session_store::RequestSessionStore;

/// Fields of the visitor's session, the same that tower-sessions' `Session` has, changed at once and one by one.
///
/// In one request with `Session`: what this changes is stored when its method returns; what `Session` changes is
/// stored after the handler, only the fields it changed, over whatever is there then. So do not change one field
/// through both. What `Session` inserted is not seen here until it was saved, and a `Session` that was read before does
/// not see what was changed here since.
///
/// ```
/// use regatta::session::{Error, SessionFields};
///
/// /// Twenty clicks at once are twenty items.
/// async fn add(fields: SessionFields) -> Result<String, Error> {
///     Ok(format!("{} in the cart\n", fields.incr("items", 1).await?))
/// }
///
/// async fn push(fields: SessionFields, item: String) -> Result<String, Error> {
///     let list = fields.update("list", |list: Option<Vec<String>>| {
///         let mut list = list.unwrap_or_default();
///         list.push(item.clone());
///         list
///     });
///     Ok(list.await?.join(", "))
/// }
/// # let _: axum::Router = axum::Router::new()
/// #     .route("/add", axum::routing::post(add)).route("/push", axum::routing::post(push));
/// ```
#[derive(Debug, Clone)]
pub struct SessionFields {
    state: Arc<RequestState>,
    store: Arc<RequestSessionStore>,
}

impl SessionFields {
    /// A field's value; `None` if there is none, or no session.
    ///
    /// # Errors
    /// [`Error::Field`] if it holds something else, [`Error::Denied`], [`Error::Redis`].
    pub async fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Error> {
        match self.state.load_current_session().await {
            Ok(Some(id)) => {
                let session = self.store.loaded(id).await.map_err(RequestError::from)?;
                session.value(name).map_err(|error| Error::for_field(name, error))
            }
            Ok(None) | Err(RequestError::SessionGone) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Adds to a field, which begins at 0, and returns the sum: exact, however many requests add at once.
    ///
    /// Such a field is stored as it is, never encrypted; use it for nothing else.
    ///
    /// # Errors
    /// [`Error::Field`] if it is no integer or the sum does not fit, [`Error::TooLarge`],
    /// [`Error::Gone`], [`Error::Denied`]; [`Error::Redis`], after which it may have been added.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was added.
    pub async fn incr(&self, name: &str, by: i64) -> Result<i64, Error> {
        let Some(id) = self.ensure_session().await? else { return Ok(by) };
        let known = self.store.loaded(id).await.map_err(RequestError::from)?;
        let sum = self.store.session.add(&known, name, by).await;
        self.state.invalidate_cached(id);
        sum.map_err(|error| Error::for_field(name, error))
    }

    /// Changes a field to what `change` makes of its value, and returns that.
    ///
    /// Nothing is lost: if another request was faster, `change` is called again with the new value, up to three times.
    ///
    /// # Errors
    /// [`Error::Conflict`] if others were faster each time; otherwise as [`SessionFields::incr`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was changed.
    pub async fn update<T: DeserializeOwned + Serialize>(
        &self,
        name: &str,
        mut change: impl FnMut(Option<T>) -> T,
    ) -> Result<T, Error> {
        let Some(id) = self.ensure_session().await? else { return Ok(change(None)) };
        let known = self.store.loaded(id).await.map_err(RequestError::from)?;
        let value = self.store.session.update(known, name, change).await;
        self.state.invalidate_cached(id);
        value.map_err(|error| Error::for_field(name, error))
    }

    /// The visitor's session, which is made if there is none; a HEAD or OPTIONS request makes none, and nothing of it is
    /// stored then.
    async fn ensure_session(&self) -> Result<Option<Id>, Error> {
        if let Some(id) = self.state.load_current_session().await? {
            return Ok(Some(id));
        }
        if self.state.creates_no_session {
            return Ok(None);
        }
        let id = self.store.create_empty().await.map_err(RequestError::from)?;
        self.state.set_current_session(Some(id), None).await;
        Ok(Some(id))
    }
}

impl<S: Sync> FromRequestParts<S> for SessionFields {
    type Rejection = AnyError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, AnyError> {
        let store = Arc::clone(&RequestScope::from_parts(parts)?.store);
        let state = Arc::clone(&store.state);
        state.lock().await.session_accessed = true;
        Ok(Self { state, store })
    }
}
