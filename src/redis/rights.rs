//! What of the rights that this program needs its user does not have: found out by trying, in forms that change nothing.
//!
//! Redis looks at a user's rules before it looks at a command's arguments, so each command is sent with arguments that do
//! nothing or are refused: whatever is said but NOPERM means that it is allowed. Asking for the rules themselves would
//! need a right (ACL GETUSER) that applications are not given.

use std::collections::BTreeSet;

use fred::types::Value;

use crate::redis::Redis;
use crate::redis::caller::Caller;
use crate::redis::error::Error;
use crate::redis::keys;
use crate::redis::link::Link;
use crate::redis::news::NO_WORKER;

/// A command, what its rules call its kind, and arguments that change nothing; `KEY` and `CHANNEL` stand for the fleet's.
struct Try(&'static str, &'static str, &'static [&'static str]);

const KEY: &str = "KEY";
const CHANNEL: &str = "CHANNEL";

/// Every command that workers and their server-side code send, but for those that do something whatever their arguments
/// are: HSETNX, INCR, LPUSH, PFADD. The rule for their kind names those too.
const TRIES: &[Try] = &[
    Try("string", "GET", &[KEY]),
    Try("string", "SET", &[KEY, "", "PX", "none"]),
    Try("string", "INCRBY", &[KEY, "none"]),
    Try("string", "DECRBY", &[KEY, "none"]),
    // Workers of earlier releases, beside which this one serves during a rolling deploy.
    Try("bitmap", "GETBIT", &[KEY, "0"]),
    Try("bitmap", "SETBIT", &[KEY, "none", "1"]),
    Try("hash", "HGET", &[KEY, "f"]),
    Try("hash", "HMGET", &[KEY, "f"]),
    Try("hash", "HGETALL", &[KEY]),
    Try("hash", "HLEN", &[KEY]),
    Try("hash", "HEXISTS", &[KEY, "f"]),
    Try("hash", "HDEL", &[KEY, "f"]),
    Try("hash", "HSET", &[KEY, "f", "v", "odd"]),
    Try("hash", "HINCRBY", &[KEY, "f", "none"]),
    Try("sortedset", "ZADD", &[KEY, "none", "m"]),
    Try("sortedset", "ZCARD", &[KEY]),
    Try("sortedset", "ZRANGE", &[KEY, "0", "0"]),
    Try("sortedset", "ZRANGEBYSCORE", &[KEY, "0", "0"]),
    Try("sortedset", "ZREVRANGE", &[KEY, "0", "0"]),
    Try("sortedset", "ZREVRANGEBYSCORE", &[KEY, "0", "0"]),
    Try("sortedset", "ZCOUNT", &[KEY, "0", "0"]),
    Try("sortedset", "ZREM", &[KEY, "m"]),
    Try("sortedset", "ZREMRANGEBYSCORE", &[KEY, "0", "0"]),
    Try("sortedset", "ZPOPMAX", &[KEY]),
    Try("sortedset", "ZSCORE", &[KEY, "m"]),
    Try("stream", "XADD", &[KEY, "none", "f", "v"]),
    Try("stream", "XLEN", &[KEY]),
    Try("stream", "XRANGE", &[KEY, "-", "+", "COUNT", "1"]),
    Try("stream", "XREVRANGE", &[KEY, "+", "-", "COUNT", "1"]),
    Try("stream", "XACK", &[KEY, "g", "0-1"]),
    Try("stream", "XDEL", &[KEY, "0-1"]),
    Try("stream", "XPENDING", &[KEY, "g"]),
    Try("stream", "XCLAIM", &[KEY, "g", "c", "0", "0-1"]),
    Try("stream", "XREADGROUP", &["GROUP", "g", "c", "COUNT", "1", "STREAMS", KEY, ">"]),
    Try("stream", "XINFO", &["GROUPS", KEY]),
    Try("stream", "XGROUP", &["CREATE", KEY, "g", "0"]),
    Try("list", "LRANGE", &[KEY, "0", "0"]),
    Try("list", "LTRIM", &[KEY, "none", "0"]),
    Try("hyperloglog", "PFCOUNT", &[KEY]),
    Try("keyspace", "EXISTS", &[KEY]),
    Try("keyspace", "UNLINK", &[KEY]),
    Try("keyspace", "DEL", &[KEY]),
    Try("keyspace", "RENAME", &[KEY, KEY]),
    Try("keyspace", "PTTL", &[KEY]),
    Try("keyspace", "PEXPIRE", &[KEY, "none"]),
    Try("scripting", "EVAL", &["return 1", "0"]),
    Try("scripting", "EVALSHA", &["0000000000000000000000000000000000000000", "0"]),
    Try("scripting", "SCRIPT", &["LOAD", "return 1"]),
    Try("scripting", "FUNCTION", &["LIST", "LIBRARYNAME", "regatta_none"]),
    Try("scripting", "FUNCTION", &["LOAD", "none"]),
    Try("scripting", "FCALL", &["regatta_none", "0"]),
    Try("pubsub", "PUBLISH", &[CHANNEL, ""]),
    Try("", "TIME", &[]),
    Try("", "INFO", &[]),
];

