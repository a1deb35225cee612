//! Work that is done once, by a process that is no worker, such as a command on the terminal.

use std::future::Future;

use crate::config::settings::{RedisConfig, RedisUrl, ScriptingMode};
use crate::redis::client::{ClientInner, RedisClient};
use crate::redis::cluster::OneShotCluster;
use crate::redis::connection::RedisConnection;
use crate::redis::error::RedisError;
use crate::redis::invocation_mode::InvocationMode;
use crate::redis::transport::RedisTransport;

/// Runs `work` on a runtime of its own and returns its result.
///
/// Never call it in a process that forks workers: tokio cannot be used after a fork.
///
/// # Errors
/// When the URL cannot be used or the runtime cannot be made; errors of `work` are in its own result.
pub fn run_once<T, F>(
    settings: &RedisConfig,
    url: &RedisUrl,
    name: &str,
    work: impl FnOnce(RedisClient) -> F,
) -> Result<T, RedisError>
where
    F: Future<Output = T>,
{
    let redis = RedisClient::new(settings, url, name)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| RedisError::unavailable(format!("no runtime: {error}")))?;
    let result = runtime.block_on(work(redis));
    runtime.shutdown_background();
    Ok(result)
}

/// Does one piece of work on a connection of its own; the client need not be started.
///
/// # Errors
/// `Unavailable` when there is no connection; otherwise those of the work.
pub async fn call_one_shot<T>(
    redis: &RedisClient,
    work: impl AsyncFnOnce(&RedisTransport) -> Result<T, RedisError>,
) -> Result<T, RedisError> {
    let connection = OneShotConnection::open(&redis.inner).await?;
    work(&connection.setup_transport()).await
}

/// A connection for one piece of work: to the server, or to all nodes of a cluster. It is closed when dropped.
pub(super) enum OneShotConnection {
    Server(RedisConnection),
    Cluster(OneShotCluster),
}

impl OneShotConnection {
    /// Connects once.
    ///
    /// # Errors
    /// As [`RedisConnection::open`].
    pub(super) async fn open(inner: &ClientInner) -> Result<Self, RedisError> {
        match inner.target.endpoint.cluster_seeds() {
            None => RedisConnection::open(inner, None).await.map(Self::Server),
            Some(seeds) => OneShotCluster::open(inner, seeds).await.map(Self::Cluster),
        }
    }

    /// The transport for slow calls.
    pub(super) fn setup_transport(&self) -> RedisTransport {
        match self {
            Self::Server(connection) => connection.setup_transport(),
            Self::Cluster(cluster) => cluster.setup_transport(),
        }
    }

    /// Finds out how server-side code is called.
    pub(super) async fn detect_mode(&self, requested: ScriptingMode) -> Result<InvocationMode, RedisError> {
        match self {
            Self::Server(connection) => connection.detect_mode(requested).await,
            Self::Cluster(cluster) => Ok(cluster.invocation_mode()),
        }
    }
}
