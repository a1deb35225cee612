//! A signal may come at any moment of a boot: it is obeyed, or it has nothing to do, and it never does harm.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::client::Request;
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::TestRedis;
use crate::support::{client, process, soak, wait};

/// A boot takes less than this.
const BOOT: Duration = Duration::from_millis(300);

/// A fleet that begins, and gets `signal` at some moment of its boot.
fn disturbed(plan: &TestFleetBuilder, signal: Signal, moment: Duration) -> TestFleet {
    let begin = Instant::now();
    let fleet = plan.spawn();
    wait::let_pass(moment.saturating_sub(begin.elapsed()));
    fleet.signal(signal);
    fleet
}

/// Moments spread over a boot.
fn moments() -> impl Iterator<Item = Duration> {
    let count = soak::length(4, 60);
    (0..count).map(move |number| BOOT * number / count)
}

/// Before a program has taken its signals it has done nothing either, and the kernel ends it.
fn ended_before_it_began(fleet: &mut TestFleet, signal: Signal) -> bool {
    wait::until("it has said something, or has ended", wait::LONG, || {
        // Until a program takes them, the kernel has TTIN and TTOU suspend it, once it gets a processor.
        if process::state(fleet.pid()) == Some('T') {
            fleet.signal(Signal::SIGCONT);
        }
        !fleet.log().is_empty() || !process::alive(fleet.pid())
    });
    fleet.log().is_empty() && fleet.exit_code(wait::LONG) == -(signal as i32)
}

#[test]
fn a_signal_during_the_boot_does_no_harm() {
    let redis = TestRedis::start();
    for signal in [Signal::SIGHUP, Signal::SIGUSR2, Signal::SIGTTIN, Signal::SIGUSR1, Signal::SIGTTOU] {
        for moment in moments() {
            let mut fleet = disturbed(&TestFleetBuilder::on(&redis).workers(2), signal, moment);
            if ended_before_it_began(&mut fleet, signal) {
                continue;
            }
            let fleet = fleet.after("serving on");
            let hello = client::once(fleet.listen, Request::get("/hello")).expect("it is answered");
            assert_eq!(hello.status, 200, "{signal} after {moment:?}: {}", fleet.log());
        }
    }
}

#[test]
fn a_stop_during_the_boot_is_a_stop() {
    let redis = TestRedis::start();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        for moment in moments() {
            let mut fleet = disturbed(&TestFleetBuilder::on(&redis).workers(2), signal, moment);
            if ended_before_it_began(&mut fleet, signal) {
                continue;
            }
            assert_eq!(fleet.exit_code(wait::LONG), 0, "{signal} after {moment:?}: {}", fleet.log());
        }
    }
}