impl Redis {
    /// The rules that this user lacks, as `ACL SETUSER` takes them; none if nothing is missing. Changes nothing, needs no
    /// started connection.
    ///
    /// # Errors
    /// When the server cannot be reached, or said something else.
    pub async fn missing_rights(&self) -> Result<Vec<String>, Error> {
        let inner = &self.inner;
        let node = inner.endpoint.cluster().and_then(<[_]>::first);
        let link = Link::open(inner, node).await?;
        let (caller, mut missing) = (link.patient(), Missing::default());
        for Try(family, command, args) in TRIES {
            let refused = refusal(attempt(&caller, &inner.prefix, &inner.space, command, args).await)?;
            missing.note(&inner.prefix, family, &named(command, args), refused.as_deref());
        }
        let subscribed = refusal(subscribe(&caller, &keys::news(&inner.space)).await)?;
        missing.note(&inner.prefix, "pubsub", "+subscribe", subscribed.as_deref());
        Ok(missing.rules())
    }
}

async fn attempt(
    caller: &Caller,
    prefix: &str,
    space: &str,
    command: &'static str,
    args: &[&str],
) -> Result<Value, Error> {
    let (key, channel) = (keys::check(prefix), keys::worker_news(space, NO_WORKER));
    let arg = |arg: &&str| match *arg {
        KEY => Value::from(key.as_str()),
        CHANNEL => Value::from(channel.as_str()),
        arg => Value::from(arg),
    };
    caller.send(command, args.iter().map(arg).collect()).await
}

/// Subscribes; the last that is done on this connection. The client hears no answer to what is done, and takes that of the
/// next command for it.
async fn subscribe(caller: &Caller, channel: &str) -> Result<Value, Error> {
    let next = async {
        // Only its answer is of use.
        let _ = caller.call("PING", []).await.is_ok();
        std::future::pending().await
    };
    tokio::select! {
        biased;
        answer = caller.call("SUBSCRIBE", [channel]) => answer,
        never = next => never,
    }
}

/// What the server said if the user may not; any other answer means that the user may.
fn refusal(answer: Result<Value, Error>) -> Result<Option<String>, Error> {
    match answer {
        Err(Error::Refused { reason, .. }) if reason.starts_with("NOPERM") => Ok(Some(reason)),
        Ok(_) | Err(Error::Refused { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A command as rules name it.
fn named(command: &str, args: &[&str]) -> String {
    let command = command.to_ascii_lowercase();
    match (command.as_str(), args.first()) {
        ("function" | "script" | "xgroup" | "xinfo", Some(sub)) => {
            format!("+{command}|{}", sub.to_ascii_lowercase())
        }
        _ => format!("+{command}"),
    }
}

/// What was refused.
#[derive(Default)]
struct Missing {
    patterns: BTreeSet<String>,
    /// Kind, command, and whether it was refused.
    commands: Vec<(&'static str, String, bool)>,
}

impl Missing {
    fn note(&mut self, prefix: &str, family: &'static str, command: &str, refused: Option<&str>) {
        let words = refused.unwrap_or_default();
        let of_command = refused.is_some() && (words.contains("to run the") || words.contains("subcommand"));
        self.commands.push((family, command.to_owned(), of_command));
        if refused.is_some() && !of_command {
            let pattern = if words.contains("channel") { '&' } else { '~' };
            self.patterns.insert(format!("{pattern}{prefix}:*"));
        }
    }

    /// Where all commands of a kind were refused, the kind; patterns behind.
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
    fn what_is_refused_is_named_as_rules_are() {
        let mut missing = Missing::default();
        let command = "NOPERM User web has no permissions to run the 'x' command";
        for Try(family, name, args) in TRIES {
            let refused = matches!(*family, "stream") || matches!(*name, "FUNCTION" | "SETBIT");
            missing.note("p", family, &named(name, args), refused.then_some(command));
        }
        missing.note("p", "pubsub", "+subscribe", Some("NOPERM No permissions to access a channel"));
        missing.note("p", "string", "+get", Some("NOPERM No permissions to access a key"));
        missing.note(
            "p",
            "string",
            "+get",
            Some("NOPERM this user has no permissions to access one of the keys"),
        );
        let expected = ["+setbit", "+@stream", "+function|list", "+function|load", "&p:*", "~p:*"];
        assert_eq!(missing.rules(), expected);
    }
}
