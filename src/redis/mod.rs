//! The shared state: one connection a worker, one round trip a request, every failure a defined error.
//!
//! The only room that knows the client library, key names and server-side code. Everything above it sees plain data.

pub mod begin;
pub mod commit;
mod error;
pub mod keys;

pub use error::Error;
pub use error::Refusal;

use crate::config::schema;
use crate::config::schema::RedisUrl;

/// Whether Redis can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// The first attempt has not ended yet.
    Connecting,
    /// Connected, and our code is there.
    Up,
    /// Not usable; attempts go on for ever.
    Down {
        /// Why, in one short sentence without any password.
        reason: String,
    },
}

/// A worker's connection to the shared state; cheap to clone.
#[derive(Debug, Clone)]
pub struct Redis {}

impl Redis {
    /// Prepares a connection; no I/O, no runtime needed.
    ///
    /// # Errors
    /// When the URL cannot be used.
    pub fn new(settings: &schema::Redis, url: &RedisUrl, name: &str) -> Result<Self, Error> {
        let _ = (settings, url, name);
        Ok(Self {})
    }

    /// Connects in the background, for ever; to be called once, within a tokio runtime.
    pub fn start(&self) {}

    /// Returns once the first attempt has ended, either way.
    pub async fn first_attempt(&self) -> Health {
        self.health()
    }

    /// Whether Redis can be used at this moment.
    pub fn health(&self) -> Health {
        Health::Connecting
    }

    /// Does everything a request needs at its start.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn begin(&self, request: &begin::Request<'_>) -> Result<begin::Reply, Error> {
        let _ = request;
        Err(Error::unavailable("not connected"))
    }

    /// Stores what a request changed in its session.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn commit(&self, request: &commit::Request<'_>) -> Result<commit::Reply, Error> {
        let _ = request;
        Err(Error::unavailable("not connected"))
    }

    /// Deletes one key.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete(&self, key: &str) -> Result<(), Error> {
        let _ = key;
        Err(Error::unavailable("not connected"))
    }

    /// Adds to the number under this key and returns the sum; 0 only reads.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn count(&self, key: &str, by: i64) -> Result<i64, Error> {
        let _ = (key, by);
        Err(Error::unavailable("not connected"))
    }

    /// The fleet's signing key that is kept in Redis, once it is known.
    pub fn generated_secret(&self) -> Option<Vec<u8>> {
        None
    }
}
