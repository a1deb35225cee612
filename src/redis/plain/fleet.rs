//! A machine's heartbeat without server-side code: the keys and values of `regatta_fleet_v2`, in two steps.
//!
//! What may come between them does little harm: a machine that speaks just when another one drops it as dead is
//! missing until it speaks again. No library is in use in this mode, so none is named.

use fred::types::Value;

use crate::redis::caller::Caller;
use crate::redis::error::Error;
use crate::redis::fleet::SINCE;
use crate::redis::fleet::parts;
use crate::redis::keys;
use crate::redis::plain::Command;
use crate::redis::plain::command;
use crate::redis::plain::integer;
use crate::redis::plain::number;
use crate::redis::plain::text;
use crate::redis::plain::time_ms;

/// How long the keys outlive the last word, ms: longer than any machine's, as nobody looks whose is the longest.
const KEPT_MS: u64 = 10 * 60 * 1000;

/// Writes a machine's document and drops the machines that are dead; returns how many live.
pub(in crate::redis) async fn beat(
    caller: &Caller,
    prefix: &str,
    id: &str,
    lifetime_ms: u64,
    document: &str,
) -> Result<u64, Error> {
    let now_ms = time_ms(&caller.call("TIME", []).await?)?;
    let (machines, deaths) = (keys::machines(prefix), keys::deaths(prefix));
    let dead = caller.call("ZRANGEBYSCORE", [deaths.as_str(), "-inf", &now_ms.to_string()]).await?;
    let dead: Vec<Value> = if let Value::Array(dead) = dead { dead } else { Vec::new() };
    let commands = late(caller, (&machines, &deaths), now_ms, lifetime_ms).await?;
    if !commands.is_empty() {
        caller.together(commands).await?;
    }
    let said = format!("{now_ms} {lifetime_ms} {document}");
    let mut commands = vec![
        command("HSETNX", [text(&machines), text(SINCE), number(now_ms)]),
        command("HSET", [text(&machines), text(id), text(&said)]),
        command("ZADD", [text(&deaths), number(now_ms + lifetime_ms), text(id)]),
        command("PEXPIRE", [text(&machines), number(KEPT_MS)]),
        command("PEXPIRE", [text(&deaths), number(KEPT_MS)]),
    ];
    for gone in dead.into_iter().filter(|gone| gone.as_str().as_deref() != Some(id)) {
        commands.push(command("HDEL", [text(&machines), gone.clone()]));
        commands.push(command("ZREM", [text(&deaths), gone]));
    }
    commands.push(command("ZCARD", [text(&deaths)]));
    let answers = caller.together(commands).await?.into_iter().collect::<Result<Vec<_>, _>>()?;
    let alive = answers.last().map_or(Ok(0), integer)?;
    Ok(u64::try_from(alive).unwrap_or(0))
}

/// What gives machines whose word was stored by a clock that is now behind one lifetime from here, as if they had just
/// spoken; and the fleet's start, which must not be still to come.
async fn late(
    caller: &Caller,
    (machines, deaths): (&str, &str),
    now_ms: u64,
    lifetime_ms: u64,
) -> Result<Vec<Command>, Error> {
    let after = format!("({}", now_ms + lifetime_ms);
    let questions = vec![
        command("ZRANGEBYSCORE", [text(deaths), text(&after), text("+inf")]),
        command("HGET", [text(machines), text(SINCE)]),
    ];
    let mut answers = caller.together(questions).await?.into_iter();
    let mut answer = || answers.next().unwrap_or(Ok(Value::Null));
    let (late, since) = (answer()?, answer()?);
    let mut commands = Vec::new();
    if since.as_u64().is_some_and(|since_ms| since_ms > now_ms) {
        commands.push(command("HSET", [text(machines), text(SINCE), number(now_ms)]));
    }
    let late: Vec<Value> = if let Value::Array(late) = late { late } else { Vec::new() };
    for id in late {
        let word = caller.send("HGET", vec![text(machines), id.clone()]).await?.as_string();
        let (left_ms, word) = match word.as_deref().and_then(parts) {
            Some((beat_ms, ..)) if beat_ms <= now_ms => continue,
            Some((_, life_ms, document)) => (life_ms, Some(format!("{now_ms} {life_ms} {document}"))),
            None => (lifetime_ms, None),
        };
        if let Some(word) = word {
            commands.push(command("HSET", [text(machines), id.clone(), text(&word)]));
        }
        commands.push(command("ZADD", [text(deaths), text("XX"), number(now_ms + left_ms), id]));
    }
    Ok(commands)
}

/// Drops one machine.
pub(in crate::redis) async fn leave(caller: &Caller, prefix: &str, id: &str) -> Result<(), Error> {
    let (machines, deaths) = (keys::machines(prefix), keys::deaths(prefix));
    let commands =
        vec![command("HDEL", [text(&machines), text(id)]), command("ZREM", [text(&deaths), text(id)])];
    caller.together(commands).await?.into_iter().collect::<Result<Vec<_>, _>>().map(|_| ())
}
