//! One fleet in traffic whose program is exchanged for that of the other release, and back, and again.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use crate::process::operations::two_releases::{former, present};
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
        let plan = TestFleetBuilder::on(&redis).set("REGATTA_WORKERS__CANARY_PERIOD", "300ms");
        // An example has none of the shipped application's limits.
        let plan = if name.starts_with("examples/") { plan.shipped_limits() } else { plan };
        let link = plan.folder().join("program");
        let programs = [former(name), present(name)];
        symlink(&programs[0], &link).unwrap();
        Self { fleet: plan.program(&link).start(), programs, redis }
    }

    /// Puts a program in the place of the present one and has the fleet become it.
    #[track_caller]
    fn become_of(&self, program: &Path) {
        let folder = self.fleet.plan().folder();
        symlink(program, folder.join("next")).unwrap();
        fs::rename(folder.join("next"), folder.join("program")).unwrap();
        rollout(&self.fleet, Signal::SIGUSR2, "upgrade");
        assert_eq!(process::program(self.fleet.pid()).unwrap(), fs::canonicalize(program).unwrap());
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
