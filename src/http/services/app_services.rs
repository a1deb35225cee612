//! What a worker hands to this room when it boots.

use std::sync::Arc;

use crate::broadcasts::BroadcastHub;
use crate::config::settings::Config;
use crate::counters::batched::BatchedCounters;
use crate::http::drain_state::DrainState;
use crate::http::instance::InstanceIdentity;
use crate::http::worker::Worker;
use crate::redis::RedisClient;
use crate::scoreboard::Scoreboard;
use crate::tasks::TaskQueue;

/// The handles and facts of one worker that this room serves with.
#[derive(Debug, Clone)]
pub struct AppServices {
    /// The fleet's configuration.
    pub config: Arc<Config>,
    /// The worker's connection to the shared state.
    pub redis: RedisClient,
    /// The table that all processes of the instance share.
    pub scoreboard: Arc<Scoreboard>,
    /// Pid, slot and generation of the worker.
    pub worker: Worker,
    /// Its cell in its slot's row.
    pub cell: usize,
    /// Whether it serves or drains; the worker's loop changes it.
    pub drain: DrainState,
    /// The worker's instance, as operators see it beside others.
    pub instance: Arc<InstanceIdentity>,
    /// Its batched counters, which the worker's loop flushes; none outside a fleet, where each addition is sent at once.
    pub batched_counters: Option<Arc<BatchedCounters>>,
    /// Publishes and subscribes.
    pub broadcast_hub: BroadcastHub,
    /// Enqueues and runs tasks.
    pub tasks: TaskQueue,
}
