//! Settings of its own, connections that are made before the first request, a readiness check, and a clean end.
//!
//! `REGATTA_APP__DATABASE=127.0.0.1:6379 cargo run --example pool`, then `curl localhost:3000/ping`: the database is
//! anything that answers a line with a line, such as a Redis.

use std::io;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use regatta::{App, Context, Fleet};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

/// `[app]` in regatta.toml, or `REGATTA_APP__DATABASE` and `REGATTA_APP__CONNECTIONS`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    database: String,
    /// One thread a worker: a few connections are plenty.
    #[serde(default = "few")]
    connections: usize,
}

fn few() -> usize {
    2
}

fn main() -> std::process::ExitCode {
    Fleet::new(app).run()
}

pub(crate) async fn app(cx: Context<Settings>) -> io::Result<App> {
    let pool = Arc::new(Pool::connect(cx.settings()).await?);
    let (checked, closed) = (Arc::clone(&pool), Arc::clone(&pool));
    Ok(App::new(Router::new().route("/ping", get(ping)).with_state(pool))
        .readiness_check("database", move || {
            let pool = Arc::clone(&checked);
            async move { pool.ask("PING").await.map(drop) }
        })
        .on_exit(async move { closed.close().await }))
}

async fn ping(State(pool): State<Arc<Pool>>) -> Result<String, StatusCode> {
    pool.ask("PING").await.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)
}

/// Connections to a server that answers each line with one.
struct Pool {
    idle: Mutex<Vec<BufReader<TcpStream>>>,
    database: String,
}

impl Pool {
    async fn connect(settings: &Settings) -> io::Result<Self> {
        let database = settings.database.clone();
        let mut idle = Vec::new();
        for _ in 0..settings.connections {
            idle.push(BufReader::new(TcpStream::connect(&database).await?));
        }
        Ok(Self { idle: Mutex::new(idle), database })
    }

    async fn ask(&self, question: &str) -> io::Result<String> {
        let idle = self.idle.lock().await.pop();
        let mut connection = match idle {
            Some(connection) => connection,
            None => BufReader::new(TcpStream::connect(&self.database).await?),
        };
        connection.get_mut().write_all(format!("{question}\r\n").as_bytes()).await?;
        let mut answer = String::new();
        match connection.read_line(&mut answer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => {
                self.idle.lock().await.push(connection);
                Ok(answer)
            }
        }
    }

    async fn close(&self) {
        for mut connection in self.idle.lock().await.drain(..) {
            _ = connection.get_mut().shutdown().await;
        }
    }
}
