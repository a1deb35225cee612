//! The transitions of deployments, as a table.

use std::ffi::OsString;
use std::fs::File;
use std::path::Path;

use super::*;
use crate::config::ConfigInputs;
use crate::scoreboard::ExitReason;
use crate::supervisor::deployment::program::ProbeWords;
use crate::supervisor::slots::slot::{WorkerHandle, WorkerPhase};
use crate::sys::process::Pid;

const NOW: Duration = Duration::from_secs(100);
const CANARY_PERIOD: Duration = Duration::from_secs(1);

fn context() -> RolloutContext {
    RolloutContext { workers: Some(3), ..RolloutContext::new(SupervisorSettings::for_tests(CANARY_PERIOD)) }
}

fn upgrade_context() -> RolloutContext {
    let program = File::open("/proc/self/exe").unwrap().into();
    let previous = PreviousProgram {
        program,
        arguments: Vec::new(),
        environment: Vec::new(),
        inputs: ConfigInputs::default(),
        build: "old".into(),
        working_dir: None,
    };
    RolloutContext { previous: Some(Box::new(previous)), ..context() }
}

fn stable() -> Deployments {
    let program =
        ProgramSpec::new(&[OsString::from("/bin/app")], Path::new("/"), "".as_ref(), ProbeWords::Check);
    Deployments::new(1, program)
}

fn in_preflight() -> Deployments {
    let mut deployments = stable();
    deployments.queue_upgrade(None).unwrap();
    assert!(deployments.claim_upgrade().is_some());
    deployments.start_preflight(Preflight::for_tests());
    deployments
}

fn rolling_out() -> Deployments {
    let mut deployments = stable();
    assert_eq!(deployments.start_rollout(DeploymentKind::Reload, context(), NOW), 2);
    deployments
}

fn rolling_back() -> Deployments {
    let mut deployments = rolling_out();
    assert!(deployments.roll_back("it died".into()).is_some());
    deployments
}

fn name(deployments: &Deployments) -> &'static str {
    match deployments.current {
        Deployment::Stable => "stable",
        Deployment::Preflight(_) => "preflight",
        Deployment::RollingOut { .. } => "rolling out",
        Deployment::RollingBack { .. } => "rolling back",
    }
}

fn worker(generation: u64) -> WorkerHandle {
    WorkerHandle {
        pid: Pid::from_raw(10),
        generation,
        cell: 0,
        phase: WorkerPhase::Ready { since: NOW },
        started: NOW,
        replace_reason: None,
    }
}

