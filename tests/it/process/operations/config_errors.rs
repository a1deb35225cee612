//! A mistake is one clear sentence and an exit code of its own; nothing is started.

use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::Signal;
use regatta::__internals::supervisor::private_redis::server::PrivateRedisServer as RedisChild;

use crate::support::client::{CookieClient, Request};
use crate::support::fleet::TestFleetBuilder;
use crate::support::redis::TestRedis;
use crate::support::{process, wait};

const USAGE: i32 = 64;

/// Exit code for what may pass: the same words may do later.
const TEMPORARY: i32 = 75;
const UNAVAILABLE: i32 = 69;

/// That `plan` ends with `code` and one sentence that has all these parts.
#[track_caller]
fn refused(plan: &TestFleetBuilder, code: i32, parts: &[&str]) {
    let (ended, printed) = plan.run();
    assert_eq!(ended, code, "{printed}");
    for part in parts {
        assert!(printed.contains(part), "{part:?} is missing in: {printed}");
    }
    for word in ["panicked", "backtrace", "worker started", "RUST_BACKTRACE"] {
        assert!(!printed.contains(word), "{printed}");
    }
    assert_eq!(printed.lines().filter(|line| !line.trim().is_empty()).count(), 1, "one sentence: {printed}");
    assert!(!plan.folder().join("data/redis.sock").exists(), "a private Redis was started");
}

#[test]
fn a_wrong_setting_is_one_sentence_with_key_value_and_source() {
    let cases: &[(&str, &str, &[&str])] = &[
        ("WEB_CONCURRENCY", "0", &["workers.count", "\"0\"", "WEB_CONCURRENCY"]),
        ("WEB_CONCURRENCY", "-3", &["workers.count", "-3", "WEB_CONCURRENCY"]),
        ("WEB_CONCURRENCY", "many", &["workers.count", "many", "WEB_CONCURRENCY", "auto"]),
        ("REGATTA_WORKERS__COUNT", "5000", &["workers.count", "5000", "REGATTA_WORKERS__COUNT", "1024"]),
        ("REGATTA_LISTEN", "nowhere", &["listen", "nowhere", "REGATTA_LISTEN"]),
        ("REGATTA_LISTEN", "127.0.0.1:99999", &["listen", "127.0.0.1:99999"]),
        ("PORT", "eighty", &["listen", "eighty", "PORT"]),
        ("REDIS_URL", "http://localhost", &["redis.url", "REDIS_URL", "http"]),
        ("REDIS_URL", "redis://:hunter22@/", &["redis.url", "REDIS_URL"]),
        ("REGATTA_REDIS__MODE", "quick", &["redis.mode", "quick", "fcall"]),
        ("REGATTA_REDIS__SILENCE_TIMEOUT", "25", &["redis.silence_timeout", "25", "unit"]),
        ("REGATTA_REDIS__COMMIT_TIMEOUT", "1s", &["redis.commit_timeout", "no more", "redis.patience"]),
        ("REGATTA_REDIS__PATIENCE", "61s", &["redis.patience", "61s", "more than a minute", "1m"]),
        ("REGATTA_REDIS__PREFIX", "a b", &["redis.prefix", "a b"]),
        ("REGATTA_REDIS__PREFIX", "shop:c", &["redis.prefix", "shop:c", "shop-c"]),
        ("REGATTA_REDIS__PREFIX", "shop:", &["redis.prefix", "empty"]),
        (
            "REGATTA_SESSION__SECRETS",
            "too short",
            &["session.secrets", "REGATTA_SESSION__SECRETS", "9 bytes", "32"],
        ),
        ("REGATTA_SESSION__IDLE", "never", &["session.idle", "never"]),
        ("REGATTA_LIMITS__DEFAULT__RATE", "fast", &["limits.default.rate", "fast"]),
        ("REGATTA_LIMITS__EXTRA__BURST", "5", &["limits.extra.rate", "missing"]),
        ("REGATTA_PROXY__TRUSTED", "10.0.0.0/99", &["proxy.trusted", "10.0.0.0/99"]),
        ("REGATTA_HTTP__MAX_BODY_SIZE", "2MB", &["http.max_body_size", "2MB"]),
        (
            "REGATTA_WROKERS__COUNT",
            "2",
            &["wrokers.count", "REGATTA_WROKERS__COUNT", "did you mean workers.count"],
        ),
        ("REGATTA_NONSENSE", "2", &["nonsense", "REGATTA_NONSENSE"]),
    ];
    for (name, value, parts) in cases {
        let plan = match *name {
            "PORT" => TestFleetBuilder::new().unset("REGATTA_LISTEN"),
            "REGATTA_WORKERS__COUNT" => TestFleetBuilder::new().unset("WEB_CONCURRENCY"),
            _ => TestFleetBuilder::new(),
        };
        refused(&plan.set(name, value), USAGE, parts);
    }
}

