//! The file and the program a running fleet takes, when an operator moves, empties or replaces them, or switches a link.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::sys::stat::Mode;
use serde_json::Value;

use crate::support::faulty_fleet::{Scene, configuration};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::TestRedis;
use crate::support::wait;

#[test]
fn a_configuration_that_was_there_and_is_lost_changes_nothing() {
    let scene = Scene::start(1);
    let (file, aside) = (scene.file.clone(), scene.file.with_extension("aside"));
    fs::rename(&file, &aside).unwrap();
    let workers = scene.fleet.workers();
    let refused = |why: &str| {
        for verb in ["reload", "upgrade"] {
            let said = scene.expect(&[verb], 1, why);
            assert!(said.contains("nothing is changed") && said.contains("regatta.toml"), "{verb}: {said}");
        }
        assert_eq!(scene.fleet.workers(), workers, "{why}");
    };
    refused("it was there and cannot be found now");
    symlink("nowhere", &file).unwrap();
    refused("nowhere, which is not there");
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    refused("it is a folder");
    fs::remove_dir(&file).unwrap();
    nix::unistd::mkfifo(&file, Mode::S_IRWXU).unwrap();
    refused("it is a pipe");
    fs::remove_file(&file).unwrap();
    fs::write(&file, "").unwrap();
    refused("it is empty now");
    fs::write(&file, b"listen = \"\xff\"").unwrap();
    refused("not UTF-8");
    fs::File::create(&file).unwrap().set_len(5 << 20).unwrap();
    refused("more than");
    fs::rename(&aside, &file).unwrap();
    let said = scene.expect(&["reload"], 0, "reload done");
    assert!(said.contains(&format!("it took the file {}", file.display())), "{said}");
}

#[test]
fn a_configuration_that_comes_is_used_and_said() {
    let redis = TestRedis::start();
    let fleet =
        TestFleetBuilder::on(&redis).workers(1).set("REGATTA_WORKERS__CANARY_PERIOD", "100ms").start();
    let reload = || fleet.plan().clone().args(&["reload", "--json"]).run();
    let (code, said) = reload();
    assert!(code == 0 && said.contains("there is no configuration file"), "{said}");
    fs::write(fleet.plan().folder().join("regatta.toml"), "[drain]\ngrace = \"1ms\"").unwrap();
    let (code, said) = reload();
    assert!(code == 0 && said.contains("which was not there before"), "{said}");
    let verdict: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    let details = &verdict["result"]["details"];
    assert!(details["file"].as_str().unwrap().ends_with("/regatta.toml"), "{said}");
    assert!(details["program"].as_str().unwrap().ends_with("/regatta"), "{said}");
}

#[test]
fn a_file_that_a_setting_names_must_be_there_at_a_reload() {
    let scene = Scene::start(1);
    let token = scene.fleet.plan().folder().join("token");
    let text = format!("{}[dashboard]\ntoken_file = \"token\"\n", configuration(1, "100ms"));
    fs::write(&scene.file, text).unwrap();
    for verb in ["reload", "upgrade"] {
        let said = scene.expect(&[verb], 1, "dashboard.token_file /");
        assert!(said.contains("it is not there"), "{said}");
    }
    fs::write(&token, "a token for operators, long enough").unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o666)).unwrap();
    scene.expect(&["reload"], 1, "every user may write it");
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    scene.expect(&["reload"], 0, "reload done");
}

/// Releases beside each other, and a link to the one that is deployed.
struct Deployment {
    plan: TestFleetBuilder,
    real: PathBuf,
    _redis: TestRedis,
}

impl Deployment {
    fn new() -> Self {
        let redis = TestRedis::start();
        let plan = TestFleetBuilder::on(&redis).unset("WEB_CONCURRENCY");
        let deployment = Self { real: plan.file().to_owned(), plan, _redis: redis };
        for release in 1..=3 {
            let folder = deployment.release(release);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("regatta.toml"), configuration(release, "100ms")).unwrap();
            let program = folder.join("regatta");
            // Where a link cannot be made, on another file system, a copy does.
            if fs::hard_link(&deployment.real, &program).is_err() {
                fs::copy(&deployment.real, &program).unwrap();
            }
        }
        deployment.switch(1);
        deployment
    }

    fn release(&self, release: usize) -> PathBuf {
        self.plan.folder().canonicalize().unwrap().join(format!("releases/{release}"))
    }

    fn current(&self) -> PathBuf {
        self.plan.folder().join("current")
    }

    fn switch(&self, release: usize) {
        let next = self.plan.folder().join("next");
        symlink(self.release(release), &next).unwrap();
        fs::rename(next, self.current()).unwrap();
    }

    /// Started as an operator does, by a shell.
    fn start(&self, line: &str) -> TestFleet {
        self.plan.clone().program("/bin/sh".as_ref()).args(&["-c", line]).start()
    }

    #[track_caller]
    fn expect(&self, words: &[&str], code: i32, parts: &[&str]) {
        let (ended, said) = self.plan.clone().program(&self.real).args(words).run();
        assert_eq!(ended, code, "{words:?}: {said}");
        assert!(parts.iter().all(|part| said.contains(part)), "{words:?} does not say {parts:?}: {said}");
    }
}

fn link(fleet: &TestFleet, name: &str) -> PathBuf {
    fs::read_link(format!("/proc/{}/{name}", fleet.pid())).unwrap()
}

