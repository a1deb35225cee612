//! Sends a command to the standalone server or to the node of a cluster that has its keys.

use std::fmt;

use fred::clients::{Client, WithOptions};
use fred::types::Value;
use futures_util::future::join_all;

use crate::redis::cluster::ClusterRouter;
use crate::redis::error::RedisError;
use crate::redis::invocation_mode::InvocationMode;
use crate::redis::node_transport::NodeTransport;
use crate::redis::wire::PipelinedCommand;

/// Sends commands; cheap to clone.
#[derive(Clone)]
pub struct RedisTransport(Route);

#[derive(Clone)]
enum Route {
    /// The standalone server, or one node of a cluster.
    Standalone(NodeTransport),
    /// A cluster: each command goes to the node that has its keys.
    Cluster(ClusterRouter),
}

impl fmt::Debug for RedisTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_standalone() {
            "RedisTransport(standalone)"
        } else {
            "RedisTransport(cluster)"
        })
    }
}

impl RedisTransport {
    pub(super) fn standalone(node: NodeTransport) -> Self {
        Self(Route::Standalone(node))
    }

    pub(super) fn cluster(router: ClusterRouter) -> Self {
        Self(Route::Cluster(router))
    }

    /// Whether it is one server, or one node of a cluster.
    pub(super) fn is_standalone(&self) -> bool {
        matches!(self.0, Route::Standalone(_))
    }

    /// The same transport for calls whose responses may be large or slow.
    pub fn with_long_timeout(&self) -> Self {
        match &self.0 {
            Route::Standalone(node) => Self::standalone(node.with_long_timeout()),
            Route::Cluster(router) => Self::cluster(router.with_long_timeout()),
        }
    }

    /// The same transport for calls that fail at once if their keys are on two nodes, because their caller splits them.
    pub fn without_cross_slot_retry(&self) -> Self {
        match &self.0 {
            Route::Standalone(node) => Self::standalone(node.clone()),
            Route::Cluster(router) => Self::cluster(router.without_cross_slot_retry()),
        }
    }

    /// How often the map of a cluster or its connections changed; 0 of one server.
    pub(super) fn change_count(&self) -> u64 {
        match &self.0 {
            Route::Standalone(_) => 0,
            Route::Cluster(router) => router.change_count(),
        }
    }

    /// Sends one command.
    ///
    /// # Errors
    /// See [`RedisError`].
    pub async fn send(&self, command: &'static str, args: Vec<Value>) -> Result<Value, RedisError> {
        match &self.0 {
            Route::Standalone(node) => node.send(command, args).await,
            Route::Cluster(router) => router.send(command, args).await,
        }
    }

    /// Sends several commands, each with its own result; other callers' commands may run between them. In a cluster
    /// they are sent separately, at the same time.
    ///
    /// # Errors
    /// When no command was answered.
    pub async fn pipeline(
        &self,
        commands: Vec<PipelinedCommand>,
    ) -> Result<Vec<Result<Value, RedisError>>, RedisError> {
        match &self.0 {
            Route::Standalone(node) => node.pipeline(commands).await,
            Route::Cluster(router) => {
                let sent = commands.into_iter().map(|(command, args)| router.send(command, args));
                Ok(join_all(sent).await)
            }
        }
    }

    /// Runs one step of a library that brings its own commands over this connection; its result is in the `Ok`.
    ///
    /// # Errors
    /// `InvalidSetting` in a cluster, where it would need a client of its own; otherwise as a command.
    pub async fn with_client<T>(
        &self,
        work: impl AsyncFnOnce(WithOptions<Client>) -> T,
    ) -> Result<T, RedisError> {
        match &self.0 {
            Route::Standalone(node) => node.with_client(work).await,
            Route::Cluster(_) => Err(RedisError::invalid_setting(
                "a cluster needs server-side code: redis.mode cannot be plain",
            )),
        }
    }

    /// Sends one command with text arguments.
    ///
    /// # Errors
    /// See [`RedisError`].
    pub async fn call<const N: usize>(
        &self,
        command: &'static str,
        args: [&str; N],
    ) -> Result<Value, RedisError> {
        self.send(command, args.into_iter().map(Value::from).collect()).await
    }
}

/// A connection, or a cluster's connections, on which requests may call; cheap to clone.
#[derive(Debug, Clone)]
pub struct ActiveConnection {
    /// Sends commands.
    pub transport: RedisTransport,
    /// How server-side code is called.
    pub mode: InvocationMode,
    /// Which of this worker's connections it is, from 1.
    pub number: u64,
    /// Whether batches are recorded in Redis, so that they may be sent again.
    pub deduplicates: bool,
}

impl ActiveConnection {
    /// As [`RedisTransport::with_long_timeout`].
    pub fn with_long_timeout(self) -> Self {
        Self { transport: self.transport.with_long_timeout(), ..self }
    }

    /// As [`RedisTransport::without_cross_slot_retry`].
    pub fn without_cross_slot_retry(self) -> Self {
        Self { transport: self.transport.without_cross_slot_retry(), ..self }
    }
}
