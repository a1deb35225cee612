//! Several workers' limits over one real Redis, without HTTP around them: never too much, and rarely a question.
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use regatta::__internals::config::settings::ScriptingMode;
use regatta::__internals::limiter::gcra::WorkerShare;
use regatta::__internals::limiter::request_limiter::LimitAdmission;
use regatta::__internals::limiter::{LimitSubject, RequestLimiter};
use regatta::__internals::request_state::begin;

use tokio::task::JoinSet;

use crate::support::limit_workers::{CLIENT, Verdict, Worker, policies, workers};
use crate::support::redis::{TestRedis, connect, eventually, function_calls};
use crate::support::wait;

/// A moment that does not pass.
static STILL: OnceLock<Instant> = OnceLock::new();

#[tokio::test]
async fn a_flood_costs_each_worker_one_command_for_each_wait() {
    let server = TestRedis::start();
    let workers: [Worker; 4] = workers(&server, "[limits.a]\nrate = \"4/s\"\nburst = 4").await;
    server.cli(&["CONFIG", "RESETSTAT"]);
    let (begun, mut tasks) = (Instant::now(), JoinSet::new());
    for worker in workers.iter().cycle().take(32) {
        let worker = worker.clone();
        tasks.spawn(async move {
            let (mut allowed, mut denied) = (0, 0);
            while begun.elapsed() < Duration::from_secs(2) {
                match worker.ask(CLIENT).await.is_allowed() {
                    true => allowed += 1,
                    false => denied += 1,
                }
                wait::paced(Duration::from_millis(1)).await;
            }
            (allowed, denied)
        });
    }
    let seen: Vec<(u64, u64)> = tasks.join_all().await;
    let waits = u64::try_from(begun.elapsed().as_millis()).unwrap() / 250 + 1;
    let allowed: u64 = seen.iter().map(|(allowed, _)| allowed).sum();
    let denied: u64 = seen.iter().map(|(_, denied)| denied).sum();
    assert!(allowed <= 4 + waits, "{allowed} in {waits} waits");
    assert!(allowed >= 8, "what comes back is used: {allowed}");
    assert!(denied > 1000, "a flood, not {denied} requests");
    // At its beginning nothing is known: every one of a worker's eight asks.
    let calls = function_calls(&server);
    assert!(calls <= 4 * (8 + waits), "{calls} commands for {denied} denied requests in {waits} waits");
}

/// Two workers, each with so many clients of one subject, who come as fast as they are answered: allowed, denied, and
/// how many commands that took.
async fn flood(text: &str, subjects: usize, lasting: Duration) -> (u64, u64, u64) {
    let server = TestRedis::start();
    let workers: [Worker; 2] = workers(&server, text).await;
    server.cli(&["CONFIG", "RESETSTAT"]);
    let (begun, mut tasks) = (Instant::now(), JoinSet::new());
    for number in 0..64 {
        let worker = workers[number % 2].clone();
        let client = format!("10.0.1.{}", number / 2 % subjects);
        tasks.spawn(async move {
            let (mut allowed, mut denied) = (0, 0);
            while begun.elapsed() < lasting {
                match worker.ask(&client).await.is_allowed() {
                    true => allowed += 1,
                    false => denied += 1,
                }
                tokio::task::yield_now().await;
            }
            (allowed, denied)
        });
    }
    let seen: Vec<(u64, u64)> = tasks.join_all().await;
    let asked = function_calls(&server);
    let (allowed, denied) = seen.into_iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    (allowed, denied, asked)
}

