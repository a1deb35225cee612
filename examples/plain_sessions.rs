//! A plain axum program with sessions that all its copies share; no fleet.
//!
//! ```text
//! cargo run --example plain_sessions
//! ```
#![allow(clippy::print_stdout, reason = "it tells where it listens")]

use std::env;
use std::time::Duration;

use axum::routing::post;
use axum::{BoxError, Router};
use regatta::session::{SessionFields, SessionLayer};
use regatta::{Error, Redis};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let url = env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1".to_owned());
    let redis = Redis::builder().url(&url).prefix("shop").connect().await?;
    let sessions = SessionLayer::new(&redis).with_name("sid").with_idle_timeout(Duration::from_secs(3600));
    let app = Router::new().route("/cart", post(add)).layer(sessions);
    let port = env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("http://{}", listener.local_addr()?);
    axum::serve(listener, app).await?;
    Ok(())
}

/// Twenty clicks at once are twenty items.
async fn add(fields: SessionFields) -> Result<String, Error> {
    Ok(format!("{} in the cart\n", fields.incr("items", 1).await?))
}
