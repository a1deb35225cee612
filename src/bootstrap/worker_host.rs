//! What the supervisor needs from the program around it: configurations by generation, and the life of a worker.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::application::AppFactory;
use crate::bootstrap::slot_count;
use crate::config::ConfigInputs;
use crate::config::diff::{Reloadability, SettingValues};
use crate::config::settings::{AutoscaleMode, Config, MaxMemory, RedisUrl, WorkerCount, WorkersConfig};
use crate::scoreboard::Scoreboard;
use crate::supervisor::monitor::{MonitorSettings, autoscaler, recycling};
use crate::supervisor::{ReloadError, ReloadedConfig, UnchangedSetting, WantedAddresses, WorkerSpec};
use crate::sys::{executable, memory};
use crate::worker::WorkerOptions;
use crate::{config, supervisor, worker};

/// The configurations that workers may still be started with.
pub(super) struct ConfigHost {
    inputs: ConfigInputs,
    app: AppFactory,
    scoreboard: Arc<Scoreboard>,
    resources: HostResources,
    configs: BTreeMap<u64, ConfigGeneration>,
    build: String,
}

/// Where the fleet is at home, whatever a later configuration says.
#[derive(Debug)]
pub(super) struct HostResources {
    /// The run folder, by its path without links: where workers find their supervisor.
    pub(super) run_dir: PathBuf,
    /// Address of the private Redis, if the fleet has one.
    pub(super) private_redis: Option<RedisUrl>,
}

struct ConfigGeneration {
    config: Arc<Config>,
    values: SettingValues,
    /// What it was read from, the file's text included.
    inputs: ConfigInputs,
    /// Slots to begin with, as counted when it was read: `workers.count = "auto"` is another number when the cores that
    /// this process may use are others.
    slots: usize,
}

impl ConfigGeneration {
    fn new(config: Config, values: SettingValues, inputs: ConfigInputs) -> Self {
        let slots = slot_count::initial_slots(&config);
        Self { config: Arc::new(config), values, inputs, slots }
    }
}

/// What a configuration is compared with.
pub(super) struct PreviousConfig {
    /// The values of its settings.
    pub(super) values: SettingValues,
    /// Its number of slots.
    pub(super) slots: usize,
}

impl ConfigHost {
    /// A host whose first generation has this configuration.
    ///
    /// # Errors
    /// When the configuration cannot be read any more.
    pub(super) fn new(
        inputs: &ConfigInputs,
        config: Config,
        app: &AppFactory,
        scoreboard: &Arc<Scoreboard>,
        places: HostResources,
    ) -> Result<Self, config::ConfigError> {
        Self::for_generation(scoreboard.generation(), inputs, config, app, scoreboard, places)
    }

    /// A host in a program that takes a fleet over, whose first generation is this one.
    ///
    /// # Errors
    /// When the configuration cannot be read any more.
    pub(super) fn for_generation(
        generation: u64,
        inputs: &ConfigInputs,
        config: Config,
        app: &AppFactory,
        scoreboard: &Arc<Scoreboard>,
        places: HostResources,
    ) -> Result<Self, config::ConfigError> {
        let values = config::diff::collect_values(inputs)?;
        let config = Config { run_dir: places.run_dir.clone(), ..config };
        let first = ConfigGeneration::new(config, values, inputs.clone());
        Ok(Self {
            inputs: inputs.clone().release_file(),
            app: app.clone(),
            scoreboard: Arc::clone(scoreboard),
            resources: places,
            configs: BTreeMap::from([(generation, first)]),
            build: executable::build_version(),
        })
    }

    /// What a generation's configuration means for the supervisor after the one before it.
    pub(super) fn reloaded_config(
        &self,
        generation: u64,
        before: Option<&PreviousConfig>,
        applied: Reloadability,
    ) -> Option<ReloadedConfig> {
        let ConfigGeneration { config, values, slots, .. } = self.configs.get(&generation)?;
        let changes = before.map(|before| before.values.changes(values)).unwrap_or_default();
        let pinned = changes.iter().filter(|(_, applies)| **applies > applied).map(|(name, applies)| {
            UnchangedSetting {
                name: name.clone(),
                needs: match applies {
                    Reloadability::Reload => "a reload takes it",
                    Reloadability::Upgrade => "an upgrade takes it",
                    Reloadability::Restart => "stop the fleet and start it again",
                },
            }
        });
        let settings = supervisor_settings(config);
        // Where the load decides, new bounds alone leave the number as it is as long as it is within them.
        let bounded = settings.monitor.scaling.is_none()
            && (changes.contains_key("workers.min") || changes.contains_key("workers.max"));
        let cores =
            config.workers.count == WorkerCount::Auto && before.is_some_and(|before| before.slots != *slots);
        let recounted = bounded || cores || changes.contains_key("workers.count");
        let moved = changes.contains_key("listen") || changes.contains_key("admin.listen");
        let listen = moved.then(|| WantedAddresses {
            public: config.listen.clone(),
            admin: config.admin.listen.clone(),
            socket_file: config.socket_file.clone(),
        });
        Some(ReloadedConfig {
            settings,
            listen,
            workers: recounted.then_some(*slots),
            changed: changes.keys().cloned().collect(),
            unchanged: pinned.collect(),
        })
    }

