//! Changes of single fields that no concurrent request can undo: additions, and compare-and-set.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tower_sessions::session::Id;

use crate::redis::commit;
use crate::redis::keys;
use crate::session::BYTES_MAX;
use crate::session::Error;
use crate::session::FIELDS_MAX;
use crate::session::fields::Delta;
use crate::session::fields::Field;
use crate::session::store::RequestStore;
use crate::session::store::Source;
use crate::session::store::committed;

/// How often a change is tried again when another request was faster.
const RETRIES: usize = 3;

impl<S: Source> RequestStore<S> {
    /// A field's value as it was when the request began, or as this request changed it since.
    ///
    /// # Errors
    /// `Gone`, `Rotated`; `Form` if it holds something else; what kept it from being read.
    pub async fn value<T: DeserializeOwned>(&self, id: Id, name: &str) -> Result<Option<T>, Error> {
        let known = self.known(id).await?;
        parse(known.fields.get(name))
    }

    /// Adds to a field, which begins at 0, and returns the sum. The field is stored as it is, never encrypted.
    ///
    /// # Errors
    /// `NoSum` if it holds something else or the sum does not fit; `Gone`, `Rotated`, `TooLarge`, `Redis`.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was added.
    pub async fn add(&self, id: Id, name: &str, by: i64) -> Result<i64, Error> {
        self.known(id).await?.takes_data()?;
        let key = keys::session(&self.setup.prefix, &crate::session::digest(id));
        let request = commit::Request {
            key: &key,
            add: &[(name.to_owned(), by)],
            max_fields: FIELDS_MAX,
            max_bytes: BYTES_MAX as u64,
            ..commit::Request::default()
        };
        let sums = committed(self.redis.commit(&request).await?)?;
        let sum = sums.first().copied().ok_or(Error::NoSum)?;
        let mut state = self.state();
        if let Some(known) = state.known.as_mut().filter(|known| known.id == id) {
            let text = Bytes::from(sum.to_string());
            known.fields.insert(name.to_owned(), Field { stored: text.clone(), text: Some(text) });
        }
        Ok(sum)
    }

    /// Changes a field to what `change` makes of it; `change` is called again when another request was faster.
    ///
    /// # Errors
    /// `Conflict` if others were faster four times in a row; `Form`, `Gone`, `Rotated`, `TooLarge`, `Redis`.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was changed.
    pub async fn update<T: DeserializeOwned + Serialize>(
        &self,
        id: Id,
        name: &str,
        mut change: impl FnMut(Option<T>) -> T,
    ) -> Result<T, Error> {
        let certain = [name.to_owned()];
        let mut known = self.known(id).await?;
        for attempt in 0..=RETRIES {
            let value = change(parse(known.fields.get(name))?);
            let text = serde_json::to_vec(&value).map_err(|_| Error::Form)?;
            let set = self.seal(&known.digest, vec![(name.to_owned(), text.into())])?;
            let delta = Delta { set, remove: Vec::new() };
            match self.store(known, &delta, &certain).await {
                Ok(_) => return Ok(value),
                Err(Error::Conflict) if attempt < RETRIES => known = self.read_again(id).await?,
                Err(error) => return Err(error),
            }
        }
        Err(Error::Conflict)
    }
}

/// A field that nobody can read counts as absent.
fn parse<T: DeserializeOwned>(field: Option<&Field>) -> Result<Option<T>, Error> {
    let Some(text) = field.and_then(|field| field.text.as_ref()) else { return Ok(None) };
    match serde_json::from_slice::<serde::de::IgnoredAny>(text) {
        Ok(_) => serde_json::from_slice(text).map(Some).map_err(|_| Error::Form),
        Err(_) => Ok(None),
    }
}
