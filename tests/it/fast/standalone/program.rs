//! An axum program of a test's own, served by axum on a port of its own.

use std::net::SocketAddr;

use axum::Router;
use regatta::{Redis, RedisError};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::support::client::{self, Request, Response};

/// A program that serves until it is dropped.
pub(crate) struct Program {
    pub(crate) address: SocketAddr,
    _runtime: Runtime,
}

impl Program {
    /// Serves what `build` makes, and tells it each client's address.
    pub(crate) fn serve(build: impl AsyncFnOnce() -> Router) -> Self {
        Self::serve_on("127.0.0.1:0", build)
    }

    /// The same on this address.
    pub(crate) fn serve_on(address: &str, build: impl AsyncFnOnce() -> Router) -> Self {
        let runtime = runtime();
        let (app, listener) = runtime.block_on(async { (build().await, bind(address).await) });
        let address = listener.local_addr().unwrap();
        let service = app.into_make_service_with_connect_info::<SocketAddr>();
        runtime.spawn(async move { axum::serve(listener, service).await.unwrap() });
        Self { address, _runtime: runtime }
    }

    /// The same without its clients' addresses.
    pub(crate) fn serve_without_addresses(build: impl AsyncFnOnce() -> Router) -> Self {
        let runtime = runtime();
        let (app, listener) = runtime.block_on(async { (build().await, bind("127.0.0.1:0").await) });
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, _runtime: runtime }
    }

    pub(crate) fn get(&self, target: &str) -> Response {
        client::get(self.address, target)
    }

    pub(crate) fn request(&self, request: Request) -> Response {
        client::once(self.address, request).unwrap()
    }
}

pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

async fn bind(address: &str) -> TcpListener {
    TcpListener::bind(address).await.unwrap()
}

/// A connection under this prefix.
pub(crate) async fn connect(url: &str, prefix: &str) -> Result<Redis, RedisError> {
    Redis::builder().url(url).prefix(prefix).connect().await
}
