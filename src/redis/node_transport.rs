//! Commands over one connection, to a standalone server or to one node of a cluster.

use std::sync::Arc;
use std::time::Duration;

use fred::clients::{Client, WithOptions};
use fred::interfaces::ClientLike;
use fred::types::config::Options;
use fred::types::{ClusterHash, CustomCommand, Value};
use futures_util::TryFutureExt;

use crate::redis::call_tracker::CallTracker;
use crate::redis::error::RedisError;
use crate::redis::wire::PipelinedCommand;

/// Sends commands over one connection; cheap to clone.
#[derive(Clone)]
pub(super) struct NodeTransport {
    client: WithOptions<Client>,
    tracker: Arc<CallTracker>,
    /// Whether responses may be so large that they take longer than the command timeout.
    allows_long_response: bool,
}

impl NodeTransport {
    /// Calls end when the connection ends and have no deadline of their own.
    pub(super) fn new(client: &Client, tracker: &Arc<CallTracker>) -> Self {
        let options = Options {
            timeout: Some(Duration::ZERO),
            fail_fast: true,
            max_attempts: Some(1),
            ..Options::default()
        };
        Self {
            client: client.with_options(&options),
            tracker: Arc::clone(tracker),
            allows_long_response: false,
        }
    }

    /// The same connection for calls whose responses may be large or slow.
    pub(super) fn with_long_timeout(&self) -> Self {
        Self { allows_long_response: true, ..self.clone() }
    }

    /// Sends one command.
    ///
    /// `custom` and not `fcall`: while an `fcall` waits, the client sends no other command.
    pub(super) async fn send(&self, command: &'static str, args: Vec<Value>) -> Result<Value, RedisError> {
        // Boxed: the client's futures nest so deeply that an application which awaits ours hits the compiler's
        // recursion limit.
        let sent = Box::pin(self.client.custom(custom_command(command), args));
        self.tracker.call(self.allows_long_response, sent.err_into()).await
    }

    /// Sends one command after `ASKING`, so that a node executes it although its slot is still being migrated there.
    pub(super) async fn send_asking(
        &self,
        command: &'static str,
        args: Vec<Value>,
    ) -> Result<Value, RedisError> {
        let both = self.client.pipeline();
        let sent = async {
            let () = both.custom(custom_command("ASKING"), Vec::<Value>::new()).await?;
            let () = both.custom(custom_command(command), args).await?;
            both.last::<Value>().await
        };
        self.tracker.call(self.allows_long_response, Box::pin(sent).err_into()).await
    }

    /// Sends several commands in one write; other callers' commands may run between them.
    ///
    /// # Errors
    /// When no command was answered. Errors of single commands are in the list.
    pub(super) async fn pipeline(
        &self,
        commands: Vec<PipelinedCommand>,
    ) -> Result<Vec<Result<Value, RedisError>>, RedisError> {
        let count = commands.len();
        let pipeline = self.client.pipeline().with_options(self.client.options());
        let sent = async {
            for (command, args) in commands {
                let () = pipeline.custom(custom_command(command), args).await?;
            }
            Ok::<_, fred::error::Error>(pipeline.try_all::<Value>().await)
        };
        let replies = self.tracker.call(self.allows_long_response, Box::pin(sent).err_into()).await?;
        let complete = replies.len() == count;
        let mut replies: Vec<_> =
            replies.into_iter().map(|reply| reply.map_err(as_connection_lost)).collect();
        match complete {
            true => Ok(replies),
            false => {
                replies.pop().unwrap_or(Ok(Value::Null)).and(Err(RedisError::protocol("answers are missing")))
            }
        }
    }

    /// Runs one step of a library that brings its own commands over this connection; its result is in the `Ok`.
    pub(super) async fn with_client<T>(
        &self,
        work: impl AsyncFnOnce(WithOptions<Client>) -> T,
    ) -> Result<T, RedisError> {
        let work = work(self.client.clone());
        self.tracker.call(self.allows_long_response, async { Ok(work.await) }).await
    }
}

/// Commands of a pipeline were handed to the client, so an unreachable server leaves it unknown whether they ran.
fn as_connection_lost(error: fred::error::Error) -> RedisError {
    match error.into() {
        RedisError::Unavailable { reason } => RedisError::ConnectionLost { reason },
        other => other,
    }
}

fn custom_command(command: &'static str) -> CustomCommand {
    CustomCommand::new_static(command, ClusterHash::FirstKey, false)
}