/// Both verbs follow a link that is switched, also twice, and when the release they came from is gone.
fn follows(line: &str) {
    let deployment = Deployment::new();
    let fleet = deployment.start(line);
    let workers = |count: usize| {
        wait::until("as many workers as the release names", wait::LONG, || fleet.workers().len() == count);
    };
    workers(1);
    deployment.switch(2);
    let file = format!("({})", deployment.release(2).join("regatta.toml").display());
    deployment.expect(&["reload"], 0, &[&file, "current/regatta.toml", "the program is still"]);
    workers(2);
    let program = format!("({})", deployment.release(2).join("regatta").display());
    deployment.expect(&["upgrade"], 0, &[&file, "the program is", "current/", &program]);
    assert_eq!(link(&fleet, "exe"), deployment.release(2).join("regatta"));
    deployment.switch(3);
    fs::remove_dir_all(deployment.release(1)).unwrap();
    fs::remove_dir_all(deployment.release(2)).unwrap();
    deployment.expect(&["upgrade"], 0, &[&deployment.release(3).display().to_string()]);
    workers(3);
    assert_eq!(link(&fleet, "exe"), deployment.release(3).join("regatta"));
    fs::remove_dir_all(deployment.release(3)).unwrap();
    for verb in ["reload", "upgrade"] {
        deployment.expect(&[verb], 1, &["nothing is changed", "/current leads to", "which is not there"]);
    }
    workers(3);
}

#[test]
fn a_link_that_is_switched_is_followed_from_the_folder_behind_it() {
    follows("cd current && exec ./regatta");
}

#[test]
fn a_link_that_is_switched_is_followed_in_the_words_of_the_command() {
    follows("exec current/regatta --config current/regatta.toml");
}

#[test]
fn a_link_that_is_switched_is_followed_on_the_search_path() {
    follows("PATH=$PWD/current:$PATH; cd /; exec regatta --config \"$OLDPWD/current/regatta.toml\"");
}

#[test]
fn an_upgrade_begins_in_the_folder_the_link_leads_to_and_comes_back_from_it() {
    let deployment = Deployment::new();
    let fleet = deployment.start("cd current && exec ./regatta");
    assert_eq!(link(&fleet, "cwd"), deployment.release(1));
    let broken = deployment.release(2).join("regatta");
    fs::remove_file(&broken).unwrap();
    let real = deployment.real.display();
    // It proves itself, and then does not take over.
    let script = format!("#!/bin/sh\n[ \"$1\" = check ] && exec {real} \"$@\"\nexec {real} --no-such-flag\n");
    fs::write(&broken, script).unwrap();
    fs::set_permissions(&broken, fs::Permissions::from_mode(0o755)).unwrap();
    deployment.switch(2);
    deployment.expect(&["upgrade"], 1, &["--no-such-flag"]);
    assert_eq!(link(&fleet, "cwd"), deployment.release(1), "the old program works where it did");
    deployment.switch(3);
    deployment.expect(&["upgrade"], 0, &["upgrade done"]);
    assert_eq!(link(&fleet, "cwd"), deployment.release(3));
}

#[test]
fn a_program_given_by_a_relative_path_is_beside_who_asks() {
    let deployment = Deployment::new();
    let fleet = deployment.start("cd current && exec ./regatta");
    let asks = deployment.plan.clone().program(&deployment.real).begins_in(&deployment.release(2));
    let (code, said) = asks.args(&["upgrade", "--binary", "./regatta"]).run();
    assert_eq!(code, 0, "{said}");
    assert_eq!(link(&fleet, "exe"), deployment.release(2).join("regatta"));
}

#[test]
fn a_folder_whose_name_is_no_text_does_for_an_upgrade() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let redis = TestRedis::start();
    let plan = TestFleetBuilder::on(&redis).workers(1).set("REGATTA_WORKERS__CANARY_PERIOD", "100ms");
    let odd = plan.folder().join(OsStr::from_bytes(b"a b\xff"));
    fs::create_dir(&odd).unwrap();
    fs::write(odd.join("regatta.toml"), "[drain]\ngrace = \"1ms\"").unwrap();
    let _fleet = plan.clone().begins_in(&odd).start();
    for verb in ["reload", "upgrade"] {
        let (code, said) = plan.clone().args(&[verb]).run();
        assert_eq!(code, 0, "{verb}: {said}");
    }
}

#[test]
fn a_path_that_is_none_is_a_mistake() {
    let plan = TestFleetBuilder::new();
    let mistakes = [
        ("REGATTA_LOG__FILE", "~/x.log", "a shell's word"),
        ("REGATTA_LOG__FILE", "logs/", "a folder"),
        ("REGATTA_REDIS__URL", &format!("unix:///{}", "x".repeat(110)), "has 111 bytes"),
    ];
    for (name, value, why) in mistakes {
        let (code, said) = plan.clone().set(name, value).args(&["check"]).run();
        assert!(code == 64 && said.contains(why), "{name}={value}: {code} {said}");
    }
    let long = plan.folder().join("x".repeat(100));
    let (code, said) = plan.clone().set("REGATTA_DATA_DIR", long.to_str().unwrap()).run();
    assert!(code == 64 && said.contains("at most 107 bytes"), "{code} {said}");
    assert!(Path::new(&long).exists());
}

#[test]
fn what_is_said_of_a_path_moves_no_terminal() {
    let (code, said) =
        TestFleetBuilder::new().args(&["check", "--config", "x\u{1b}[2J\nall is well\u{9b}1m"]).run();
    assert!(code == 64 && said.contains("x\\x1b[2J\\nall is well\\u{9b}1m"), "{said:?}");
    assert!(!said.chars().any(char::is_control), "{said:?}");
}
