//! axum with tower-sessions and tower-sessions-redis-store: session views, a shared total and a fixed-window limit.
//!
//! Written as those crates' documentation shows it, with the limit's two commands pipelined in the peer's favour.
//! Arguments: address to listen on, Redis's Unix socket or host:port, number of runtime threads, and perhaps `current`:
//! each thread then has a current-thread runtime and a listener of its own, as Regatta's workers have.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process;
use std::thread;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use fred::prelude::ClientLike;
use fred::prelude::Config;
use fred::prelude::KeysInterface;
use fred::prelude::Pool;
use fred::prelude::ServerConfig;
use tokio::net::TcpListener;
use tokio::net::TcpSocket;
use tower_sessions::Expiry;
use tower_sessions::Session;
use tower_sessions::SessionManagerLayer;
use tower_sessions::cookie::time::Duration;
use tower_sessions_redis_store::RedisStore;

/// Requests a client may make in one window; never reached, as for the other contenders.
const LIMIT: u64 = 1_000_000_000;

/// Length of a window, seconds.
const WINDOW: i64 = 60;

/// Connections in the pool: the number in the store's documentation.
const POOL: usize = 6;

async fn hello() -> String {
    format!("Handled by worker {}\n", process::id())
}

async fn home(
    State(redis): State<Pool>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    session: Session,
) -> Result<String, StatusCode> {
    let away = |_| StatusCode::SERVICE_UNAVAILABLE;
    let failed = |_| StatusCode::INTERNAL_SERVER_ERROR;
    let key = format!("limit:{}", peer.ip());
    let pipeline = redis.next().pipeline();
    let _: () = pipeline.incr(&key).await.map_err(away)?;
    let _: () = pipeline.expire(&key, WINDOW, None).await.map_err(away)?;
    let (used, _): (u64, i64) = pipeline.all().await.map_err(away)?;
    if used > LIMIT {
        return Err(StatusCode::TOO_MANY_REQUESTS);
    }
    let views = session.get::<u64>("views").await.map_err(failed)?.unwrap_or(0) + 1;
    session.insert("views", views).await.map_err(failed)?;
    let _total: u64 = redis.incr("total").await.map_err(away)?;
    Ok(format!("PID: {} | Views: {views}\n", process::id()))
}

fn argument(index: usize) -> Result<String, Box<dyn Error>> {
    std::env::args().nth(index).ok_or_else(|| "usage: ADDRESS REDIS THREADS".into())
}

async fn serve(alone: bool) -> Result<(), Box<dyn Error>> {
    let place = argument(2)?;
    let server = match place.split_once(':') {
        Some((host, port)) => ServerConfig::new_centralized(host, port.parse()?),
        None => ServerConfig::Unix { path: PathBuf::from(place) },
    };
    let config = Config { server, ..Config::default() };
    let redis = Pool::new(config, None, None, None, POOL)?;
    redis.connect();
    redis.wait_for_connect().await?;
    let sessions = SessionManagerLayer::new(RedisStore::new(redis.clone()))
        .with_secure(false)
        .with_expiry(Expiry::OnInactivity(Duration::days(1)));
    let app = Router::new()
        .route("/", get(home))
        .layer(sessions)
        .route("/hello", get(hello))
        .with_state(redis)
        .into_make_service_with_connect_info::<SocketAddr>();
    let listener = listener(argument(1)?.parse()?, alone)?;
    axum::serve(listener, app).await?;
    Ok(())
}

fn listener(address: SocketAddr, alone: bool) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    // One queue a thread, among which the kernel spreads connections.
    socket.set_reuseport(alone)?;
    socket.bind(address)?;
    socket.listen(1024)
}

/// One of several runtimes that share nothing.
fn alone() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let served = runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(serve(true)));
    if let Err(error) = served {
        eprintln!("{error}");
        process::exit(1);
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let threads = argument(3)?.parse()?;
    if argument(4).is_ok_and(|flavour| flavour == "current") {
        let threads: Vec<_> = (0..threads).map(|_| thread::spawn(alone)).collect();
        threads.into_iter().for_each(|thread| drop(thread.join()));
        return Ok(());
    }
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()?
        .block_on(serve(false))
}
