//! The smallest fleet: every visit says who served it and how often you were there.
//!
//! `cargo run --example hello`, then `curl -c jar -b jar localhost:3000` a few times.

use axum::Router;
use axum::routing::get;
use regatta::session::PageView;
use regatta::{Fleet, FleetHandle, Worker};

fn main() -> std::process::ExitCode {
    Fleet::new(|fleet: FleetHandle| Router::new().route("/", get(home)).with_state(fleet)).run()
}

async fn home(worker: Worker, visit: PageView) -> String {
    format!("PID: {} | Views: {}\n", worker.pid(), visit.count())
}
