//! An application that is built asynchronously: what it returns, where it hangs, and what it does besides requests.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Duration;
use std::{fs, thread};

use nix::sys::signal::Signal;

use crate::support::client::{Connection, Request};
use crate::support::faulty_fleet::Scene;
use crate::support::fleet::{TestFleet, TestFleetBuilder, field};
use crate::support::redis::TestRedis;
use crate::support::{process, wait};

/// Clients that greet at the same time.
const CLIENTS: usize = 8;

/// A fleet of `examples/faulty.rs`, whose application fails as the file says.
fn faulty(redis: &TestRedis, failing: &str) -> TestFleetBuilder {
    let plan = TestFleetBuilder::on(redis).example("faulty").set("REGATTA_WORKERS__BOOT_TIMEOUT", "1s");
    let file = plan.folder().join("failing");
    fs::write(&file, failing).unwrap();
    plan.set("FAULTY_FILE", &file.display().to_string())
}

#[test]
fn an_error_of_the_application_is_the_reason_with_all_its_sources() {
    let redis = TestRedis::start();
    let (code, printed) = faulty(&redis, "error").run();
    assert_eq!(code, 70, "{printed}");
    let last = printed.lines().rev().find(|line| line.contains("no worker could be brought up"));
    let reason = "the application cannot start: cannot leave: the harbour is closed";
    assert!(last.is_some_and(|line| line.contains(reason)), "{printed}");
}

#[test]
fn an_application_that_hangs_is_not_ready_in_time() {
    let redis = TestRedis::start();
    let (code, printed) = faulty(&redis, "hang").run();
    assert_eq!(code, 70, "{printed}");
    assert!(printed.contains("workers.boot_timeout"), "{printed}");
}

#[test]
fn a_hook_after_the_fork_that_fails_panics_or_hangs_is_the_reason() {
    let redis = TestRedis::start();
    let ways = [
        ("error", "the anchor is stuck"),
        ("panic", "the anchor is lost"),
        ("hang", "not ready within workers.boot_timeout"),
    ];
    for (how, reason) in ways {
        let (code, printed) = faulty(&redis, "").workers(1).set("FAULTY_HOOK", how).run();
        assert_eq!(code, 70, "{how}: {printed}");
        let last = printed.lines().rev().find(|line| line.contains("no worker could be brought up"));
        assert!(last.is_some_and(|line| line.contains(reason)), "{how}: {printed}");
    }
}

#[test]
fn a_panic_of_the_future_is_the_reason() {
    let redis = TestRedis::start();
    let (code, printed) = faulty(&redis, "all").run();
    assert_eq!(code, 70, "{printed}");
    assert!(
        printed.contains("the application panicked while it was built: the boat has a hole"),
        "{printed}"
    );
}

#[test]
fn a_reload_to_an_application_that_fails_or_hangs_is_rolled_back() {
    let redis = TestRedis::start();
    let plan = faulty(&redis, "").workers(2);
    let file = plan.setting("FAULTY_FILE").to_owned();
    let fleet = plan.start();
    let workers = fleet.workers();
    for (how, count) in [("error", 1), ("hang", 2)] {
        fs::write(&file, how).unwrap();
        fleet.signal(Signal::SIGHUP);
        wait::until("the reload is rolled back", wait::LONG, || {
            fleet.log_lines("reload rolled back").len() == count
        });
        wait::until("the old workers serve on", wait::LONG, || fleet.workers() == workers);
    }
}

/// A fleet whose application has checks, all of which pass.
fn checked() -> Scene {
    Scene::start_as(2, |plan| {
        fs::write(plan.setting("FAULTY_FILE"), "mast").unwrap();
        plan
    })
}