#[tokio::test]
async fn a_denied_flood_costs_next_to_nothing_at_any_rate() {
    // The last two have so many requests' worth a second as the others, counted differently.
    let cases = [
        ("the default", "rate = \"1000/s\"", 1),
        ("slow", "rate = \"5/s\"", 1),
        ("with a burst of its own", "rate = \"100/s\"\nburst = 200", 1),
        ("a small burst", "rate = \"1000/s\"\nburst = 20", 1),
        ("quick", "rate = \"100000/s\"\ncost = 100", 1),
        ("several subjects", "rate = \"100/s\"\nburst = 100", 4),
    ];
    for (name, limit, subjects) in cases {
        let text = format!("[limits.a]\n{limit}");
        let (allowed, denied, asked) = flood(&text, subjects, Duration::from_secs(1)).await;
        let wasted = asked.saturating_sub(allowed);
        println!("{name}: {allowed} allowed, {denied} denied, {asked} commands, {wasted} for denials");
        // Those that are under way when the first denial comes are not known to be denied: 64 at most.
        assert!(
            wasted <= 64 + denied / 100,
            "{name}: {wasted} commands for {denied} denials, {allowed} allowed"
        );
        assert!(denied > 5000, "{name}: a flood, not {denied}");
    }
}

/// A second of a rate and a burst of it, so that nothing of it is lost while a machine is busy elsewhere.
#[tokio::test]
async fn a_flood_of_a_quick_limit_costs_each_worker_some_dozen_commands_a_second() {
    for rate in [200, 1000, 3000] {
        let begun = Instant::now();
        let limit = format!("[limits.a]\nrate = \"{rate}/s\"\nburst = {rate}");
        let (allowed, denied, asked) = flood(&limit, 1, Duration::from_secs(3)).await;
        let most = rate + begun.elapsed().as_secs() * rate + rate;
        println!("{rate}/s: {allowed} allowed, {denied} denied, {asked} commands");
        // Until it is known to be short every request asks by itself: the burst, and what comes back meanwhile. Then two
        // workers draw, and give back at the end what they did not use.
        assert!(asked <= 2 * rate + 64 + 2 * 50 * 4, "{rate}/s: {asked} commands, {allowed} allowed");
        assert!(allowed <= most, "{allowed} of {most}");
        if denied > 10 * rate {
            assert!(allowed >= 3 * rate, "{rate}/s: what comes back is used: {allowed}");
        }
    }
}

#[tokio::test]
async fn one_that_is_never_drawn_in_advance_asks_as_ever() {
    let server = TestRedis::start();
    let [worker] = workers(&server, "[limits.a]\nrate = \"1000/s\"\nprefetch = false").await;
    server.cli(&["CONFIG", "RESETSTAT"]);
    // One after the other, because what is asked at once shares a call.
    for _ in 0..300 {
        assert!(worker.ask(CLIENT).await.is_allowed());
    }
    assert_eq!(function_calls(&server), 300);
}

#[tokio::test]
async fn without_redis_a_request_that_is_dear_is_not_allowed_by_each_worker() {
    let mut server = TestRedis::start();
    let text = "[limits.a]\nrate = \"1/h\"\nburst = 20\ncost = 10";
    let workers: [Worker; 4] = workers(&server, text).await;
    let few: [Worker; 4] =
        crate::support::limit_workers::workers(&server, "[limits.a]\nrate = \"1/h\"\nburst = 2").await;
    server.kill();
    let mut granted = 0;
    for worker in workers.iter().chain(&few).cycle().take(80) {
        granted += usize::from(worker.ask(CLIENT).await.is_allowed());
    }
    assert_eq!(granted, 2, "four parts of 20 are 5, and 10 are more; of 2 two workers have one");
    assert!(matches!(workers[0].ask(CLIENT).await, Verdict::Closed), "that is not its client's fault");
}

#[tokio::test]
async fn workers_of_two_releases_draw_from_one_limit() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Fcall).await;
    let old = regatta::__internals::redis::functions::library_by_name("regatta_limit_v1").unwrap();
    server.cli(&["FUNCTION", "LOAD", old.text]);
    let amount = |requests| regatta::__internals::limiter::commands::LimitCharge {
        key: "p:l:a:v:1".into(),
        interval_us: 3_600_000_000,
        tolerance_us: 18_000_000_000,
        requests,
    };
    let old = |wanted: &str| {
        let quota = ["3600000000", "18000000000", wanted];
        let said = server.cli(&[&["FCALL", "regatta_limit_v1_draw", "1", "p:l:a:v:1"], &quota[..]].concat());
        said.lines().next().unwrap().parse::<u64>().unwrap()
    };
    assert_eq!((old("2"), redis.prefetch_quota(&amount(2)).await.unwrap().requests, old("9")), (2, 2, 1));
    assert_eq!((redis.refund_limit(&amount(3)).await, old("1")), (Ok(3), 1));
    assert_eq!(redis.prefetch_quota(&amount(9)).await.unwrap().requests, 2);
}

