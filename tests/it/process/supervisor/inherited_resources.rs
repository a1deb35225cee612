//! What a parent leaves to the program it starts: signals, umask, descriptors, limits, a terminal.

use std::fs;
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::openpty;
use nix::sys::signal::Signal;

use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::process::signals;
use crate::support::redis::TestRedis;
use crate::support::{client, process, wait};

/// Started by a shell that runs this first.
fn after(plan: TestFleetBuilder, preparation: &str) -> TestFleetBuilder {
    let script = format!("{preparation}; exec \"$@\"");
    plan.wrapped(&["sh", "-c", &script, "sh"])
}

const IGNORING: &str = "trap '' CHLD TERM QUIT INT HUP USR1 USR2 TTIN TTOU ALRM PIPE URG PWR XFSZ ABRT";

/// Everything that a fleet does at a signal.
#[track_caller]
fn minds_its_signals(mut fleet: TestFleet) {
    let victim = fleet.workers()[0];
    fleet.crash(victim);
    fleet.signal(Signal::SIGHUP);
    wait::until("it has reloaded", wait::LONG, || !fleet.log_lines("reload done").is_empty());
    fleet.signal(Signal::SIGTTIN);
    wait::until("it has a worker more", wait::LONG, || fleet.workers().len() == 3);
    // A single worker hears what it is told, too.
    let told = fleet.workers()[0];
    process::signal(told, Signal::SIGTERM);
    wait::until("it has left", wait::LONG, || !process::alive(told));
    assert_eq!(fleet.get("/hello").status, 200);
    assert_eq!(fleet.stop(), 0);
}

#[test]
fn a_fleet_hears_of_every_signal_that_its_parent_ignored() {
    let redis = TestRedis::start();
    minds_its_signals(
        after(TestFleetBuilder::on(&redis).set("REGATTA_WORKERS__CANARY_PERIOD", "100ms"), IGNORING).start(),
    );
}

#[test]
fn a_fleet_hears_of_every_signal_that_its_parent_blocked() {
    let redis = TestRedis::start();
    let plan = TestFleetBuilder::on(&redis).set("REGATTA_WORKERS__CANARY_PERIOD", "100ms");
    minds_its_signals(plan.wrapped(&["env", "--block-signal"]).start());
}

#[test]
fn quit_and_a_second_interrupt_end_a_fleet_whose_parent_ignored_them() {
    let redis = TestRedis::start();
    for signals in [&[Signal::SIGQUIT][..], &[Signal::SIGINT, Signal::SIGINT]] {
        let mut fleet = after(TestFleetBuilder::on(&redis), IGNORING).start();
        let _held = client::get(fleet.listen, "/hello");
        for signal in signals {
            fleet.signal(*signal);
            wait::until("it was heard", wait::LONG, || {
                !fleet.log_lines("stopping").is_empty() || !process::alive(fleet.pid())
            });
            if !process::alive(fleet.pid()) {
                break;
            }
        }
        assert_eq!(fleet.exit_code(wait::LONG), 0);
    }
}

#[test]
fn programs_find_clean_signals_whatever_the_fleets_parent_left() {
    let redis = TestRedis::start();
    let plan = TestFleetBuilder::on(&redis).example("heirs");
    for plan in [after(plan.clone(), IGNORING), plan.wrapped(&["env", "--block-signal"])] {
        let mut fleet = plan.start();
        let told = fleet.get("/program").text();
        assert_eq!((signals(&told, "SigBlk:"), signals(&told, "SigIgn:")), (0, 0), "{told}");
        assert_eq!(fleet.stop(), 0);
    }
    // The private Redis, and the program that an upgrade asks.
    let fleet = after(TestFleetBuilder::new(), IGNORING).start();
    let status = fs::read_to_string(format!("/proc/{}/status", fleet.others()[0])).unwrap();
    // It ignores these by itself: SIGHUP, SIGPIPE and SIGALRM.
    assert_eq!(signals(&status, "SigIgn:") & !0x3001, 0, "{status}");
}

#[test]
fn files_of_a_fleet_are_its_owners_and_never_everybodys_to_write() {
    let redis = TestRedis::start();
    for (umask, mode) in [("0777", 0o600), ("000", 0o664), ("022", 0o644), ("077", 0o600)] {
        let plan = TestFleetBuilder::on(&redis);
        let log = plan.folder().join("fleet.log");
        let plan = plan.set("REGATTA_LOG__FILE", &log.display().to_string());
        let mut fleet = after(plan, &format!("umask {umask}")).spawn();
        serving(&log);
        let found = fs::metadata(&log).unwrap().permissions().mode() & 0o777;
        assert_eq!(fleet.stop(), 0);
        assert_eq!(found, mode, "umask {umask}");
    }
}

