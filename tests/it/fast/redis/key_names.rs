//! Names of different fleets and families never collide, whatever strings they are made of.

use proptest::prelude::*;

use regatta::__internals::broadcasts::keys::{channel as topic_channel, presence, topic};
use regatta::__internals::config::key_prefix;
use regatta::__internals::counters::keys::{bounded, bounded_token, counter, counter_journals, distinct};
use regatta::__internals::idempotency::keys::{idempotency, idempotency_name};
use regatta::__internals::limiter::keys::{deferred_mark, limit, limit_window};
use regatta::__internals::redis::keys::{
    channel_prefix, check, cluster_name, key_pattern, libraries_in_use, migration_fence, migration_ledger,
    migration_lock, notifications_channel, plain_name, signing_key, walk_fence, walk_lock,
};
use regatta::__internals::redis::notifications::NotificationChannel;
use regatta::__internals::registry::keys::{instance_deadlines, instances};
use regatta::__internals::request_state::keys::batch_ledger;
use regatta::__internals::sessions::keys::{
    active_sessions, new_session_limit, new_session_window, quarantine, session, session_views,
    user_generation, user_sessions,
};
use regatta::__internals::tasks::keys::{
    channel as task_channel, task, task_idle_workers, task_queue, tasks_dead, tasks_running, tasks_totals,
    tasks_waiting,
};

/// The names of one fleet for this string: every key, with and without a cluster, and every channel.
fn names(prefix: &str, name: &str, other: &str) -> Vec<String> {
    let limit = limit(prefix, "default", "v", name);
    let space = [channel_prefix(prefix, 0), channel_prefix(prefix, 1), channel_prefix(prefix, 255)];
    let channels = space.iter().flat_map(|space| {
        [
            notifications_channel(space),
            topic_channel(name).name(space),
            task_channel(name).name(space),
            NotificationChannel::worker(name).name(space),
        ]
    });
    let channels: Vec<String> = channels.collect();
    let session = session(prefix, name);
    let mut names = vec![
        session_views(&session),
        session,
        quarantine(prefix, name),
        user_sessions(prefix, name),
        user_generation(prefix, name),
        new_session_window(&new_session_limit(prefix, name)),
        new_session_limit(prefix, name),
        deferred_mark(&limit, other),
        limit_window(&limit),
        limit,
        counter(prefix, name),
        counter_journals(prefix, 7),
        distinct(prefix, name, None),
        distinct(prefix, name, Some((1000, 7))),
        active_sessions(prefix, 7),
        bounded(prefix, name),
        bounded_token(prefix, name, other),
        idempotency(prefix, name),
        idempotency_name(prefix, name, other),
        batch_ledger(prefix, name, 7),
        migration_ledger(prefix),
        migration_lock(prefix),
        migration_fence(prefix),
        walk_lock(prefix),
        walk_fence(prefix),
        signing_key(prefix),
        check(prefix),
        instances(prefix),
        instance_deadlines(prefix),
        libraries_in_use(prefix),
        task(prefix, name),
        task_queue(prefix, name),
        tasks_waiting(prefix),
        tasks_running(prefix),
        tasks_dead(prefix),
        tasks_totals(prefix),
        task_idle_workers(prefix, name),
        topic(prefix, name),
        presence(prefix, name),
    ];
    let in_cluster: Vec<String> = names.iter().filter_map(|key| cluster_name(prefix, key)).collect();
    names.extend(in_cluster);
    names.extend(channels);
    names
}

/// Prefixes that are valid and made to nest: their segments are names of families and similar ones.
fn prefixes() -> impl Strategy<Value = String> {
    let families = key_prefix::FAMILIES.iter().copied().chain(["s", "c", "l", "t", "b", "w", "p", "i"]);
    let near: Vec<String> =
        families.flat_map(|it| [it.to_owned(), format!("{it}x"), it.to_uppercase()]).collect();
    let segment = prop_oneof![proptest::sample::select(near), "[a-z]{1,2}", "[A-Za-z0-9._-]{1,4}"];
    let path = proptest::collection::vec(segment, 1..5).prop_map(|segments| segments.join(":"));
    path.prop_filter("valid", |prefix| {
        prefix.split(':').skip(1).all(|segment| !key_prefix::is_family(segment))
    })
}

