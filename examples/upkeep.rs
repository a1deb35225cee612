//! Own checks, an operators' route, background work and hooks.
//!
//! `REGATTA_APP__FOLDER=/tmp cargo run --example upkeep`, then `curl localhost:3001/build localhost:3001/readyz`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use regatta::{App, Context, Fleet};
use serde::Deserialize;

/// `[app]` in regatta.toml, or `REGATTA_APP__FOLDER`.
#[derive(Debug, Deserialize)]
pub(crate) struct Settings {
    /// What the application cannot do without.
    folder: PathBuf,
}

fn main() -> std::process::ExitCode {
    Fleet::new(app).run()
}

pub(crate) async fn app(cx: Context<Settings>) -> App {
    let folder = cx.settings().folder.clone();
    let refreshes = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&refreshes);
    let shown = get(move || async move { format!("{}\n", refreshes.load(Relaxed)) });
    App::new(Router::new().route("/refreshes", shown))
        .readiness_check("folder", move || {
            let folder = folder.clone();
            async move { std::fs::metadata(folder).map(drop) }
        })
        .operator_routes(Router::new().route("/build", get(|| async { env!("CARGO_PKG_VERSION") })))
        .background("exchange-rates", move |shutdown| async move {
            while !shutdown.is_requested() {
                counted.fetch_add(1, Relaxed);
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_secs(60)) => {}
                    () = shutdown.wait() => {}
                }
            }
            tracing::info!("background work has ended");
        })
        .on_ready(async { tracing::info!("hook: ready") })
        .on_drain(async { tracing::info!("hook: drain") })
        .on_exit(async { tracing::info!("hook: exit, added first") })
        .on_exit(async { tracing::info!("hook: exit, added last") })
}
