//! A fleet that fails on request: its tests want workers that do not boot, panic, hang about or leave orphans.
//!
//! `FAULTY_FILE` names a file that lists the slots whose workers panic while they build their router, or says `all`;
//! it is read anew by each worker, so that a fault can be mended while the fleet runs. `FAULTY_THREAD` makes it start a
//! thread before the fleet, which a program that forks must not.

use std::process::Command;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::extract::Path;
use axum::routing::get;
use regatta::Fleet;
use regatta::State;
use regatta::Worker;

fn main() -> ExitCode {
    if std::env::var_os("FAULTY_THREAD").is_some() {
        std::thread::spawn(|| std::thread::sleep(Duration::from_secs(60)));
    }
    let file = std::env::var("FAULTY_FILE").ok();
    Fleet::new(move |fleet: State| {
        let failing = file.as_ref().and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
        let slot = fleet.worker().slot().to_string();
        assert!(!failing.split_whitespace().any(|word| word == "all" || word == slot), "the boat has a hole");
        routes().with_state(fleet)
    })
    .run()
}

fn routes() -> Router<State> {
    let held = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&held);
    Router::new()
        .route("/hello", get(hello))
        .route("/slow/{millis}", get(move |millis| slow(millis, Arc::clone(&counted))))
        .route("/held", get(move || async move { held.load(Ordering::Relaxed).to_string() }))
        .route("/panic", get(overboard))
        .route("/orphan", get(orphan))
}

async fn hello(worker: Worker) -> String {
    format!("Handled by worker {}\n", worker.pid())
}

/// Answers after this many milliseconds.
async fn slow(Path(millis): Path<u64>, held: Arc<AtomicUsize>) -> &'static str {
    held.fetch_add(1, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(millis)).await;
    held.fetch_sub(1, Ordering::Relaxed);
    "slow\n"
}

async fn overboard() -> &'static str {
    panic!("man overboard")
}

/// Leaves a grandchild behind whose parent is gone at once; answers with its pid.
async fn orphan() -> String {
    let shell = Command::new("sh").args(["-c", "sleep 0.2 >/dev/null 2>&1 & echo $!"]).output();
    shell.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}
