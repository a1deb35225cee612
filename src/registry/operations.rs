//! The calls of the registry: by function, or by plain commands.

use std::time::Duration;

use crate::redis;
use crate::redis::functions::ServerFunction;
use crate::redis::wire::{Value, time_ms};
use crate::redis::{ActiveConnection, CallKind, RedisClient, RedisError, RedisTransport, functions, keys};
use crate::registry::record::{InstanceList, InstanceRecord};
use crate::registry::{keys as registry_keys, plain, record};

impl RedisClient {
    /// Reports that an instance is alive, and will be for `lifetime` without another report; returns the number of live
    /// instances.
    ///
    /// # Errors
    /// See [`RedisError`]; repeating it does no harm.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was reported.
    pub async fn heartbeat(&self, instance: &InstanceRecord, lifetime: Duration) -> Result<u64, RedisError> {
        let document =
            serde_json::to_string(instance).map_err(|error| RedisError::protocol(error.to_string()))?;
        let prefix = self.prefix();
        if self.is_plain() {
            let life_ms = u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX);
            let work = async |transport: &RedisTransport| {
                plain::heartbeat(transport, prefix, &instance.id, life_ms, &document).await
            };
            return self.call_plain(CallKind::Write, work).await;
        }
        let lifetime_ms = lifetime.as_millis().to_string();
        let words = [instance.id.as_str(), &lifetime_ms, &document];
        let words: Vec<&str> =
            words.into_iter().chain(instance.libraries.iter().map(String::as_str)).collect();
        let reply =
            self.call(ServerFunction::RegistryHeartbeat, |entry| encode(prefix, entry, &words)).await?;
        reply.as_u64().ok_or_else(|| RedisError::protocol("a heartbeat did not answer with a number"))
    }

    /// Reports that an instance ends; an unknown one is no error.
    ///
    /// # Errors
    /// See [`RedisError`]; repeating it does no harm.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was reported.
    pub async fn deregister_instance(&self, id: &str) -> Result<(), RedisError> {
        let prefix = self.prefix();
        if self.is_plain() {
            let work =
                async |transport: &RedisTransport| plain::deregister_instance(transport, prefix, id).await;
            return self.call_plain(CallKind::Write, work).await;
        }
        self.call(ServerFunction::RegistryDeregister, |entry| encode(prefix, entry, &[id])).await.map(|_| ())
    }

    /// The live instances, over this worker's connection.
    ///
    /// # Errors
    /// See [`RedisError`].
    pub async fn list_instances(&self) -> Result<InstanceList, RedisError> {
        let call =
            |active: ActiveConnection| async move { fetch_instances(&active.transport, self.prefix()).await };
        self.send(CallKind::Read, call).await
    }
}

/// The server-side libraries that a worker of this program calls.
pub fn libraries() -> Vec<String> {
    let current = functions::LIBRARIES.iter().filter(|library| library.current);
    current.map(|library| library.name.to_owned()).collect()
}

/// The live instances; changes nothing. Needs no started connection.
///
/// # Errors
/// `Unavailable` when there is no connection, `Timeout` when everything takes longer than `timeout`; otherwise the
/// server's error.
pub async fn list_instances_one_shot(
    redis: &RedisClient,
    timeout: Duration,
) -> Result<InstanceList, RedisError> {
    let listing =
        redis::call_one_shot(redis, async |transport| fetch_instances(transport, redis.prefix()).await);
    tokio::time::timeout(timeout, listing).await.unwrap_or(Err(RedisError::Timeout))
}

async fn fetch_instances(transport: &RedisTransport, prefix: &str) -> Result<InstanceList, RedisError> {
    let now = time_ms(&transport.call("TIME", []).await?)?;
    record::decode(now, transport.call("HGETALL", [&registry_keys::instances(prefix)]).await?)
}

/// The arguments in wire order: function, number of keys, keys, arguments.
fn encode(prefix: &str, entry: Value, words: &[&str]) -> Vec<Value> {
    let keys = [
        registry_keys::instances(prefix),
        registry_keys::instance_deadlines(prefix),
        keys::libraries_in_use(prefix),
    ];
    let mut args = Vec::with_capacity(2 + keys.len() + words.len());
    args.push(entry);
    args.push(Value::Integer(3));
    args.extend(keys.into_iter().map(Value::from));
    args.extend(words.iter().copied().map(Value::from));
    args
}
