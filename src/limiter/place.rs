//! A request's place in a concurrency limit: kept while the request runs, given back at its end.
//!
//! A place is a lease in Redis. Whoever holds it renews it; if its worker is killed, it ends by itself. Giving it back
//! is harmless even if it was never had, so that a request that is dropped while it asks for one leaves nothing behind.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use crate::redis::Redis;

/// Places that are counted by this worker alone, while Redis is away, by the limits' keys.
pub(super) type Local = Arc<Mutex<HashMap<String, u64>>>;

/// A place; dropping it gives it back.
#[derive(Debug)]
pub struct Place {
    key: String,
    whose: Whose,
}

#[derive(Debug)]
enum Whose {
    /// Asked for or had in Redis under this name.
    Shared { redis: Redis, name: String, renewal: Option<AbortHandle> },
    /// Counted here.
    Own(Local),
    /// It was refused: there is nothing to give back.
    Nobody,
}

impl Place {
    /// A place that is about to be asked for.
    pub(super) fn wanted(redis: &Redis, key: &str, name: &str) -> Self {
        let whose = Whose::Shared { redis: redis.clone(), name: name.to_owned(), renewal: None };
        Self { key: key.to_owned(), whose }
    }

    /// A place of this worker's own; `None` if `most` are taken.
    pub(super) fn own(local: &Local, key: &str, most: u64) -> Option<Self> {
        let mut counts = local.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(key.to_owned()).or_insert(0);
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Self { key: key.to_owned(), whose: Whose::Own(Arc::clone(local)) })
    }

    /// It was had: renewed from now on, so early that two renewals may fail.
    pub(super) fn keep(&mut self, lease: Duration) {
        let Whose::Shared { redis, name, renewal } = &mut self.whose else { return };
        let (redis, key, name) = (redis.clone(), self.key.clone(), name.clone());
        let lease_us = u64::try_from(lease.as_micros()).unwrap_or(u64::MAX);
        let renewing = tokio::spawn(async move {
            loop {
                tokio::time::sleep(lease / 3).await;
                match redis.renew(&key, &name, lease_us).await {
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
    pub(super) fn forget(mut self) {
        self.whose = Whose::Nobody;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        match &mut self.whose {
            Whose::Nobody => {}
            Whose::Own(local) => {
                let mut counts = local.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(count) = counts.get_mut(&self.key) {
                    *count -= 1;
                    if *count == 0 {
                        counts.remove(&self.key);
                    }
                }
            }
            Whose::Shared { redis, name, renewal } => {
                if let Some(renewal) = renewal {
                    renewal.abort();
                }
                // Without a runtime the worker ends, and so does the lease.
                let Ok(runtime) = Handle::try_current() else { return };
                let (redis, key, name) = (redis.clone(), std::mem::take(&mut self.key), std::mem::take(name));
                runtime.spawn(async move { redis.let_go(&key, &name).await });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_of_its_own_counts_who_comes_and_who_goes() {
        let local = Local::default();
        let first = Place::own(&local, "k", 2).unwrap();
        let second = Place::own(&local, "k", 2).unwrap();
        assert!(Place::own(&local, "k", 2).is_none());
        assert!(Place::own(&local, "other", 1).is_some());
        drop(first);
        assert!(Place::own(&local, "k", 2).is_some());
        drop(second);
        assert!(local.lock().unwrap().is_empty());
    }
}
