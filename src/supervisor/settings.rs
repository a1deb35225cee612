//! What the supervisor needs of the program around it.

use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::config::ConfigInputs;
use crate::config::settings::{ListenAddress, SocketFileConfig, SteeringMode};
use crate::listener::shared_queue::SharedQueue;
use crate::listener::{ListenAddresses, ListenChange, ListenError, ListenRequest, SlotListeners};
use crate::supervisor::monitor::settings::MonitorSettings;

/// Timeouts and limits of the supervisor.
#[derive(Debug, Clone, Copy)]
pub struct SupervisorSettings {
    /// Longest time until a worker is READY.
    pub boot_timeout: Duration,
    /// How long the first worker of a new generation is watched before the others follow.
    pub canary_period: Duration,
    /// Longest drain.
    pub drain_timeout: Duration,
    /// Most leaving workers of a slot.
    pub max_draining_workers: usize,
    /// How new connections are spread over the slots.
    pub steering: SteeringMode,
    /// What it monitors besides crashes.
    pub monitor: MonitorSettings,
    /// Time between two lines of figures in the log; zero: none.
    pub stats_interval: Duration,
    /// Most memory of the private Redis's data, bytes; none: any.
    pub redis_memory: Option<u64>,
}

#[cfg(test)]
impl SupervisorSettings {
    /// Settings of a fleet that watches nothing.
    pub(in crate::supervisor) fn for_tests(canary_period: Duration) -> Self {
        Self {
            boot_timeout: Duration::from_secs(30),
            canary_period,
            drain_timeout: Duration::from_secs(30),
            max_draining_workers: 2,
            steering: SteeringMode::Kernel,
            monitor: MonitorSettings {
                hang_timeout: Duration::ZERO,
                hang_kill: Duration::ZERO,
                limits: crate::supervisor::monitor::recycling::RecycleLimits::default(),
                scaling: None,
                dry_run: false,
            },
            stats_interval: Duration::ZERO,
            redis_memory: None,
        }
    }
}

/// What a configuration that was read anew means for the supervisor.
#[derive(Debug, Clone)]
pub struct ReloadedConfig {
    /// The supervisor's settings from now on.
    pub settings: SupervisorSettings,
    /// Where it listens, if that was changed.
    pub listen: Option<WantedAddresses>,
    /// The number of workers, if it was changed.
    pub workers: Option<usize>,
    /// Names of the settings that have another value.
    pub changed: Vec<String>,
    /// Those of them that a reload cannot change.
    pub unchanged: Vec<UnchangedSetting>,
}

/// Where a configuration listens.
#[derive(Debug, Clone)]
pub struct WantedAddresses {
    /// Public addresses.
    pub public: Vec<ListenAddress>,
    /// The operators' addresses.
    pub admin: Vec<ListenAddress>,
    /// Who may connect to the files of Unix sockets.
    pub socket_file: SocketFileConfig,
}

impl WantedAddresses {
    /// Opens what of it is new, beside the slots there are; none: nothing is.
    ///
    /// # Errors
    /// Why that cannot be; nothing is changed then.
    pub fn prepare(
        &self,
        present: &ListenAddresses,
        slots: usize,
    ) -> Result<Option<ListenChange>, ListenError> {
        let Self { public, admin, socket_file } = self;
        ListenChange::prepare(present, ListenRequest { public, admin, socket_file }, slots)
    }
}

/// Why a configuration is not taken; in one sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReloadError {
    /// It is wrong.
    Invalid(String),
    /// It, or a file that it names, cannot be had now.
    Unavailable(String),
}

/// A setting that a reload cannot change.
#[derive(Debug, Clone)]
pub struct UnchangedSetting {
    /// Its name.
    pub name: String,
    /// What would change it.
    pub needs: &'static str,
}

/// What a new worker is given. Everything else that the supervisor opened is closed; what the application had open
/// before its fleet began stays.
#[derive(Debug)]
pub struct WorkerSpec {
    /// Index of its slot.
    pub slot: usize,
    /// Its cell in the slot's row.
    pub cell: usize,
    /// Generation it belongs to.
    pub generation: u64,
    /// The slot's listeners.
    pub listeners: SlotListeners,
    /// The fleet's shared queue, where the kernel has given one.
    pub shared_queue: Option<SharedQueue>,
    /// Pipe to the supervisor, a line each: `ready`, or `failed` and the reason; `leaving`; `closed`;
    /// and its backtrace, on request.
    pub status_pipe: OwnedFd,
    /// Pipe that is readable (at its end) as soon as the supervisor is gone.
    pub lifeline: OwnedFd,
}

/// The program around the supervisor: it knows the configuration and what a worker does.
pub trait WorkerHost {
    /// A worker's whole life: from its setup to its exit code. Called in the worker's own process.
    fn run_worker(&self, spec: WorkerSpec) -> u8;

    /// Reads the configuration anew, for workers of this generation.
    ///
    /// # Errors
    /// What is wrong with it; nothing is changed then.
    fn reload(&mut self, generation: u64) -> Result<ReloadedConfig, ReloadError>;

    /// What this program is: a version and what tells one build of it from another.
    fn build(&self) -> &str;

    /// What the configuration of a generation was read from, to go back to it; of the newest if that is forgotten.
    fn config_inputs(&self, generation: u64) -> ConfigInputs;

    /// Forgets all generations but these.
    fn retain_generations(&mut self, generations: &[u64]);
}