/// Waits until the fleet that logs there serves, and returns where.
#[track_caller]
fn serving(log: &std::path::Path) -> std::net::SocketAddr {
    wait::until_some("it serves", wait::LONG, || {
        let text = fs::read_to_string(log).ok()?;
        let line = text.lines().find(|line| line.contains("serving on"))?;
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        crate::support::fleet::field(&line, "listen").as_str()?.parse().ok()
    })
}

#[test]
fn closed_standard_descriptors_are_never_a_clients() {
    let redis = TestRedis::start();
    let plan = TestFleetBuilder::on(&redis);
    let log = plan.folder().join("fleet.log");
    let plan = plan.set("REGATTA_LOG__FILE", &log.display().to_string());
    let script = "exec \"$@\" <&- >&- 2>&-";
    let mut fleet = plan.wrapped(&["sh", "-c", script, "sh"]).spawn();
    fleet.listen = serving(&log);
    assert_eq!(fleet.get("/hello").status, 200);
    for pid in fleet.workers().into_iter().chain([fleet.pid()]) {
        for number in 0..3 {
            let target = fs::read_link(format!("/proc/{pid}/fd/{number}")).unwrap();
            assert_eq!(target.to_str(), Some("/dev/null"), "{number} of {pid}");
        }
    }
    assert_eq!(fleet.stop(), 0);
}

#[test]
fn a_limit_on_open_files_is_enough_or_named() {
    let redis = TestRedis::start();
    let (code, printed) = after(TestFleetBuilder::on(&redis), "ulimit -n 24").run();
    assert_ne!(code, 0, "{printed}");
    assert!(printed.contains("RLIMIT_NOFILE") && printed.contains("24"), "{printed}");
    let mut fleet = after(TestFleetBuilder::on(&redis), "ulimit -n 128").start();
    fleet.crash(fleet.workers()[0]);
    assert_eq!(fleet.get("/hello").status, 200);
    assert_eq!(fleet.stop(), 0);
}

/// A fleet in a session of its own, whose terminal is the other end.
fn on_terminal(plan: &TestFleetBuilder, words: &[&str]) -> (TestFleet, File) {
    let pty = openpty(None, None).unwrap();
    // A fleet that has the other end as well never hears that it was closed.
    fcntl(&pty.master, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
    fcntl(&pty.slave, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
    let words: Vec<_> = ["setsid", "--ctty"].iter().chain(words).copied().collect();
    let plan = plan.clone().set("REGATTA_WORKERS__CANARY_PERIOD", "100ms").wrapped(&words);
    let plan = plan.input_from(pty.slave);
    let fleet = plan.start();
    (fleet, File::from(pty.master))
}

#[test]
fn a_fleet_in_the_foreground_ends_with_its_terminal() {
    let redis = TestRedis::start();
    let (mut fleet, terminal) = on_terminal(&TestFleetBuilder::on(&redis), &[]);
    // An operator's HUP is an order as long as the terminal is there.
    fleet.signal(Signal::SIGHUP);
    wait::until("it has reloaded", wait::LONG, || !fleet.log_lines("reload done").is_empty());
    drop(terminal);
    assert_eq!(fleet.exit_code(wait::LONG), 0);
    assert!(fleet.log().contains("the terminal was closed"), "{}", fleet.log());
}

#[test]
fn a_fleet_that_was_told_to_outlives_its_terminal_and_still_reloads() {
    let redis = TestRedis::start();
    let (mut fleet, terminal) =
        on_terminal(&TestFleetBuilder::on(&redis), &["sh", "-c", "trap '' HUP; exec \"$@\"", "sh"]);
    drop(terminal);
    wait::until("it has ignored it", wait::LONG, || !fleet.log_lines("terminal closed; ignored").is_empty());
    assert!(fleet.log_lines("reload").is_empty());
    fleet.signal(Signal::SIGHUP);
    wait::until("it has reloaded", wait::LONG, || !fleet.log_lines("reload done").is_empty());
    // What it was told is told to the program that it becomes, too.
    fleet.signal(Signal::SIGUSR2);
    wait::until("it has upgraded", wait::LONG, || !fleet.log_lines("upgrade done").is_empty());
    let status = fs::read_to_string(format!("/proc/{}/status", fleet.pid())).unwrap();
    assert_eq!(signals(&status, "SigIgn:") & 1, 1, "{status}");
    assert_eq!(fleet.get("/hello").status, 200);
    assert_eq!(fleet.stop(), 0);
}

#[test]
fn without_proc_the_reason_names_it() {
    let hidden = ["unshare", "--map-root-user", "--mount"];
    let works = Command::new(hidden[0]).args(&hidden[1..]).arg("true").output();
    if !works.is_ok_and(|output| output.status.success()) {
        eprintln!("no user namespaces here: not tried");
        return;
    }
    let script = "mount -t tmpfs none /proc && exec \"$@\"";
    let words: Vec<_> = hidden.iter().copied().chain(["sh", "-c", script, "sh"]).collect();
    let redis = TestRedis::start();
    let (code, printed) = TestFleetBuilder::on(&redis).wrapped(&words).run();
    assert_ne!(code, 0);
    assert!(printed.contains("/proc") && printed.contains("mount"), "{printed}");
}

#[test]
fn a_worker_that_a_real_time_signal_ends_is_replaced() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).start();
    let victim = fleet.workers()[0];
    assert!(Command::new("sh").args(["-c", &format!("kill -40 {victim}")]).status().unwrap().success());
    wait::until("two workers serve", wait::LONG, || fleet.ready().len() == 3 && fleet.workers().len() == 2);
    assert!(fleet.log_lines("worker crashed").iter().any(|line| line.to_string().contains("signal 40")));
}

