//! A limit for each API key, held by all machines; an operator may change it by a reload.
//!
//! `cargo run --example api`, then `curl -i -H 'x-api-key: ann' localhost:3000/search`.

use std::process::ExitCode;

use axum::Router;
use axum::routing::get;
use regatta::rate_limit::{RateLimit, UnknownPolicy};
use regatta::{Config, Context, Fleet};

/// What an operator changes under `[limits.api]`.
const DEFAULTS: &str = r#"
    [limits.api]
    per = "header"
    header = "x-api-key"
    rate = "600/min"
    burst = "600"
    routes = "layer"
"#;

fn main() -> ExitCode {
    Fleet::new(app).config(Config::new().defaults(DEFAULTS)).run()
}

pub(crate) async fn app(cx: Context) -> Result<Router, UnknownPolicy> {
    let limit = cx.rate_limit("api")?;
    Ok(Router::new()
        .route("/search", get(search).layer(limit.clone()))
        .route("/export", get(search).layer(limit.cost(25))))
}

async fn search(_: RateLimit) -> &'static str {
    "found nothing\n"
}
