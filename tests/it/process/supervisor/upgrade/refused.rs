//! A program that cannot take over is told apart before anything happens.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use nix::sys::signal::Signal;

use crate::process::supervisor::upgrade::{Site, upgrade, upgraded};
use crate::support::{process, wait};

/// Programs that cannot take over, and what is said of each.
fn broken(site: &Site) -> Vec<(PathBuf, &'static str)> {
    let head = fs::read(&site.real).unwrap()[..64].to_vec();
    let mut foreign = head.clone();
    foreign[18] ^= 1;
    let plain = site.executable("plain", &head);
    fs::set_permissions(&plain, fs::Permissions::from_mode(0o644)).unwrap();
    vec![
        (site.plan.folder().join("missing"), "cannot be read"),
        (site.plan.folder().to_owned(), "it is no file"),
        (plain, "not executable"),
        (site.executable("foreign", &foreign), "another processor"),
        (site.executable("text", b"hello"), "neither a program nor a script"),
        (site.executable("cut", &head), "it"),
        ("/bin/true".into(), "runs no fleet, or is too old"),
        ("/bin/false".into(), "exit code 1"),
        (site.script("wrong", "echo '{\"handoff\":99,\"build\":\"x\"}'"), "version 99"),
        (site.script("words", "echo one >&2; echo the keel is missing >&2; exit 3"), "the keel is missing"),
        (site.script("killed", "kill -SEGV $$"), "SIGSEGV"),
        (site.script("older", "exec REAL check --no-such-option"), "no-such-option"),
        (site.script("other", "exec REAL check --handoff 0"), "not handed over"),
        (site.script("garbage", "exec REAL check --handoff 9 9</etc/hostname"), "no state of a fleet"),
        (site.script("threads", "FAULTY_THREAD=1 exec REAL \"$@\""), "threads"),
    ]
}

#[test]
fn a_program_that_cannot_take_over_is_refused_with_its_reason() {
    let site = Site::new();
    let fleet = site.plan.start();
    let workers = fleet.workers();
    for (program, reason) in broken(&site) {
        site.put(&program);
        let said = upgrade(&fleet, &["upgrade refused", "upgrade done"]);
        assert!(
            said.contains("nothing is changed") && said.contains(reason),
            "{}: {said}",
            program.display()
        );
        assert_eq!(fleet.workers(), workers, "{}", program.display());
        assert_eq!(fleet.get("/hello").status, 200);
    }
    assert_eq!(process::program(fleet.pid()).unwrap(), site.real);
    site.put(&site.real);
    upgraded(&fleet);
    assert_ne!(fleet.workers(), workers);
}

#[test]
fn a_configuration_the_new_program_cannot_read_is_refused() {
    let site = Site::new();
    let fleet = site.plan.start();
    let workers = fleet.workers();
    let file = site.plan.folder().join("regatta.toml");
    fs::write(&file, "[drain]\ngrcae = \"1s\"\n").unwrap();
    let said = upgrade(&fleet, &["upgrade refused", "upgrade done"]);
    assert!(said.contains("did you mean drain.grace?"), "{said}");
    assert_eq!(fleet.workers(), workers);
    fs::write(&file, "[drain]\ngrace = \"1ms\"\n").unwrap();
    upgraded(&fleet);
}

#[test]
fn a_program_that_does_not_answer_is_killed_and_refused() {
    let site = Site::new();
    let fleet = site.plan.start();
    let before = process::children(fleet.pid());
    site.put(&site.script("silent", "echo wait for me >&2; exec sleep 600"));
    let said = upgrade(&fleet, &["upgrade refused", "upgrade done"]);
    assert!(said.contains("within 15 s") && said.contains("wait for me"), "{said}");
    assert_eq!(process::children(fleet.pid()), before, "it is gone");
}

#[test]
fn a_program_that_prints_without_end_is_killed_and_holds_up_nobody() {
    let site = Site::new();
    let fleet = site.plan.start();
    let before = process::children(fleet.pid());
    let memory = process::private_memory(fleet.pid());
    for (name, text) in
        [("answers", "exec yes"), ("complains", "exec yes >&2"), ("long", "exec tr '\\0' x </dev/zero")]
    {
        site.put(&site.script(name, text));
        let said = upgrade(&fleet, &["upgrade refused", "upgrade done"]);
        assert!(said.contains("prints without end") && said.len() < 4096, "{name}: {said}");
        assert_eq!(process::children(fleet.pid()), before, "{name}: it is gone");
    }
    assert_eq!(fleet.get("/hello").status, 200);
    let grown = process::private_memory(fleet.pid()).saturating_sub(memory);
    assert!(grown < 4 << 20, "{grown} bytes more");
    site.put(&site.real);
    upgraded(&fleet);
}

#[test]
fn a_script_that_is_replaced_while_it_is_asked_is_not_run() {
    let site = Site::new();
    let fleet = site.plan.start();
    let workers = fleet.workers();
    let asked = site.plan.folder().join("asked");
    let slow = format!("[ \"$1\" = check ] && touch {} && sleep 1\nexec REAL \"$@\"", asked.display());
    site.put(&site.script("slow", &slow));
    fleet.signal(Signal::SIGUSR2);
    wait::until("it is asked", wait::LONG, || asked.exists());
    site.put(&site.script("other", "exec REAL \"$@\""));
    wait::until("it is refused", wait::LONG, || !fleet.log_lines("upgrade refused").is_empty());
    assert!(fleet.log().contains("changed while it was asked"));
    assert_eq!(fleet.workers(), workers);
    upgraded(&fleet);
}