#[test]
fn a_reload_whose_first_worker_fails_a_check_that_the_old_one_passes_is_rolled_back() {
    let scene = checked();
    let workers = scene.fleet.workers();
    let ways = [
        ("mast gone", r#"check "mast" fails: it is gone; the old worker passes it"#),
        ("mast sways", r#"check "mast" fails: it took longer than 1 s; the old worker passes it"#),
        ("mast snaps", r#"check "mast" fails: it panicked: it has snapped; the old worker passes it"#),
        ("mast torn", r#"check "sail" fails: it is torn; the old worker passes it"#),
    ];
    for (how, reason) in ways {
        fs::write(&scene.faults, how).unwrap();
        let said = scene.expect(&["reload"], 1, reason);
        assert!(said.contains("reload rolled back: the new worker in slot 0 failed: check"), "{said}");
        wait::until("the old workers serve on", wait::LONG, || scene.fleet.workers() == workers);
    }
    fs::write(&scene.faults, "mast").unwrap();
    scene.expect(&["reload"], 0, "reload done");
}

#[test]
fn a_check_that_fails_in_the_old_worker_too_or_is_new_does_not_hold_up_a_reload() {
    let scene = checked();
    fs::write(&scene.faults, "mast storm").unwrap();
    wait::until("the check fails", wait::LONG, || scene.fleet.operator("/readyz").status == 503);
    scene.expect(&["reload"], 0, "reload done");
    assert_eq!(scene.fleet.log_lines("checks fail in the new worker").len(), 1);
    assert_eq!(scene.fleet.get("/hello").status, 200, "it serves all the same");
    // Without checks, and to one whose checks nothing is known of.
    fs::write(&scene.faults, "").unwrap();
    scene.expect(&["reload"], 0, "reload done");
    fs::write(&scene.faults, "mast gone").unwrap();
    scene.expect(&["reload"], 0, "reload done");
    assert_eq!(scene.fleet.operator("/readyz").status, 503);
}

#[test]
fn a_health_check_that_fails_is_degraded_and_named() {
    let scene = Scene::start_as(1, |plan| {
        fs::write(plan.setting("FAULTY_FILE"), "mast torn").unwrap();
        plan
    });
    wait::until("it is degraded", wait::LONG, || {
        let answer = scene.fleet.operator("/readyz");
        answer.status == 200 && answer.text().contains("degraded") && answer.text().contains("it is torn")
    });
}

#[test]
fn a_panic_of_background_work_is_taken_for_a_crash() {
    let redis = TestRedis::start();
    let plan = faulty(&redis, "").workers(1);
    let file = plan.setting("FAULTY_FILE").to_owned();
    let fleet = plan.start();
    let workers = fleet.workers();
    fs::write(&file, "bell").unwrap();
    fleet.signal(Signal::SIGHUP);
    wait::until("the reload is rolled back", wait::LONG, || fleet.log_lines("reload rolled back").len() == 1);
    wait::until("the old worker serves alone", wait::LONG, || fleet.workers() == workers);
    // Its successors fail, too, and the second of them is waited for.
    process::signal(workers[0], Signal::SIGKILL);
    let failures = || fleet.log_lines("worker failed, draining");
    wait::until("two successors have failed", wait::LONG, || failures().len() >= 3);
    let delays: Vec<_> = failures().iter().map(|line| field(line, "delay_seconds").as_f64()).collect();
    assert_eq!(delays[0], Some(0.0), "the failure is the new generation's");
    assert!(delays[2].is_some_and(|delay| delay >= 0.5), "{delays:?}");
    fs::write(&file, "").unwrap();
    assert_eq!(fleet.get("/hello").status, 200, "mended, it serves what has waited");
}

/// A fleet of `examples/upkeep.rs`, and the folder that its check wants.
fn upkeep(redis: &TestRedis) -> (TestFleet, std::path::PathBuf) {
    let plan = TestFleetBuilder::on(redis).example("upkeep").workers(1);
    let folder = plan.folder().join("wanted");
    fs::create_dir(&folder).unwrap();
    let plan = plan.set("REGATTA_APP__FOLDER", &folder.display().to_string());
    (plan.start(), folder)
}

#[test]
fn a_readiness_check_that_fails_takes_the_instance_out_and_is_named() {
    let redis = TestRedis::start();
    let (fleet, folder) = upkeep(&redis);
    wait::until("it is ready", wait::LONG, || fleet.operator("/readyz").status == 200);
    fs::remove_dir(&folder).unwrap();
    wait::until("the check fails", wait::LONG, || fleet.operator("/readyz").status == 503);
    let answer = fleet.operator("/readyz").text();
    assert!(answer.contains("check \\\"folder\\\" fails"), "{answer}");
    assert_eq!(fleet.get("/refreshes").status, 200, "requests are served all the same");
    assert_eq!(fleet.operator("/build").text(), env!("CARGO_PKG_VERSION"));
    fs::create_dir(&folder).unwrap();
    wait::until("it is ready again", wait::LONG, || fleet.operator("/readyz").status == 200);
}

#[test]
fn hooks_run_in_their_order_at_a_stop() {
    let redis = TestRedis::start();
    let (mut fleet, _folder) = upkeep(&redis);
    wait::until("the first hook has run", wait::LONG, || fleet.log_lines("hook: ready").len() == 1);
    assert_eq!(fleet.stop(), 0);
    let order: Vec<_> = fleet
        .log_lines("")
        .iter()
        .filter_map(|line| field(line, "message").as_str().map(str::to_owned))
        .filter(|message| message.starts_with("hook: ") || message.starts_with("background work"))
        .collect();
    assert_eq!(order[0], "hook: ready");
    let mut together = order[1..3].to_vec();
    together.sort();
    assert_eq!(together, ["background work has ended", "hook: drain"]);
    assert_eq!(order[3..], ["hook: exit, added last", "hook: exit, added first"]);
}

#[test]
fn a_hook_that_panics_or_overstays_is_named_and_holds_up_no_stop() {
    let redis = TestRedis::start();
    let plan = faulty(&redis, "crew").workers(1).set("REGATTA_DRAIN__TIMEOUT", "1s");
    let mut fleet = plan.set("REGATTA_DRAIN__EXIT", "500ms").start();
    wait::until("the first hook has panicked", wait::LONG, || {
        fleet.log_lines("the application panicked in on_ready hook 1: no wind").len() == 1
    });
    assert_eq!(fleet.get("/hello").status, 200, "it serves all the same");
    assert_eq!(fleet.stop(), 0);
    let said = |text: &str| assert_eq!(fleet.log_lines(text).len(), 1, "{text}");
    said("hook: drain");
    said("hooks or background work of the application abandoned at drain timeout: 1 (on_drain hook 1)");
    said("the application panicked in on_exit hook 4: no harbour");
    said("hook: exit, second");
    said(
        "hooks of the application abandoned at the end of drain.exit: on_exit hook 2 took too long, and 1 more",
    );
    assert!(fleet.log_lines("hook: exit, never begun").is_empty());
    assert!(fleet.log_lines("worker killed").is_empty(), "it left by itself");
}

#[test]
fn what_a_handler_leaves_for_later_is_waited_for_until_the_drain_timeout() {
    let redis = TestRedis::start();
    for (millis, done) in [("700", true), ("60000", false)] {
        let plan = faulty(&redis, "").workers(1).set("REGATTA_DRAIN__TIMEOUT", "3s");
        let mut fleet = plan.start();
        let mut connection = Connection::open(fleet.listen).unwrap();
        let answer = connection.request(&Request::new("POST", &format!("/later/{millis}"))).unwrap();
        assert_eq!(answer.text(), "later\n");
        assert_eq!(fleet.stop(), 0);
        assert_eq!(fleet.log_lines("what was left for later is done").len(), usize::from(done));
        let abandoned = fleet.log_lines("work of the application abandoned at drain timeout: 1");
        assert_eq!(abandoned.len(), usize::from(!done));
    }
}

#[test]
fn a_wrong_setting_of_the_program_is_refused_before_anything_starts() {
    let redis = TestRedis::start();
    let (code, printed) = TestFleetBuilder::on(&redis).example("upkeep").run();
    assert_eq!(code, 64, "{printed}");
    assert!(printed.contains("folder"), "{printed}");
    let plan = TestFleetBuilder::on(&redis).example("pool").set("REGATTA_APP__DATABASE", "127.0.0.1:1");
    let (code, printed) = plan.set("REGATTA_APP__CONNECTIONS", "few").run();
    assert_eq!(code, 64, "{printed}");
    assert!(printed.contains("app.connections") && printed.contains("REGATTA_APP__CONNECTIONS"), "{printed}");
}

/// Asks `/hello` again and again, over connections that are kept as long as the fleet keeps them, until it is told to end.
fn greet(address: SocketAddr, greeted: &AtomicUsize, ends: &AtomicBool) {
    let request = Request::get("/hello");
    let mut kept: Option<Connection> = None;
    while !ends.load(Relaxed) {
        let usable = kept.take().filter(|connection| !connection.is_closed());
        let mut connection = usable.unwrap_or_else(|| Connection::open(address).unwrap());
        let response = connection.request(&request).expect("no request is lost");
        assert_eq!((response.status, response.text().as_str()), (200, "ahoy\n"));
        kept = response.keeps_alive().then_some(connection);
        greeted.fetch_add(1, Relaxed);
    }
}

#[test]
fn a_program_with_a_command_line_of_its_own_is_upgraded_under_requests() {
    let redis = TestRedis::start();
    let plan = TestFleetBuilder::on(&redis).example("own_flags").args(&["--greeting", "ahoy"]).workers(2);
    let fleet = plan.start();
    let pid = fleet.pid();
    let workers = fleet.workers();
    let (greeted, ends) = (AtomicUsize::new(0), AtomicBool::new(false));
    let more = || {
        let goal = greeted.load(Relaxed) + 50;
        wait::until("more are greeted", wait::LONG, || greeted.load(Relaxed) >= goal);
    };
    thread::scope(|scope| {
        let clients: Vec<_> =
            (0..CLIENTS).map(|_| scope.spawn(|| greet(fleet.listen, &greeted, &ends))).collect();
        more();
        fleet.signal(Signal::SIGUSR2);
        wait::until("the upgrade is done", Duration::from_secs(60), || {
            !fleet.log_lines("upgrade done").is_empty()
        });
        more();
        ends.store(true, Relaxed);
        clients.into_iter().for_each(|client| client.join().unwrap());
    });
    assert!(process::alive(pid));
    assert!(fleet.workers().iter().all(|pid| !workers.contains(pid)));
    assert_eq!(fleet.get("/hello").text(), "ahoy\n", "its own flags hold");
}
