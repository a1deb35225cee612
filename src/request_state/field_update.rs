//! Changes of single fields that no concurrent request can undo: additions, and compare-and-set.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::request_state::tracked_session::{LoadedSession, TrackedSession, into_sums};
use crate::sessions::fields::{FieldChanges, SessionField};
use crate::sessions::{SESSION_BYTES_MAX, SESSION_FIELDS_MAX, SessionError, commit, keys};

/// How often a change is tried again when another request was faster.
const CONFLICT_RETRIES: usize = 3;

impl LoadedSession {
    /// A field's value as it was when the request began, or as this request changed it since.
    ///
    /// # Errors
    /// `InvalidField` if it holds something else.
    pub fn value<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, SessionError> {
        parse(self.fields.get(name))
    }
}

impl TrackedSession {
    /// Adds to a field, which begins at 0, and returns the sum. The field is stored as it is, never encrypted.
    ///
    /// # Errors
    /// `NotANumber` if it holds something else or the sum does not fit; `Gone`, `Rotated`, `TooLarge`, `Redis`.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was added.
    pub async fn add(&self, known: &LoadedSession, name: &str, by: i64) -> Result<i64, SessionError> {
        known.check_accepts_data()?;
        let key = keys::session(&self.settings.prefix, &known.digest);
        let request = commit::CommitSession {
            key: &key,
            add: &[(name.to_owned(), by)],
            max_fields: SESSION_FIELDS_MAX,
            max_bytes: SESSION_BYTES_MAX as u64,
            ..commit::CommitSession::default()
        };
        let sums = into_sums(self.redis.commit(&request).await?)?;
        let sum = sums.first().copied().ok_or(SessionError::NotANumber)?;
        let mut state = self.lock_history();
        if let Some(known) = state.loaded.as_mut().filter(|loaded| loaded.id == known.id) {
            let text = Bytes::from(sum.to_string());
            known.fields.insert(name.to_owned(), SessionField { stored: text.clone(), text: Some(text) });
        }
        Ok(sum)
    }

    /// Changes a field to what `change` makes of it; `change` is called again when another request was faster.
    ///
    /// # Errors
    /// `Conflict` if others were faster four times in a row; `InvalidField`, `Gone`, `Rotated`, `TooLarge`, `Redis`.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was changed.
    pub async fn update<T: DeserializeOwned + Serialize>(
        &self,
        known: LoadedSession,
        name: &str,
        mut change: impl FnMut(Option<T>) -> T,
    ) -> Result<T, SessionError> {
        let certain = [name.to_owned()];
        let (id, mut known) = (known.id, known);
        for attempt in 0..=CONFLICT_RETRIES {
            let value = change(parse(known.fields.get(name))?);
            let text = serde_json::to_vec(&value).map_err(|_| SessionError::InvalidField)?;
            let set = self.encrypt_fields(&known.digest, vec![(name.to_owned(), text.into())])?;
            let delta = FieldChanges { set, remove: Vec::new() };
            match self.commit_fields(known, &delta, &certain).await {
                Ok(_) => return Ok(value),
                Err(SessionError::Conflict) if attempt < CONFLICT_RETRIES => known = self.reload(id).await?,
                Err(error) => return Err(error),
            }
        }
        Err(SessionError::Conflict)
    }
}

/// A field that cannot be read counts as absent.
fn parse<T: DeserializeOwned>(field: Option<&SessionField>) -> Result<Option<T>, SessionError> {
    let Some(text) = field.and_then(|field| field.text.as_ref()) else { return Ok(None) };
    match serde_json::from_slice::<serde::de::IgnoredAny>(text) {
        Ok(_) => serde_json::from_slice(text).map(Some).map_err(|_| SessionError::InvalidField),
        Err(_) => Ok(None),
    }
}
