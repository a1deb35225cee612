//! One upgrade at a time; its caller is answered across it; a stop ends it.

use std::thread;

use nix::sys::signal::Signal;

use crate::process::supervisor::upgrade::{Site, upgraded};
use crate::support::{process, wait};

/// Takes a moment to prove itself.
const SLOW: &str = "[ \"$1\" = check ] && sleep 1\nexec REAL \"$@\"";

#[test]
fn a_second_upgrade_is_told_that_one_is_in_progress_and_a_reload_waits_for_it() {
    let site = Site::new();
    let fleet = site.plan.start();
    site.put(&site.script("slow", SLOW));
    fleet.signal(Signal::SIGUSR2);
    wait::until("it begins", wait::LONG, || !fleet.log_lines("upgrade preflight started").is_empty());
    for _ in 0..20 {
        fleet.signal(Signal::SIGUSR2);
    }
    fleet.signal(Signal::SIGHUP);
    wait::until("the second is refused", wait::LONG, || {
        !fleet.log_lines("not upgraded: an upgrade is in progress").is_empty()
    });
    let (code, said) = site.plan.clone().args(&["upgrade"]).run();
    assert_eq!((code, said.contains("an upgrade is in progress")), (1, true), "{said}");
    wait::until("both come through", wait::LONG, || {
        fleet.log_lines("upgrade done").len() == 1 && fleet.log_lines("reload done").len() == 1
    });
    upgraded(&fleet);
}

#[test]
fn an_operator_is_answered_across_the_takeover() {
    let site = Site::new();
    let fleet = site.plan.start();
    let ask = |args: &[&str]| site.plan.clone().program(&site.real).args(args).run();
    let (code, said) = ask(&["upgrade"]);
    assert_eq!((code, said.contains("upgrade done: 2 workers of generation 2")), (0, true), "{said}");
    site.break_workers("all");
    let (code, said) = ask(&["upgrade"]);
    assert_eq!((code, said.contains("upgrade rolled back") && said.contains("hole")), (1, true), "{said}");
    let (code, said) = ask(&["upgrade", "--binary", "/bin/true"]);
    assert_eq!((code, said.contains("nothing is changed, /bin/true")), (1, true), "{said}");
    site.break_workers("");
    let next = site.copy("next");
    let (code, said) = ask(&["upgrade", "--binary", next.to_str().unwrap(), "--json"]);
    assert_eq!((code, said.contains("\"generation\":4")), (0, true), "{said}");
    assert_eq!(process::program(fleet.pid()).unwrap(), next);
    let (code, said) = ask(&["events", "--json"]);
    assert_eq!(code, 0);
    let kinds = ["fleet_serving", "upgrade_took_over", "rollout_rolled_back", "upgrade_refused"];
    assert!(kinds.iter().all(|kind| said.contains(&format!("\"kind\":\"{kind}\""))), "{said}");
}

#[test]
fn an_operator_whose_client_waits_through_a_slow_proof_is_answered() {
    let site = Site::new();
    let fleet = site.plan.start();
    site.put(&site.script("slow", SLOW));
    let plan = site.plan.clone().program(&site.real);
    let asked = thread::spawn(move || plan.args(&["upgrade"]).run());
    wait::until("it begins", wait::LONG, || !fleet.log_lines("upgrade preflight started").is_empty());
    // Others are answered meanwhile.
    let (code, _) = site.plan.clone().program(&site.real).args(&["events"]).run();
    assert_eq!(code, 0);
    let (code, said) = asked.join().unwrap();
    assert_eq!(code, 0, "{said}");
}

#[test]
fn a_stop_during_the_proof_ends_fleet_and_proof() {
    let site = Site::new();
    let mut fleet = site.plan.start();
    let before = process::children(fleet.pid());
    site.put(&site.script("silent", "sleep 600; true"));
    fleet.signal(Signal::SIGUSR2);
    let asked = wait::until_some("it is asked", wait::LONG, || {
        process::children(fleet.pid()).into_iter().find(|pid| !before.contains(pid))
    });
    let sleeper = wait::until_some("it sleeps", wait::LONG, || process::children(asked).first().copied());
    assert_eq!(fleet.stop(), 0);
    assert!(!process::alive(asked) && !process::alive(sleeper));
    assert_eq!(fleet.log_lines("upgrade cancelled").len(), 1);
}

#[test]
fn a_stop_on_trial_is_a_stop() {
    let site = Site::new();
    let mut fleet = site.plan.clone().set("REGATTA_WORKERS__CANARY_PERIOD", "30s").start();
    fleet.signal(Signal::SIGUSR2);
    wait::until("the first new worker serves", wait::LONG, || fleet.ready().len() == 3);
    let all = process::children(fleet.pid());
    assert_eq!(fleet.stop(), 0);
    assert!(!all.into_iter().any(process::alive));
}

#[test]
fn signals_at_any_moment_of_the_takeover_are_obeyed() {
    for (number, signal) in
        [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT].into_iter().cycle().take(12).enumerate()
    {
        let site = Site::new();
        let mut fleet = site.plan.start();
        fleet.signal(Signal::SIGUSR2);
        wait::let_pass(std::time::Duration::from_millis(6 * number as u64));
        fleet.signal(Signal::SIGHUP);
        fleet.signal(signal);
        assert_eq!(fleet.exit_code(wait::LONG), 0, "{signal}: {}", fleet.log());
    }
}
