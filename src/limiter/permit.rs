//! A request's place in a concurrency limit: kept while the request runs, given back at its end.
//!
//! A place is a lease in Redis. Whoever holds it renews it; if its worker is killed, it ends by itself. Giving it back
//! is harmless even if it was never had, so that a request that is dropped while it asks for one leaves nothing behind.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use crate::redis::RedisClient;

/// Places that are counted by this worker alone, while Redis is away, by the limits' keys.
pub(super) type LocalPermits = Arc<Mutex<HashMap<String, u64>>>;

/// A place; dropping it gives it back.
#[derive(Debug)]
pub struct ConcurrencyPermit {
    key: String,
    source: PermitSource,
}

#[derive(Debug)]
enum PermitSource {
    /// Asked for or had in Redis under this name.
    Shared { redis: RedisClient, name: String, renewal: Option<AbortHandle> },
    /// Counted here.
    Local(LocalPermits),
    /// It was refused: there is nothing to give back.
    Discarded,
}

impl ConcurrencyPermit {
    /// A place that is about to be asked for.
    pub(super) fn requested(redis: &RedisClient, key: &str, name: &str) -> Self {
        let source = PermitSource::Shared { redis: redis.clone(), name: name.to_owned(), renewal: None };
        Self { key: key.to_owned(), source }
    }

    /// A place of this worker's own; `None` if `most` are taken.
    pub(super) fn local(local: &LocalPermits, key: &str, most: u64) -> Option<Self> {
        let mut counts = local.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(key.to_owned()).or_insert(0);
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Self { key: key.to_owned(), source: PermitSource::Local(Arc::clone(local)) })
    }

    /// It was had: renewed from now on, so early that two renewals may fail.
    pub(super) fn start_renewal(&mut self, lease: Duration) {
        let PermitSource::Shared { redis, name, renewal } = &mut self.source else { return };
        let (redis, key, name) = (redis.clone(), self.key.clone(), name.clone());
        let lease_us = u64::try_from(lease.as_micros()).unwrap_or(u64::MAX);
        let renewing = tokio::spawn(async move {
            loop {
                tokio::time::sleep(lease / 3).await;
                match redis.renew_permit(&key, &name, lease_us).await {
                    Ok(true) => {}
                    // Taken back by an operator, or this worker stood still for too long: the request goes on.
                    Ok(false) => return,
                    Err(error) => tracing::debug!(%error, "a place was not renewed: {error}"),
                }
            }
        });
        *renewal = Some(renewing.abort_handle());
    }

    /// It was refused, or never asked for.
    pub(super) fn discard(mut self) {
        self.source = PermitSource::Discarded;
    }
}

impl Drop for ConcurrencyPermit {
    fn drop(&mut self) {
        match &mut self.source {
            PermitSource::Discarded => {}
            PermitSource::Local(local) => {
                let mut counts = local.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(count) = counts.get_mut(&self.key) {
                    *count -= 1;
                    if *count == 0 {
                        counts.remove(&self.key);
                    }
                }
            }
            PermitSource::Shared { redis, name, renewal } => {
                if let Some(renewal) = renewal {
                    renewal.abort();
                }
                // Without a runtime the worker ends, and so does the lease.
                let Ok(runtime) = Handle::try_current() else { return };
                let (redis, key, name) = (redis.clone(), std::mem::take(&mut self.key), std::mem::take(name));
                runtime.spawn(async move { redis.release_permit_or_log(&key, &name).await });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lone_worker_counts_its_permits() {
        let local = LocalPermits::default();
        let first = ConcurrencyPermit::local(&local, "k", 2).unwrap();
        let second = ConcurrencyPermit::local(&local, "k", 2).unwrap();
        assert!(ConcurrencyPermit::local(&local, "k", 2).is_none());
        assert!(ConcurrencyPermit::local(&local, "other", 1).is_some());
        drop(first);
        assert!(ConcurrencyPermit::local(&local, "k", 2).is_some());
        drop(second);
        assert!(local.lock().unwrap().is_empty());
    }
}
