//! The race of an idle connection: a client sends its next request while the worker is told to leave.

use nix::sys::signal::Signal;

use crate::soak::zero_loss::Scene;
use crate::support::load_generator::ClientKind;
use crate::support::operate::rollout;
use crate::support::soak;

/// Clients that post 16 KB after pauses of up to 400 ms: less than `drain.idle_grace`, which is what is promised.
const CLIENTS: usize = 100;

#[test]
fn posts_on_idle_connections_survive_reloads() {
    let wanted = soak::length(1_000, 10_000);
    let mut scene = Scene::with("posts on idle connections", &[(ClientKind::Idle, CLIENTS)], |plan| plan);
    while scene.volley.answered() < wanted {
        rollout(&scene.fleet, Signal::SIGHUP, "reload");
    }
    scene.look();
    let (_, tally) = scene.end();
    assert!(tally.answered_to(ClientKind::Idle) >= wanted);
}

#[test]
fn requests_sent_in_pieces_survive_reloads() {
    let wanted = soak::length(500, 5_000);
    let mut scene = Scene::with("requests in pieces", &[(ClientKind::SlowSender, CLIENTS)], |plan| plan);
    while scene.volley.answered() < wanted {
        rollout(&scene.fleet, Signal::SIGHUP, "reload");
    }
    scene.look();
    scene.end();
}
