//! The name of every key that this program writes and of every channel that it publishes on; names are made nowhere
//! else.
//!
//! Every name begins with the configured prefix: fleets with the same prefix share everything, others nothing. The name
//! of a family follows; no prefix nests in another one as long as `config/key_prefix.rs` knows all families. Channels have
//! the database's number besides, because pub/sub is not separated by database.

/// A session's hash; `digest` is the hashed id, never the id itself.
pub fn session(prefix: &str, digest: &str) -> String {
    join(&[prefix, "s", digest])
}

/// The quarantined value of a session's key that was no session.
pub fn quarantine(prefix: &str, digest: &str) -> String {
    join(&[prefix, "q", digest])
}

/// The index of a user's sessions; `user` is a tag, never the name.
pub fn user_sessions(prefix: &str, user: &str) -> String {
    join(&[prefix, "u", user])
}

/// When everything of a user was last logged out.
pub fn user_generation(prefix: &str, user: &str) -> String {
    join(&[prefix, "g", user])
}

/// How many sessions one client may still create. It is stored beside sessions, because both change in one step.
pub fn new_session_limit(prefix: &str, client: &str) -> String {
    join(&[prefix, "n", client])
}

/// One subject's rate limit under one version of one policy.
pub fn limit(prefix: &str, policy: &str, version: &str, subject: &str) -> String {
    join(&[prefix, "l", policy, version, subject])
}

/// That the charges of an outage were applied to a limit.
pub fn deferred_mark(limit: &str, batch: &str) -> String {
    mark_beside(limit, batch)
}

/// A mark in the same hash slot as a key: that something was done to it once.
pub fn mark_beside(key: &str, mark: &str) -> String {
    join(&[key, "m", mark])
}

/// A shared counter.
pub fn counter(prefix: &str, name: &str) -> String {
    join(&[prefix, "c", name])
}

/// The ledger of one fleet's batches: a hash, one field a journal.
pub fn counter_journals(prefix: &str, fleet: u64) -> String {
    join(&[prefix, "j", &format!("{fleet:016x}")])
}

/// A counter of distinct items, in a window or for ever. All windows of a name are in one hash slot.
pub fn distinct(prefix: &str, name: &str, window: Option<(u64, u64)>) -> String {
    match window {
        None => join(&[prefix, "d", name]),
        Some((length_ms, number)) => {
            let (length_ms, number, name) =
                (length_ms.to_string(), number.to_string(), format!("{{{name}}}"));
            join(&[prefix, "dw", &length_ms, &number, &name])
        }
    }
}

/// The sessions that were active in a minute; all minutes are in one hash slot.
pub fn active_sessions(prefix: &str, minute: u64) -> String {
    join(&[prefix, "{seen}", "sessions", &minute.to_string()])
}

/// How much is taken of a bounded counter.
pub fn bounded(prefix: &str, name: &str) -> String {
    join(&[prefix, "b", name])
}

/// A bounded change that was applied; `digest` is that of its token.
pub fn bounded_token(prefix: &str, name: &str, digest: &str) -> String {
    join(&[prefix, "bt", name, digest])
}

/// A request that must be executed once; `digest` is that of its client and key.
pub fn idempotency(prefix: &str, digest: &str) -> String {
    join(&[prefix, "i", digest])
}

/// A name under which the record of such a request is found; all names of one key are in one hash slot.
pub fn idempotency_name(prefix: &str, key_digest: &str, digest: &str) -> String {
    join(&[prefix, "io", &format!("{{{key_digest}}}"), digest])
}

/// A worker's ledger of batches of begins or commits: a string, the last batch's number and its result.
pub fn batch_ledger(prefix: &str, life: &str, ledger: usize) -> String {
    join(&[prefix, "once", life, "b", &ledger.to_string()])
}

/// The ledger of migrations: a hash, one field a migration.
pub fn migration_ledger(prefix: &str) -> String {
    join(&[prefix, "mig"])
}

/// The lock for migrations.
pub fn migration_lock(prefix: &str) -> String {
    join(&[prefix, "mig", "lock"])
}

/// The fencing number of migrations, increased by every holder of the lock.
pub fn migration_fence(prefix: &str) -> String {
    join(&[prefix, "mig", "fence"])
}

/// The lock for walks.
pub fn walk_lock(prefix: &str) -> String {
    join(&[prefix, "mig", "walk", "lock"])
}

/// The fencing number of walks.
pub fn walk_fence(prefix: &str) -> String {
    join(&[prefix, "mig", "walk", "fence"])
}

/// All keys below the prefix that match, as SCAN's MATCH has it; the prefix itself has no special characters.
pub fn key_pattern(prefix: &str, pattern: &str) -> String {
    join(&[prefix, pattern])
}

/// What a key below the prefix holds, for operators.
pub fn kind(prefix: &str, key: &str) -> &'static str {
    let below = key.strip_prefix(prefix).and_then(|rest| rest.strip_prefix(':')).unwrap_or_default();
    match below.split(':').next().unwrap_or_default() {
        "s" => "sessions",
        "l" | "n" => "limits",
        "c" => "counters",
        _ => "other",
    }
}

/// Mode plain: a limit's window, beside the limit's own key.
pub fn limit_window(limit: &str) -> String {
    join(&[limit, "w"])
}

/// Mode plain: a session's views.
pub fn session_views(session: &str) -> String {
    join(&[session, "v"])
}

/// A key that is never written, for checks of the user's rights.
pub fn check(prefix: &str) -> String {
    join(&[prefix, "{check}"])
}

/// The fleet's cookie signing key, when none is configured.
pub fn signing_key(prefix: &str) -> String {
    join(&[prefix, "secret"])
}

