//! Other addresses for a fleet that runs, by reload and by upgrade: what is added is served, what ends loses nothing, and
//! what cannot be is refused with nothing changed.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

use nix::sys::signal::Signal;

use crate::support::client::{Connection, Failure, Request};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::load_generator::{ClientKind, LoadGenerator};
use crate::support::nginx::free_address;
use crate::support::operate::rollout;
use crate::support::redis::TestRedis;
use crate::support::{client, soak, stand_in, wait};

/// A fleet that listens where its file says.
struct Site {
    plan: TestFleetBuilder,
    file: PathBuf,
    _redis: TestRedis,
}

impl Site {
    fn new() -> Self {
        let redis = TestRedis::start();
        let plan = TestFleetBuilder::on(&redis).example("faulty").unset("REGATTA_LISTEN");
        let file = plan.folder().join("regatta.toml");
        let plan = plan.set("REGATTA_WORKERS__CANARY_PERIOD", "300ms");
        Self { plan, file, _redis: redis }
    }

    fn write(&self, listen: &[&str]) {
        let list: Vec<_> = listen.iter().map(|address| format!("{address:?}")).collect();
        fs::write(&self.file, format!("listen = [{}]\n", list.join(", "))).unwrap();
    }

    fn socket(&self) -> PathBuf {
        self.plan.folder().join("shop.sock")
    }
}

fn is_refused(address: SocketAddr) -> bool {
    matches!(client::once(address, Request::get("/hello")), Err(Failure::Refused))
}

fn hello(address: SocketAddr) {
    assert_eq!(client::get(address, "/hello").status, 200);
}

/// Small exchanges, each on a connection of its own or on one that is kept as long as it lasts.
const MIX: &[(ClientKind, usize)] =
    &[(ClientKind::KeepAlive, 2), (ClientKind::Close, 2), (ClientKind::Post, 1)];

#[test]
fn addresses_are_added_and_end_by_reload_and_by_upgrade_without_a_loss() {
    let site = Site::new();
    let [first, second] = [free_address(), free_address()];
    let unix = format!("unix:{}", site.socket().display());
    site.write(&[&first.to_string()]);
    let mut fleet = site.plan.start();
    let mut kept = Connection::open(first).unwrap();
    assert_eq!(kept.request(&Request::get("/hello")).unwrap().status, 200);
    for (signal, verb) in [(Signal::SIGHUP, "reload"), (Signal::SIGUSR2, "upgrade")] {
        let load = LoadGenerator::start(first, MIX);
        load.more(20);
        site.write(&[&first.to_string(), &second.to_string(), &unix]);
        rollout(&fleet, signal, verb);
        load.more(20);
        hello(second);
        hello(stand_in::unix(&site.socket()));
        // More slots have all of them.
        let (code, said) = fleet.plan().clone().args(&["scale", "3"]).run();
        assert_eq!(code, 0, "{said}");
        (0..20).for_each(|_| hello(second));
        let others = [second, stand_in::unix(&site.socket())].map(|way| LoadGenerator::start(way, MIX));
        others.iter().for_each(|load| load.more(20));
        rollout(&fleet, Signal::SIGHUP, "reload");
        others.iter().for_each(|load| load.more(20));
        for load in others {
            let report = load.finish();
            soak::report("added addresses", &report);
            report.assert_clean();
        }
        site.write(&[&first.to_string()]);
        rollout(&fleet, signal, verb);
        wait::until("the removed addresses are closed", wait::LONG, || {
            is_refused(second) && !site.socket().exists()
        });
        load.more(20);
        let report = load.finish();
        soak::report("the address that stays", &report);
        report.assert_clean();
        TcpListener::bind(second).expect("the port is free for others");
    }
    assert_eq!(fleet.stop(), 0, "{}", fleet.log());
}

/// A client that was connected when the address ended, or still gets through, is answered.
#[test]
fn the_queue_of_an_address_that_ends_is_answered() {
    let site = Site::new();
    let [first, second] = [free_address(), free_address()];
    site.write(&[&first.to_string(), &second.to_string()]);
    let fleet = site.plan.start();
    site.write(&[&first.to_string()]);
    let mut answered = 0;
    fleet.signal(Signal::SIGHUP);
    wait::until("the address is closed", wait::LONG, || {
        match client::once(second, Request::get("/hello")) {
            Ok(response) => {
                assert_eq!(response.status, 200);
                answered += 1;
                false
            }
            Err(Failure::Refused) => true,
            // The kernel ignores it while the queue runs dry.
            Err(Failure::TimedOut) => false,
            Err(other) => panic!("{other:?} after {answered}: {}", fleet.log()),
        }
    });
    assert!(answered > 0);
    hello(first);
}

fn refused(fleet: &TestFleet, verb: &str) -> String {
    let (code, said) = fleet.plan().clone().args(&[verb]).run();
    assert_ne!(code, 0, "{said}");
    said
}

#[test]
fn a_bad_address_is_refused_with_nothing_changed() {
    let site = Site::new();
    let [first, second] = [free_address(), free_address()];
    let foreign = TcpListener::bind("127.0.0.1:0").unwrap();
    let foreign = foreign.local_addr().unwrap().to_string();
    let missing = format!("unix:{}", site.plan.folder().join("none/shop.sock").display());
    let unix = format!("unix:{}", site.socket().display());
    site.write(&[&first.to_string()]);
    let fleet = site.plan.start();
    let before = fleet.workers();
    let _held = TcpListener::bind(&*foreign);
    for (wrong, why) in
        [(missing.as_str(), "make it first"), ("192.0.2.1:81", "no interface"), ("nonsense", "listen")]
    {
        site.write(&[&first.to_string(), &second.to_string(), &unix, wrong]);
        for verb in ["reload", "upgrade"] {
            let said = refused(&fleet, verb);
            let is_unchanged = said.contains("nothing is changed") || said.contains("serves as before");
            assert!(is_unchanged && said.contains(why), "{verb} {wrong}: {said}");
        }
        hello(first);
        assert!(is_refused(second) && !site.socket().exists(), "{wrong}");
    }
    assert_eq!(fleet.workers(), before);
    // And then a good one.
    site.write(&[&second.to_string()]);
    rollout(&fleet, Signal::SIGHUP, "reload");
    hello(second);
    wait::until("the old address is closed", wait::LONG, || is_refused(first));
}

#[test]
fn a_rollout_that_fails_takes_back_what_it_added() {
    let site = Site::new();
    let [first, second] = [free_address(), free_address()];
    let unix = format!("unix:{}", site.socket().display());
    let faults = site.plan.folder().join("failing");
    fs::write(&faults, "").unwrap();
    site.write(&[&first.to_string()]);
    let fleet = site.plan.clone().set("FAULTY_FILE", &faults.display().to_string()).start();
    fs::write(&faults, "all").unwrap();
    site.write(&[&second.to_string(), &unix]);
    for verb in ["reload", "upgrade"] {
        let said = refused(&fleet, verb);
        assert!(said.contains("rolled back"), "{said}");
        hello(first);
        wait::until("what was added is closed", wait::LONG, || is_refused(second) && !site.socket().exists());
    }
}
