//! The other side of the coin: a volley sees what is lost, so its silence means something.

use nix::sys::signal::Signal;

use crate::support::fleet::TestFleetBuilder;
use crate::support::load_generator::{LoadGenerator, MIX, RequestLoss};
use crate::support::redis::TestRedis;
use crate::support::{process, wait};

#[test]
fn a_volley_sees_what_killed_workers_lose() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).example("faulty").workers(2).start();
    let volley = LoadGenerator::start(fleet.listen, MIX);
    volley.more(100);
    fleet.workers().into_iter().for_each(|pid| process::signal(pid, Signal::SIGKILL));
    volley.more(100);
    let tally = volley.finish();
    // Held streams at the least were cut.
    assert!(tally.lost(RequestLoss::Reset) + tally.lost(RequestLoss::Short) >= 2, "{}", tally.summary());
    assert_eq!(
        tally.failed(),
        tally.lost(RequestLoss::Reset) + tally.lost(RequestLoss::Short),
        "{}",
        tally.summary()
    );
}

#[test]
fn a_volley_sees_refusals_after_a_stop() {
    let redis = TestRedis::start();
    let mut fleet = TestFleetBuilder::on(&redis).example("faulty").workers(2).start();
    let volley = LoadGenerator::start(fleet.listen, MIX);
    volley.more(100);
    assert_eq!(fleet.stop(), 0);
    wait::until("every client has noticed", wait::LONG, || volley.failed() > 100);
    let tally = volley.finish();
    assert_eq!(tally.failed(), tally.lost(RequestLoss::Refused), "{}", tally.summary());
}

#[test]
fn a_volley_sees_errors_and_limits() {
    let redis = TestRedis::start();
    let plan = || TestFleetBuilder::on(&redis).example("faulty").workers(2);
    let limits = [("REGATTA_LIMITS__DEFAULT__RATE", "1/h"), ("REGATTA_LIMITS__DEFAULT__BURST", "5")];
    let limited = limits.iter().fold(plan(), |plan, (name, value)| plan.set(name, value)).start();
    let volley = LoadGenerator::start(limited.listen, MIX);
    wait::until("posts are limited", wait::LONG, || volley.failed() > 10);
    let tally = volley.finish();
    assert_eq!(tally.failed(), tally.lost(RequestLoss::Limited), "{}", tally.summary());

    let fleet = plan().start();
    let volley = LoadGenerator::start(fleet.listen, MIX);
    redis.stop();
    wait::until("posts fail", wait::LONG, || volley.failed() > 10);
    redis.cont();
    let tally = volley.finish();
    assert_eq!(tally.failed(), tally.lost(RequestLoss::ServerError), "{}", tally.summary());
}
