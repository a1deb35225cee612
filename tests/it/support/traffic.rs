//! A fleet in traffic: a load of clients of all kinds, and its books.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::client::Request;
use crate::support::exposition::{REQUESTS, sum};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::load_generator::{COUNTER, ClientKind, LoadGenerator, LoadReport, MIX};
use crate::support::operate::{rollout, settled};
use crate::support::redis::TestRedis;
use crate::support::{client, process, soak, wait};

/// A fleet in traffic.
pub(crate) struct Scene {
    pub(crate) name: &'static str,
    pub(crate) fleet: TestFleet,
    pub(crate) volley: LoadGenerator,
    /// The highest total seen so far.
    pub(crate) total: f64,
    /// Requests of this test that are not the volley's.
    pub(crate) own: u64,
    _redis: TestRedis,
}

impl Scene {
    /// Two workers of `examples/faulty.rs`, unless `change` says otherwise, under one volley of all kinds.
    pub(crate) fn start(
        name: &'static str,
        change: impl FnOnce(TestFleetBuilder) -> TestFleetBuilder,
    ) -> Self {
        Self::with(name, MIX, change)
    }

    pub(crate) fn with(
        name: &'static str,
        mix: &[(ClientKind, usize)],
        change: impl FnOnce(TestFleetBuilder) -> TestFleetBuilder,
    ) -> Self {
        Self::by(name, mix, change, |fleet| fleet.listen)
    }

    /// The same with the volley on another way to the fleet, as a stand-in for its Unix socket.
    pub(crate) fn by(
        name: &'static str,
        mix: &[(ClientKind, usize)],
        change: impl FnOnce(TestFleetBuilder) -> TestFleetBuilder,
        way: impl FnOnce(&TestFleet) -> SocketAddr,
    ) -> Self {
        let redis = TestRedis::start();
        let plan = TestFleetBuilder::on(&redis)
            .example("faulty")
            .workers(2)
            .set("REGATTA_WORKERS__CANARY_PERIOD", "300ms");
        // As in production: the machine's heartbeat goes on beside everything.
        let plan = plan.set("REGATTA_FLEET__HEARTBEAT_INTERVAL", "2s");
        let fleet = change(plan).start();
        let volley = LoadGenerator::start(way(&fleet), mix);
        volley.more(50);
        Self { name, fleet, volley, total: 0.0, own: 0, _redis: redis }
    }

    /// Whether the fleet's totals have not gone back, looked at once.
    pub(crate) fn look(&mut self) {
        let total = total(&self.fleet);
        assert!(total >= self.total, "{}: {total} after {}", self.name, self.total);
        self.total = total;
    }

    /// The signal for a rollout, and its end.
    #[track_caller]
    pub(crate) fn rollout(&mut self, signal: Signal, verb: &str) {
        rollout(&self.fleet, signal, verb);
        self.volley.more(50);
        self.look();
    }

    /// A command of the fleet's own program, which has to say that it worked.
    #[track_caller]
    pub(crate) fn command(&mut self, args: &[&str]) {
        let (code, said) = self.fleet.plan().clone().args(args).run();
        assert_eq!(code, 0, "{args:?}: {said}");
        self.volley.more(50);
        self.look();
    }

    /// Waits until so many workers serve and no other is left.
    #[track_caller]
    pub(crate) fn settled(&mut self, workers: usize) {
        settled(&self.fleet, workers);
        self.look();
    }

    /// The books, which have to be in order; the fleet goes on without traffic.
    #[track_caller]
    pub(crate) fn end(self) -> (TestFleet, LoadReport) {
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
pub(crate) fn total(fleet: &TestFleet) -> f64 {
    let response = client::once(fleet.admin, Request::get("/metrics")).expect("operators are answered too");
    sum(&response.text(), REQUESTS, &[])
}

/// Processes of two slots: in each one that serves, one that boots, and `drain.max_draining_workers` that leave.
pub(crate) const MOST: usize = 2 * (1 + 1 + 3);

/// Looks again and again how many children a process has.
pub(crate) struct Census {
    ended: Arc<AtomicBool>,
    most: Arc<AtomicUsize>,
    watcher: Option<JoinHandle<()>>,
}

impl Census {
    pub(crate) fn of(pid: u32) -> Self {
        let (ended, most) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (end, highest) = (Arc::clone(&ended), Arc::clone(&most));
        let watcher = thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                highest.fetch_max(process::children(pid).len(), Ordering::Relaxed);
                wait::pace(Duration::from_millis(10));
            }
        });
        Self { ended, most, watcher: Some(watcher) }
    }

    /// The most it ever had.
    pub(crate) fn most(&self) -> usize {
        self.most.load(Ordering::Relaxed)
    }
}

impl Drop for Census {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}
