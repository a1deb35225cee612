//! Variables that are mistakes, that are no text, and that a platform has put there.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use crate::support::fleet::TestFleetBuilder;
use crate::support::redis::TestRedis;

const USAGE: i32 = 64;

/// What `regatta check` says with one more variable and these words more; its exit code first.
fn check(plan: &TestFleetBuilder, (name, value): (&[u8], &[u8]), words: &[&[u8]]) -> (i32, String) {
    let mut command = Command::new(plan.file());
    command.env_clear().current_dir(plan.folder()).arg("check");
    for setting in ["REGATTA_RUN_DIR", "REGATTA_DATA_DIR", "PATH"] {
        command.env(setting, plan.setting(setting));
    }
    command.env(OsStr::from_bytes(name), OsStr::from_bytes(value));
    command.args(words.iter().map(|word| OsStr::from_bytes(word)));
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn a_value_that_is_no_text_is_named_and_not_shown() {
    let plan = TestFleetBuilder::new();
    let cases: [(&[u8], &[u8], &str); 7] = [
        (b"REGATTA_SESSION__SECRETS", b"hunter22 hunter22 hunter22 hunter22\xff", "REGATTA_SESSION__SECRETS"),
        (b"REGATTA_\xff__X", b"hunter22", "REGATTA_\\xff__X"),
        (b"PORT", b"80\xff", "PORT"),
        (b"REDIS_URL", b"redis://:hunter22\xff@h", "REDIS_URL"),
        (b"WEB_CONCURRENCY", b"2\xff", "WEB_CONCURRENCY"),
        (b"RUST_LOG", b"\xc3", "RUST_LOG"),
        (b"regatta_redis__url", b"\xc3hunter22", "regatta_redis__url"),
    ];
    for (name, value, told) in cases {
        let (code, said) = check(&plan, (name, value), &[]);
        assert!(code == USAGE && said.contains(told) && said.contains("UTF-8"), "{told}: {code} {said}");
        assert!(!said.contains("hunter22"), "{said}");
    }
    for word in [b"session.secrets=hunter22\xff".as_slice(), b"redis.url=\xff"] {
        let (code, said) = check(&plan, (b"TERM", b"dumb"), &[b"--set", word]);
        let name = String::from_utf8_lossy(word.split(|byte| *byte == b'=').next().unwrap()).into_owned();
        assert!(code == USAGE && said.contains(&name) && said.contains("UTF-8"), "{code} {said}");
        assert!(!said.contains("hunter22"), "{said}");
    }
    let file = plan.folder().join("regatta.toml");
    for (bytes, reason) in [
        (b"\xff\xfel\0i\0".as_slice(), "UTF-16"),
        (b"l\0i\0s\0", "zero byte"),
        (b"[session]\nsecrets = \"hunter22\xff\"", "not UTF-8"),
        (b"[redis]\nurl = redis://:hunter22@h", "regatta.toml"),
        (b"[redis]\nurl = \"redis://:hunter22@h", "regatta.toml"),
        (b"[redis]\nurl = \"redis://:hun#ter22@h/hunter22\"", "# as %23"),
        (b"[redis]\npassword = \"hunter22\"", "redis.password"),
    ] {
        fs::write(&file, bytes).unwrap();
        let (code, said) = check(&plan, (b"TERM", b"dumb"), &[]);
        assert!(code == USAGE && said.contains("regatta.toml") && said.contains(reason), "{code} {said}");
        assert!(!said.contains("hunter22"), "{said}");
    }
    fs::write(&file, b"\xef\xbb\xbf[workers]\r\ncount = 3\r\n").unwrap();
    let (_, said) = check(&plan, (b"TERM", b"dumb"), &[]);
    assert!(
        said.contains("workers   3 (workers.count)"),
        "a mark and another line end are no mistake: {said}"
    );
}

#[test]
fn what_kubernetes_injects_for_a_sibling_service_is_passed_over_and_told() {
    let redis = TestRedis::shared();
    let plan = TestFleetBuilder::on(&redis)
        .set("REGATTA_REDIS_PORT", "tcp://10.96.0.7:6379")
        .set("REGATTA_REDIS_SERVICE_HOST", "10.96.0.7")
        .set("REGATTA_PORT_80_TCP_ADDR", "fd00::7");
    let fleet = plan.start();
    assert_eq!(fleet.get("/").status, 200);
    assert!(fleet.log().contains("REGATTA_REDIS_PORT"), "what was passed over is told");
    drop(fleet);
    let (code, said) = plan.clone().args(&["check"]).run();
    assert!(code == 0 && said.contains("ignored   REGATTA_PORT_80_TCP_ADDR, REGATTA_REDIS_PORT"), "{said}");
    for (name, value, meant) in [
        ("REGATTA_WORKERS_COUNT", "4", "REGATTA_WORKERS__COUNT"),
        ("REGATTA_LIMITS_DEFAULT_RATE", "4/s", "REGATTA_LIMITS__DEFAULT__RATE"),
        ("REGATTA_REDIS_PORT", "6379", "REGATTA_REDIS__URL"),
        ("REGATTA_REDIS_URL", "tcp://10.96.0.7:6379", "REGATTA_REDIS__URL"),
        ("REGATTA_PORT", "8080", "REGATTA_LISTEN"),
        ("regatta_workers__count", "4", "REGATTA_WORKERS__COUNT"),
        ("REGATTA_DASHBOARD__HOSTS", "a", "admin.allowed_hosts"),
    ] {
        let (code, said) = plan.clone().set(name, value).args(&["check"]).run();
        assert!(code == USAGE && said.contains(name) && said.contains(meant), "{name}: {code} {said}");
    }
}