#[tokio::test]
async fn a_draw_that_gets_nothing_stores_what_it_cut() {
    for mode in [ScriptingMode::Fcall, ScriptingMode::Evalsha] {
        let server = TestRedis::start();
        let redis = connect(&server, "p", mode).await;
        let amount = |requests| regatta::__internals::limiter::commands::LimitCharge {
            key: "p:l:a:v:1".into(),
            interval_us: 1_000_000,
            tolerance_us: 5_000_000,
            requests,
        };
        // As a clock that was an hour ahead left it.
        let now: u64 = server.cli(&["TIME"]).lines().next().unwrap().parse().unwrap();
        server.cli(&["SET", "p:l:a:v:1", &format!("{}000000", now + 3600)]);
        let drawn = redis.prefetch_quota(&amount(3)).await.unwrap();
        assert_eq!((drawn.requests, drawn.reset_us), (0, 5_000_000), "{mode:?}");
        let stored: u64 = server.cli(&["GET", "p:l:a:v:1"]).trim().parse().unwrap();
        assert!(stored <= (now + 60) * 1_000_000, "{stored} is stored at {now}");
        assert!(server.cli(&["PTTL", "p:l:a:v:1"]).trim().parse::<i64>().unwrap() <= 5_000);
    }
}

#[tokio::test]
async fn what_comes_back_in_a_flood_is_used() {
    let (allowed, ..) = flood("[limits.a]\nrate = \"100/s\"\nburst = 50", 1, Duration::from_secs(3)).await;
    // 50 at once and 300 since; a machine that is busy elsewhere may lose what comes beyond a full burst.
    assert!((200..=360).contains(&allowed), "{allowed}");
}

#[tokio::test]
async fn what_is_given_back_or_reset_is_known_to_every_worker_at_once() {
    let server = TestRedis::start();
    let [one, other]: [Worker; 2] = workers(&server, "[limits.a]\nrate = \"1/h\"\nburst = 1").await;
    let Verdict::Allowed(granted) = one.ask(CLIENT).await else { panic!("denied") };
    for worker in [&one, &other] {
        assert!(!worker.ask(CLIENT).await.is_allowed());
        eventually("it hears the news", async || {
            worker.ask(CLIENT).await;
            worker.redis.notifications_complete_since().is_some()
        })
        .await;
        // What it learned before it heard the news is not trusted; from here on it does not ask any more.
        worker.ask(CLIENT).await;
        server.cli(&["CONFIG", "RESETSTAT"]);
        for _ in 0..50 {
            assert!(!worker.ask(CLIENT).await.is_allowed());
        }
        // None, unless the connection that hears the news was made anew meanwhile.
        assert!(function_calls(&server) <= 2, "{} commands", function_calls(&server));
    }
    one.desk.refund(granted.charges).await.unwrap();
    eventually("the refund is known", async || other.ask(CLIENT).await.is_allowed()).await;
    eventually("and used up again", async || !one.ask(CLIENT).await.is_allowed()).await;
    assert!(other.redis.reset_limit(&other.look().key).await.unwrap());
    eventually("the reset is known", async || one.ask(CLIENT).await.is_allowed()).await;
}

#[tokio::test]
async fn who_may_have_missed_news_does_not_rely_on_what_he_knows() {
    let server = TestRedis::start();
    let [worker]: [Worker; 1] = workers(&server, "[limits.a]\nrate = \"1/h\"\nburst = 1").await;
    assert!(worker.ask(CLIENT).await.is_allowed());
    eventually("it hears the news", async || worker.redis.notifications_complete_since().is_some()).await;
    assert!(!worker.ask(CLIENT).await.is_allowed());
    // Without telling anyone.
    server.cli(&["DEL", &worker.look().key]);
    server.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    eventually("it asks", async || worker.ask(CLIENT).await.is_allowed()).await;
    eventually("it hears again", async || worker.redis.notifications_complete_since().is_some()).await;
}

