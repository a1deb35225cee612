//! A request's permit in a concurrency limit: held while the request runs, released at its end.
//!
//! A permit is a lease in Redis that the request's worker renews; if the worker is killed, the lease ends by itself.
//! A release is harmless even if the permit was never granted, so a request that is dropped while it waits for one
//! leaves nothing behind.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use crate::redis::RedisClient;

/// Permits that this worker counts itself while Redis is unavailable, by the limits' keys.
pub(super) type LocalPermits = Arc<Mutex<HashMap<String, u64>>>;

/// A permit; dropping it releases it.
#[derive(Debug)]
pub struct ConcurrencyPermit {
    key: String,
    source: PermitSource,
}

#[derive(Debug)]
enum PermitSource {
    /// Requested or granted in Redis under this name.
    Shared { redis: RedisClient, name: String, renewal: Option<AbortHandle> },
    /// Counted by this worker.
    Local(LocalPermits),
    /// Denied: there is nothing to release.
    Discarded,
}

impl ConcurrencyPermit {
    /// A permit that Redis is about to decide.
    pub(super) fn requested(redis: &RedisClient, key: &str, name: &str) -> Self {
        let source = PermitSource::Shared { redis: redis.clone(), name: name.to_owned(), renewal: None };
        Self { key: key.to_owned(), source }
    }

    /// A permit of this worker's own; `None` if `max` are held.
    pub(super) fn local(local: &LocalPermits, key: &str, max: u64) -> Option<Self> {
        let mut counts = local.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(key.to_owned()).or_insert(0);
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Self { key: key.to_owned(), source: PermitSource::Local(Arc::clone(local)) })
    }

    /// Renews a granted permit from now on, so early that two renewals may fail.
    pub(super) fn start_renewal(&mut self, lease: Duration) {
        let PermitSource::Shared { redis, name, renewal } = &mut self.source else { return };
        let (redis, key, name) = (redis.clone(), self.key.clone(), name.clone());
        let lease_us = u64::try_from(lease.as_micros()).unwrap_or(u64::MAX);
        let renewing = tokio::spawn(async move {
            loop {
                tokio::time::sleep(lease / 3).await;
                match redis.renew_permit(&key, &name, lease_us).await {
                    Ok(true) => {}
                    // Released by an operator, or expired because this worker was stopped for too long: the request
                    // goes on.
                    Ok(false) => return,
                    Err(error) => tracing::debug!(%error, "concurrency permit not renewed: {error}"),
                }
            }
        });
        *renewal = Some(renewing.abort_handle());
    }

    /// The permit was denied, or never requested.
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
                // Without a runtime the worker is exiting, and the lease ends by itself.
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
    fn a_worker_counts_its_local_permits() {
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
