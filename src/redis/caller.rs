//! What sends one command and waits for its answer, be there one server or a cluster.

use std::time::Duration;

use fred::clients::Client;
use fred::clients::WithOptions;
use fred::interfaces::ClientLike;
use fred::types::ClusterHash;
use fred::types::CustomCommand;
use fred::types::Value;
use fred::types::config::Options;

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
            Self::One(_, client) => Ok(client.custom(custom(command), args).await?),
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