/// The fleet's instances: a hash with one field for each supervisor, its latest report.
///
/// The three keys of the registry are written in one step, so they share a hash tag.
pub fn instances(prefix: &str) -> String {
    join(&[prefix, "{fleet}", "machines"])
}

/// When each instance expires: a sorted set, by Redis's clock.
pub fn instance_deadlines(prefix: &str) -> String {
    join(&[prefix, "{fleet}", "deaths"])
}

/// When each library was last in use: a sorted set of names, scores ms by Redis's clock.
///
/// Every instance writes the libraries that it uses at each heartbeat, which shows later releases whether earlier ones
/// are running.
pub fn libraries_in_use(prefix: &str) -> String {
    join(&[prefix, "{fleet}", "libraries"])
}

/// A task; knowing `id` is the right to read it, as with a password.
///
/// All keys of tasks share a hash tag, because a claim changes several of them in one step.
pub fn task(prefix: &str, id: &str) -> String {
    join(&[prefix, "{t}", "task", id])
}

/// The queue of one kind of tasks: a stream.
pub fn task_queue(prefix: &str, kind: &str) -> String {
    join(&[prefix, "{t}", "queue", kind])
}

/// The waiting tasks of all kinds: a sorted set, scores ms by Redis's clock.
pub fn tasks_waiting(prefix: &str) -> String {
    join(&[prefix, "{t}", "waiting"])
}

/// The running tasks: a hash.
pub fn tasks_running(prefix: &str) -> String {
    join(&[prefix, "{t}", "running"])
}

/// The latest dead tasks: a list.
pub fn tasks_dead(prefix: &str) -> String {
    join(&[prefix, "{t}", "dead"])
}

/// Totals of all tasks so far: a hash of numbers.
pub fn tasks_totals(prefix: &str) -> String {
    join(&[prefix, "{t}", "totals"])
}

/// A topic's latest messages: a stream.
///
/// All topics share a hash tag, so that one call may read several.
pub fn topic(prefix: &str, name: &str) -> String {
    join(&[prefix, "{b}", "topic", name])
}

/// How many subscribe to a topic: a hash, one field a worker.
pub fn presence(prefix: &str, name: &str) -> String {
    join(&[prefix, "{b}", "here", name])
}

/// The workers that wait for tasks of one kind: a sorted set, scores ms by Redis's clock at which each polls by itself.
pub fn task_idle_workers(prefix: &str, kind: &str) -> String {
    join(&[prefix, "{t}", "idle", kind])
}

/// The prefix of a fleet's channels. No configured prefix contains an `@`.
///
/// Redis delivers a message to all subscribers, whatever database it was published from: without the number, fleets
/// with one prefix on two databases of one server would receive each other's messages. A cluster has database 0 only;
/// behind Sentinels the number is that of the primary's.
pub fn channel_prefix(prefix: &str, database: u8) -> String {
    match database {
        0 => prefix.to_owned(),
        number => format!("{prefix}:@{number}"),
    }
}

/// The common channel: sessions that ended, limits that have quota again.
pub fn notifications_channel(space: &str) -> String {
    join(&[space, "news"])
}

/// The channel of a topic's messages, for workers that have subscribers to it.
pub fn topic_channel(space: &str, topic: &str) -> String {
    join(&[space, "b", topic])
}

/// The channel of a task's changes, for workers on which it is watched.
pub fn task_channel(space: &str, id: &str) -> String {
    join(&[space, "p", id])
}

/// The channel of one worker: tasks to claim, tasks that were cancelled.
pub fn worker_channel(space: &str, worker: &str) -> String {
    join(&[space, "w", worker])
}

/// The name of a key in a cluster; `None` if it is the same.
///
/// Keys that one call uses must be in one hash slot, so each family has a hash tag: sessions and their users `{s}`,
/// counters and their journals `{c}`, the ledger `{mig}`; each rate limit has one of its own, which it shares with its
/// marks. Outside a cluster names have no tags.
pub(super) fn cluster_name(prefix: &str, key: &str) -> Option<String> {
    let rest = key.strip_prefix(prefix)?.strip_prefix(':')?;
    if rest.contains('{') {
        return None;
    }
    let tagged = |tag: &str| Some(format!("{prefix}:{{{tag}}}:{rest}"));
    match rest.split(':').next().unwrap_or_default() {
        "s" | "q" | "u" | "g" | "n" => tagged("s"),
        "c" | "j" | "b" | "bt" => tagged("c"),
        "mig" => tagged("mig"),
        "l" => {
            // l, policy, version, subject; a mark follows behind `:m:`.
            let subject: usize = rest.splitn(4, ':').take(3).map(|part| part.len() + 1).sum();
            let marks = rest.get(subject..)?.find(":m:").map_or(rest.len(), |at| subject + at);
            Some(format!("{prefix}:{{{}}}{}", &rest[..marks], &rest[marks..]))
        }
        _ => None,
    }
}

/// The name of a rate limit outside a cluster, from the one that [`cluster_name`] made.
pub(super) fn plain_name(prefix: &str, name: &str) -> Option<String> {
    let rest = name.strip_prefix(prefix)?.strip_prefix(":{l:")?.strip_suffix('}')?;
    Some(format!("{prefix}:l:{rest}"))
}

/// Joins with `:` in one allocation; `format!` costs three times as much here, for every key of every request.
fn join(parts: &[&str]) -> String {
    let mut key = String::with_capacity(parts.iter().map(|part| part.len() + 1).sum());
    for part in parts {
        if !key.is_empty() {
            key.push(':');
        }
        key.push_str(part);
    }
    key
}

#[cfg(test)]
mod tests;
