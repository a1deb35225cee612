//! What the supervisor needs from the program around it: configurations by generation, and the life of a worker.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::config;
use crate::config::Inputs;
use crate::config::diff::Applies;
use crate::config::diff::Values;
use crate::config::schema::Autoscale;
use crate::config::schema::Config;
use crate::config::schema::Count;
use crate::config::schema::MaxMemory;
use crate::config::schema::RedisUrl;
use crate::config::schema::Workers;
use crate::http::App;
use crate::scoreboard::Scoreboard;
use crate::supervisor;
use crate::supervisor::Pinned;
use crate::supervisor::Refusal;
use crate::supervisor::Reloaded;
use crate::supervisor::Seat;
use crate::supervisor::autoscale;
use crate::supervisor::recycle;
use crate::supervisor::senses::Care;
use crate::sys::build;
use crate::sys::memory;
use crate::worker;
use crate::worker::Start;

/// The configurations that workers may still be started with.
pub(super) struct Host {
    inputs: Inputs,
    app: App,
    scoreboard: Arc<Scoreboard>,
    places: Places,
    configs: BTreeMap<u64, Generation>,
    build: String,
}

/// Where the fleet is at home, whatever a later configuration says.
#[derive(Debug)]
pub(super) struct Places {
    /// The run folder, by its path without links: where workers find their supervisor.
    pub(super) run_dir: PathBuf,
    /// Address of the private Redis, if the fleet has one.
    pub(super) private: Option<RedisUrl>,
}

struct Generation {
    config: Arc<Config>,
    values: Values,
    /// What it was read from, the file's text included.
    inputs: Inputs,
    /// Slots to begin with, as counted when it was read: `workers.count = "auto"` is another number when the cores that
    /// this process may use are others.
    slots: usize,
}

impl Generation {
    fn new(config: Config, values: Values, inputs: Inputs) -> Self {
        let slots = super::serve::slots(&config);
        Self { config: Arc::new(config), values, inputs, slots }
    }
}

/// What a configuration is compared with.
pub(super) struct Before {
    /// The values of its settings.
    pub(super) values: Values,
    /// Its number of slots.
    pub(super) slots: usize,
}

impl Host {
    /// A host whose first generation has this configuration.
    ///
    /// # Errors
    /// When the configuration cannot be read any more.
    pub(super) fn new(
        inputs: &Inputs,
        config: Config,
        app: &App,
        scoreboard: &Arc<Scoreboard>,
        places: Places,
    ) -> Result<Self, config::Error> {
        Self::of_generation(scoreboard.generation(), inputs, config, app, scoreboard, places)
    }

    /// A host in a program that takes a fleet over, whose first generation is this one.
    ///
    /// # Errors
    /// When the configuration cannot be read any more.
    pub(super) fn of_generation(
        generation: u64,
        inputs: &Inputs,
        config: Config,
        app: &App,
        scoreboard: &Arc<Scoreboard>,
        places: Places,
    ) -> Result<Self, config::Error> {
        let values = config::diff::values(inputs)?;
        let config = Config { run_dir: places.run_dir.clone(), ..config };
        let first = Generation::new(config, values, inputs.clone());
        Ok(Self {
            inputs: inputs.clone().thaw(),
            app: Arc::clone(app),
            scoreboard: Arc::clone(scoreboard),
            places,
            configs: BTreeMap::from([(generation, first)]),
            build: build::own(),
        })
    }

    /// What a generation's configuration means for the supervisor after the one before it.
    pub(super) fn reloaded(
        &self,
        generation: u64,
        before: Option<&Before>,
        kept: Applies,
    ) -> Option<Reloaded> {
        let Generation { config, values, slots, .. } = self.configs.get(&generation)?;
        let changes = before.map(|before| before.values.changes(values)).unwrap_or_default();
        let pinned = changes.iter().filter(|(_, applies)| **applies > kept).map(|(name, applies)| Pinned {
            name: name.clone(),
            needs: match applies {
                Applies::AtReload => "a reload takes it",
                Applies::AtUpgrade => "an upgrade takes it",
                Applies::AtRestart => "stop the fleet and start it again",
            },
        });
        let settings = settings(config);
        // Where the load decides, new bounds alone leave the number as it is as long as it is within them.
        let bounded = settings.care.scaling.is_none()
            && (changes.contains_key("workers.min") || changes.contains_key("workers.max"));
        let cores =
            config.workers.count == Count::Auto && before.is_some_and(|before| before.slots != *slots);
        let recounted = bounded || cores || changes.contains_key("workers.count");
        Some(Reloaded {
            settings,
            workers: recounted.then_some(*slots),
            changed: changes.keys().cloned().collect(),
            pinned: pinned.collect(),
        })
    }

