//! A machine whose clock is wrong: times are Redis's, so no one's session or limit suffers.

use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::support::client::{CookieClient, Request};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::TestRedis;

/// Ten minutes are added to the wall clock, or taken from it.
const SKEW: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  int result = real(clock, now);
  if (clock == CLOCK_REALTIME) now->tv_sec += SKEW;
  return result;
}
"#;

/// A library that makes a process's wall clock wrong by so many seconds.
fn skewed(folder: &TempDir, seconds: i64) -> PathBuf {
    let source = folder.path().join("skew.c");
    let library = folder.path().join(format!("skew{seconds}.so"));
    std::fs::write(&source, SKEW).unwrap();
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", &format!("-DSKEW=({seconds})"), "-o"])
        .args([&library, &source])
        .arg("-ldl")
        .status();
    assert!(built.unwrap().success());
    library
}

fn date(fleet: &TestFleet) -> i64 {
    let date = fleet.get("/hello").header("Date").to_owned();
    let output = Command::new("date").args(["-d", &date, "+%s"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

#[test]
fn clocks_ten_minutes_wrong_change_no_lifetime_and_no_limit() {
    let server = TestRedis::start();
    let folder = TempDir::new().unwrap();
    let plan = || {
        let plan = TestFleetBuilder::on(&server).workers(1).set("REGATTA_REDIS__PREFIX", "p");
        let plan =
            plan.set("REGATTA_SESSION__IDLE", "5m").set("REGATTA_SESSION__SECRETS", &"secret".repeat(6));
        plan.set("REGATTA_LIMITS__DEFAULT__RATE", "6/h").set("REGATTA_LIMITS__DEFAULT__BURST", "6")
    };
    let preloaded = |seconds| {
        let library = skewed(&folder, seconds);
        plan().set("LD_PRELOAD", library.to_str().unwrap()).start()
    };
    let fleets = [preloaded(600), plan().start(), preloaded(-600)];
    let right = date(&fleets[1]);
    assert!((date(&fleets[0]) - right - 600).abs() < 60 && (date(&fleets[2]) - right + 600).abs() < 60);

    // One visitor, whom each fleet knows although each thinks that it is another time.
    let mut visitor = CookieClient::default();
    for (visit, fleet) in fleets.iter().chain(&fleets).enumerate() {
        assert_eq!(visitor.view(fleet.listen).1, visit as u64 + 1);
        // A first visit stores nothing: its ticket is good by Redis's clock, whatever the workers' say.
        let Some(session) = server.keys().into_iter().find(|key| key.starts_with("p:s:")) else {
            assert_eq!(visit, 0, "the ticket makes a session");
            continue;
        };
        let left: i64 = server.cli(&["PTTL", &session]).parse().unwrap();
        assert!((240_000..=300_000).contains(&left), "{left} ms left after visit {visit}");
    }
    // Six an hour: spent, whatever time it is.
    for fleet in &fleets {
        visitor.request(fleet.listen, Request::get("/")).assert_problem(429);
    }
}
