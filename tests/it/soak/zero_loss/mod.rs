//! What an operator, or a bad day, may do to a fleet without costing a visitor anything.
//!
//! Every scenario runs under a volley of clients of all kinds and ends with the same books: not one request failed,
//! the fleet's totals are what the clients counted, and the posted counter is exact. `REGATTA_SOAK` makes them long.

mod figures;
mod held;
mod idle;
mod loss;
mod phases;
mod proxy;
mod recycle;
mod reload;
mod scale;
mod starved;
mod steady;
mod storm;
mod upgrade;

use nix::sys::signal::Signal;

use crate::support::client::Request;
use crate::support::exposition::{REQUESTS, sum};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::load_generator::{COUNTER, ClientKind, LoadGenerator, LoadReport, MIX};
use crate::support::operate::{rollout, settled};
use crate::support::redis::TestRedis;
use crate::support::{client, soak, wait};

/// A fleet in traffic.
struct Scene {
    name: &'static str,
    fleet: TestFleet,
    volley: LoadGenerator,
    /// The highest total seen so far.
    total: f64,
    /// Requests of this test that are not the volley's.
    own: u64,
    _redis: TestRedis,
}

impl Scene {
    /// Two workers of `examples/faulty.rs`, unless `change` says otherwise, under one volley of all kinds.
    fn start(name: &'static str, change: impl FnOnce(TestFleetBuilder) -> TestFleetBuilder) -> Self {
        Self::with(name, MIX, change)
    }

    fn with(
        name: &'static str,
        mix: &[(ClientKind, usize)],
        change: impl FnOnce(TestFleetBuilder) -> TestFleetBuilder,
    ) -> Self {
        let redis = TestRedis::start();
        let plan = TestFleetBuilder::on(&redis)
            .example("faulty")
            .workers(2)
            .set("REGATTA_WORKERS__CANARY_PERIOD", "300ms");
        // As in production: the machine's heartbeat goes on beside everything.
        let plan = plan.set("REGATTA_FLEET__HEARTBEAT_INTERVAL", "2s");
        let fleet = change(plan).start();
        let volley = LoadGenerator::start(fleet.listen, mix);
        volley.more(50);
        Self { name, fleet, volley, total: 0.0, own: 0, _redis: redis }
    }

    /// Whether the fleet's totals have not gone back, looked at once.
    fn look(&mut self) {
        let total = total(&self.fleet);
        assert!(total >= self.total, "{}: {total} after {}", self.name, self.total);
        self.total = total;
    }

    /// The signal for a rollout, and its end.
    #[track_caller]
    fn rollout(&mut self, signal: Signal, verb: &str) {
        rollout(&self.fleet, signal, verb);
        self.volley.more(50);
        self.look();
    }

    /// A command of the fleet's own program, which has to say that it worked.
    #[track_caller]
    fn command(&mut self, args: &[&str]) {
        let (code, said) = self.fleet.plan().clone().args(args).run();
        assert_eq!(code, 0, "{args:?}: {said}");
        self.volley.more(50);
        self.look();
    }

    /// Waits until so many workers serve and no other is left.
    #[track_caller]
    fn settled(&mut self, workers: usize) {
        settled(&self.fleet, workers);
        self.look();
    }

    /// The books, which have to be in order; the fleet goes on without traffic.
    #[track_caller]
    fn end(self) -> (TestFleet, LoadReport) {
        let tally = self.volley.finish();
        soak::report(self.name, &tally);
        tally.assert_clean();
        let counted = || total(&self.fleet);
        let expected = tally.answered() + self.own;
        let mut last = 0.0;
        wait::until_or(wait::LONG, || {
            last = counted();
            (last - expected as f64).abs() < 0.5
        })
        .unwrap_or_else(|()| {
            panic!("{}: {last} counted, {expected} answered: {}", self.name, tally.summary())
        });
        let next = client::once(self.fleet.listen, Request::post(&format!("/counters/{COUNTER}"))).unwrap();
        assert_eq!(
            next.text(),
            (tally.posted() + 1).to_string(),
            "{}: posts are counted once each",
            self.name
        );
        (self.fleet, tally)
    }
}

/// Requests answered to the public since the fleet began.
fn total(fleet: &TestFleet) -> f64 {
    let response = client::once(fleet.admin, Request::get("/metrics")).expect("operators are answered too");
    sum(&response.text(), REQUESTS, &[])
}
