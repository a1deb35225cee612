//! CPU work off the event loop: a bounded number of jobs on tokio's blocking threads, the rest refused at once.
//!
//! Guarantees that at most `running` jobs use the CPU and at most `waiting` more are queued, however many clients send
//! requests and disconnect: a job that has started holds its permit until it ends, because a thread cannot be cancelled.

use std::fmt;
use std::sync::Arc;

use tokio::sync::Semaphore;

/// Jobs at once: a worker has one core, which its event loop shares with them.
const RUNNING: usize = 1;

/// Jobs that may wait; with jobs of a tenth of a second the last one is answered in under two seconds.
const WAITING: usize = 16;

/// Why a job has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OffloadError {
    /// As many jobs run and wait as are allowed; the client may come back in a second.
    #[error("as much CPU work is under way as this worker takes")]
    Full,
    /// The job panicked.
    #[error("the job failed")]
    Panicked,
}

/// A worker's permits for CPU work; cheap to clone.
#[derive(Clone)]
pub struct Offload {
    permits: Arc<Semaphore>,
    running: Arc<Semaphore>,
}

impl Offload {
    /// Permits for `running` jobs at once and `waiting` more.
    pub fn new(running: usize, waiting: usize) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(running + waiting)),
            running: Arc::new(Semaphore::new(running)),
        }
    }

    /// Runs a job on a blocking thread.
    ///
    /// # Errors
    /// [`OffloadError::Full`] at once if there is no place; [`OffloadError::Panicked`] if the job panicked.
    ///
    /// # Cancel safety
    /// A waiting job is forgotten; one that has begun runs to its end and its result is dropped.
    pub async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, OffloadError> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(|_| OffloadError::Full)?;
        let cpu_permit = Arc::clone(&self.running).acquire_owned().await.map_err(|_| OffloadError::Full)?;
        let held = (permit, cpu_permit);
        let job = move || {
            let _held = held;
            job()
        };
        tokio::task::spawn_blocking(job).await.map_err(|_| OffloadError::Panicked)
    }
}

impl Default for Offload {
    fn default() -> Self {
        Self::new(RUNNING, WAITING)
    }
}

impl fmt::Debug for Offload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offload").field("free", &self.permits.available_permits()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_job_beyond_the_places_is_refused_and_a_freed_place_is_used_again() {
        let offload = Offload::new(1, 1);
        let (release, released) = mpsc::channel::<()>();
        let (started, has_started) = mpsc::channel::<()>();
        let first = tokio::spawn({
            let offload = offload.clone();
            async move {
                offload
                    .run(move || {
                        started.send(()).unwrap();
                        released.recv_timeout(Duration::from_secs(10)).unwrap();
                    })
                    .await
            }
        });
        tokio::task::spawn_blocking(move || has_started.recv_timeout(Duration::from_secs(10)).unwrap())
            .await
            .unwrap();
        let mut second = Box::pin(offload.run(|| 2));
        assert!(
            tokio::time::timeout(Duration::from_millis(1), &mut second).await.is_err(),
            "it waits its turn"
        );
        assert_eq!(offload.run(|| 3).await, Err(OffloadError::Full));
        drop(second);
        release.send(()).unwrap();
        first.await.unwrap().unwrap();
        assert_eq!(offload.run(|| 4).await, Ok(4));
    }

    #[tokio::test]
    async fn a_job_that_panics_gives_its_place_back() {
        let offload = Offload::new(1, 0);
        assert_eq!(offload.run(|| panic!("on purpose")).await, Err::<(), _>(OffloadError::Panicked));
        assert_eq!(offload.run(|| 1).await, Ok(1));
    }
}