#[tokio::test]
async fn three_policies_and_if_one_denies_none_is_charged() {
    let server = TestRedis::start();
    let text = "[limits.a]\nrate = \"1/h\"\nburst = 10\ncost = 2\n[limits.b]\nrate = \"1/h\"\nburst = 10\nprefetch = false\n\
                [limits.c]\nrate = \"1/h\"\nburst = 1";
    let [worker]: [Worker; 1] = workers(&server, text).await;
    assert!(worker.ask(CLIENT).await.is_allowed());
    let before = worker.remaining().await;
    assert_eq!(before, 8);
    let digest = server.cli(&["DEBUG", "DIGEST"]);
    // The first denial comes from what is known; a worker that knows nothing asks Redis.
    let [fresh]: [Worker; 1] = workers(&server, text).await;
    for worker in [&worker, &fresh] {
        for _ in 0..5 {
            let Verdict::Denied(replies) = worker.ask(CLIENT).await else { panic!("allowed") };
            assert!(replies[2].is_some_and(|reply| !reply.allowed && reply.retry_after_us.is_some()));
        }
    }
    assert_eq!((server.cli(&["DEBUG", "DIGEST"]), worker.remaining().await), (digest, before));
}

#[tokio::test]
async fn without_redis_all_workers_together_allow_the_limit_and_it_is_charged_once() {
    let mut server = TestRedis::start();
    let workers: [Worker; 4] = workers(&server, "[limits.a]\nrate = \"1/h\"\nburst = 40").await;
    server.kill();
    let mut allowed = 0;
    for worker in &workers {
        allowed += worker.allowed(30).await;
        let Verdict::Denied(replies) = worker.ask(CLIENT).await else { panic!("allowed") };
        assert!(replies[0].is_some_and(|reply| reply.retry_after_us.is_some()), "a true denial");
    }
    assert_eq!(allowed, 40);
    server.restart();
    // This server never saw a request: whatever it knows was told by the workers.
    eventually("all have told what they allowed", async || {
        let looked = workers[0].redis.limit_status(&workers[0].look()).await;
        looked.is_ok_and(|standing| standing.remaining == 0)
    })
    .await;
    for _ in 0..3 {
        wait::pass(Duration::from_millis(120)).await;
        assert_eq!(workers[0].remaining().await, 0);
    }
    // Had anything been told twice, more than the whole would be owed: what is cut at the whole hides nothing here.
    let marks = server.keys().into_iter().filter(|key| key.contains(":m:")).count();
    assert_eq!(marks, 4, "each worker told it once");
    assert!(!workers[1].ask(CLIENT).await.is_allowed());
}

#[tokio::test]
async fn without_redis_a_policy_may_be_open_or_closed() {
    let mut server = TestRedis::start();
    let text = |policy: &str| format!("[limits.a]\nrate = \"1/h\"\nburst = 2\non_redis_down = \"{policy}\"");
    let [open]: [Worker; 1] = workers(&server, &text("open")).await;
    let [closed]: [Worker; 1] = workers(&server, &text("closed")).await;
    server.kill();
    assert_eq!(open.allowed(20).await, 20);
    for _ in 0..20 {
        assert!(matches!(closed.ask(CLIENT).await, Verdict::Closed));
    }
    let places = "[limits.a]\nconcurrency = 4\n";
    server.restart();
    let [one]: [Worker; 1] = workers(&server, places).await;
    server.kill();
    let one = Worker { part: WorkerShare { workers: 2, ..WorkerShare::WHOLE }, ..one };
    let held = [one.ask(CLIENT).await, one.ask(CLIENT).await];
    assert!(held.iter().all(Verdict::is_allowed) && !one.ask(CLIENT).await.is_allowed(), "half of four");
    drop(held);
    assert!(one.ask(CLIENT).await.is_allowed());
}

