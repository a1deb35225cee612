//! A plain axum program with a limit that all its copies share; no fleet.
//!
//! ```text
//! cargo run --example plain_limits
//! ```
#![allow(clippy::print_stdout, reason = "it tells where it listens")]

use std::env;
use std::net::SocketAddr;

use axum::routing::get;
use axum::{BoxError, Router};
use regatta::rate_limit::{Key, Quota, RateLimitLayer};
use regatta::{Redis, TrustedProxies};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let url = env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1".to_owned());
    let redis = Redis::connect(&url).await?;
    let limit = RateLimitLayer::new(&redis, "site", Quota::per_second(10).burst(20)).key(Key::client_ip());
    let app = Router::new()
        .route("/", get(|| async { "ahoy\n" }))
        .layer(limit)
        // Last, so that it is outside of the limit, which counts by the address that the proxy tells.
        .layer(TrustedProxies::loopback());
    let port = env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("http://{}", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}
