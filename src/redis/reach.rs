//! A connection for work that is done once: to the server, or to all nodes of a cluster.

use crate::config::settings::ScriptingMode;
use crate::redis::ClientInner;
use crate::redis::cluster::OneShotCluster;
use crate::redis::connection::RedisConnection;
use crate::redis::error::RedisError;
use crate::redis::functions::InvocationMode;
use crate::redis::transport::RedisTransport;

/// Whatever there is to connect to; its connections end with this value.
pub(super) enum OneShotConnection {
    /// The one server.
    Server(RedisConnection),
    /// Every node.
    Cluster(OneShotCluster),
}

impl OneShotConnection {
    /// Connects once.
    ///
    /// # Errors
    /// As [`Link::open`].
    pub(super) async fn open(inner: &ClientInner) -> Result<Self, RedisError> {
        match inner.endpoint.cluster_seeds() {
            None => RedisConnection::open(inner, None).await.map(Self::Server),
            Some(seeds) => OneShotCluster::open(inner, seeds).await.map(Self::Cluster),
        }
    }

    /// A caller with the patience of set-up.
    pub(super) fn setup_transport(&self) -> RedisTransport {
        match self {
            Self::Server(link) => link.setup_transport(),
            Self::Cluster(cluster) => cluster.setup_transport(),
        }
    }

    /// Finds out how code is called there.
    pub(super) async fn detect_mode(&self, requested: ScriptingMode) -> Result<InvocationMode, RedisError> {
        match self {
            Self::Server(link) => link.detect_mode(requested).await,
            Self::Cluster(cluster) => Ok(cluster.invocation_mode()),
        }
    }
}
