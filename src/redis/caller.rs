//! What sends one command and waits for its answer, be there one server or a cluster.

use std::time::Duration;

use fred::clients::Client;
use fred::clients::WithOptions;
use fred::interfaces::ClientLike;
use fred::types::ClusterHash;
use fred::types::CustomCommand;
use fred::types::Value;
use fred::types::config::Options;
use futures_util::future::join_all;
use tower_sessions_redis_store::RedisStore;

use crate::redis::cluster::Router;
use crate::redis::error::Error;

/// What sends commands, with a patience; cheap to clone.
#[derive(Clone)]
pub(super) enum Caller {
    /// The one server there is, or one node of a cluster.
    One(Client, WithOptions<Client>),
    /// A cluster: each command goes to the node that has its keys.
    Cluster(Router),
}

impl Caller {
    pub(super) fn new(client: &Client, timeout: Duration) -> Self {
        let options =
            Options { timeout: Some(timeout), fail_fast: true, max_attempts: Some(1), ..Options::default() };
        Self::One(client.clone(), client.with_options(&options))
    }

    /// The same with another patience.
    pub(super) fn within(&self, timeout: Duration) -> Self {
        match self {
            Self::One(client, _) => Self::new(client, timeout),
            Self::Cluster(router) => Self::Cluster(router.within(timeout)),
        }
    }

    /// One command. `custom` and not `fcall`: the client sends no other command while an `fcall` of its own waits.
    pub(super) async fn send(&self, command: &'static str, args: Vec<Value>) -> Result<Value, Error> {
        match self {
            // Boxed: the client's futures are nested so deep that whoever awaits one of ours in his own crate would meet
            // the compiler's limit.
            Self::One(_, client) => Ok(Box::pin(client.custom(custom(command), args)).await?),
            Self::Cluster(router) => router.send(command, args).await,
        }
    }

    /// One command that a node executes although its slot is still on the way there; nothing comes between.
    pub(super) async fn ask(&self, command: &'static str, args: Vec<Value>) -> Result<Value, Error> {
        let Self::One(client, _) = self else {
            return Err(Error::protocol("only a node can be asked"));
        };
        let both = client.pipeline();
        let () = both.custom(custom("ASKING"), Vec::<Value>::new()).await?;
        let () = both.custom(custom(command), args).await?;
        Ok(both.last().await?)
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
        let client = match self {
            Self::One(_, client) => client,
            Self::Cluster(router) => {
                let sent = commands.into_iter().map(|(command, args)| router.send(command, args));
                return Ok(join_all(sent).await);
            }
        };
        let (count, pipeline) = (commands.len(), client.pipeline().with_options(client.options()));
        for (command, args) in commands {
            let () = pipeline.custom(custom(command), args).await?;
        }
        let answers = pipeline.try_all::<Value>().await;
        let complete = answers.len() == count;
        let mut answers: Vec<_> = answers.into_iter().map(|answer| answer.map_err(Error::from)).collect();
        match complete {
            true => Ok(answers),
            false => {
                answers.pop().unwrap_or(Ok(Value::Null)).and(Err(Error::protocol("answers are missing")))
            }
        }
    }

    /// tower-sessions' own store over this connection; none in a cluster, where it would need a client of its own.
    ///
    /// # Errors
    /// [`Error::Setting`] in a cluster.
    pub(super) fn store(&self) -> Result<RedisStore<WithOptions<Client>>, Error> {
        match self {
            Self::One(_, client) => Ok(RedisStore::new(client.clone())),
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

fn custom(command: &'static str) -> CustomCommand {
    CustomCommand::new_static(command, ClusterHash::FirstKey, false)
}