#[test]
fn cores_are_counted_again_at_a_reload() {
    let cores = std::thread::available_parallelism().unwrap().get();
    if cores < 2 {
        eprintln!("one core: not tried");
        return;
    }
    let redis = TestRedis::start();
    let plan =
        TestFleetBuilder::on(&redis).unset("WEB_CONCURRENCY").set("REGATTA_WORKERS__CANARY_PERIOD", "100ms");
    let fleet = plan.start();
    assert_eq!(fleet.workers().len(), cores);
    let pin = |list: &str| {
        let mut command = Command::new("taskset");
        assert!(command.args(["-cp", list, &fleet.pid().to_string()]).output().unwrap().status.success());
    };
    let reload = |nth: usize| {
        fleet.signal(Signal::SIGHUP);
        wait::until("it has reloaded", wait::LONG, || fleet.log_lines("reload done").len() == nth);
    };
    let allowed = fs::read_to_string("/proc/self/status").unwrap();
    let allowed =
        allowed.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim().to_owned();
    let first = allowed.split([',', '-']).next().unwrap().to_owned();
    pin(&first);
    reload(1);
    wait::until("one core, one worker", wait::LONG, || fleet.workers().len() == 1);
    // A number that an operator has set stays while nothing is different.
    fleet.signal(Signal::SIGTTIN);
    wait::until("two workers", wait::LONG, || fleet.workers().len() == 2);
    reload(2);
    assert_eq!(fleet.workers().len(), 2);
    pin(&allowed);
    reload(3);
    wait::until("as many workers as cores", wait::LONG, || fleet.workers().len() == cores);
}

#[test]
fn what_a_program_that_was_asked_leaves_behind_ends_with_it() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).start();
    let folder = fleet.plan().folder();
    let (script, noted) = (folder.join("leaves-something"), folder.join("left"));
    fs::write(&script, format!("#!/bin/sh\nsleep 600 &\necho $! > {}\nexit 3\n", noted.display())).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_regatta"));
    command.arg("--run-dir").arg(fleet.plan().setting("REGATTA_RUN_DIR")).env_clear();
    let output = command.args(["upgrade", "--binary"]).arg(&script).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let left: u32 = fs::read_to_string(&noted).unwrap().trim().parse().unwrap();
    wait::until("it is gone", wait::LONG, || !process::alive(left));
}

#[test]
fn what_a_service_manager_says_is_not_for_the_private_redis() {
    let plan = TestFleetBuilder::new();
    let below = |name: &str| plan.folder().join(name).display().to_string();
    let (socket, noted, bin) = (below("notify"), below("environment"), below("bin"));
    let path = plan.setting("PATH").to_owned();
    let real = path.split(':').chain(["/usr/bin", "/usr/local/bin"]);
    let real =
        real.map(|folder| format!("{folder}/redis-server")).find(|file| fs::exists(file).unwrap()).unwrap();
    fs::create_dir(&bin).unwrap();
    let script = format!("#!/bin/sh\nenv > {noted}\nexec {real} \"$@\"\n");
    fs::write(format!("{bin}/redis-server"), script).unwrap();
    fs::set_permissions(format!("{bin}/redis-server"), fs::Permissions::from_mode(0o755)).unwrap();
    let fleet = plan.set("NOTIFY_SOCKET", &socket).set("PATH", &format!("{bin}:{path}")).start();
    assert!(fleet.others().len() == 1);
    let said = fs::read_to_string(&noted).unwrap();
    assert!(!said.contains("NOTIFY_SOCKET") && said.contains("PATH="), "{said}");
}
