//! `docs/reference/redis-keys.md`, from the functions that make the names of keys and channels: each is called with what
//! its parts are filled with, in capitals.

use std::collections::BTreeSet;
use std::path::Path;

use crate::cli::reference::pages::{compare_page, head, row};
use crate::redis::keys as common;
use crate::redis::keys::cluster_name;
use crate::{broadcasts, counters, idempotency, limiter, registry, request_state, sessions, tasks};

/// A number that stands for one in a name, where only numbers are taken.
const FLEET: u64 = 0xf1ee7;
const LENGTH: u64 = 1111;
const NUMBER: u64 = 2222;
const LEDGER: usize = 3333;
const MINUTE: u64 = 4444;

/// A key as an operator meets it.
struct DocumentedKey {
    name: String,
    /// Its type, how long it lives, what writes it and what it is.
    cells: Vec<&'static str>,
}

/// `cells` are separated by bars.
fn key(name: String, cells: &'static str) -> DocumentedKey {
    let numbers = [
        (format!("{FLEET:016x}"), "FLEET"),
        (LENGTH.to_string(), "LENGTH"),
        (NUMBER.to_string(), "NUMBER"),
        (LEDGER.to_string(), "LEDGER"),
        (MINUTE.to_string(), "MINUTE"),
    ];
    let name = numbers.iter().fold(name, |name, (number, word)| name.replace(number, word));
    let cells: Vec<_> = cells.split(" | ").collect();
    assert_eq!(cells.len(), 4, "{name}: type, life, writer, meaning");
    DocumentedKey { name, cells }
}

/// Sessions and what lies in their hash slot.
fn of_sessions() -> Vec<DocumentedKey> {
    use sessions::keys;
    let session = keys::session("", "DIGEST");
    let new_sessions = keys::new_session_limit("", "CLIENT");
    vec![
        key(
            session.clone(),
            "hash | `session.idle_timeout` after the last use, `session.absolute_timeout` at most; 10 minutes before its cookie has come back | begin and commit of a request | a session; `DIGEST` is the hashed id, the id itself is stored nowhere. Fields `_` and one letter are Regatta's; `_t` of 0: its cookie has not come back yet; `_r`: the mark of a rotated or ended id. In mode plain a string marks an ended one",
        ),
        key(
            keys::session_views(&session),
            "string | as its session | begin of a request | mode plain: the session's views",
        ),
        key(
            keys::quarantine("", "DIGEST"),
            "any | 1 hour | begin of a request | what lay under a session's key and was no session",
        ),
        key(
            keys::user_sessions("", "TAG"),
            "sorted set | until the last of them would end | login, logout | index of a user's sessions, scored by their ends; at most 1,000. `TAG` is no name",
        ),
        key(
            keys::user_generation("", "TAG"),
            "string | `session.absolute_timeout` | logout everywhere | when all sessions of the user were last ended",
        ),
        key(
            new_sessions.clone(),
            "string | until it is as if never used | begin and commit of a request | how many new sessions a client may still make",
        ),
        key(
            keys::new_session_window(&new_sessions),
            "string | until its window ends | begin and commit of a request | mode plain: the same, as a window",
        ),
        key(
            keys::active_sessions("", MINUTE),
            "HyperLogLog | some minutes | each worker, every few seconds | sessions seen in a minute",
        ),
    ]
}

