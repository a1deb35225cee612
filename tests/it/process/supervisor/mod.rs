//! What the supervisor promises: start, crash, stop, rollouts, upgrades, hangs, scaling.

pub(crate) mod autoscaling;
pub(crate) mod balance;
pub(crate) mod concurrent_operations;
pub(crate) mod crash;
pub(crate) mod environment;
pub(crate) mod foreign_files;
pub(crate) mod hang_detection;
pub(crate) mod inherited_resources;
pub(crate) mod kernels;
pub(crate) mod killed_fleets;
pub(crate) mod paths;
pub(crate) mod pre_fork_state;
pub(crate) mod recycling;
pub(crate) mod removed_files;
pub(crate) mod rollout;
pub(crate) mod serve;
pub(crate) mod serve_watch;
pub(crate) mod slot_listeners;
pub(crate) mod socket_activation;
pub(crate) mod steering;
pub(crate) mod stop;
pub(crate) mod stuck_log;
pub(crate) mod systemd;
pub(crate) mod transfers;
pub(crate) mod upgrade;
pub(crate) mod worker_memory;