#[test]
fn a_wrong_file_is_one_sentence_with_its_name() {
    let plan = TestFleetBuilder::new().unset("WEB_CONCURRENCY").unset("REGATTA_LISTEN");
    let file = plan.folder().join("regatta.toml");
    let cases: &[(&str, &[&str])] = &[
        ("[workers]\ncuont = 3", &["workers.cuont", "regatta.toml", "did you mean workers.count"]),
        ("[workers]\ncount = 0", &["workers.count", "\"0\"", "regatta.toml"]),
        ("[workers]\ncount = true", &["workers.count", "true", "regatta.toml"]),
        ("listen = [", &["regatta.toml"]),
        ("listen = 3000", &["listen", "3000", "regatta.toml"]),
        ("\u{0}", &["regatta.toml"]),
    ];
    for (text, parts) in cases {
        fs::write(&file, text).unwrap();
        refused(&plan, USAGE, parts);
    }
    fs::write(&file, b"\xff\xfe").unwrap();
    refused(&plan, USAGE, &["regatta.toml"]);
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    refused(&plan, USAGE, &["regatta.toml"]);
    refused(&plan.clone().args(&["--config", "not-there.toml"]), USAGE, &["not-there.toml"]);
}

#[test]
fn a_password_is_never_printed() {
    let (code, printed) =
        TestFleetBuilder::new().set("REDIS_URL", "redis://user:hunter22@host:99999/0").run();
    assert_eq!(code, USAGE, "{printed}");
    assert!(!printed.contains("hunter22"), "{printed}");
}

#[test]
fn a_port_that_somebody_else_serves_is_refused() {
    let redis = TestRedis::start();
    let foreign = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = foreign.local_addr().unwrap().to_string();
    refused(
        &TestFleetBuilder::on(&redis).set("REGATTA_LISTEN", &address),
        TEMPORARY,
        &["listen", &address, "serves that port already"],
    );
    refused(
        &TestFleetBuilder::on(&redis).set("REGATTA_ADMIN__LISTEN", &address),
        TEMPORARY,
        &["admin.listen", &address, "serves that port already"],
    );
}

#[test]
fn a_port_that_another_fleet_serves_is_refused() {
    let redis = TestRedis::start();
    let first = TestFleetBuilder::on(&redis).start();
    let address = first.listen.to_string();
    refused(
        &TestFleetBuilder::on(&redis).set("REGATTA_LISTEN", &address),
        TEMPORARY,
        &["listen", &address, "serves that port already"],
    );
    let admin = first.admin.to_string();
    refused(
        &TestFleetBuilder::on(&redis).set("REGATTA_ADMIN__LISTEN", &admin),
        TEMPORARY,
        &["admin.listen", &admin, "serves that port already"],
    );
    let workers = first.workers();
    for _ in 0..20 {
        let (pid, _) = CookieClient::default().view(first.listen);
        assert!(workers.contains(&pid), "the first fleet serves alone");
    }
}

#[test]
fn a_folder_that_another_fleet_uses_is_refused() {
    let first = TestFleetBuilder::new().start();
    let (code, printed) = first.plan().run();
    assert!(matches!(code, TEMPORARY | UNAVAILABLE), "{code}: {printed}");
    assert!(printed.contains("another fleet") || printed.contains("in use"), "{printed}");
    assert!(printed.contains("run_dir") || printed.contains("data_dir"), "{printed}");
    assert_eq!(CookieClient::default().view(first.listen).1, 1, "the first fleet serves on");
    assert_eq!(first.others().len(), 1);
}

#[test]
fn a_fleet_that_was_killed_leaves_nothing_in_the_way() {
    let plan = TestFleetBuilder::new();
    let mut killed = plan.start();
    let mut visitor = CookieClient::default();
    visitor.view(killed.listen);
    killed.signal(Signal::SIGKILL);
    killed.exit_code(wait::LONG);
    let next = plan.start();
    let views = wait::until_some("visits are served", wait::LONG, || {
        let response = visitor.request(next.listen, Request::get("/"));
        (response.status == 200).then(|| response.view().1)
    });
    assert_eq!(views, 2);
}

