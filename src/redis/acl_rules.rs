//! Which rights the user of this program lacks, found by trying commands in forms that change nothing.
//!
//! Redis checks a user's rules before it checks a command's arguments, so each command is sent with arguments that have
//! no effect or are rejected: any reply but NOPERM means that the command is allowed. Reading the rules (ACL GETUSER)
//! would need a right that applications do not get.

use std::collections::BTreeSet;

use fred::types::Value;

use crate::redis::client::RedisClient;
use crate::redis::connection::RedisConnection;
use crate::redis::error::RedisError;
use crate::redis::keys;
use crate::redis::notifications::{NO_WORKER, NotificationChannel};
use crate::redis::transport::RedisTransport;

/// A command, the ACL category it belongs to, and arguments that change nothing; `KEY` and `CHANNEL` are replaced by
/// the fleet's.
struct CommandProbe(&'static str, &'static str, &'static [&'static str]);

const KEY_ARGUMENT: &str = "KEY";
const CHANNEL_ARGUMENT: &str = "CHANNEL";

/// Every command that workers and their server-side code send, except those that have an effect with any arguments:
/// HSETNX, INCR, LPUSH, PFADD. The rules for their categories name those too.
const PROBES: &[CommandProbe] = &[
    CommandProbe("string", "GET", &[KEY_ARGUMENT]),
    CommandProbe("string", "SET", &[KEY_ARGUMENT, "", "PX", "none"]),
    CommandProbe("string", "INCRBY", &[KEY_ARGUMENT, "none"]),
    CommandProbe("string", "DECRBY", &[KEY_ARGUMENT, "none"]),
    // For workers of earlier releases, which serve beside this one during a rolling deploy.
    CommandProbe("bitmap", "GETBIT", &[KEY_ARGUMENT, "0"]),
    CommandProbe("bitmap", "SETBIT", &[KEY_ARGUMENT, "none", "1"]),
    CommandProbe("hash", "HGET", &[KEY_ARGUMENT, "f"]),
    CommandProbe("hash", "HMGET", &[KEY_ARGUMENT, "f"]),
    CommandProbe("hash", "HGETALL", &[KEY_ARGUMENT]),
    CommandProbe("hash", "HLEN", &[KEY_ARGUMENT]),
    CommandProbe("hash", "HEXISTS", &[KEY_ARGUMENT, "f"]),
    CommandProbe("hash", "HDEL", &[KEY_ARGUMENT, "f"]),
    CommandProbe("hash", "HSET", &[KEY_ARGUMENT, "f", "v", "odd"]),
    CommandProbe("hash", "HINCRBY", &[KEY_ARGUMENT, "f", "none"]),
    CommandProbe("sortedset", "ZADD", &[KEY_ARGUMENT, "none", "m"]),
    CommandProbe("sortedset", "ZCARD", &[KEY_ARGUMENT]),
    CommandProbe("sortedset", "ZRANGE", &[KEY_ARGUMENT, "0", "0"]),
    CommandProbe("sortedset", "ZRANGEBYSCORE", &[KEY_ARGUMENT, "0", "0"]),
    CommandProbe("sortedset", "ZREVRANGE", &[KEY_ARGUMENT, "0", "0"]),
    CommandProbe("sortedset", "ZREVRANGEBYSCORE", &[KEY_ARGUMENT, "0", "0"]),
    CommandProbe("sortedset", "ZCOUNT", &[KEY_ARGUMENT, "0", "0"]),
    CommandProbe("sortedset", "ZREM", &[KEY_ARGUMENT, "m"]),
    CommandProbe("sortedset", "ZREMRANGEBYSCORE", &[KEY_ARGUMENT, "0", "0"]),
    CommandProbe("sortedset", "ZPOPMAX", &[KEY_ARGUMENT]),
    CommandProbe("sortedset", "ZSCORE", &[KEY_ARGUMENT, "m"]),
    CommandProbe("stream", "XADD", &[KEY_ARGUMENT, "none", "f", "v"]),
    CommandProbe("stream", "XLEN", &[KEY_ARGUMENT]),
    CommandProbe("stream", "XRANGE", &[KEY_ARGUMENT, "-", "+", "COUNT", "1"]),
    CommandProbe("stream", "XREVRANGE", &[KEY_ARGUMENT, "+", "-", "COUNT", "1"]),
    CommandProbe("stream", "XACK", &[KEY_ARGUMENT, "g", "0-1"]),
    CommandProbe("stream", "XDEL", &[KEY_ARGUMENT, "0-1"]),
    CommandProbe("stream", "XPENDING", &[KEY_ARGUMENT, "g"]),
    CommandProbe("stream", "XCLAIM", &[KEY_ARGUMENT, "g", "c", "0", "0-1"]),
    CommandProbe("stream", "XREADGROUP", &["GROUP", "g", "c", "COUNT", "1", "STREAMS", KEY_ARGUMENT, ">"]),
    CommandProbe("stream", "XINFO", &["GROUPS", KEY_ARGUMENT]),
    CommandProbe("stream", "XGROUP", &["CREATE", KEY_ARGUMENT, "g", "0"]),
    CommandProbe("list", "LRANGE", &[KEY_ARGUMENT, "0", "0"]),
    CommandProbe("list", "LTRIM", &[KEY_ARGUMENT, "none", "0"]),
    CommandProbe("hyperloglog", "PFCOUNT", &[KEY_ARGUMENT]),
    CommandProbe("keyspace", "EXISTS", &[KEY_ARGUMENT]),
    CommandProbe("keyspace", "UNLINK", &[KEY_ARGUMENT]),
    CommandProbe("keyspace", "DEL", &[KEY_ARGUMENT]),
    CommandProbe("keyspace", "RENAME", &[KEY_ARGUMENT, KEY_ARGUMENT]),
    CommandProbe("keyspace", "PTTL", &[KEY_ARGUMENT]),
    CommandProbe("keyspace", "PEXPIRE", &[KEY_ARGUMENT, "none"]),
    CommandProbe("scripting", "EVAL", &["return 1", "0"]),
    CommandProbe("scripting", "EVALSHA", &["0000000000000000000000000000000000000000", "0"]),
    CommandProbe("scripting", "SCRIPT", &["LOAD", "return 1"]),
    CommandProbe("scripting", "FUNCTION", &["LIST", "LIBRARYNAME", "regatta_none"]),
    CommandProbe("scripting", "FUNCTION", &["LOAD", "none"]),
    CommandProbe("scripting", "FCALL", &["regatta_none", "0"]),
    CommandProbe("pubsub", "PUBLISH", &[CHANNEL_ARGUMENT, ""]),
    CommandProbe("", "TIME", &[]),
    CommandProbe("", "INFO", &[]),
];