    /// The configuration of a generation; that of the newest if it was forgotten.
    fn generation(&self, number: u64) -> Option<&Generation> {
        self.configs.get(&number).or_else(|| self.configs.values().next_back())
    }
}

/// A file that cannot be had now is no mistake in what is written.
fn refusal(error: &config::Error) -> Refusal {
    match error.is_lost() {
        true => Refusal::Lost(error.to_string()),
        false => Refusal::Wrong(error.to_string()),
    }
}

/// The supervisor's part of a configuration.
pub(super) fn settings(config: &Config) -> supervisor::Settings {
    supervisor::Settings {
        boot_timeout: config.workers.boot_timeout,
        probation: config.workers.probation,
        drain_timeout: config.drain.timeout,
        leaving: config.drain.leaving,
        steering: config.steering,
        care: care(&config.workers),
        stats_interval: config.log.stats_interval,
        redis_memory: redis_memory(config.maxmemory, memory::allowed()),
    }
}

/// Memory of the private Redis's data, of so much that there is: three quarters are left for the workers, for rewriting
/// its file, and for what else runs here.
pub(super) fn redis_memory(wanted: MaxMemory, there_is: Option<u64>) -> Option<u64> {
    const LEAST: u64 = 64 << 20;
    match wanted {
        MaxMemory::Auto => there_is.map(|bytes| (bytes / 4).max(LEAST)),
        MaxMemory::Bytes(bytes) => bytes,
    }
}

/// What the supervisor looks after besides crashes.
fn care(workers: &Workers) -> Care {
    let (scaling, recycling) = (workers.scaling, workers.recycling);
    let (min, _, max) = scaling.bounds(super::serve::count(workers));
    let (window, busy_max, busy_min) = (scaling.window, scaling.busy_max, scaling.busy_min);
    Care {
        hang_timeout: workers.hang_timeout,
        hang_kill: workers.hang_kill,
        limits: recycle::Limits {
            requests: recycling.max_requests,
            requests_jitter: recycling.max_requests_jitter,
            age: recycling.max_age,
            memory_soft: recycling.memory_soft,
            memory_hard: recycling.memory_hard,
        },
        scaling: (min < max).then_some(autoscale::Settings { min, max, window, busy_max, busy_min }),
        dry_run: scaling.mode == Autoscale::DryRun,
    }
}

impl supervisor::Host for Host {
    fn work(&self, seat: Seat) -> u8 {
        let Some(generation) = self.generation(seat.generation) else { return worker::BOOT_FAILED };
        let configured = generation.config.redis.url.clone();
        let Some(redis_url) = self.places.private.clone().or(configured) else { return worker::BOOT_FAILED };
        worker::run(Start {
            slot: seat.slot,
            cell: seat.cell,
            generation: seat.generation,
            listeners: seat.listeners,
            shared: seat.shared,
            report: seat.report,
            lifeline: seat.lifeline,
            config: Arc::clone(&generation.config),
            redis_url,
            scoreboard: Arc::clone(&self.scoreboard),
            app: Arc::clone(&self.app),
        })
    }

    fn reload(&mut self, generation: u64) -> Result<Reloaded, Refusal> {
        let inputs = self
            .inputs
            .clone()
            .anew(&self.inputs(self.scoreboard.generation()))
            .map_err(|error| refusal(&error))?;
        let config = config::load(&inputs).map_err(|error| refusal(&error))?;
        config::path::readable(&config).map_err(|error| refusal(&error))?;
        let values = config::diff::values(&inputs).map_err(|error| refusal(&error))?;
        let config = Config { run_dir: self.places.run_dir.clone(), ..config };
        let before = self.generation(self.scoreboard.generation());
        let before = before.map(|one| Before { values: one.values.clone(), slots: one.slots });
        self.configs.insert(generation, Generation::new(config, values, inputs));
        self.reloaded(generation, before.as_ref(), Applies::AtReload)
            .ok_or_else(|| Refusal::Lost("the configuration was lost".to_owned()))
    }

    fn inputs(&self, generation: u64) -> Inputs {
        let found = self.generation(generation);
        found.map_or_else(|| self.inputs.clone(), |generation| generation.inputs.clone())
    }

    fn build(&self) -> &str {
        &self.build
    }

    fn keep(&mut self, generations: &[u64]) {
        self.configs.retain(|generation, _| generations.contains(generation));
    }
}
