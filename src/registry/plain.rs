//! An instance's heartbeat without server-side code: the keys and values of `regatta_fleet_v2`, in two steps.
//!
//! Commands that run between them do little harm: an instance that reports while another one drops it as dead is
//! missing until its next report. No library is in use in this mode, so none is reported.

use crate::redis::wire::{PipelinedCommand, Value, command, integer, number, text, time_ms};
use crate::redis::{RedisError, RedisTransport};
use crate::registry::keys;
use crate::registry::record::{SINCE_FIELD, split_record};

/// How long the keys outlive the last report, ms: longer than any instance's lifetime, because the longest is not
/// computed.
const KEYS_TTL_MS: u64 = 10 * 60 * 1000;

/// Writes an instance's document and drops dead instances; returns how many are alive.
pub(super) async fn heartbeat(
    transport: &RedisTransport,
    prefix: &str,
    id: &str,
    lifetime_ms: u64,
    document: &str,
) -> Result<u64, RedisError> {
    let now_ms = time_ms(&transport.call("TIME", []).await?)?;
    let (instances, deaths) = (keys::instances(prefix), keys::instance_deadlines(prefix));
    let dead = transport.call("ZRANGEBYSCORE", [deaths.as_str(), "-inf", &now_ms.to_string()]).await?;
    let dead: Vec<Value> = if let Value::Array(dead) = dead { dead } else { Vec::new() };
    let commands = clock_fixes(transport, (&instances, &deaths), now_ms, lifetime_ms).await?;
    if !commands.is_empty() {
        transport.pipeline(commands).await?;
    }
    let record = format!("{now_ms} {lifetime_ms} {document}");
    let mut commands = vec![
        command("HSETNX", [text(&instances), text(SINCE_FIELD), number(now_ms)]),
        command("HSET", [text(&instances), text(id), text(&record)]),
        command("ZADD", [text(&deaths), number(now_ms + lifetime_ms), text(id)]),
        command("PEXPIRE", [text(&instances), number(KEYS_TTL_MS)]),
        command("PEXPIRE", [text(&deaths), number(KEYS_TTL_MS)]),
    ];
    for gone in dead.into_iter().filter(|gone| gone.as_str().as_deref() != Some(id)) {
        commands.push(command("HDEL", [text(&instances), gone.clone()]));
        commands.push(command("ZREM", [text(&deaths), gone]));
    }
    commands.push(command("ZCARD", [text(&deaths)]));
    let replies = transport.pipeline(commands).await?.into_iter().collect::<Result<Vec<_>, _>>()?;
    let alive = replies.last().map_or(Ok(0), integer)?;
    Ok(u64::try_from(alive).unwrap_or(0))
}

/// Commands that give instances whose report has a time in the future, from a clock that has stepped back, one lifetime
/// from now; and that correct a future start of the fleet.
async fn clock_fixes(
    transport: &RedisTransport,
    (instances, deaths): (&str, &str),
    now_ms: u64,
    lifetime_ms: u64,
) -> Result<Vec<PipelinedCommand>, RedisError> {
    let after = format!("({}", now_ms + lifetime_ms);
    let reads = vec![
        command("ZRANGEBYSCORE", [text(deaths), text(&after), text("+inf")]),
        command("HGET", [text(instances), text(SINCE_FIELD)]),
    ];
    let mut replies = transport.pipeline(reads).await?.into_iter();
    let mut reply = || replies.next().unwrap_or(Ok(Value::Null));
    let (late, since) = (reply()?, reply()?);
    let mut commands = Vec::new();
    if since.as_u64().is_some_and(|since_ms| since_ms > now_ms) {
        commands.push(command("HSET", [text(instances), text(SINCE_FIELD), number(now_ms)]));
    }
    let late: Vec<Value> = if let Value::Array(late) = late { late } else { Vec::new() };
    for id in late {
        let record = transport.send("HGET", vec![text(instances), id.clone()]).await?.as_string();
        let (left_ms, record) = match record.as_deref().and_then(split_record) {
            Some((beat_ms, ..)) if beat_ms <= now_ms => continue,
            Some((_, life_ms, document)) => (life_ms, Some(format!("{now_ms} {life_ms} {document}"))),
            None => (lifetime_ms, None),
        };
        if let Some(record) = record {
            commands.push(command("HSET", [text(instances), id.clone(), text(&record)]));
        }
        commands.push(command("ZADD", [text(deaths), text("XX"), number(now_ms + left_ms), id]));
    }
    Ok(commands)
}

/// Drops one instance.
pub(super) async fn deregister_instance(
    transport: &RedisTransport,
    prefix: &str,
    id: &str,
) -> Result<(), RedisError> {
    let (instances, deaths) = (keys::instances(prefix), keys::instance_deadlines(prefix));
    let commands =
        vec![command("HDEL", [text(&instances), text(id)]), command("ZREM", [text(&deaths), text(id)])];
    transport.pipeline(commands).await?.into_iter().collect::<Result<Vec<_>, _>>().map(|_| ())
}