/// Hostile names: names of keys, with colons, braces, spaces, wildcards.
fn hostile() -> impl Strategy<Value = String> {
    const PARTS: &[&str] =
        &["secret", "s", "c", "mig", "news", ":", "{", "}", "@1", "*", " ", "b", "w", "{t}", "x", "é"];
    proptest::collection::vec(proptest::sample::select(PARTS), 0..7).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_name_of_a_fleet_is_one_of_a_fleet_with_another_prefix(
        one in prefixes(),
        other in prefixes(),
        names_of_things in proptest::collection::vec(hostile(), 4),
        tail in hostile(),
    ) {
        // The second one nests in the first one as far as possible: the rest is tried as a name.
        let nested = format!("{one}:{other}");
        let nests = nested.split(':').skip(1).all(|segment| !key_prefix::is_family(segment));
        for pair in [Some((&one, &other)), nests.then_some((&one, &nested))].into_iter().flatten() {
            if pair.0 == pair.1 {
                continue;
            }
            let mut things = names_of_things.clone();
            for rest in [pair.1.strip_prefix(pair.0.as_str()), pair.0.strip_prefix(pair.1.as_str())] {
                things.extend(rest.iter().flat_map(|rest| [format!("{rest}:{tail}"), rest[1..].to_owned()]));
            }
            let all = |prefix: &str| -> std::collections::HashSet<String> {
                things.iter().flat_map(|thing| names(prefix, thing, &tail)).collect()
            };
            let (left, right) = (all(pair.0), all(pair.1));
            let both: Vec<_> = left.intersection(&right).collect();
            prop_assert!(both.is_empty(), "{pair:?}: {both:?}");
        }
    }
}

#[test]
fn no_prefix_may_end_with_the_name_of_a_family() {
    for name in names("p", "x", "y") {
        let family = name.strip_prefix("p:").unwrap().split(':').next().unwrap();
        let free = key_prefix::is_family(family) || family.starts_with('{') || family.starts_with('@');
        assert!(free, "{name}: a prefix p:{family} would nest in p; see config/key_prefix.rs");
    }
}

#[test]
fn names_chosen_by_clients_never_collide_with_a_signing_key() {
    assert_eq!(counter("shop", "secret"), signing_key("shop:c"), "so shop:c is refused");
    assert!(key_prefix::is_family("c"));
}

#[test]
fn channels_of_two_databases_differ_and_those_of_the_first_have_no_number() {
    assert_eq!(notifications_channel(&channel_prefix("p", 0)), "p:news");
    assert_eq!(notifications_channel(&channel_prefix("p", 1)), "p:@1:news");
    assert_eq!(topic_channel("a:b").name(&channel_prefix("p", 12)), "p:@12:b:a:b");
}

#[test]
fn every_key_begins_with_the_prefix() {
    let keys = [
        session("p", "d"),
        quarantine("p", "d"),
        user_sessions("p", "t"),
        user_generation("p", "t"),
        limit("p", "default", "v", "10.0.0.1"),
        counter("p", "hits"),
        counter_journals("p", 7),
        distinct("p", "visitors", None),
        distinct("p", "visitors", Some((1000, 7))),
        bounded("p", "seats"),
        bounded_token("p", "seats", "d"),
        idempotency("p", "d"),
        idempotency_name("p", "k", "d"),
        deferred_mark("p:l:default:v:10.0.0.1", "b"),
        batch_ledger("p", "5eed", 7),
        migration_ledger("p"),
        migration_lock("p"),
        migration_fence("p"),
        walk_lock("p"),
        walk_fence("p"),
        key_pattern("p", "*"),
        signing_key("p"),
        instances("p"),
        instance_deadlines("p"),
        libraries_in_use("p"),
        task("p", "0a"),
        task_queue("p", "fibonacci"),
        tasks_waiting("p"),
        tasks_running("p"),
        tasks_dead("p"),
        tasks_totals("p"),
        topic("p", "chat"),
        presence("p", "chat"),
        task_idle_workers("p", "fibonacci"),
    ];
    assert!(keys.iter().all(|key| key.starts_with("p:")), "{keys:?}");
    assert_eq!(keys[4], "p:l:default:v:10.0.0.1");
}

#[test]
fn keys_of_one_call_share_a_hash_tag() {
    let name = |key: &str| cluster_name("a:b", key).unwrap_or_else(|| key.to_owned());
    assert_eq!(name("a:b:s:digest"), "a:b:{s}:s:digest");
    assert_eq!(name("a:b:g:user"), "a:b:{s}:g:user");
    assert_eq!(name("a:b:c:total"), "a:b:{c}:c:total");
    assert_eq!(name("a:b:mig:lock"), "a:b:{mig}:mig:lock");
    assert_eq!(name("a:b:mig"), "a:b:{mig}:mig");
    assert_eq!(name("a:b:l:m:v:2001:db8::"), "a:b:{l:m:v:2001:db8::}");
    assert_eq!(name("a:b:l:m:v:10.0.0.1:m:batch"), "a:b:{l:m:v:10.0.0.1}:m:batch");
    let limit = "a:b:l:m:v:2001:db8::";
    assert_eq!(plain_name("a:b", &name(limit)).as_deref(), Some(limit));
    assert_eq!(plain_name("a:b", "a:b:c:x"), None);
    for same in ["a:b:{fleet}:machines", "a:b:{b}:topic:l:m:v:x", "a:b:secret", "other:s:x", "a:b:i:digest"] {
        assert_eq!(name(same), same);
    }
}
