//! A Unix socket that all slots share: no request fails when workers, or the program, are replaced behind it.

use std::path::PathBuf;

use nix::sys::signal::Signal;

use crate::support::fleet::TestFleetBuilder;
use crate::support::load_generator::{MIX, RequestLoss};
use crate::support::traffic::Scene;
use crate::support::{process, soak, stand_in, wait};

fn socket(plan: &TestFleetBuilder) -> PathBuf {
    plan.folder().join("shop.sock")
}

/// Under a volley by its Unix socket, where each connection begins with these bytes.
fn scene(name: &'static str, begin: &[u8], settings: &[(&str, &str)]) -> Scene {
    let change = |plan: TestFleetBuilder| {
        let listen = format!("127.0.0.1:0,unix:{}", socket(&plan).display());
        let protocol =
            if begin.is_empty() { "none".to_owned() } else { format!("unix:{}", socket(&plan).display()) };
        let plan = plan.set("REGATTA_LISTEN", &listen).set("REGATTA_PROXY__PROTOCOL", &protocol);
        settings.iter().fold(plan, |plan, (name, value)| plan.set(name, value))
    };
    Scene::by(name, MIX, change, |fleet| {
        let unix = stand_in::unix(&socket(fleet.plan()));
        if begin.is_empty() { unix } else { stand_in::begun(unix, begin) }
    })
}

#[test]
fn reloads_upgrades_and_scaling_behind_a_unix_socket_fail_no_request() {
    let mut scene = scene("Unix socket: reload, upgrade, scale", b"", &[]);
    for _ in 0..soak::length(1, 10) {
        scene.rollout(Signal::SIGHUP, "reload");
        scene.rollout(Signal::SIGUSR2, "upgrade");
        scene.command(&["scale", "4"]);
        scene.settled(4);
        scene.command(&["scale", "2"]);
        scene.settled(2);
        scene.command(&["restart", "0"]);
    }
    scene.settled(2);
    let socket = socket(scene.fleet.plan());
    let (mut fleet, _) = scene.end();
    assert!(socket.exists());
    assert_eq!(fleet.stop(), 0, "{}", fleet.log());
    assert!(!socket.exists(), "it is removed with the fleet");
}

#[test]
fn a_reload_and_an_upgrade_behind_the_proxy_protocol_fail_no_request() {
    let header = b"PROXY TCP4 203.0.113.9 192.0.2.1 56324 443\r\n";
    let mut scene = scene("Unix socket, PROXY protocol: reload, upgrade", header, &[]);
    for _ in 0..soak::length(1, 10) {
        scene.rollout(Signal::SIGHUP, "reload");
        scene.rollout(Signal::SIGUSR2, "upgrade");
    }
    scene.settled(2);
    scene.end();
}

/// What a killed worker had is lost, and nothing else: the queue is the others' too.
#[test]
fn a_killed_worker_leaves_the_queue_of_a_unix_socket_to_the_others() {
    let scene = scene("Unix socket: kill", b"", &[]);
    let (fleet, volley) = (&scene.fleet, &scene.volley);
    for _ in 0..3 {
        let victim = fleet.workers()[0];
        process::signal(victim, Signal::SIGKILL);
        wait::until("another takes its place", wait::LONG, || {
            let workers = fleet.workers();
            workers.len() == 2 && !workers.contains(&victim)
        });
        volley.more(50);
    }
    let socket = socket(fleet.plan());
    assert_eq!(crate::support::client::get(stand_in::unix(&socket), "/hello").status, 200);
    let report = scene.volley.finish();
    assert_eq!(report.lost(RequestLoss::Refused), 0, "{}", report.summary());
}