/// Every transition of the table, and every event in a state that does not take it.
#[test]
fn each_event_leads_to_one_state() {
    type Event = (&'static str, fn(&mut Deployments));
    let events: [Event; 9] = [
        ("reload", |all| {
            all.queue_reload();
            if all.claim_reload().is_some() {
                all.start_rollout(DeploymentKind::Reload, context(), NOW);
            }
        }),
        ("upgrade", |all| {
            if all.queue_upgrade(None).is_ok() && all.claim_upgrade().is_some() {
                all.start_preflight(Preflight::for_tests());
            }
        }),
        ("preflight ended", |all| drop(all.finish_preflight())),
        ("took over", |all| {
            if name(all) == "stable" {
                all.start_upgrade_rollout("old".into(), upgrade_context(), NOW);
            }
        }),
        ("worker failed", |all| {
            all.roll_back("it died".into());
        }),
        ("all have the new generation", |all| drop(all.complete(0))),
        ("all have the old generation", |all| drop(all.finish_rollback(0))),
        ("the old program cannot be executed", Deployments::resume_rollout),
        ("stop", |all| drop(all.cancel_upgrade())),
    ];
    let states: [fn() -> Deployments; 4] = [stable, in_preflight, rolling_out, rolling_back];
    let table = [
        // stable, preflight, rolling out, rolling back
        ["rolling out", "preflight", "rolling out", "rolling out"],
        ["preflight", "preflight", "rolling out", "preflight"],
        ["stable", "stable", "rolling out", "rolling back"],
        ["rolling out", "preflight", "rolling out", "rolling back"],
        ["stable", "preflight", "rolling back", "rolling back"],
        ["stable", "preflight", "stable", "rolling back"],
        ["stable", "preflight", "rolling out", "stable"],
        ["stable", "preflight", "rolling out", "rolling out"],
        ["stable", "stable", "rolling out", "rolling back"],
    ];
    for ((event, apply), row) in events.iter().zip(table) {
        for (state, expected) in states.iter().zip(row) {
            let mut deployments = state();
            let before = name(&deployments);
            apply(&mut deployments);
            assert_eq!(name(&deployments), expected, "{before}, on {event}");
        }
    }
}

#[test]
fn a_rollout_has_the_next_generation_and_a_rollback_the_one_before() {
    let mut deployments = rolling_out();
    assert_eq!((deployments.generation(), deployments.base_generation()), (2, 1));
    assert_eq!((deployments.rolling_out_to(), deployments.replace_reason()), (Some(2), ExitReason::Reload));
    assert!(deployments.forward().unwrap().is_failed_by(&worker(2), CANARY_PERIOD, NOW));
    let (rollout, before) = deployments.roll_back("it died".into()).unwrap();
    assert_eq!((rollout.to, before.canary_period), (2, CANARY_PERIOD));
    assert_eq!((deployments.generation(), deployments.rolling_out_to()), (1, None));
    assert_eq!(deployments.forward(), None, "it fails once");
    assert_eq!(deployments.rollback().unwrap().1, "it died");
    let failed = deployments.finish_rollback(7).unwrap();
    assert_eq!((failed.rollout.to, deployments.next_generation()), (2, 3), "no number comes twice");
    let last = deployments.last().unwrap();
    assert_eq!((last.outcome, last.reason.as_deref()), (RolloutOutcome::RolledBack, Some("it died")));
}

#[test]
fn what_is_queued_waits_for_a_rollout_and_ends_a_rollback() {
    let mut deployments = rolling_out();
    assert!(deployments.queue_reload(), "it waits");
    assert!(!deployments.queue_reload(), "the second request is the same reload");
    assert_eq!(deployments.queue_upgrade(Some("/new".into())), Ok(true));
    assert!(deployments.claim_reload().is_none() && deployments.claim_upgrade().is_none());
    deployments.roll_back("it died".into()).unwrap();
    assert!(deployments.claim_reload().is_none(), "the upgrade comes first");
    let claimed = deployments.claim_upgrade().unwrap();
    assert_eq!(claimed.request, UpgradeRequest { binary: Some("/new".into()) });
    assert_eq!(claimed.superseded.unwrap().reason, "it died");
    assert!(deployments.claim_reload().unwrap().superseded.is_none());
    assert!(deployments.claim_reload().is_none(), "it was one");
}

#[test]
fn one_upgrade_at_a_time() {
    let mut deployments = stable();
    assert!(deployments.queue_upgrade(Some("new".into())).unwrap_err().contains("not an absolute path"));
    assert_eq!(deployments.queue_upgrade(None), Ok(false));
    assert!(deployments.queue_upgrade(None).is_err());
    assert!(in_preflight().queue_upgrade(None).is_err());
    let mut taken_over = stable();
    assert_eq!(taken_over.start_upgrade_rollout("old".into(), upgrade_context(), NOW), 2);
    assert!(taken_over.queue_upgrade(None).is_err());
    assert_eq!((taken_over.oldest_generation(), taken_over.builds()[&1].as_str()), (2, "old"));
    taken_over.queue_reload();
    taken_over.roll_back("it died".into()).unwrap();
    assert!(taken_over.claim_reload().is_none(), "the old program comes back first");
    assert_eq!(taken_over.program_to_restore().unwrap().build, "old");
    taken_over.resume_rollout();
    assert_eq!((taken_over.generation(), taken_over.queue_upgrade(None)), (2, Ok(true)));
}

#[test]
fn a_stop_cancels_an_upgrade_in_every_stage() {
    assert!(stable().cancel_upgrade().is_none() && rolling_out().cancel_upgrade().is_none());
    let mut queued = stable();
    queued.queue_upgrade(None).unwrap();
    assert!(queued.cancel_upgrade().unwrap().preflight.is_none());
    assert!(in_preflight().cancel_upgrade().unwrap().preflight.is_some());
    let mut taken_over = stable();
    taken_over.start_upgrade_rollout("old".into(), upgrade_context(), NOW);
    taken_over.roll_back("it died".into()).unwrap();
    assert!(taken_over.cancel_upgrade().is_some() && taken_over.program_to_restore().is_none());
    assert!(taken_over.cancel_upgrade().is_none(), "it is cancelled once");
}

#[test]
fn another_program_goes_on_with_them() {
    let mut deployments = rolling_back();
    deployments.queue_reload();
    let program = deployments.program().clone();
    let restored =
        Deployments::restore(deployments.save(), program, SupervisorSettings::for_tests(Duration::ZERO));
    assert_eq!((name(&restored), restored.generation(), restored.next_generation()), ("rolling back", 1, 3));
    assert_eq!(restored.rollback(), deployments.rollback());
    assert!(restored.reload_queued);
    assert!(in_preflight().save().rollout.is_none(), "what takes over is what the preflight leads to");
}