#[tokio::test]
async fn drawn_in_advance_is_never_more_and_hardly_ever_asked() {
    let server = TestRedis::start();
    let workers: [Worker; 4] =
        workers(&server, "[limits.a]\nrate = \"1/h\"\nburst = 10000\nprefetch = true").await;
    server.cli(&["CONFIG", "RESETSTAT"]);
    let mut tasks = JoinSet::new();
    // Most of it comes to one worker.
    for (worker, requests) in workers.iter().cloned().zip([8_550, 475, 285, 190]) {
        tasks.spawn(async move { worker.allowed(requests).await });
    }
    let first: usize = tasks.join_all().await.into_iter().sum();
    // A worker may hold a twentieth of the burst that it does not use, and that is denied to the others: so few are
    // allowed only if all four do at the end, and how much each draws depends on how fast it is.
    assert!((10_000 - 4 * 500..=10_000).contains(&first), "{first}");
    let asked = function_calls(&server);
    assert!(asked <= 9_500 / 20, "{asked} commands for 9500 requests");
    eventually("what was not used is given back", async || {
        workers[0].remaining().await == 10_000 - first as u64
    })
    .await;
    let mut all = first;
    eventually("what is left is used, to the last one", async || {
        for worker in &workers {
            all += worker.allowed(200).await;
        }
        all >= 10_000
    })
    .await;
    for worker in &workers {
        all += worker.allowed(200).await;
    }
    assert_eq!(all, 10_000);
}

#[tokio::test]
async fn what_was_drawn_is_used_even_if_redis_has_no_more() {
    let server = TestRedis::start();
    let text = "[limits.a]\nrate = \"1/h\"\nburst = 1000\nprefetch = true";
    let [one, other]: [Worker; 2] = workers(&server, text).await;
    // What is drawn is not given back while this clock stands still.
    let still = || *STILL.get_or_init(Instant::now);
    let desk =
        RequestLimiter::new(policies(text), one.redis.redis().clone(), Duration::from_millis(500), still);
    let one = Worker { desk, ..one };
    // It asks itself until it has drawn; then no command is needed for a while.
    eventually("something was drawn", async || {
        let before = one.remaining().await;
        one.ask(CLIENT).await.is_allowed() && one.remaining().await == before
    })
    .await;
    let key = one.look().key;
    let all = regatta::__internals::limiter::commands::LimitCharge {
        key,
        interval_us: 3_600_000_000,
        tolerance_us: 3_600_000_000_000,
        requests: 1000,
    };
    other.redis.prefetch_quota(&all).await.unwrap();
    assert_eq!(one.remaining().await, 0);
    // More than was drawn: Redis is asked, denies it, and that is remembered.
    let set = one.desk.policies().select("GET", "/", |_| None);
    let subject = LimitSubject { client: CLIENT, ..LimitSubject::default() };
    let mut dear = set.clone();
    dear.add_policy(0, Some(400), 0);
    let LimitAdmission::Pending(asked) = one.desk.check(&dear, 0, &subject).await else {
        panic!("nothing is known")
    };
    let request =
        begin::BeginRequest { limits: asked.checks(), token: asked.permit_name(), ..Default::default() };
    let Ok(begin::BeginReply::Denied { limits }) = one.redis.begin(&request).await else { panic!("allowed") };
    asked.deny(&dear, &limits);
    assert!(matches!(one.desk.check(&dear, 0, &subject).await, LimitAdmission::Denied(_)));
    assert!(one.ask(CLIENT).await.is_allowed(), "it is paid for");
}

#[tokio::test]
async fn places_are_shared_renewed_and_given_back() {
    let server = TestRedis::start();
    let text = "[limits.a]\nconcurrency = 3\nconcurrency_lease = \"1s\"";
    let [one, other]: [Worker; 2] = workers(&server, text).await;
    let mut held = vec![one.ask(CLIENT).await, one.ask(CLIENT).await, other.ask(CLIENT).await];
    assert!(held.iter().all(Verdict::is_allowed));
    // Longer than a lease: they are renewed.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(2500) {
        let Verdict::Denied(replies) = other.ask(CLIENT).await else { panic!("a fourth one") };
        assert!(replies[0].is_some_and(|reply| reply.retry_after_us == Some(1_000_000)));
        wait::paced(Duration::from_millis(50)).await;
    }
    assert!(other.ask("10.0.0.2").await.is_allowed(), "another client has places of his own");
    held.pop();
    let mut again = None;
    eventually("a place that is given back is had by somebody else", async || {
        again = Some(one.ask(CLIENT).await).filter(Verdict::is_allowed);
        again.is_some()
    })
    .await;
    assert_eq!(one.remaining().await, 0);
    drop((held, again));
    eventually("all are given back", async || one.remaining().await == 3).await;
}