    /// The configuration of a generation; that of the newest if it was forgotten.
    fn generation(&self, number: u64) -> Option<&ConfigGeneration> {
        self.configs.get(&number).or_else(|| self.configs.values().next_back())
    }
}

/// A file that cannot be had now is no mistake in what is written.
fn reload_refusal(error: &config::ConfigError) -> ReloadError {
    match error.is_file_unavailable() {
        true => ReloadError::Unavailable(error.to_string()),
        false => ReloadError::Invalid(error.to_string()),
    }
}

/// The supervisor's part of a configuration.
pub(super) fn supervisor_settings(config: &Config) -> supervisor::SupervisorSettings {
    supervisor::SupervisorSettings {
        boot_timeout: config.workers.boot_timeout,
        canary_period: config.workers.canary_period,
        // From the order to leave until the last hook's end: a worker that is not gone then is killed.
        drain_timeout: config.drain.timeout + config.drain.exit,
        max_draining_workers: config.drain.max_draining_workers,
        steering: config.steering,
        monitor: monitor_settings(&config.workers),
        stats_interval: config.log.stats_interval,
        redis_memory: private_redis_memory(config.redis.maxmemory, memory::available_memory()),
    }
}

/// Memory of the private Redis's data, of so much that there is: three quarters are left for the workers, for rewriting
/// its file, and for what else runs here.
pub(super) fn private_redis_memory(configured: MaxMemory, there_is: Option<u64>) -> Option<u64> {
    const LEAST: u64 = 64 << 20;
    match configured {
        MaxMemory::Auto => there_is.map(|bytes| (bytes / 4).max(LEAST)),
        MaxMemory::Bytes(bytes) => bytes,
    }
}

/// What the supervisor looks after besides crashes.
fn monitor_settings(workers: &WorkersConfig) -> MonitorSettings {
    let (scaling, recycling) = (workers.autoscale, workers.recycling);
    let (min, _, max) = scaling.slot_bounds(slot_count::configured_workers(workers));
    let (window, busy_max, busy_min) = (scaling.window, scaling.busy_max, scaling.busy_min);
    MonitorSettings {
        hang_timeout: workers.hang_timeout,
        hang_kill: workers.hang_kill,
        limits: recycling::RecycleLimits {
            requests: recycling.max_requests,
            requests_jitter: recycling.max_requests_jitter,
            age: recycling.max_age,
            memory_soft: recycling.memory_soft,
            memory_hard: recycling.memory_hard,
        },
        scaling: (min < max).then_some(autoscaler::AutoscaleSettings {
            min,
            max,
            window,
            busy_max,
            busy_min,
        }),
        dry_run: scaling.mode == AutoscaleMode::DryRun,
    }
}

impl supervisor::WorkerHost for ConfigHost {
    fn run_worker(&self, spec: WorkerSpec) -> u8 {
        let Some(generation) = self.generation(spec.generation) else { return worker::EXIT_BOOT_FAILED };
        let configured = generation.config.redis.url.clone();
        let Some(redis_url) = self.resources.private_redis.clone().or(configured) else {
            return worker::EXIT_BOOT_FAILED;
        };
        worker::run(WorkerOptions {
            slot: spec.slot,
            cell: spec.cell,
            generation: spec.generation,
            listeners: spec.listeners,
            shared_queue: spec.shared_queue,
            status_pipe: spec.status_pipe,
            lifeline: spec.lifeline,
            config: Arc::clone(&generation.config),
            redis_url,
            scoreboard: Arc::clone(&self.scoreboard),
            app: self.app.clone(),
        })
    }

    fn reload(&mut self, generation: u64) -> Result<ReloadedConfig, ReloadError> {
        let inputs = self
            .inputs
            .clone()
            .recapture_file(&self.config_inputs(self.scoreboard.generation()))
            .map_err(|error| reload_refusal(&error))?;
        let config = config::load(&inputs).map_err(|error| reload_refusal(&error))?;
        config::check_readable(&config).map_err(|error| reload_refusal(&error))?;
        self.app.check_settings(&config.app).map_err(|error| reload_refusal(&error))?;
        let values = config::diff::collect_values(&inputs).map_err(|error| reload_refusal(&error))?;
        let config = Config { run_dir: self.resources.run_dir.clone(), ..config };
        let before = self.generation(self.scoreboard.generation());
        let before = before.map(|one| PreviousConfig { values: one.values.clone(), slots: one.slots });
        self.configs.insert(generation, ConfigGeneration::new(config, values, inputs));
        self.reloaded_config(generation, before.as_ref(), Reloadability::Reload)
            .ok_or_else(|| ReloadError::Unavailable("the configuration was lost".to_owned()))
    }

    fn config_inputs(&self, generation: u64) -> ConfigInputs {
        let found = self.generation(generation);
        found.map_or_else(|| self.inputs.clone(), |generation| generation.inputs.clone())
    }

    fn build(&self) -> &str {
        &self.build
    }

    fn retain_generations(&mut self, generations: &[u64]) {
        self.configs.retain(|generation, _| generations.contains(generation));
    }
}
