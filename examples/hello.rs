//! The smallest fleet: every visit says who served it and how often you were there.
//!
//! `cargo run --example hello`, then `curl -c jar -b jar localhost:3000` a few times.

use axum::Router;
use axum::routing::get;
use regatta::{Context, Fleet, PageView, Worker};

fn main() -> std::process::ExitCode {
    Fleet::new(app).run()
}

async fn app(_: Context) -> Router {
    Router::new().route("/", get(home))
}

async fn home(worker: Worker, visit: PageView) -> String {
    format!("PID: {} | Views: {}\n", worker.pid(), visit.count())
}
