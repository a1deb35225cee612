//! `regatta migrate`: what it says, what it changes, and how it ends.

use regatta::__internals::redis::functions;
use regatta::__internals::redis::migrations::checksum;
use serde_json::Value;

use crate::support::fleet::TestFleetBuilder;
use crate::support::redis::TestRedis;

/// Runs `migrate` with these flags under the prefix `p`.
fn migrate(server: &TestRedis, flags: &[&str]) -> (i32, String) {
    let args = [&["migrate"], flags].concat();
    TestFleetBuilder::on(server).set("REGATTA_REDIS__PREFIX", "p").args(&args).run()
}

fn json(server: &TestRedis, flags: &[&str]) -> (i32, Value) {
    let (code, said) = migrate(server, &[flags, &["--json"]].concat());
    let line = said.lines().find(|line| line.starts_with('{'));
    (code, serde_json::from_str(line.unwrap_or_else(|| panic!("no JSON: {said}"))).unwrap())
}

/// Keys, values and functions.
fn state(server: &TestRedis) -> [String; 2] {
    [&["DEBUG", "DIGEST"][..], &["FUNCTION", "LIST"]].map(|args| server.cli(args))
}

/// Puts another text's checksum into the ledger.
fn edit(server: &TestRedis, number: &str) -> String {
    let theirs = checksum("another text");
    let ours = checksum(functions::LIBRARIES.iter().find(|library| library.number == number).unwrap().text);
    let entry = server.cli(&["HGET", "p:mig", number]).replace(&ours, &theirs);
    server.cli(&["HSET", "p:mig", number, &entry]);
    theirs
}

#[test]
fn check_says_what_is_pending_by_its_exit_code_and_changes_nothing() {
    let server = TestRedis::start();
    let before = state(&server);
    let (code, said) = migrate(&server, &["--check"]);
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("0001_regatta_v1.lua") && said.contains("migrations are pending"), "{said}");
    assert_eq!(state(&server), before);

    assert_eq!(migrate(&server, &[]).0, 0);
    let (code, said) = migrate(&server, &["--check"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("migrations are applied"), "{said}");
    let (code, report) = json(&server, &["--check"]);
    assert_eq!((code, &report["pending"]), (0, &0.into()));
    assert_eq!(report["migrations"][0]["status"], "applied");
    assert_eq!(report["migrations"][0]["by"], "regatta-migrate");
}

#[test]
fn a_dry_run_counts_and_changes_nothing() {
    let server = TestRedis::start();
    for key in ["p:s:a", "p:s:b", "p:c:hits", "q:s:c"] {
        server.cli(&["SET", key, "1"]);
    }
    let before = state(&server);
    let (code, said) = migrate(&server, &["--dry-run"]);
    assert_eq!(code, 0, "{said}");
    for part in ["2 sessions", "1 counters", "no key would be changed", "pending"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let (code, report) = json(&server, &["--dry-run"]);
    assert_eq!((code, &report["keys"]["sessions"]), (0, &2.into()));
    assert_eq!(report["pending"], functions::LIBRARIES.len());
    assert_eq!(state(&server), before);
}

#[test]
fn an_unreleased_file_that_was_edited_is_refused_and_repaired_only_when_told_so() {
    let server = TestRedis::start();
    migrate(&server, &[]);
    let theirs = edit(&server, "0002");
    let other = "#!lua name=regatta_v2\nredis.register_function('regatta_v2_begin', function() return 7 end)";
    server.cli(&["FUNCTION", "LOAD", "REPLACE", other]);
    let before = state(&server);

    let (code, said) = migrate(&server, &[]);
    assert_eq!(code, 1, "{said}");
    let ours = checksum(functions::library_by_name("regatta_v2").unwrap().text);
    for part in ["migrations/0002_regatta_v2.lua", &theirs, &ours] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(migrate(&server, &["--check"]).0, 1);

    // No one is there to be asked.
    let (code, said) = migrate(&server, &["--repair"]);
    assert_eq!(code, 64, "{said}");
    assert!(said.contains("--yes") && said.contains("the library regatta_v2 has"), "{said}");
    assert_eq!(state(&server), before);

    let (code, report) = json(&server, &["--repair", "--yes"]);
    assert_eq!((code, report["repaired"].as_array().unwrap().len()), (0, 2), "{report}");
    assert_eq!(migrate(&server, &["--check"]).0, 0);
    assert!(!server.cli(&["FCALL", "regatta_v2_begin", "0"]).contains('7'));
    let (code, said) = migrate(&server, &["--repair"]);
    assert!(code == 0 && said.contains("nothing to repair"), "{said}");
}

#[test]
fn what_was_released_is_never_replaced() {
    let server = TestRedis::start();
    migrate(&server, &[]);
    edit(&server, "0001");
    let before = state(&server);
    let (code, said) = migrate(&server, &["--repair", "--yes"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("migrations/0001_regatta_v1.lua"), "{said}");
    assert_eq!(state(&server), before);
}

#[test]
fn gaps_and_entries_that_cannot_be_read_are_refused_and_repaired() {
    let server = TestRedis::start();
    migrate(&server, &[]);
    server.cli(&["HDEL", "p:mig", "0001"]);
    let (code, said) = migrate(&server, &["--check"]);
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains("0001_regatta_v1.lua is not applied although") && said.contains("--repair"),
        "{said}"
    );
    server.cli(&["HSET", "p:mig", "0002", "half an en"]);
    let (code, said) = migrate(&server, &["--repair", "--yes"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("passed over") && said.contains("cannot be read"), "{said}");
    assert_eq!(migrate(&server, &["--check"]).0, 0);
}

#[test]
fn a_fleet_refuses_an_edited_ledger_and_says_which_file() {
    let server = TestRedis::start();
    migrate(&server, &[]);
    let theirs = edit(&server, "0001");
    let before = state(&server);
    let fleet = TestFleetBuilder::on(&server).set("REGATTA_REDIS__PREFIX", "p").start();
    assert_eq!(fleet.operator("/readyz").status, 503);
    let log = fleet.log();
    assert!(log.contains("migrations/0001_regatta_v1.lua") && log.contains(&theirs), "{log}");
    assert_eq!(state(&server), before);
}

#[test]
fn flags_that_contradict_each_other_and_a_redis_that_is_away_have_their_own_codes() {
    let server = TestRedis::start();
    for flags in [&["--check", "--dry-run"][..], &["--check", "--repair"], &["--yes"]] {
        assert_eq!(migrate(&server, flags).0, 64, "{flags:?}");
    }
    let absent = TestRedis::absent(&[]);
    assert_eq!(migrate(&absent, &["--check"]).0, 69);
    let (code, said) = TestFleetBuilder::new().args(&["migrate"]).run();
    assert!(code == 64 && said.contains("redis.url"), "{said}");
}
