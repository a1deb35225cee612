//! The name of every key this program writes, and nowhere else.
//!
//! Every name begins with the configured prefix: fleets with the same prefix share everything, others nothing.

/// A session's hash; `digest` is the hashed id, never the id itself.
pub fn session(prefix: &str, digest: &str) -> String {
    join(&[prefix, "s", digest])
}

/// What lay under a session's key and was none.
pub fn quarantine(prefix: &str, digest: &str) -> String {
    join(&[prefix, "q", digest])
}

/// The index of a user's sessions; `user` is his tag, never his name.
pub fn sessions_of(prefix: &str, user: &str) -> String {
    join(&[prefix, "u", user])
}

/// When everything of a user was last logged out.
pub fn generation(prefix: &str, user: &str) -> String {
    join(&[prefix, "g", user])
}

/// How many sessions one client may still have made. It lies beside sessions, because both change in one step.
pub fn new_sessions(prefix: &str, client: &str) -> String {
    join(&[prefix, "n", client])
}

/// One subject's rate limit under one version of one policy.
pub fn limit(prefix: &str, policy: &str, version: &str, subject: &str) -> String {
    join(&[prefix, "l", policy, version, subject])
}

/// That a batch of an outage was merged into a limit; it lies beside the limit, whatever decides where that lies.
pub fn limit_mark(limit: &str, batch: &str) -> String {
    join(&[limit, "m", batch])
}

/// The channel on which workers tell each other what they must know at once.
pub fn news(prefix: &str) -> String {
    join(&[prefix, "news"])
}

/// A shared counter.
pub fn counter(prefix: &str, name: &str) -> String {
    join(&[prefix, "c", name])
}

/// The ledger of one fleet's batches: a hash, one field a journal.
pub fn journals(prefix: &str, fleet: u64) -> String {
    join(&[prefix, "j", &format!("{fleet:016x}")])
}

/// A counter of what is different; in a window, or for ever. All windows of a name lie in one slot of a cluster.
pub fn unique(prefix: &str, name: &str, window: Option<(u64, u64)>) -> String {
    match window {
        None => join(&[prefix, "d", name]),
        Some((length_ms, number)) => {
            let (length_ms, number, name) =
                (length_ms.to_string(), number.to_string(), format!("{{{name}}}"));
            join(&[prefix, "dw", &length_ms, &number, &name])
        }
    }
}

/// Which sessions were seen in a minute; all minutes lie in one slot of a cluster.
pub fn sessions_seen(prefix: &str, minute: u64) -> String {
    join(&[prefix, "{seen}", "sessions", &minute.to_string()])
}

/// How much is taken of something of which there is only so much.
pub fn bounded(prefix: &str, name: &str) -> String {
    join(&[prefix, "b", name])
}

/// A taking or giving back that was done; `digest` is that of its token.
pub fn bounded_token(prefix: &str, name: &str, digest: &str) -> String {
    join(&[prefix, "bt", name, digest])
}

/// A request that is to be carried out once; `digest` is that of its client and key.
pub fn idempotency(prefix: &str, digest: &str) -> String {
    join(&[prefix, "i", digest])
}

/// A name under which the record of such a request is found; all names of one key lie in one slot of a cluster.
pub fn idempotency_name(prefix: &str, key_digest: &str, digest: &str) -> String {
    join(&[prefix, "io", &format!("{{{key_digest}}}"), digest])
}

/// Which of a worker's calls were executed: one bit a call, 4,096 calls a key; `life` is the worker's own, never
/// another's.
pub fn once(prefix: &str, life: &str, block: u64) -> String {
    join(&[prefix, "once", life, &block.to_string()])
}

/// The ledger of migrations: a hash, one field a migration.
pub fn ledger(prefix: &str) -> String {
    join(&[prefix, "mig"])
}

/// The lock under which migrations run.
pub fn migration_lock(prefix: &str) -> String {
    join(&[prefix, "mig", "lock"])
}

/// The fencing number, raised by every holder of the lock.
pub fn migration_fence(prefix: &str) -> String {
    join(&[prefix, "mig", "fence"])
}

/// The lock under which migrations walk over keys.
pub fn walk_lock(prefix: &str) -> String {
    join(&[prefix, "mig", "walk", "lock"])
}

/// The fencing number of walks.
pub fn walk_fence(prefix: &str) -> String {
    join(&[prefix, "mig", "walk", "fence"])
}

/// All keys below the prefix that match, as SCAN's MATCH has it; the prefix itself has no special letters.
pub fn below(prefix: &str, pattern: &str) -> String {
    join(&[prefix, pattern])
}

/// What a key below the prefix holds, for people.
pub fn kind(prefix: &str, key: &str) -> &'static str {
    let below = key.strip_prefix(prefix).and_then(|rest| rest.strip_prefix(':')).unwrap_or_default();
    match below.split(':').next().unwrap_or_default() {
        "s" => "sessions",
        "l" | "n" => "limits",
        "c" => "counters",
        _ => "other",
    }
}

/// Mode plain: a limit's window, beside the key it has where there is server-side code.
pub fn window(limit: &str) -> String {
    join(&[limit, "w"])
}

/// Mode plain: a session's views.
pub fn views(session: &str) -> String {
    join(&[session, "v"])
}

/// The fleet's cookie signing key, when none is configured.
pub fn secret(prefix: &str) -> String {
    join(&[prefix, "secret"])
}

/// The fleet's machines: a hash, one field a supervisor, the last thing it said of itself.
///
/// The three keys of the fleet are written in one step, so they share a hash tag.
pub fn machines(prefix: &str) -> String {
    join(&[prefix, "{fleet}", "machines"])
}

