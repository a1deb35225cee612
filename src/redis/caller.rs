//! What sends one command and waits for its answer, be there one server or a cluster.

use std::sync::Arc;
use std::time::Duration;

use fred::clients::Client;
use fred::clients::WithOptions;
use fred::interfaces::ClientLike;
use fred::types::ClusterHash;
use fred::types::CustomCommand;
use fred::types::Value;
use fred::types::config::Options;
use futures_util::TryFutureExt;
use futures_util::future::join_all;
use tower_sessions_redis_store::RedisStore;

use crate::redis::cluster::Router;
use crate::redis::error::Error;
use crate::redis::line::Line;

/// What sends commands; cheap to clone.
#[derive(Clone)]
pub(super) enum Caller {
    /// The one server there is, or one node of a cluster.
    One(One),
    /// A cluster: each command goes to the node that has its keys.
    Cluster(Router),
}

/// One connection.
#[derive(Clone)]
pub(super) struct One {
    client: WithOptions<Client>,
    line: Arc<Line>,
    /// Whether answers may be so large that they take longer than others.
    long: bool,
}

impl Caller {
    /// Calls end with the connection and have no deadline of their own.
    pub(super) fn new(client: &Client, line: &Arc<Line>) -> Self {
        let options = Options {
            timeout: Some(Duration::ZERO),
            fail_fast: true,
            max_attempts: Some(1),
            ..Options::default()
        };
        Self::One(One { client: client.with_options(&options), line: Arc::clone(line), long: false })
    }

    /// The same for calls whose answers may be large, or take long for another reason.
    pub(super) fn long(&self) -> Self {
        match self {
            Self::One(one) => Self::One(One { long: true, ..one.clone() }),
            Self::Cluster(router) => Self::Cluster(router.long()),
        }
    }

    /// The same for calls that are told at once if their keys lie on two nodes of a cluster.
    pub(super) fn torn(&self) -> Self {
        match self {
            Self::One(one) => Self::One(one.clone()),
            Self::Cluster(router) => Self::Cluster(router.torn()),
        }
    }

    /// One command. `custom` and not `fcall`: the client sends no other command while an `fcall` of its own waits.
    pub(super) async fn send(&self, command: &'static str, args: Vec<Value>) -> Result<Value, Error> {
        match self {
            // Boxed: the client's futures are nested so deep that whoever awaits one of ours in his own crate would meet
            // the compiler's limit.
            Self::One(one) => {
                let sent = Box::pin(one.client.custom(custom(command), args));
                one.line.call(one.long, sent.err_into()).await
            }
            Self::Cluster(router) => router.send(command, args).await,
        }
    }

    /// One command that a node executes although its slot is still on the way there; nothing comes between.
    pub(super) async fn ask(&self, command: &'static str, args: Vec<Value>) -> Result<Value, Error> {
        let Self::One(one) = self else {
            return Err(Error::protocol("only a node can be asked"));
        };
        let both = one.client.pipeline();
        let asked = async {
            let () = both.custom(custom("ASKING"), Vec::<Value>::new()).await?;
            let () = both.custom(custom(command), args).await?;
            both.last::<Value>().await
        };
        one.line.call(one.long, Box::pin(asked).err_into()).await
    }

    /// Several commands in one write, each with its own answer; others' commands may come between them. In a cluster each
    /// goes its own way, all at once.
    ///
    /// # Errors
    /// When none was answered.
    pub(super) async fn together(
        &self,
        commands: Vec<(&'static str, Vec<Value>)>,
    ) -> Result<Vec<Result<Value, Error>>, Error> {
        let one = match self {
            Self::One(one) => one,
            Self::Cluster(router) => {
                let sent = commands.into_iter().map(|(command, args)| router.send(command, args));
                return Ok(join_all(sent).await);
            }
        };
        let (count, pipeline) = (commands.len(), one.client.pipeline().with_options(one.client.options()));
        let sent = async {
            for (command, args) in commands {
                let () = pipeline.custom(custom(command), args).await?;
            }
            Ok::<_, fred::error::Error>(pipeline.try_all::<Value>().await)
        };
        let answers = one.line.call(one.long, Box::pin(sent).err_into()).await?;
        let complete = answers.len() == count;
        let mut answers: Vec<_> = answers.into_iter().map(|answer| answer.map_err(lost)).collect();
        match complete {
            true => Ok(answers),
            false => {
                answers.pop().unwrap_or(Ok(Value::Null)).and(Err(Error::protocol("answers are missing")))
            }
        }
    }

    /// One step of tower-sessions' own store over this connection; none in a cluster, where it would need a client of
    /// its own.
    ///
    /// # Errors
    /// [`Error::Setting`] in a cluster; otherwise as a command. What the store says is within.
    pub(super) async fn stored<T>(
        &self,
        work: impl AsyncFnOnce(RedisStore<WithOptions<Client>>) -> T,
    ) -> Result<T, Error> {
        match self {
            Self::One(one) => {
                let work = work(RedisStore::new(one.client.clone()));
                one.line.call(one.long, async { Ok(work.await) }).await
            }
            Self::Cluster(_) => {
                Err(Error::setting("a cluster needs server-side code: redis.mode cannot be plain"))
            }
        }
    }

    /// One command with text arguments, off a request's path.
    pub(super) async fn call<const N: usize>(
        &self,
        command: &'static str,
        args: [&str; N],
    ) -> Result<Value, Error> {
        self.send(command, args.into_iter().map(Value::from).collect()).await
    }
}

/// What the client calls unreachable was handed over to it: whether it was executed is unknown.
fn lost(error: fred::error::Error) -> Error {
    match error.into() {
        Error::Unavailable { reason } => Error::Lost { reason },
        other => other,
    }
}

fn custom(command: &'static str) -> CustomCommand {
    CustomCommand::new_static(command, ClusterHash::FirstKey, false)
}
