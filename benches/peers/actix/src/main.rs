//! actix-web with actix-session: the session's views, a shared total and a fixed-window limit, all in Redis.
//!
//! Written as those crates' documentation shows it, with the limit's two commands pipelined in the peer's favour.
//! Arguments: address to listen on, Redis's Unix socket or host:port, number of workers.

use std::io;
use std::process;

use actix_session::Session;
use actix_session::SessionMiddleware;
use actix_session::storage::RedisSessionStore;
use actix_web::App;
use actix_web::Error;
use actix_web::HttpRequest;
use actix_web::HttpResponse;
use actix_web::HttpServer;
use actix_web::cookie::Key;
use actix_web::error::ErrorServiceUnavailable;
use actix_web::web;
use redis::AsyncCommands;
use redis::aio::ConnectionManager;

/// Requests a client may make in one window; never reached, as for the other contenders.
const LIMIT: u64 = 1_000_000_000;

/// Length of a window, seconds.
const WINDOW: i64 = 60;

async fn hello() -> String {
    format!("Handled by worker {}\n", process::id())
}

async fn home(
    request: HttpRequest,
    session: Session,
    redis: web::Data<ConnectionManager>,
) -> Result<HttpResponse, Error> {
    let mut redis = redis.as_ref().clone();
    let client = request.peer_addr().map(|peer| peer.ip().to_string()).unwrap_or_default();
    let key = format!("limit:{client}");
    let (used,): (u64,) = redis::pipe()
        .incr(&key, 1)
        .expire(&key, WINDOW)
        .ignore()
        .query_async(&mut redis)
        .await
        .map_err(ErrorServiceUnavailable)?;
    if used > LIMIT {
        return Ok(HttpResponse::TooManyRequests().finish());
    }
    let views = session.get::<u64>("views")?.unwrap_or(0) + 1;
    session.insert("views", views)?;
    let _total: u64 = redis.incr("total", 1).await.map_err(ErrorServiceUnavailable)?;
    Ok(HttpResponse::Ok().body(format!("PID: {} | Views: {views}\n", process::id())))
}

/// The session alone, without limit and total: a read and a write of Redis.
async fn bare(session: Session) -> Result<HttpResponse, Error> {
    let views = session.get::<u64>("views")?.unwrap_or(0) + 1;
    session.insert("views", views)?;
    Ok(HttpResponse::Ok().body(format!("PID: {} | Views: {views}\n", process::id())))
}

fn argument(index: usize) -> io::Result<String> {
    std::env::args().nth(index).ok_or_else(|| io::Error::other("usage: ADDRESS REDIS WORKERS"))
}

#[actix_web::main]
async fn main() -> io::Result<()> {
    let (address, redis) = (argument(1)?, argument(2)?);
    let workers = argument(3)?.parse().map_err(io::Error::other)?;
    let scheme = if redis.starts_with('/') { "redis+unix" } else { "redis" };
    let url = format!("{scheme}://{redis}");
    let store = RedisSessionStore::new(&url).await.map_err(io::Error::other)?;
    let client = redis::Client::open(url).map_err(io::Error::other)?;
    let redis = web::Data::new(ConnectionManager::new(client).await.map_err(io::Error::other)?);
    let key = Key::generate();
    HttpServer::new(move || {
        App::new()
            .app_data(redis.clone())
            .service(web::resource("/hello").route(web::get().to(hello)))
            .service(
                web::resource("/bare")
                    .wrap(SessionMiddleware::new(store.clone(), key.clone()))
                    .route(web::get().to(bare)),
            )
            .service(
                web::resource("/")
                    .wrap(SessionMiddleware::new(store.clone(), key.clone()))
                    .route(web::get().to(home)),
            )
    })
    .workers(workers)
    .bind(address)?
    .run()
    .await
}
