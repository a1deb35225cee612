//! A program that took over and is no good is taken back, at no visitor's cost.

use std::fs;

use crate::process::supervisor::upgrade::{Site, upgrade, upgraded};
use crate::support::load_generator::{LoadGenerator, LoadReport, MIX, RequestLoss};
use crate::support::{process, wait};

/// A fleet in traffic whose next program has workers that fail in this way; it goes back, and when it is mended it
/// goes forward. What its visitors saw.
fn fails_and_is_taken_back(how: &str, reason: &str) -> LoadReport {
    let site = Site::new();
    let plan = site.plan.clone().set("REGATTA_WORKERS__BOOT_TIMEOUT", "2s");
    let plan = plan.set("REGATTA_WORKERS__CANARY_PERIOD", "4s");
    let fleet = plan.start();
    let volley = LoadGenerator::start(fleet.listen, MIX);
    volley.more(50);
    let (pid, workers) = (fleet.pid(), fleet.workers());
    let descriptors = process::descriptors(pid);
    let next = site.copy("next");
    site.put(&next);
    site.break_workers(how);
    let said = upgrade(&fleet, &["upgrade rolled back", "upgrade refused", "upgrade done"]);
    assert!(said.starts_with("upgrade rolled back") && said.contains(reason), "{said}");
    assert_eq!(process::program(pid).unwrap(), site.real, "the old program again");
    wait::until("only the old workers are left", wait::LONG, || fleet.workers() == workers);
    wait::until("no descriptor is left of it", wait::LONG, || process::descriptors(pid) == descriptors);
    volley.more(50);
    site.break_workers("");
    upgraded(&fleet);
    assert_eq!(process::program(pid).unwrap(), next, "the new one");
    volley.more(50);
    volley.finish()
}

#[test]
fn a_program_whose_workers_do_not_boot_is_taken_back() {
    fails_and_is_taken_back("all", "the boat has a hole").assert_clean();
}

#[test]
fn a_program_whose_workers_never_get_ready_is_taken_back() {
    fails_and_is_taken_back("never", "not ready within workers.boot_timeout").assert_clean();
}

#[test]
fn a_program_whose_first_worker_fails_a_check_is_taken_back() {
    let site = Site::new();
    site.break_workers("mast");
    let fleet = site.plan.clone().start();
    let (pid, workers) = (fleet.pid(), fleet.workers());
    let next = site.copy("next");
    site.put(&next);
    site.break_workers("mast gone");
    let said = upgrade(&fleet, &["upgrade rolled back", "upgrade refused", "upgrade done"]);
    let reason = r#"failed: check "mast" fails: it is gone; the old worker passes it"#;
    assert!(said.starts_with("upgrade rolled back") && said.contains(reason), "{said}");
    assert_eq!(process::program(pid).unwrap(), site.real, "the old program again");
    wait::until("only the old workers are left", wait::LONG, || fleet.workers() == workers);
    site.break_workers("mast");
    upgraded(&fleet);
    assert_eq!(process::program(pid).unwrap(), next, "the new one");
}

#[test]
fn a_program_whose_workers_die_soon_after_ready_is_taken_back() {
    let tally = fails_and_is_taken_back("late", "failed");
    // It dies with what it has in hand, as any worker that is killed: at most one request of each client, four of the
    // one that speaks HTTP/2.
    let at_once = MIX.iter().map(|(_, clients)| *clients as u64).sum::<u64>() + 3;
    let cut = tally.lost(RequestLoss::Reset) + tally.lost(RequestLoss::Short);
    assert!(tally.failed() == cut && cut <= at_once, "{}", tally.summary());
}

#[test]
fn a_failure_in_a_later_slot_takes_all_of_them_back() {
    let site = Site::new();
    let fleet = site.plan.clone().workers(3).start();
    let volley = LoadGenerator::start(fleet.listen, MIX);
    site.break_workers("2");
    let said = upgrade(&fleet, &["upgrade rolled back", "upgrade refused", "upgrade done"]);
    assert!(said.starts_with("upgrade rolled back: the new worker in slot 2 failed"), "{said}");
    volley.more(50);
    site.break_workers("");
    upgraded(&fleet);
    volley.finish().assert_clean();
}

#[test]
fn the_old_program_comes_back_though_its_file_is_gone() {
    let site = Site::new();
    let old = site.copy("old");
    site.put(&old);
    let fleet = site.plan.clone().start();
    site.put(&site.real);
    fs::remove_file(&old).unwrap();
    site.break_workers("all");
    let said = upgrade(&fleet, &["upgrade rolled back", "upgrade refused", "upgrade done"]);
    assert!(said.starts_with("upgrade rolled back"), "{said}");
    let program = process::program(fleet.pid()).unwrap();
    assert!(program.display().to_string().ends_with("/old (deleted)"), "{}", program.display());
    let name = fs::read_to_string(format!("/proc/{}/comm", fleet.pid())).unwrap();
    assert_eq!(name.trim(), "program", "as it was started");
    assert_eq!(fleet.get("/hello").status, 200);
    site.break_workers("");
    upgraded(&fleet);
    assert_eq!(process::program(fleet.pid()).unwrap(), site.real);
}

#[test]
fn a_program_that_fails_at_the_takeover_itself_gives_the_fleet_back() {
    let site = Site::new();
    let fleet = site.plan.clone().start();
    let workers = fleet.workers();
    let descriptors = process::descriptors(fleet.pid());
    let proves = "[ \"$1\" = check ] && exec REAL \"$@\"\n";
    let failures = [
        ("flag", "exec REAL --no-such-flag", "--no-such-flag"),
        ("config", "REGATTA_DRAIN__GRACE=soon exec REAL \"$@\"", "drain.grace"),
        ("command", "exec REAL settings", "do not start a fleet"),
        ("thread", "FAULTY_THREAD=1 exec REAL \"$@\"", "threads"),
    ];
    for (name, way, reason) in failures {
        site.put(&site.script(name, &format!("{proves}{way}")));
        let said = upgrade(&fleet, &["upgrade rolled back", "upgrade refused", "upgrade done"]);
        assert!(said.starts_with("upgrade rolled back") && said.contains(reason), "{name}: {said}");
        assert_eq!(process::program(fleet.pid()).unwrap(), site.real, "{name}");
        assert_eq!(fleet.workers(), workers, "{name}");
        assert_eq!(process::descriptors(fleet.pid()), descriptors, "{name}");
        assert_eq!(fleet.get("/hello").status, 200);
    }
    site.put(&site.real);
    upgraded(&fleet);
}