/// When each machine is dead: a sorted set, by Redis's clock.
pub fn deaths(prefix: &str) -> String {
    join(&[prefix, "{fleet}", "deaths"])
}

/// When each library of server-side code was last in use: a sorted set of names, scores ms by Redis's clock.
///
/// Every machine writes at each of its heartbeats which ones it uses; those of old versions are collected by it.
pub fn libraries_seen(prefix: &str) -> String {
    join(&[prefix, "{fleet}", "libraries"])
}

/// A task; `id` is as good as a password for it.
///
/// All keys of tasks share a hash tag: whoever takes one changes several of them in one step.
pub fn task(prefix: &str, id: &str) -> String {
    join(&[prefix, "{t}", "task", id])
}

/// The queue of one kind of tasks: a stream.
pub fn task_queue(prefix: &str, kind: &str) -> String {
    join(&[prefix, "{t}", "queue", kind])
}

/// The tasks that wait, of all kinds: a sorted set, scores ms by Redis's clock.
pub fn tasks_waiting(prefix: &str) -> String {
    join(&[prefix, "{t}", "waiting"])
}

/// The tasks that run: a hash.
pub fn tasks_running(prefix: &str) -> String {
    join(&[prefix, "{t}", "running"])
}

/// The last tasks that were given up: a list.
pub fn tasks_dead(prefix: &str) -> String {
    join(&[prefix, "{t}", "dead"])
}

/// What has become of all tasks so far: a hash of numbers.
pub fn tasks_totals(prefix: &str) -> String {
    join(&[prefix, "{t}", "totals"])
}

/// A topic's last messages: a stream.
///
/// All topics share a hash tag, so that one call may ask for several.
pub fn topic(prefix: &str, name: &str) -> String {
    join(&[prefix, "{b}", "topic", name])
}

/// How many subscribe to a topic: a hash, one field a worker.
pub fn here(prefix: &str, name: &str) -> String {
    join(&[prefix, "{b}", "here", name])
}

/// The name under which a key lies in a cluster; `None` if that is the same.
///
/// What one call touches together has to lie in one slot, so each family of keys has a hash tag: sessions and their
/// users `{s}`, counters and their journals `{c}`, the ledger `{mig}`; each rate limit has one of its own, which it
/// shares with its marks. Where there is no cluster names have no tags.
pub(super) fn in_cluster(prefix: &str, key: &str) -> Option<String> {
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

/// The name of a rate limit as it is where there is no cluster, out of the one that [`in_cluster`] gave it.
pub(super) fn out_of_cluster(prefix: &str, name: &str) -> Option<String> {
    let rest = name.strip_prefix(prefix)?.strip_prefix(":{l:")?.strip_suffix('}')?;
    Some(format!("{prefix}:l:{rest}"))
}

/// Joins with `:` in one allocation; `format!` costs three times as much here, once per key and request.
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
mod tests {
    use super::*;

    #[test]
    fn every_key_begins_with_the_prefix() {
        let keys = [
            session("p", "d"),
            quarantine("p", "d"),
            sessions_of("p", "t"),
            generation("p", "t"),
            new_sessions("p", "10.0.0.1"),
            limit("p", "default", "v", "10.0.0.1"),
            counter("p", "hits"),
            journals("p", 7),
            unique("p", "visitors", None),
            unique("p", "visitors", Some((1000, 7))),
            bounded("p", "seats"),
            bounded_token("p", "seats", "d"),
            idempotency("p", "d"),
            idempotency_name("p", "k", "d"),
            limit_mark("p:l:default:v:10.0.0.1", "b"),
            once("p", "5eed", 7),
            news("p"),
            ledger("p"),
            migration_lock("p"),
            migration_fence("p"),
            walk_lock("p"),
            walk_fence("p"),
            below("p", "*"),
            secret("p"),
            machines("p"),
            deaths("p"),
            libraries_seen("p"),
            task("p", "0a"),
            task_queue("p", "fibonacci"),
            tasks_waiting("p"),
            tasks_running("p"),
            tasks_dead("p"),
            tasks_totals("p"),
            topic("p", "chat"),
            here("p", "chat"),
        ];
        assert!(keys.iter().all(|key| key.starts_with("p:")), "{keys:?}");
        assert_eq!(keys[5], "p:l:default:v:10.0.0.1");
    }

    #[test]
    fn in_a_cluster_what_belongs_together_has_one_tag() {
        let name = |key: &str| in_cluster("a:b", key).unwrap_or_else(|| key.to_owned());
        assert_eq!(name("a:b:s:digest"), "a:b:{s}:s:digest");
        assert_eq!(name("a:b:g:user"), "a:b:{s}:g:user");
        assert_eq!(name("a:b:n:10.0.0.1"), "a:b:{s}:n:10.0.0.1");
        assert_eq!(name("a:b:c:total"), "a:b:{c}:c:total");
        assert_eq!(name("a:b:mig:lock"), "a:b:{mig}:mig:lock");
        assert_eq!(name("a:b:mig"), "a:b:{mig}:mig");
        assert_eq!(name("a:b:l:m:v:2001:db8::"), "a:b:{l:m:v:2001:db8::}");
        assert_eq!(name("a:b:l:m:v:10.0.0.1:m:batch"), "a:b:{l:m:v:10.0.0.1}:m:batch");
        let limit = "a:b:l:m:v:2001:db8::";
        assert_eq!(out_of_cluster("a:b", &name(limit)).as_deref(), Some(limit));
        assert_eq!(out_of_cluster("a:b", "a:b:c:x"), None);
        for same in
            ["a:b:{fleet}:machines", "a:b:{b}:topic:l:m:v:x", "a:b:secret", "other:s:x", "a:b:i:digest"]
        {
            assert_eq!(name(same), same);
        }
    }
}