impl RedisClient {
    /// The rules that this user lacks, as `ACL SETUSER` takes them; empty if nothing is missing. Changes nothing; needs
    /// no started connection.
    ///
    /// # Errors
    /// When the server cannot be reached, or failed for another reason.
    pub async fn missing_rights(&self) -> Result<Vec<String>, RedisError> {
        let inner = &self.inner;
        let node = inner.target.endpoint.cluster_seeds().and_then(<[_]>::first);
        let link = RedisConnection::open(inner, node).await?;
        let (transport, mut missing) = (link.setup_transport(), MissingRules::default());
        for CommandProbe(family, command, args) in PROBES {
            let refused = rejection_reason(
                send_probe(&transport, &inner.target.prefix, &inner.target.channel_prefix, command, args)
                    .await,
            )?;
            missing.record(&inner.target.prefix, family, &rule_name(command, args), refused.as_deref());
        }
        let subscribed = rejection_reason(
            probe_subscribe(&transport, &keys::notifications_channel(&inner.target.channel_prefix)).await,
        )?;
        missing.record(&inner.target.prefix, "pubsub", "+subscribe", subscribed.as_deref());
        Ok(missing.rules())
    }
}

async fn send_probe(
    transport: &RedisTransport,
    prefix: &str,
    space: &str,
    command: &'static str,
    args: &[&str],
) -> Result<Value, RedisError> {
    let (key, channel) = (keys::check(prefix), NotificationChannel::worker(NO_WORKER).name(space));
    let arg = |arg: &&str| match *arg {
        KEY_ARGUMENT => Value::from(key.as_str()),
        CHANNEL_ARGUMENT => Value::from(channel.as_str()),
        arg => Value::from(arg),
    };
    transport.send(command, args.iter().map(arg).collect()).await
}