/// Limits, counters and requests that are carried out once.
fn of_requests() -> Vec<DocumentedKey> {
    use counters::keys;
    let limit = limiter::keys::limit("", "POLICY", "VERSION", "SUBJECT");
    let plain = limiter::keys::limit_window(&limit);
    vec![
        key(
            limit.clone(),
            "string, sorted set | until it is as if never used; permits for `limits.*.concurrency_lease` | begin of a request | a subject's rate limit (GCRA), or the permits of a concurrency limit",
        ),
        key(
            limiter::keys::deferred_mark(&limit, "BATCH"),
            "string | 10 minutes | the first calls after an outage | that what was charged during an outage was applied",
        ),
        key(
            request_state::keys::compensation_mark(&limit, "NAME"),
            "string | 65 seconds | begin of a request in a cluster | that a part of a begin was undone; it lies beside sessions and counters, too",
        ),
        key(
            plain,
            "string | until its window ends | begin of a request | mode plain: the limit, as a window",
        ),
        key(
            keys::counter("", "NAME"),
            "string | for ever | `Counters::add`, `BatchedCounter`, views | an exact or batched counter; `views` is the total of all views",
        ),
        key(
            keys::counter_journals("", FLEET),
            "hash | 30 days after the last batch | workers that flush their journals | which batches of counter journals were applied",
        ),
        key(keys::bounded("", "NAME"), "string | for ever | `BoundedCounter` | how much is taken"),
        key(
            keys::bounded_token("", "NAME", "DIGEST"),
            "string | 1 day | `take_once`, `give_back_once` | a token that was used",
        ),
        key(
            keys::distinct("", "NAME", None),
            "HyperLogLog | for ever | `DistinctCounter` | different items, without end",
        ),
        key(
            keys::distinct("", "NAME", Some((LENGTH, NUMBER))),
            "HyperLogLog | until its window is over, and a while | `DistinctCounter::per` | different items in one window of so many milliseconds",
        ),
        key(
            idempotency::keys::idempotency("", "DIGEST"),
            "hash | `idempotency.ttl` | a request with `Idempotency-Key` | the record of a request that is carried out once, with its response",
        ),
        key(
            idempotency::keys::idempotency_name("", "KEY", "DIGEST"),
            "string | `idempotency.ttl` | a request with `Idempotency-Key` | a name under which such a record is found",
        ),
        key(
            request_state::keys::batch_ledger("", "LIFE", LEDGER),
            "string | 3 minutes after the last use | each worker | which calls of a batch were carried out, so that a repetition does nothing",
        ),
    ]
}

/// Broadcasts and tasks.
fn of_streams() -> Vec<DocumentedKey> {
    use tasks::keys;
    vec![
        key(
            broadcasts::keys::topic("", "NAME"),
            "stream | `broadcast.retention` after the last message | `Topic::publish` | a topic's latest messages, about `broadcast.retention_messages`",
        ),
        key(
            broadcasts::keys::presence("", "NAME"),
            "hash | 10 seconds | workers with subscribers, every few seconds | how many subscribe to a topic, one field a worker",
        ),
        key(
            keys::task("", "ID"),
            "hash | `tasks.retention` after its end; while it waits or runs, longer than it may | `TaskQueue`, workers that run it | a task; who knows its `ID` may read it",
        ),
        key(
            keys::task_queue("", "KIND"),
            "stream | as long as its tasks may live | `TaskQueue`, workers | the queue of a kind of tasks",
        ),
        key(
            keys::tasks_waiting(""),
            "sorted set | as long as its tasks may live | `TaskQueue`, workers | waiting tasks of all kinds, by when they were made",
        ),
        key(keys::tasks_running(""), "hash | as long as its tasks may live | workers | running tasks"),
        key(keys::tasks_dead(""), "list | 7 days after the last one | workers | the last hundred dead tasks"),
        key(
            keys::tasks_totals(""),
            "hash | 30 days after the last task | workers | how many tasks ended, by their end",
        ),
        key(
            keys::task_idle_workers("", "KIND"),
            "sorted set | 7 seconds | workers | workers that wait for this kind, by when they look by themselves",
        ),
    ]
}

/// The fleet's own.
fn of_fleets() -> Vec<DocumentedKey> {
    vec![
        key(
            registry::keys::instances(""),
            "hash | 10 minutes after the last heartbeat at most | each supervisor's worker, every `fleet.heartbeat_interval` | the latest report of each instance",
        ),
        key(
            registry::keys::instance_deadlines(""),
            "sorted set | 10 minutes after the last heartbeat at most | the same | when each instance counts as dead",
        ),
        key(
            common::libraries_in_use(""),
            "sorted set | for ever | the same | when each server-side library was last in use",
        ),
        key(
            common::migration_ledger(""),
            "hash | for ever | `migrate`, the first worker | which migrations were applied, with their checksums",
        ),
        key(
            common::migration_lock(""),
            "string | 5 seconds | a worker or command that migrates | the lock of migrations",
        ),
        key(
            common::migration_fence(""),
            "string | for ever | the holder of the lock | the fencing number of migrations",
        ),
        key(
            common::walk_lock(""),
            "string | 5 seconds | a worker that converts keys | the lock of walks over all keys",
        ),
        key(
            common::walk_fence(""),
            "string | for ever | the holder of the lock | the fencing number of walks",
        ),
        key(
            common::signing_key(""),
            "string | for ever | the first worker | the generated signing key, where no `session.secrets` are set: a secret",
        ),
    ]
}

