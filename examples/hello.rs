//! The smallest fleet: every answer says which worker gave it.
//!
//! `cargo run --example hello`, then `curl localhost:3000` a few times.

use std::process::ExitCode;

use axum::Router;
use axum::routing::get;
use regatta::{Context, Fleet, Worker};

fn main() -> ExitCode {
    Fleet::new(app).run()
}

async fn app(_: Context) -> Router {
    Router::new().route("/", get(hello))
}

async fn hello(worker: Worker) -> String {
    format!("Hello from worker {}\n", worker.pid())
}
