//! The other side of the coin: a volley sees what is lost, so its silence means something.

use nix::sys::signal::Signal;

use crate::support::fleet::Plan;
use crate::support::process;
use crate::support::redis::RedisServer;
use crate::support::volley::Loss;
use crate::support::volley::MIX;
use crate::support::volley::Volley;
use crate::support::wait;

#[test]
fn a_volley_sees_what_killed_workers_lose() {
    let redis = RedisServer::start();
    let fleet = Plan::on(&redis).example("faulty").workers(2).start();
    let volley = Volley::start(fleet.listen, MIX);
    volley.more(100);
    fleet.workers().into_iter().for_each(|pid| process::signal(pid, Signal::SIGKILL));
    volley.more(100);
    let tally = volley.finish();
    // Held streams at the least were cut.
    assert!(tally.lost(Loss::Reset) + tally.lost(Loss::Short) >= 2, "{}", tally.summary());
    assert_eq!(tally.failed(), tally.lost(Loss::Reset) + tally.lost(Loss::Short), "{}", tally.summary());
}

#[test]
fn a_volley_sees_refusals_after_a_stop() {
    let redis = RedisServer::start();
    let mut fleet = Plan::on(&redis).example("faulty").workers(2).start();
    let volley = Volley::start(fleet.listen, MIX);
    volley.more(100);
    assert_eq!(fleet.stop(), 0);
    wait::until("every client has noticed", wait::LONG, || volley.failed() > 100);
    let tally = volley.finish();
    assert_eq!(tally.failed(), tally.lost(Loss::Refused), "{}", tally.summary());
}

#[test]
fn a_volley_sees_errors_and_limits() {
    let redis = RedisServer::start();
    let plan = || Plan::on(&redis).example("faulty").workers(2);
    let limits = [("REGATTA_LIMITS__DEFAULT__RATE", "1/h"), ("REGATTA_LIMITS__DEFAULT__BURST", "5")];
    let limited = limits.iter().fold(plan(), |plan, (name, value)| plan.set(name, value)).start();
    let volley = Volley::start(limited.listen, MIX);
    wait::until("posts are limited", wait::LONG, || volley.failed() > 10);
    let tally = volley.finish();
    assert_eq!(tally.failed(), tally.lost(Loss::Limited), "{}", tally.summary());

    let fleet = plan().start();
    let volley = Volley::start(fleet.listen, MIX);
    redis.stop();
    wait::until("posts fail", wait::LONG, || volley.failed() > 10);
    redis.cont();
    let tally = volley.finish();
    assert_eq!(tally.failed(), tally.lost(Loss::ServerError), "{}", tally.summary());
}
