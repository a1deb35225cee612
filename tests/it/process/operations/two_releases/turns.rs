//! One fleet in traffic whose program is exchanged for that of the other release, and back, and again.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::process::operations::two_releases::{common, configure, former, present};
use crate::support::client::{CookieClient, Request};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::load_generator::{COUNTER, LoadGenerator, MIX};
use crate::support::operate::rollout;
use crate::support::parallel_clients::ParallelClients;
use crate::support::redis::TestRedis;
use crate::support::{client, process, soak, wait};

/// A fleet whose program is a link in its folder.
struct Turns {
    fleet: TestFleet,
    programs: [PathBuf; 2],
    redis: TestRedis,
}

impl Turns {
    /// With the former program.
    fn start(name: &str) -> Self {
        let redis = TestRedis::start();
        let plan = TestFleetBuilder::on(&redis);
        // An example has none of the shipped application's limits.
        let plan = if name.starts_with("examples/") { plan.shipped_limits() } else { plan };
        let link = plan.folder().join("program");
        let programs = [former(name), present(name)];
        symlink(&programs[0], &link).unwrap();
        let plan = common(plan.program(&link), &programs[0]);
        Self { fleet: plan.start(), programs, redis }
    }

    /// Puts a program, and its configuration, in the place of the present ones.
    fn install(&self, program: &Path) {
        let folder = self.fleet.plan().folder();
        configure(folder, program);
        symlink(program, folder.join("next")).unwrap();
        fs::rename(folder.join("next"), folder.join("program")).unwrap();
    }

    /// Puts a program in the place of the present one and has the fleet become it.
    #[track_caller]
    fn become_of(&self, program: &Path) {
        self.install(program);
        rollout(&self.fleet, Signal::SIGUSR2, "upgrade");
        self.assert_runs(program);
    }

    #[track_caller]
    fn assert_runs(&self, program: &Path) {
        assert_eq!(process::program(self.fleet.pid()).unwrap(), fs::canonicalize(program).unwrap());
    }

    /// A command of the present command line, which has to say that it worked; the last document it prints.
    #[track_caller]
    fn command(&self, words: &[&str]) -> Value {
        let plan = self.fleet.plan();
        let mut command = Command::new(present("regatta"));
        command.args(words).arg("--json").current_dir(plan.folder());
        command.env_clear().env("REGATTA_RUN_DIR", plan.setting("REGATTA_RUN_DIR"));
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{words:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        let last = serde_json::Deserializer::from_str(&text).into_iter().last();
        last.unwrap_or_else(|| panic!("{words:?} printed nothing")).unwrap()
    }

    /// Forwards, back, and forwards again; `look` after each.
    #[track_caller]
    fn go(&self, look: impl Fn()) {
        for program in self.programs.iter().cycle().skip(1).take(soak::length(3, 12)) {
            self.become_of(program);
            look();
        }
    }

    fn total(&self) -> u64 {
        self.redis.cli(&["GET", &format!("{}:c:@views", self.fleet.plan().prefix())]).parse().unwrap()
    }
}

#[test]
fn no_request_fails_forwards_or_back() {
    let turns = Turns::start("examples/faulty");
    let volley = LoadGenerator::start(turns.fleet.listen, MIX);
    volley.more(50);
    turns.go(|| volley.more(100));
    let tally = volley.finish();
    eprintln!("forwards and back: {}", tally.summary());
    tally.assert_clean();
    let next = client::once(turns.fleet.listen, Request::post(&format!("/counters/{COUNTER}"))).unwrap();
    assert_eq!(next.text(), (tally.posted() + 1).to_string(), "posts are counted once each");
}

#[test]
fn every_visitor_is_counted_exactly_forwards_and_back() {
    let turns = Turns::start("regatta");
    let address = turns.fleet.listen;
    let load = ParallelClients::start(6, |_| {
        let (mut visitor, mut views) = (CookieClient::default(), 0);
        move || {
            views += 1;
            let (worker, told) = visitor.view(address);
            assert_eq!(told, views);
            worker
        }
    });
    let look = || {
        let seen = load.seen();
        wait::until("visits", wait::LONG, || load.seen() > seen + 200);
    };
    look();
    turns.go(look);
    let visits = load.stop();
    assert_eq!(turns.total(), visits.iter().map(|of_one| of_one.len() as u64).sum::<u64>());
}

/// The new file is in its place when an operator asks for the upgrade: the new command line speaks to the former fleet.
/// The undo is asked of the present fleet, and the former one ends it.
#[test]
fn the_present_command_line_upgrades_the_former_fleet_and_undoes_it() {
    let turns = Turns::start("examples/faulty");
    let [old, new] = turns.programs.clone();
    let volley = LoadGenerator::start(turns.fleet.listen, MIX);
    volley.more(50);
    turns.command(&["restart", "0"]);
    turns.install(&new);
    turns.command(&["upgrade"]);
    turns.assert_runs(&new);
    volley.more(50);
    assert_eq!(turns.command(&["status"])["state"], "serving");
    turns.command(&["scale", "3"]);
    configure(turns.fleet.plan().folder(), &old);
    turns.command(&["upgrade", "--binary", old.to_str().unwrap()]);
    turns.assert_runs(&old);
    volley.more(50);
    turns.command(&["scale", "2"]);
    volley.more(50);
    let tally = volley.finish();
    eprintln!("by commands: {}", tally.summary());
    tally.assert_clean();
    let next = client::once(turns.fleet.listen, Request::post(&format!("/counters/{COUNTER}"))).unwrap();
    assert_eq!(next.text(), (tally.posted() + 1).to_string(), "posts are counted once each");
}
