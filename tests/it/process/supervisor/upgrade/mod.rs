//! Another program in the same process, and back again when it is no good.

mod back;
mod hygiene;
mod refused;
mod turns;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::fleet::{TestFleet, TestFleetBuilder, field};
use crate::support::redis::TestRedis;
use crate::support::wait;

/// Longest time for one upgrade on a busy machine.
const UPGRADE: Duration = Duration::from_secs(60);

/// A fleet whose program is a link in its folder, so that another can be put in its place.
struct Site {
    plan: TestFleetBuilder,
    /// The program it begins with.
    real: PathBuf,
    _redis: TestRedis,
}

impl Site {
    fn new() -> Self {
        let redis = TestRedis::start();
        let plan =
            TestFleetBuilder::on(&redis).example("faulty").set("REGATTA_WORKERS__CANARY_PERIOD", "300ms");
        let real = plan.file().to_owned();
        let (link, faults) = (plan.folder().join("program"), plan.folder().join("failing"));
        fs::write(&faults, "").unwrap();
        let plan = plan.program(&link).set("FAULTY_FILE", &faults.display().to_string());
        let site = Self { plan, real, _redis: redis };
        site.put(&site.real);
        site
    }

    /// Puts another program where the fleet was started from.
    fn put(&self, program: &Path) {
        let next = self.plan.folder().join("program.next");
        symlink(program, &next).unwrap();
        fs::rename(&next, self.plan.folder().join("program")).unwrap();
    }

    /// Has the workers that are started from now on fail.
    fn break_workers(&self, how: &str) {
        fs::write(self.plan.folder().join("failing"), how).unwrap();
    }

    /// A file of the fleet's folder that may be executed.
    fn executable(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.plan.folder().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// A shell script in which `REAL` is the real program.
    fn script(&self, name: &str, text: &str) -> PathBuf {
        let text = format!("#!/bin/sh\n{}\n", text.replace("REAL", &self.real.display().to_string()));
        self.executable(name, text.as_bytes())
    }

    /// Another file with the same program in it.
    fn copy(&self, name: &str) -> PathBuf {
        let path = self.plan.folder().join(name);
        // Where a link cannot be made, on another file system, a copy does.
        if fs::hard_link(&self.real, &path).is_err() {
            fs::copy(&self.real, &path).unwrap();
        }
        path
    }
}

/// Sends USR2 and returns what the log says first of these.
#[track_caller]
fn upgrade(fleet: &TestFleet, ends: &[&str]) -> String {
    let count = |end: &&str| fleet.log_lines(end).len();
    let before: Vec<_> = ends.iter().map(count).collect();
    fleet.signal(Signal::SIGUSR2);
    wait::until_some(&format!("the log says one of {ends:?}"), UPGRADE, || {
        let mut lines = ends
            .iter()
            .zip(&before)
            .filter_map(|(end, before)| fleet.log_lines(end).into_iter().nth(*before));
        lines.next().map(|line| field(&line, "message").as_str().unwrap_or_default().to_owned())
    })
}

/// Upgrades, and it has to work.
#[track_caller]
fn upgraded(fleet: &TestFleet) {
    let said = upgrade(fleet, &["upgrade done", "upgrade refused", "upgrade rolled back"]);
    assert!(said.starts_with("upgrade done"), "{said}");
}
