//! Kernels that are too old, and profiles that forbid: what a fleet can do without, it does without, and what it
//! cannot, it names.

use nix::sys::signal::Signal;

use crate::support::fleet::TestFleetBuilder;
use crate::support::operate::operate;
use crate::support::redis::TestRedis;
use crate::support::wait;

/// On a kernel that answers each of these calls with its error.
fn without(plan: TestFleetBuilder, lacking: &[(&str, &str)]) -> TestFleetBuilder {
    let helper = plan.clone().example("without").file().display().to_string();
    let words: Vec<_> = lacking.iter().flat_map(|(error, calls)| [helper.as_str(), error, calls]).collect();
    plan.wrapped(&words)
}

/// All that a fleet does which needs the kernel: begin, replace, reload, scale, upgrade, stop.
#[track_caller]
fn lives(plan: TestFleetBuilder) -> String {
    let mut fleet = plan.set("REGATTA_WORKERS__CANARY_PERIOD", "100ms").start();
    assert_eq!(fleet.get("/").status, 200);
    fleet.crash(fleet.workers()[0]);
    for words in [&["reload"][..], &["scale", "3"], &["scale", "1"], &["upgrade"]] {
        operate(&fleet, words);
    }
    assert_eq!(fleet.get("/").status, 200, "{}", fleet.log());
    assert_eq!(fleet.stop(), 0, "{}", fleet.log());
    fleet.log()
}

/// `SOL_SOCKET` and `IPPROTO_TCP` with their options, as setsockopt(2) has them.
const DETACH: &str = "setsockopt:1:68";
const ATTACH: &str = "setsockopt:1:51";
const FILTER: &str = "setsockopt:1:26";
const REUSEPORT: &str = "setsockopt:1:15";

#[test]
fn a_program_for_connections_that_cannot_be_taken_away_is_replaced() {
    let redis = TestRedis::start();
    lives(without(TestFleetBuilder::on(&redis), &[("ENOPROTOOPT", DETACH)]));
}

#[test]
fn without_programs_for_connections_the_kernel_spreads_them() {
    let redis = TestRedis::start();
    let log =
        lives(without(TestFleetBuilder::on(&redis), &[("ENOPROTOOPT", &[DETACH, ATTACH, FILTER].join(","))]));
    assert!(log.contains("SO_ATTACH_REUSEPORT_CBPF"), "{log}");
}

#[test]
fn without_options_that_bound_what_clients_take_it_serves_and_says_so() {
    let redis = TestRedis::start();
    let options = "setsockopt:6:1,setsockopt:6:18,setsockopt:6:25";
    let log = lives(without(TestFleetBuilder::on(&redis), &[("ENOPROTOOPT", options)]));
    assert!(log.contains("TCP_NOTSENT_LOWAT"), "{log}");
}

#[test]
fn without_calls_that_older_kernels_lack_it_serves() {
    let redis = TestRedis::start();
    let calls = "close_range,pidfd_open,execveat,timer_create,pwritev2,splice";
    lives(without(TestFleetBuilder::on(&redis), &[("ENOSYS", calls)]));
}

#[test]
fn where_a_profile_forbids_what_is_not_needed_it_serves() {
    let redis = TestRedis::start();
    // A subreaper, the parent's signal, the name of the process; limits and priorities; the kernel's random numbers.
    let calls = "prctl:36,prctl:1,prctl:15,setpriority,getrandom,close_range";
    let log = lives(without(TestFleetBuilder::on(&redis), &[("EPERM", calls)]));
    assert!(log.contains("PR_SET_CHILD_SUBREAPER"), "{log}");
}

#[test]
fn what_it_cannot_do_without_is_named() {
    let redis = TestRedis::start();
    for (calls, name) in
        [("memfd_create", "memfd_create"), ("signalfd4", "signalfd"), (REUSEPORT, "SO_REUSEPORT")]
    {
        for error in ["ENOSYS", "EPERM"] {
            let (code, printed) = without(TestFleetBuilder::on(&redis), &[(error, calls)]).run();
            assert_ne!(code, 0, "{printed}");
            assert!(printed.contains(name), "{calls}, {error}: {printed}");
        }
    }
    let plan = TestFleetBuilder::on(&redis).set("REGATTA_LISTEN__STEERING", "client-ip");
    let (code, printed) = without(plan, &[("ENOPROTOOPT", ATTACH)]).run();
    assert_ne!(code, 0);
    assert!(printed.contains("steering") && printed.contains("SO_ATTACH_REUSEPORT_CBPF"), "{printed}");
}

#[test]
fn a_stop_loses_nothing_where_the_kernel_cannot_keep_new_connections_off() {
    let redis = TestRedis::start();
    let fleet = without(TestFleetBuilder::on(&redis), &[("ENOPROTOOPT", FILTER)]).start();
    fleet.signal(Signal::SIGTERM);
    wait::until("it has stopped", wait::LONG, || !fleet.log_lines("stopped").is_empty());
}