#[test]
fn a_place_ends_with_its_worker() {
    let server = TestRedis::start();
    let text = "[limits.a]\nconcurrency = 1\nconcurrency_lease = \"1s\"";
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let killed = runtime();
    let place = killed.block_on(async {
        let [worker]: [Worker; 1] = workers(&server, text).await;
        worker.ask(CLIENT).await
    });
    assert!(place.is_allowed());
    // Nothing of it runs any more, and no one says goodbye.
    std::mem::forget(place);
    killed.shutdown_background();
    runtime().block_on(async {
        let [worker]: [Worker; 1] = workers(&server, text).await;
        eventually("the place is free", async || worker.ask(CLIENT).await.is_allowed()).await;
    });
}

#[tokio::test]
async fn a_request_that_is_dropped_while_it_asks_leaves_no_place_behind() {
    let server = TestRedis::start();
    let [worker]: [Worker; 1] =
        workers(&server, "[limits.a]\nconcurrency = 2\nconcurrency_lease = \"5m\"").await;
    for _ in 0..20 {
        let asking = worker.ask(CLIENT);
        let _ = tokio::time::timeout(Duration::from_micros(50), asking).await;
    }
    eventually("all places are free", async || worker.remaining().await == 2).await;
}

#[tokio::test]
async fn a_limit_in_shadow_counts_and_denies_nobody() {
    let server = TestRedis::start();
    let [worker]: [Worker; 1] =
        workers(&server, "[limits.a]\nrate = \"1/h\"\nburst = 2\nshadow = true").await;
    let mut shadowed = 0;
    for _ in 0..5 {
        let Verdict::Allowed(granted) = worker.ask(CLIENT).await else { panic!("denied") };
        shadowed += granted.shadow_denied.len();
    }
    assert_eq!((shadowed, worker.remaining().await), (3, 0));
}

#[tokio::test]
async fn the_errands_do_the_same_on_functions_and_on_scripts() {
    for mode in [ScriptingMode::Fcall, ScriptingMode::Evalsha] {
        let server = TestRedis::start();
        let redis = connect(&server, "p", mode).await;
        let amount = |requests| regatta::__internals::limiter::commands::LimitCharge {
            key: "p:l:a:v:1".into(),
            interval_us: 3_600_000_000,
            tolerance_us: 18_000_000_000,
            requests,
        };
        let drawn =
            async |requests| redis.prefetch_quota(&amount(requests)).await.map(|drawn| drawn.requests);
        assert_eq!((drawn(3).await, drawn(9).await), (Ok(3), Ok(2)));
        assert_eq!(redis.refund_limit(&amount(2)).await, Ok(2));
        assert_eq!(
            (
                redis.apply_deferred_charge("b", &amount(1)).await,
                redis.apply_deferred_charge("b", &amount(1)).await
            ),
            (Ok(true), Ok(false))
        );
        assert_eq!(redis.refund_limit(&amount(0)).await, Ok(1));
        assert_eq!(redis.refund_limit(&amount(99)).await, Ok(5));
        assert_eq!((drawn(1).await, redis.reset_limit("p:l:a:v:1").await), (Ok(1), Ok(true)));
        assert_eq!(redis.reset_limit("p:l:a:v:1").await, Ok(false));
        assert_eq!(redis.renew_permit("p:l:b", "nobody", 1_000_000).await, Ok(false), "{mode:?}");
        assert_eq!(redis.release_permit("p:l:b", "nobody").await, Ok(false));
        // Something else under the key is an error, and nothing is changed.
        server.cli(&["HSET", "p:l:a:v:1", "a", "1"]);
        assert!(redis.apply_deferred_charge("c", &amount(1)).await.is_err());
        assert_eq!(server.cli(&["EXISTS", "p:l:a:v:1:m:c"]), "0");
    }
}
