//! The kinds of events, a contract with scripts that read `events --json`: one row each.

use std::borrow::Cow;

macro_rules! event_kinds {
    ($($(#[doc = $meaning:literal])+ $kind:ident = $name:literal,)+) => {
        /// What an event is, for programs.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum EventKind {
            $($(#[doc = $meaning])+ $kind,)+
        }

        impl EventKind {
            /// Every kind, in the order of the reference.
            pub const ALL: &[Self] = &[$(Self::$kind),+];

            /// Its name in JSON.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)+
                }
            }

            /// When it is recorded, one sentence of the reference.
            pub const fn meaning(self) -> &'static str {
                match self {
                    $(Self::$kind => concat!($($meaning),+).trim_ascii(),)+
                }
            }
        }
    };
}

event_kinds! {
    /// Every slot serves for the first time.
    FleetServing = "fleet_serving",
    /// A stop began.
    FleetStopping = "fleet_stopping",
    /// A worker was forked.
    WorkerStarted = "worker_started",
    /// A worker accepts connections.
    WorkerReady = "worker_ready",
    /// A worker got its drain order, or drains without one.
    WorkerDraining = "worker_draining",
    /// A worker exited as ordered.
    WorkerExited = "worker_exited",
    /// A worker exited without an order; `reason` says how.
    WorkerCrashed = "worker_crashed",
    /// A worker makes no progress: new connections are steered around its slot.
    WorkerSuspect = "worker_suspect",
    /// A worker has made no progress for `workers.hang_timeout`: a spare joins its slot.
    WorkerHung = "worker_hung",
    /// A suspect or hung worker makes progress again.
    WorkerRecovered = "worker_recovered",
    /// A worker is replaced for its requests, age or memory.
    WorkerRecycling = "worker_recycling",
    /// A worker got the order to abort the connections it has left.
    WorkerAborted = "worker_aborted",
    /// A worker was killed by the supervisor.
    WorkerKilled = "worker_killed",
    /// A reload began. One that waits behind another rollout is a line of the log only.
    ReloadStarted = "reload_started",
    /// Every slot has the new configuration.
    ReloadCompleted = "reload_completed",
    /// The new configuration was rejected; nothing is changed.
    ReloadRefused = "reload_refused",
    /// The new program is asked whether it can take over.
    UpgradePreflightStarted = "upgrade_preflight_started",
    /// The supervisor has become the new program.
    UpgradeTookOver = "upgrade_took_over",
    /// The new program replaces workers, slot by slot.
    UpgradeRolloutStarted = "upgrade_rollout_started",
    /// Every slot runs the new program.
    UpgradeCompleted = "upgrade_completed",
    /// The new program cannot take over; nothing is changed.
    UpgradeRefused = "upgrade_refused",
    /// The fleet stops while a new program is examined.
    UpgradeCancelled = "upgrade_cancelled",
    /// A new worker failed: the rollout goes back.
    RolloutFailed = "rollout_failed",
    /// The generation of before serves again.
    RolloutRolledBack = "rollout_rolled_back",
    /// Another number of workers, by a command or a signal.
    Scaled = "scaled",
    /// Another number of workers, by the load.
    Autoscaled = "autoscaled",
    /// A slot's queue has run dry and its sockets are closed.
    SlotRetired = "slot_retired",
    /// The private Redis was started.
    PrivateRedisStarted = "private_redis_started",
    /// The private Redis crashed; it is started again.
    PrivateRedisCrashed = "private_redis_crashed",
    /// The private Redis is started again, because its socket was removed.
    PrivateRedisRestarting = "private_redis_restarting",
    /// The private Redis cannot be reached at its socket, and restarting it would not help.
    PrivateRedisLost = "private_redis_lost",
    /// Files in `run_dir` were removed and are there again.
    RunDirRestored = "run_dir_restored",
    /// Files in `run_dir` cannot be restored: something else lies in their place.
    RunDirLost = "run_dir_lost",
    /// Instead of events that are not kept any more: the reader came too late.
    EventsMissed = "events_missed",
    /// The number a reader gave is another fleet's: the numbers began anew.
    EventsReset = "events_reset",
}

impl From<EventKind> for Cow<'static, str> {
    fn from(kind: EventKind) -> Self {
        Cow::Borrowed(kind.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_words_of_json_and_none_is_used_twice() {
        let mut names: Vec<_> = EventKind::ALL.iter().map(|kind| kind.name()).collect();
        assert!(names.iter().all(|name| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')));
        assert_eq!(EventKind::WorkerReady.meaning(), "A worker accepts connections.");
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), EventKind::ALL.len());
    }
}