#[test]
fn a_folder_that_cannot_be_used_is_named() {
    let plan = TestFleetBuilder::new();
    fs::write(plan.folder().join("occupied"), "").unwrap();
    let occupied = plan.folder().join("occupied").display().to_string();
    let (code, printed) = plan.clone().set("REGATTA_RUN_DIR", &occupied).run();
    assert!(matches!(code, TEMPORARY | UNAVAILABLE), "{code}: {printed}");
    assert!(printed.contains(&occupied) && !printed.contains("panicked"), "{printed}");
    let (code, printed) = plan.set("REGATTA_DATA_DIR", &format!("{occupied}/below")).run();
    assert!(matches!(code, TEMPORARY | UNAVAILABLE), "{code}: {printed}");
    assert!(printed.contains("data_dir") && !printed.contains("panicked"), "{printed}");
}

#[test]
fn without_any_redis_the_error_says_what_installs_one_and_what_avoids_it() {
    // The program looks into the usual folders besides PATH, so that only the library can be asked with none.
    let folder = tempfile::tempdir().unwrap();
    let nowhere = folder.path().join("no-programs-here");
    let error =
        RedisChild::prepare(folder.path(), nowhere.as_os_str(), Duration::ZERO).unwrap_err().to_string();
    for part in ["install redis-server", "REDIS_URL"] {
        assert!(error.contains(part), "{part:?} is missing in: {error}");
    }
}

#[test]
fn wrong_usage_is_64_and_help_is_0() {
    for args in [&["frobnicate"][..], &["--frobnicate"], &["serve", "extra"], &["health", "not a url", "x"]] {
        let (code, printed) = TestFleetBuilder::new().args(args).run();
        assert_eq!(code, USAGE, "{args:?}: {printed}");
        assert!(!printed.contains("panicked"), "{printed}");
    }
    for args in [&["--help"][..], &["--version"], &["help"], &["signals"], &["settings"]] {
        let (code, printed) = TestFleetBuilder::new().args(args).run();
        assert_eq!(code, 0, "{args:?}: {printed}");
        assert!(!printed.is_empty());
    }
}

#[test]
fn check_says_what_would_start_and_starts_nothing() {
    let mut redis = TestRedis::start();
    let plan = TestFleetBuilder::on(&redis).args(&["check"]);
    let (code, printed) = plan.run();
    assert_eq!(code, 0, "{printed}");
    let (code, printed) = plan.clone().set("WEB_CONCURRENCY", "0").run();
    assert_eq!(code, USAGE, "{printed}");
    assert!(printed.contains("workers.count"), "{printed}");
    redis.kill();
    let (code, printed) = plan.run();
    assert_eq!(code, UNAVAILABLE, "{printed}");
    assert!(printed.to_lowercase().contains("redis"), "{printed}");
}

#[test]
fn health_asks_a_running_fleet() {
    let redis = TestRedis::start();
    let mut fleet = TestFleetBuilder::on(&redis).start();
    let live = format!("http://{}/livez", fleet.admin);
    let lost = format!("http://{}/nothing", fleet.admin);
    let ask = |url: &str| TestFleetBuilder::on(&redis).args(&["health", url]).run();
    assert_eq!(ask(&live).0, 0);
    assert_eq!(ask(&lost).0, 1);
    let supervisor = fleet.pid();
    assert_eq!(fleet.stop(), 0);
    assert!(!process::alive(supervisor));
    assert_ne!(ask(&live).0, 0);
}

#[test]
fn a_program_that_has_started_threads_is_refused() {
    let redis = TestRedis::start();
    let (code, printed) = TestFleetBuilder::on(&redis).example("faulty").set("FAULTY_THREAD", "1").run();
    assert_ne!(code, 0, "{printed}");
    assert!(printed.contains("thread"), "{printed}");
    assert!(!printed.contains("worker started") && !printed.contains("panicked"), "{printed}");
}

/// What was checked is what is served: no other version of the file comes between.
#[test]
fn a_start_reads_the_configuration_file_once() {
    let redis = TestRedis::start();
    for words in [&["serve"][..], &["serve", "--watch"], &[]] {
        let plan = TestFleetBuilder::on(&redis).args(words);
        let file = plan.folder().join("regatta.toml");
        fs::write(&file, "[http]\nkeep_alive_timeout = \"20s\"\n").unwrap();
        let watch = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
        watch.add_watch(&file, AddWatchFlags::IN_OPEN | AddWatchFlags::IN_CLOSE).unwrap();
        let _fleet = plan.start();
        let seen: Vec<_> = watch.read_events().unwrap().into_iter().map(|event| event.mask).collect();
        assert_eq!(seen, [AddWatchFlags::IN_OPEN, AddWatchFlags::IN_CLOSE_NOWRITE], "{words:?}");
    }
}
