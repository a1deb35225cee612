//! The worker's live parts: broadcasts and tasks.

use crate::broadcast::Hub;
use crate::config::schema::Config;
use crate::config::schema::Redis as Settings;
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
        let Config { broadcast, tasks, redis: Settings { prefix, .. }, .. } = &*start.config;
        let worker = format!("{}:{}", proc::hostname(), proc::pid());
        Self {
            broadcasts: Hub::new(redis.clone(), broadcast),
            tasks: Tasks::new(redis.clone(), prefix, tasks, &worker),
        }
    }

    /// Begins; what the application registered is known by now.
    pub(super) fn start(&self) {
        self.broadcasts.start();
        self.tasks.start();
    }
}
