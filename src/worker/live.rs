//! The worker's live parts: broadcasts and tasks.

use crate::broadcast::Hub;
use crate::config::schema::Config;
use crate::redis::Redis;
use crate::sys::proc;
use crate::task::Tasks;
use crate::worker::Start;

/// What goes on in a worker beside its requests.
pub(super) struct Live {
    pub(super) broadcasts: Hub,
    pub(super) tasks: Tasks,
}

impl Live {
    pub(super) fn new(start: &Start, redis: &Redis) -> Self {
        let Config { broadcast, tasks, .. } = &*start.config;
        let worker = format!("{}:{}", proc::hostname(), proc::pid());
        Self {
            broadcasts: Hub::new(redis.clone(), broadcast),
            tasks: Tasks::new(redis.clone(), tasks, &worker),
        }
    }

    /// Begins; what the application registered is known by now.
    pub(super) fn start(&self) {
        self.broadcasts.start();
        self.tasks.start();
    }

    /// Returns when this worker can do no more tasks, because its jobs do not stop: another one must take its seat.
    pub(super) async fn stuck(&self) {
        self.tasks.stuck().await;
        tracing::error!("leaves its seat: the jobs of its tasks were told to stop and do not");
    }
}