fn documented() -> Vec<DocumentedKey> {
    [of_sessions(), of_requests(), of_streams(), of_fleets()].into_iter().flatten().collect()
}

/// The channels, and what each is for.
fn channels() -> [(String, &'static str); 4] {
    use crate::redis::notifications::NotificationChannel;
    [
        (
            common::notifications_channel(""),
            "what every worker must know at once: sessions that ended, limits that have quota again",
        ),
        (
            broadcasts::keys::channel("TOPIC").name(""),
            "a topic's messages, for workers that have subscribers to it",
        ),
        (tasks::keys::channel("ID").name(""), "a task's changes, for workers on which it is followed"),
        (
            NotificationChannel::worker("WORKER").name(""),
            "one worker: there is something to claim, a task it runs was cancelled",
        ),
    ]
}

#[test]
fn the_reference_of_redis_keys_is_what_makes_their_names() {
    let below = |name: &str| format!("`{}`", name.strip_prefix(':').unwrap());
    let rows = documented().into_iter().map(|key| {
        let tagged = cluster_name("", &key.name).map(|name| below(&name)).unwrap_or_default();
        let name = below(&key.name);
        let cells: Vec<&str> = [name.as_str(), &tagged].into_iter().chain(key.cells).collect();
        row(&cells)
    });
    let titles = ["key", "in a cluster", "type", "lives", "written by", "what"];
    let keys = head(&titles) + &rows.collect::<String>();
    let rows = channels().map(|(name, meaning)| row(&[&below(&name), meaning]));
    let channels = head(&["channel", "what"]) + &rows.concat();
    compare_page("reference/redis-keys.md", &[("keys", keys), ("channels", channels)]);
}

/// The functions of a file that make a name below a prefix or beside a key.
fn makers(source: &str) -> impl Iterator<Item = &str> {
    source.split("\npub fn ").skip(1).filter_map(|rest| {
        let (name, rest) = rest.split_once('(')?;
        let result = rest.split_once("-> ")?.1.lines().next()?;
        let name = name.split('<').next()?;
        (result.starts_with("String") || result.starts_with("NotificationChannel")).then_some(name)
    })
}

#[test]
fn every_function_that_makes_a_name_is_on_the_page() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let rooms = std::fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path().join("keys.rs"));
    let files = rooms.filter(|path| path.exists()).chain([root.join("redis/keys/mod.rs")]);
    let sources: Vec<_> = files.map(|path| std::fs::read_to_string(path).unwrap()).collect();
    assert!(sources.len() >= 9, "the files of names have moved");
    let page = std::fs::read_to_string(root.join("cli/reference/pages/redis_keys.rs")).unwrap();
    // What names are made of, a pattern of SCAN, a key that is never written, and the prefix of channels.
    let others = ["beside", "mark_beside", "key_pattern", "check", "channel_prefix"];
    let missing: BTreeSet<_> = sources.iter().flat_map(|source| makers(source)).collect();
    let missing: Vec<_> = missing
        .into_iter()
        .filter(|name| !others.contains(name) && !page.contains(&format!("::{name}(")))
        .collect();
    assert!(missing.is_empty(), "not in redis_keys.rs: {missing:?}");
}

#[test]
fn no_two_keys_have_one_name() {
    let names: Vec<_> = documented().into_iter().map(|key| key.name).collect();
    let different: BTreeSet<_> = names.iter().collect();
    // The marks of limits have one form: of an outage, and of a begin that was undone.
    assert_eq!(different.len(), names.len());
}
