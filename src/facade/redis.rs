//! How a program connects to the shared state by itself.

use crate::facade::redis_error::RedisError;
use crate::http::standalone::{Redis, RedisBuilder};

impl Redis {
    /// Connects, applies pending migrations, and returns once the connection can be used.
    ///
    /// It is kept from then on: after an outage nothing has to be done.
    ///
    /// # Errors
    /// Why the URL cannot be used ([`InvalidSetting`](crate::RedisErrorKind::InvalidSetting)), or why the first attempt
    /// failed, after 2.5 s at most.
    ///
    /// # Cancel safety
    /// Dropping the future gives the attempt up.
    pub async fn connect(url: &str) -> Result<Self, RedisError> {
        Self::builder().url(url).connect().await
    }

    /// Connects in the background: until then, and while Redis is away, what needs it fails by itself.
    ///
    /// ```
    /// use regatta::{Redis, RedisErrorKind};
    ///
    /// let redis = Redis::connect_lazy("redis://127.0.0.1")?;
    /// let mistake = Redis::connect_lazy("http://127.0.0.1").unwrap_err();
    /// assert_eq!(mistake.kind(), RedisErrorKind::InvalidSetting);
    /// # drop(redis);
    /// # Ok::<(), regatta::RedisError>(())
    /// ```
    ///
    /// # Errors
    /// Why the URL cannot be used.
    pub fn connect_lazy(url: &str) -> Result<Self, RedisError> {
        Self::builder().url(url).connect_lazy()
    }
}

impl RedisBuilder {
    /// Connects, see [`Redis::connect`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Cancel safety
    /// As there.
    pub async fn connect(self) -> Result<Redis, RedisError> {
        self.open().await.map_err(|error| RedisError::new(&error))
    }

    /// Connects in the background, see [`Redis::connect_lazy`].
    ///
    /// Outside a runtime the first use inside one begins it.
    ///
    /// # Errors
    /// As there.
    pub fn connect_lazy(self) -> Result<Redis, RedisError> {
        self.open_lazy().map_err(|error| RedisError::new(&error))
    }
}
