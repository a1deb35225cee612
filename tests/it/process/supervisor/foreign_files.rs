//! Folders and files in another user's hands: nothing of root's is written where that user chose.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use nix::unistd::{Gid, Uid};

use crate::support::fleet::TestFleetBuilder;
use crate::support::redis::TestRedis;

/// Any user but root and this one.
const STRANGER: u32 = 54_321;

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn give(path: &Path) {
    nix::unistd::fchownat(
        nix::fcntl::AT_FDCWD,
        path,
        Some(Uid::from_raw(STRANGER)),
        Some(Gid::from_raw(STRANGER)),
        nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW,
    )
    .unwrap();
}

#[track_caller]
fn refused(plan: &TestFleetBuilder, name: &str, path: &Path, why: &str) {
    let plan = plan.clone().set(name, path.to_str().unwrap());
    for words in [&[][..], &["check"]] {
        // `check` starts no private Redis.
        if words == ["check"] && name == "REGATTA_DATA_DIR" {
            continue;
        }
        let (code, said) = plan.clone().args(words).run();
        assert!(code == 64 && said.contains(why), "{name}={} {words:?}: {code} {said}", path.display());
    }
}

#[test]
fn a_link_in_the_run_folder_leads_nothing_astray() {
    let redis = TestRedis::shared();
    let plan = TestFleetBuilder::on(&redis);
    let (run, victim) = (plan.folder().join("run"), plan.folder().join("victim"));
    fs::create_dir(&run).unwrap();
    fs::write(&victim, "precious").unwrap();
    for name in ["regatta.pid", "regatta.pid.next", "workers.next", "workers"] {
        symlink(&victim, run.join(name)).unwrap();
    }
    let (code, said) = plan.run();
    assert!(
        code == 64 && said.contains("regatta.pid is a link") && said.contains("remove it"),
        "{code} {said}"
    );
    fs::remove_file(run.join("regatta.pid")).unwrap();
    fs::hard_link(&victim, run.join("regatta.pid")).unwrap();
    let (code, said) = plan.run();
    assert!(code == 64 && said.contains("hard link"), "{code} {said}");
    fs::remove_file(run.join("regatta.pid")).unwrap();
    let mut fleet = plan.start();
    assert_eq!(fleet.stop(), 0);
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    let made = fs::symlink_metadata(run.join("regatta.pid")).unwrap();
    assert_eq!(made.mode() & 0o7777, 0o600);
}

#[test]
fn folders_that_others_may_write_are_refused() {
    let plan = TestFleetBuilder::new();
    let open = plan.folder().join("open");
    fs::create_dir(&open).unwrap();
    mode(&open, 0o777);
    for name in ["REGATTA_RUN_DIR", "REGATTA_DATA_DIR"] {
        refused(&plan, name, &open, "chmod 700");
        refused(&plan, name, &open.join("below"), "chmod +t");
    }
    refused(&plan, "REGATTA_LOG__FILE", &open.join("x.log"), "chmod +t");
    assert!(!open.join("x.log").exists());
    mode(&open, 0o1777);
    let (code, said) = plan.set("REGATTA_RUN_DIR", open.join("run").to_str().unwrap()).args(&["check"]).run();
    assert_eq!(code, 0, "{said}");
}

#[test]
fn root_uses_nothing_that_another_user_could_exchange() {
    // Only root can give a file away.
    if !Uid::effective().is_root() {
        return;
    }
    let plan = TestFleetBuilder::new();
    let at = |name: &str| plan.folder().join(name);
    fs::create_dir(at("theirs")).unwrap();
    fs::create_dir(at("theirs/run")).unwrap();
    give(&at("theirs"));
    let owner = format!("belongs to the user with id {STRANGER}");
    for name in ["REGATTA_RUN_DIR", "REGATTA_DATA_DIR"] {
        refused(&plan, name, &at("theirs"), &owner);
        refused(&plan, name, &at("theirs/run"), &owner);
    }
    refused(&plan, "REGATTA_LOG__FILE", &at("theirs/x.log"), &owner);
    fs::create_dir(at("own")).unwrap();
    symlink(at("own"), at("link")).unwrap();
    give(&at("link"));
    refused(&plan, "REGATTA_RUN_DIR", &at("link"), &owner);
    fs::write(at("own/regatta.pid"), "1").unwrap();
    give(&at("own/regatta.pid"));
    let (code, said) = plan.clone().set("REGATTA_RUN_DIR", at("own").to_str().unwrap()).run();
    assert!(code == 64 && said.contains(&owner), "{code} {said}");
    fs::create_dir(at("group")).unwrap();
    mode(&at("group"), 0o775);
    std::os::unix::fs::chown(at("group"), None, Some(STRANGER)).unwrap();
    refused(&plan, "REGATTA_RUN_DIR", &at("group/run"), "chmod g-w");
    fs::create_dir(at("data")).unwrap();
    symlink(at("victim"), at("data/redis.log")).unwrap();
    refused(&plan, "REGATTA_DATA_DIR", &at("data"), "redis.log is a link");
    assert!(!at("victim").exists());
}

#[test]
fn sudo_does_not_put_roots_fleet_into_the_callers_folder() {
    if !Uid::effective().is_root() {
        return;
    }
    let plan = TestFleetBuilder::new().unset("REGATTA_RUN_DIR");
    let theirs = plan.folder().join("user");
    fs::create_dir(&theirs).unwrap();
    give(&theirs);
    let (code, said) = plan.clone().set("XDG_RUNTIME_DIR", theirs.to_str().unwrap()).args(&["status"]).run();
    // Where this machine has a fleet of root's, it is found: there is none in the folder.
    let finds_roots = code == 0 && fs::exists("/run/regatta/control.sock").unwrap();
    assert!(finds_roots || code == 69 && said.contains("run_dir /run/regatta"), "{code} {said}");
    let own = plan.folder().to_str().unwrap();
    let (code, said) = plan.clone().set("XDG_RUNTIME_DIR", own).args(&["status"]).run();
    assert!(code == 69 && said.contains(&format!("run_dir {own}/regatta")), "{code} {said}");
}
