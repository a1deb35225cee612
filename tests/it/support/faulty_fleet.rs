//! A fleet that fails on request, and an operator who types commands.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::operate;
use crate::support::redis::TestRedis;

/// A fleet that fails on request, with a configuration file of its own.
pub(crate) struct Scene {
    pub(crate) fleet: TestFleet,
    pub(crate) faults: PathBuf,
    pub(crate) file: PathBuf,
    _redis: TestRedis,
}

impl Scene {
    pub(crate) fn start(workers: usize) -> Self {
        Self::start_as(workers, |plan| plan)
    }

    /// The same with settings of the environment.
    pub(crate) fn start_as(workers: usize, adapt: impl FnOnce(TestFleetBuilder) -> TestFleetBuilder) -> Self {
        let redis = TestRedis::start();
        let plan = TestFleetBuilder::on(&redis).example("faulty").unset("WEB_CONCURRENCY");
        let (faults, file) = (plan.folder().join("faults"), plan.folder().join("regatta.toml"));
        fs::write(&file, configuration(workers, "300ms")).unwrap();
        let plan = adapt(plan.set("FAULTY_FILE", faults.to_str().unwrap()));
        Self { fleet: plan.start(), faults, file, _redis: redis }
    }

    /// Types a command; its exit code and what it printed.
    pub(crate) fn command(&self, args: &[&str]) -> (i32, String) {
        self.fleet.plan().clone().args(args).run()
    }

    #[track_caller]
    pub(crate) fn expect(&self, args: &[&str], code: i32, sentence: &str) -> String {
        let (ended, said) = self.command(args);
        assert_eq!(ended, code, "{args:?}: {said}");
        assert!(said.contains(sentence), "{args:?} does not say {sentence:?}: {said}");
        said
    }

    pub(crate) fn status(&self) -> Value {
        let (code, text) = self.command(&["status", "--json"]);
        assert_eq!(code, 0, "{text}");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Pids of the serving workers by slot, and the generations they are of.
    pub(crate) fn serving(&self) -> Vec<(u64, u64)> {
        let status = self.status();
        let slots = status["slots"].as_array().unwrap().iter();
        let worker = |slot: &Value| {
            let worker = &slot["worker"];
            Some((worker["pid"].as_u64()?, worker["generation"].as_u64()?))
        };
        slots.filter_map(worker).collect()
    }

    /// Waits until no one is left who leaves.
    #[track_caller]
    pub(crate) fn settled(&self, workers: usize) {
        operate::settled(&self.fleet, workers);
    }
}

pub(crate) fn configuration(workers: usize, probation: &str) -> String {
    format!("[workers]\ncount = {workers}\ncanary_period = \"{probation}\"\n")
}
