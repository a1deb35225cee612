//! A rolling deploy under load, forwards and back: programs of two releases on one Redis, with the same keys.
//!
//! `make rolling FROM=<git ref>` builds that release and says in `REGATTA_FORMER` where it is: the folder with its
//! `regatta` and `examples`. Without it the former release is this build: then these tests say that two fleets, and a
//! fleet before and after an upgrade, count as one.

mod beside;
mod turns;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::TestRedis;

/// Both with and without functions.
const MODES: [&str; 2] = ["fcall", "evalsha"];

/// The former release's program, `regatta` or `examples/NAME`.
fn former(name: &str) -> PathBuf {
    match env::var_os("REGATTA_FORMER") {
        Some(folder) => {
            let program = PathBuf::from(folder).join(name);
            assert!(program.exists(), "{} is missing: `make rolling` builds it", program.display());
            program
        }
        None => present(name),
    }
}

/// This release's.
fn present(name: &str) -> PathBuf {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_regatta")).with_file_name(name);
    assert!(program.exists(), "{} is missing: `cargo build --examples` builds it", program.display());
    program
}

/// Settings of these tests that have had another name: section, name, former name, value.
const RENAMED: [(&str, &str, &str, &str); 3] = [
    ("fleet", "heartbeat_interval", "heartbeat", "\"0\""),
    ("tasks", "concurrency", "running", "0"),
    ("workers", "canary_period", "probation", "\"300ms\""),
];

/// The configuration file of a program: those settings under the names that it knows.
fn configuration(program: &Path) -> String {
    let listed = Command::new(program).arg("settings").env_clear().output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let knows = |path: &str| listed.split_whitespace().any(|word| word.trim_end_matches(':') == path);
    let lines = RENAMED.map(|(section, name, former, value)| {
        let name = if knows(&format!("{section}.{name}")) { name } else { former };
        assert!(knows(&format!("{section}.{name}")), "{} has no {section}.{name}", program.display());
        format!("[{section}]\n{name} = {value}\n")
    });
    lines.concat()
}

/// A plan without variables that only one of the releases knows; its folder has the file of this program.
fn common(plan: TestFleetBuilder, program: &Path) -> TestFleetBuilder {
    configure(plan.folder(), program);
    plan.unset("REGATTA_FLEET__HEARTBEAT_INTERVAL").unset("REGATTA_TASKS__CONCURRENCY")
}

/// Puts the file of this program in the place of another one's.
fn configure(folder: &Path, program: &Path) {
    fs::write(folder.join("regatta.toml"), configuration(program)).unwrap();
}

/// A fleet of each release.
struct Both {
    fleets: [TestFleet; 2],
    prefix: String,
    redis: TestRedis,
}

impl Both {
    /// The former one is there first, as in a deploy, or the present one, as when it is rolled back.
    fn start(name: &str, back: bool, change: impl Fn(TestFleetBuilder) -> TestFleetBuilder) -> Self {
        let redis = TestRedis::start();
        let mut programs = [former(name), present(name)];
        if back {
            programs.reverse();
        }
        // All clients of a test are one address.
        let plan = || change(TestFleetBuilder::on(&redis).set("REGATTA_SESSION__CREATE_BURST", "100000"));
        let first = common(plan().program(&programs[0]), &programs[0]);
        let prefix = first.prefix().to_owned();
        let second = common(plan().program(&programs[1]), &programs[1]).set("REGATTA_REDIS__PREFIX", &prefix);
        Self { fleets: [first.start(), second.start()], prefix, redis }
    }

    /// Either of them.
    fn either(&self) -> &TestFleet {
        &self.fleets[rand::random_range(0..2)]
    }

    /// A number in Redis.
    fn number(&self, key: &str) -> u64 {
        self.redis.cli(&["GET", &format!("{}:{key}", self.prefix)]).parse().unwrap_or(0)
    }
}