/// Subscribes; the last command on this connection, because the client takes the next command's reply for the
/// subscription's.
async fn probe_subscribe(transport: &RedisTransport, channel: &str) -> Result<Value, RedisError> {
    let next = async {
        // Only the reply to SUBSCRIBE matters, which the client delivers here.
        let _ = transport.call("PING", []).await.is_ok();
        std::future::pending().await
    };
    tokio::select! {
        biased;
        answer = transport.call("SUBSCRIBE", [channel]) => answer,
        never = next => never,
    }
}

/// The server's reason if the user may not; any other reply means that the user may.
fn rejection_reason(answer: Result<Value, RedisError>) -> Result<Option<String>, RedisError> {
    match answer {
        Err(RedisError::Rejected { reason, .. }) if reason.starts_with("NOPERM") => Ok(Some(reason)),
        Ok(_) | Err(RedisError::Rejected { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A command as ACL rules name it.
fn rule_name(command: &str, args: &[&str]) -> String {
    let command = command.to_ascii_lowercase();
    match (command.as_str(), args.first()) {
        ("function" | "script" | "xgroup" | "xinfo", Some(sub)) => {
            format!("+{command}|{}", sub.to_ascii_lowercase())
        }
        _ => format!("+{command}"),
    }
}

/// The refused commands.
#[derive(Default)]
struct MissingRules {
    patterns: BTreeSet<String>,
    /// Category, command, and whether it was refused.
    commands: Vec<(&'static str, String, bool)>,
}

impl MissingRules {
    fn record(&mut self, prefix: &str, family: &'static str, command: &str, refused: Option<&str>) {
        let words = refused.unwrap_or_default();
        let of_command = refused.is_some() && (words.contains("to run the") || words.contains("subcommand"));
        self.commands.push((family, command.to_owned(), of_command));
        if refused.is_some() && !of_command {
            let pattern = if words.contains("channel") { '&' } else { '~' };
            self.patterns.insert(format!("{pattern}{prefix}:*"));
        }
    }

    /// The rules: the category where all its commands were refused, else the commands; key and channel patterns last.
    fn rules(self) -> Vec<String> {
        let mut rules: Vec<String> = Vec::new();
        for (family, command, refused) in &self.commands {
            let all = |(of, _, refused): &(&str, String, bool)| of != family || *refused;
            let whole = !family.is_empty() && self.commands.iter().all(all);
            let rule = if whole { format!("+@{family}") } else { command.clone() };
            if *refused && !rules.contains(&rule) {
                rules.push(rule);
            }
        }
        rules.extend(self.patterns);
        rules
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_commands_become_acl_rules() {
        let mut missing = MissingRules::default();
        let command = "NOPERM User web has no permissions to run the 'x' command";
        for CommandProbe(family, name, args) in PROBES {
            let refused = matches!(*family, "stream") || matches!(*name, "FUNCTION" | "SETBIT");
            missing.record("p", family, &rule_name(name, args), refused.then_some(command));
        }
        missing.record("p", "pubsub", "+subscribe", Some("NOPERM No permissions to access a channel"));
        missing.record("p", "string", "+get", Some("NOPERM No permissions to access a key"));
        missing.record(
            "p",
            "string",
            "+get",
            Some("NOPERM this user has no permissions to access one of the keys"),
        );
        let expected = ["+setbit", "+@stream", "+function|list", "+function|load", "&p:*", "~p:*"];
        assert_eq!(missing.rules(), expected);
    }
}
