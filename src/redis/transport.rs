//! What sends one command and waits for its answer, be there one server or a cluster.

use std::sync::Arc;
use std::time::Duration;

use fred::clients::{Client, WithOptions};
use fred::interfaces::ClientLike;
use fred::types::config::Options;
use fred::types::{ClusterHash, CustomCommand, Value};
use futures_util::TryFutureExt;
use futures_util::future::join_all;
use tower_sessions_redis_store::RedisStore;

use crate::redis::call_tracker::CallTracker;
use crate::redis::cluster::ClusterRouter;
use crate::redis::error::RedisError;

/// What sends commands; cheap to clone.
#[derive(Clone)]
pub(super) enum RedisTransport {
    /// The one server there is, or one node of a cluster.
    Standalone(NodeTransport),
    /// A cluster: each command goes to the node that has its keys.
    Cluster(ClusterRouter),
}

/// One connection.
#[derive(Clone)]
pub(super) struct NodeTransport {
    client: WithOptions<Client>,
    tracker: Arc<CallTracker>,
    /// Whether answers may be so large that they take longer than others.
    allows_long_response: bool,
}

impl RedisTransport {
    /// Calls end with the connection and have no deadline of their own.
    pub(super) fn new(client: &Client, line: &Arc<CallTracker>) -> Self {
        let options = Options {
            timeout: Some(Duration::ZERO),
            fail_fast: true,
            max_attempts: Some(1),
            ..Options::default()
        };
        Self::Standalone(NodeTransport {
            client: client.with_options(&options),
            tracker: Arc::clone(line),
            allows_long_response: false,
        })
    }

    /// The same for calls whose answers may be large, or take long for another reason.
    pub(super) fn with_long_timeout(&self) -> Self {
        match self {
            Self::Standalone(one) => {
                Self::Standalone(NodeTransport { allows_long_response: true, ..one.clone() })
            }
            Self::Cluster(router) => Self::Cluster(router.with_long_timeout()),
        }
    }

    /// The same for calls that are told at once if their keys lie on two nodes of a cluster.
    pub(super) fn without_cross_slot_retry(&self) -> Self {
        match self {
            Self::Standalone(one) => Self::Standalone(one.clone()),
            Self::Cluster(router) => Self::Cluster(router.without_cross_slot_retry()),
        }
    }

    /// One command. `custom` and not `fcall`: the client sends no other command while an `fcall` of its own waits.
    pub(super) async fn send(&self, command: &'static str, args: Vec<Value>) -> Result<Value, RedisError> {
        match self {
            // Boxed: the client's futures are nested so deep that whoever awaits one of ours in his own crate would meet
            // the compiler's limit.
            Self::Standalone(one) => {
                let sent = Box::pin(one.client.custom(custom_command(command), args));
                one.tracker.call(one.allows_long_response, sent.err_into()).await
            }
            Self::Cluster(router) => router.send(command, args).await,
        }
    }

    /// One command that a node executes although its slot is still on the way there; nothing comes between.
    pub(super) async fn send_asking(
        &self,
        command: &'static str,
        args: Vec<Value>,
    ) -> Result<Value, RedisError> {
        let Self::Standalone(one) = self else {
            return Err(RedisError::protocol("only a node can be asked"));
        };
        let both = one.client.pipeline();
        let sent = async {
            let () = both.custom(custom_command("ASKING"), Vec::<Value>::new()).await?;
            let () = both.custom(custom_command(command), args).await?;
            both.last::<Value>().await
        };
        one.tracker.call(one.allows_long_response, Box::pin(sent).err_into()).await
    }

    /// Several commands in one write, each with its own answer; others' commands may come between them. In a cluster each
    /// goes its own way, all at once.
    ///
    /// # Errors
    /// When none was answered.
    pub(super) async fn pipeline(
        &self,
        commands: Vec<(&'static str, Vec<Value>)>,
    ) -> Result<Vec<Result<Value, RedisError>>, RedisError> {
        let one = match self {
            Self::Standalone(one) => one,
            Self::Cluster(router) => {
                let sent = commands.into_iter().map(|(command, args)| router.send(command, args));
                return Ok(join_all(sent).await);
            }
        };
        let (count, pipeline) = (commands.len(), one.client.pipeline().with_options(one.client.options()));
        let sent = async {
            for (command, args) in commands {
                let () = pipeline.custom(custom_command(command), args).await?;
            }
            Ok::<_, fred::error::Error>(pipeline.try_all::<Value>().await)
        };
        let answers = one.tracker.call(one.allows_long_response, Box::pin(sent).err_into()).await?;
        let complete = answers.len() == count;
        let mut answers: Vec<_> =
            answers.into_iter().map(|answer| answer.map_err(as_connection_lost)).collect();
        match complete {
            true => Ok(answers),
            false => {
                answers.pop().unwrap_or(Ok(Value::Null)).and(Err(RedisError::protocol("answers are missing")))
            }
        }
    }

    /// One step of tower-sessions' own store over this connection; none in a cluster, where it would need a client of
    /// its own.
    ///
    /// # Errors
    /// [`Error::Setting`] in a cluster; otherwise as a command. What the store says is within.
    pub(super) async fn with_session_store<T>(
        &self,
        work: impl AsyncFnOnce(RedisStore<WithOptions<Client>>) -> T,
    ) -> Result<T, RedisError> {
        match self {
            Self::Standalone(one) => {
                let work = work(RedisStore::new(one.client.clone()));
                one.tracker.call(one.allows_long_response, async { Ok(work.await) }).await
            }
            Self::Cluster(_) => Err(RedisError::invalid_setting(
                "a cluster needs server-side code: redis.mode cannot be plain",
            )),
        }
    }

    /// One command with text arguments, off a request's path.
    pub(super) async fn call<const N: usize>(
        &self,
        command: &'static str,
        args: [&str; N],
    ) -> Result<Value, RedisError> {
        self.send(command, args.into_iter().map(Value::from).collect()).await
    }
}

/// What the client calls unreachable was handed over to it: whether it was executed is unknown.
fn as_connection_lost(error: fred::error::Error) -> RedisError {
    match error.into() {
        RedisError::Unavailable { reason } => RedisError::ConnectionLost { reason },
        other => other,
    }
}

fn custom_command(command: &'static str) -> CustomCommand {
    CustomCommand::new_static(command, ClusterHash::FirstKey, false)
}
