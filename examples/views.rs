//! Views, exact over all workers and machines, for one round trip a request.
//!
//! `cargo run --example views`, then `curl -c jar -b jar localhost:3000` a few times.

use axum::Router;
use axum::routing::get;
use regatta::session::PageView;
use regatta::{Context, Fleet, Worker};

fn main() -> std::process::ExitCode {
    Fleet::new(app).run()
}

pub(crate) async fn app(_: Context) -> Router {
    Router::new().route("/", get(home))
}

async fn home(worker: Worker, view: PageView) -> String {
    format!("PID: {} | Views: {}\n", worker.pid(), view.count())
}
