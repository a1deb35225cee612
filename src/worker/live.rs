//! The worker's live parts: broadcasts and tasks.

use crate::broadcast::BroadcastHub;
use crate::config::settings::Config;
use crate::redis::RedisClient;
use crate::sys::process;
use crate::tasks::TaskQueue;
use crate::worker::WorkerOptions;

/// What goes on in a worker beside its requests.
pub(super) struct BackgroundServices {
    pub(super) broadcasts: BroadcastHub,
    pub(super) tasks: TaskQueue,
}

impl BackgroundServices {
    pub(super) fn new(options: &WorkerOptions, redis: &RedisClient) -> Self {
        let Config { broadcast, tasks, .. } = &*options.config;
        let worker = format!("{}:{}", process::hostname(), process::pid());
        Self {
            broadcasts: BroadcastHub::new(redis.clone(), broadcast),
            tasks: TaskQueue::new(redis.clone(), tasks, &worker),
        }
    }

    /// Begins; what the application registered is known by now.
    pub(super) fn start(&self) {
        self.broadcasts.start();
        self.tasks.start();
    }

    /// Returns when this worker can do no more tasks, because its jobs do not stop: another one must take its seat.
    pub(super) async fn all_task_permits_hung(&self) {
        self.tasks.all_permits_hung().await;
        tracing::error!("leaves its seat: the jobs of its tasks were told to stop and do not");
    }
}
