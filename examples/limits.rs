//! Limits where the application wants them: a layer on routes, a price that shows late, and a refund.
//!
//! ```sh
//! REGATTA_LIMITS__LOGIN__RATE=20/min REGATTA_LIMITS__LOGIN__BURST=20 REGATTA_LIMITS__LOGIN__ROUTES=layer \
//! REGATTA_LIMITS__EXPORT__CONCURRENCY=2 REGATTA_LIMITS__EXPORT__PER=global REGATTA_LIMITS__EXPORT__ROUTES=layer \
//! cargo run --example limits
//! ```

use std::time::Duration;

use axum::Router;
use axum::extract::Path;
use axum::routing::{get, post};
use regatta::rate_limit::{Error, RateLimit, UnknownPolicy};
use regatta::{Context, Fleet};

fn main() -> std::process::ExitCode {
    Fleet::new(app).run()
}

async fn app(cx: Context) -> Result<Router, UnknownPolicy> {
    let (logins, exports) = (cx.rate_limit("login")?, cx.rate_limit("export")?);
    Ok(Router::new()
        .route("/login/{password}", post(login).layer(logins.clone().cost(5)))
        .route("/export/{ms}", get(export).layer(exports))
        .route("/rows/{count}", get(rows).layer(logins.cost(1))))
}

/// Four wrong passwords are too many; right ones do not count.
async fn login(limit: RateLimit, Path(password): Path<String>) -> Result<&'static str, Error> {
    if password != "right" {
        return Ok("wrong\n");
    }
    limit.refund().await?;
    Ok("welcome\n")
}

/// Runs for so many milliseconds; two at the same time are enough.
async fn export(Path(ms): Path<u64>) -> &'static str {
    tokio::time::sleep(Duration::from_millis(ms)).await;
    "done\n"
}

/// Every row beyond the first costs as much as a request.
async fn rows(limit: RateLimit, Path(count): Path<u64>) -> Result<String, Error> {
    limit.charge(count.saturating_sub(1)).await?;
    Ok(format!("{count} rows\n"))
}
