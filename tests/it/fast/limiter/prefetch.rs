//! Limits that are leased by default: exactly what Redis alone would allow, with 1, 2 and 16 workers, and far fewer
//! questions.

use std::time::{Duration, Instant};

use regatta::__internals::config::settings::ScriptingMode;
use regatta::__internals::limiter::LimitSubject;
use regatta::__internals::limiter::commands::LimitCharge;
use tokio::task::JoinSet;

use crate::support::limit_workers::{CLIENT, Verdict, Worker, workers};
use crate::support::redis::{TestRedis, connect, eventually, function_calls};

fn limit(burst: u64, more: &str) -> String {
    format!("[limits.a]\nrate = \"1/h\"\nburst = {burst}\n{more}")
}

/// Asks until the worker holds something for this client; how many times.
async fn warm(worker: &Worker, key: &str) -> u64 {
    let mut asked = 0;
    eventually("something is held in advance", async || {
        for _ in 0..20 {
            worker.ask(key).await;
            asked += 1;
        }
        worker.redis.notifications_complete_since().is_some() && is_paid(worker, key).await
    })
    .await;
    asked
}

/// Whether the next request needs no question.
async fn is_paid(worker: &Worker, client: &str) -> bool {
    let set = worker.desk.policies().select("GET", "/", |_| None);
    let subject = LimitSubject { client, ..LimitSubject::default() };
    match worker.desk.check(&set, 0, &subject).await {
        // Dropped: what it took is held again.
        regatta::__internals::limiter::request_limiter::LimitAdmission::Pending(asked) => {
            asked.checks().is_empty()
        }
        regatta::__internals::limiter::request_limiter::LimitAdmission::Denied(_) => false,
    }
}

/// So many requests to each worker in turn, a number of them at a time; how many were allowed.
async fn spread(workers: &[Worker], requests: usize, at_once: usize) -> u64 {
    let mut allowed = 0;
    let mut tasks = JoinSet::new();
    for worker in workers.iter().cycle().take(requests) {
        let worker = worker.clone();
        tasks.spawn(async move { worker.ask(CLIENT).await.is_allowed() });
        if tasks.len() >= at_once {
            allowed += u64::from(tasks.join_next().await.unwrap().unwrap());
        }
    }
    while let Some(one) = tasks.join_next().await {
        allowed += u64::from(one.unwrap());
    }
    allowed
}

/// All that is allowed, to the last one, when requests go on until none is held and none is left.
async fn total(workers: &[Worker], burst: usize) -> (u64, u64) {
    let first = spread(workers, burst, 8).await;
    let mut all = first;
    eventually("nothing is left", async || {
        all += spread(workers, 2 * workers.len(), 1).await;
        workers[0].remaining().await == 0 && all >= burst as u64
    })
    .await;
    for _ in 0..3 {
        all += spread(workers, 2 * workers.len(), 1).await;
    }
    (first, all)
}

#[tokio::test]
async fn one_worker_allows_the_burst_and_no_more() {
    let server = TestRedis::start();
    for (name, burst) in [("small", 100), ("large", 10_000)] {
        server.cli(&["FLUSHALL"]);
        let workers: [Worker; 1] = workers(&server, &limit(burst, "")).await;
        let (first, all) = total(&workers, usize::try_from(burst).unwrap()).await;
        assert_eq!((first, all), (burst, burst), "{name}");
    }
}

#[tokio::test]
async fn a_client_that_changes_worker_each_time_gets_its_whole_burst() {
    let server = TestRedis::start();
    let two: [Worker; 2] = workers(&server, &limit(10_000, "")).await;
    let (first, all) = total(&two, 10_000).await;
    assert_eq!(all, 10_000);
    // What the other one holds when Redis has none left is called back: nothing is denied that is not used up.
    assert!(first >= 9_990, "{first} of 10000 at the first try");
    server.cli(&["FLUSHALL"]);
    let sixteen: [Worker; 16] = workers(&server, &limit(100, "")).await;
    assert_eq!(total(&sixteen, 100).await, (100, 100));
}

#[tokio::test]
async fn a_busy_limit_is_hardly_ever_asked_about_and_ten_thousand_clients_are_as_ever() {
    let server = TestRedis::start();
    let [worker]: [Worker; 1] = workers(&server, &limit(100_000, "")).await;
    warm(&worker, CLIENT).await;
    server.cli(&["CONFIG", "RESETSTAT"]);
    assert_eq!(worker.allowed(5000).await, 5000);
    let asked = function_calls(&server);
    println!("5000 requests of one client: {asked} calls");
    assert!(asked < 1000, "{asked} calls for 5000 requests");
    server.cli(&["CONFIG", "RESETSTAT"]);
    for number in 0..2000 {
        assert!(worker.ask(&format!("10.1.{}.{}", number / 250, number % 250)).await.is_allowed());
    }
    // What was held for the busy client goes back meanwhile.
    assert!(function_calls(&server) <= 2000 + 4, "{} calls for 2000 clients", function_calls(&server));
}

#[tokio::test]
async fn what_a_worker_holds_is_called_back_by_one_that_is_denied() {
    // The other one has drawn before and listens, or has never been denied before.
    for listens in [true, false] {
        let server = TestRedis::start();
        let [holder, other]: [Worker; 2] = workers(&server, &limit(1000, "")).await;
        if listens {
            warm(&other, "10.9.9.9").await;
        }
        warm(&holder, CLIENT).await;
        let left = holder.remaining().await;
        let key = holder.look().key;
        let all =
            LimitCharge { key, interval_us: 3_600_000_000, tolerance_us: 3_600_000_000_000, requests: left };
        // The holder may still be drawing what its first requests made it want: then that much less is left.
        let mut drawn = 0;
        loop {
            let more = other.redis.prefetch_quota(&all).await.unwrap().requests;
            drawn += more;
            if more == 0 {
                break;
            }
        }
        assert!((1..=left).contains(&drawn), "{listens}: {drawn} of {left}");
        // Redis has none left, and one is held for a moment: it is had by whichever worker is asked.
        let verdict = other.ask(CLIENT).await;
        assert!(verdict.is_allowed(), "{listens}: {verdict:?}");
        while other.ask(CLIENT).await.is_allowed() {}
        assert!(!holder.ask(CLIENT).await.is_allowed(), "{listens}: all of it came back");
    }
}

#[tokio::test]
async fn what_time_took_from_a_worker_is_not_allowed_once_more() {
    let server = TestRedis::start();
    let text = "[limits.a]\nrate = \"500/s\"\nburst = 1000\n";
    let [holder, other]: [Worker; 2] = workers(&server, text).await;
    warm(&other, "10.9.9.9").await;
    warm(&holder, CLIENT).await;
    // The charge of what lies there has passed: Redis would grant a whole burst beside it.
    eventually("Redis knows of no request", async || other.remaining().await == 1000).await;
    let (from, mut allowed, mut end) = (Instant::now(), 0, Duration::ZERO);
    // Longer than anything waits in a worker, and until the burst is used up.
    while allowed < 1000 || from.elapsed() < Duration::from_millis(900) {
        if other.ask(CLIENT).await.is_allowed() {
            (allowed, end) = (allowed + 1, from.elapsed());
        } else {
            tokio::task::yield_now().await;
        }
    }
    let most = 1000.0 + end.as_secs_f64() * 500.0;
    println!("{allowed} allowed in {end:?}, at most {most:.0}");
    assert!(f64::from(allowed) <= most, "{allowed} of {most}");
}

#[tokio::test]
async fn a_worker_that_dies_takes_with_it_what_it_held_and_no_more() {
    let server = TestRedis::start();
    let [dead, alive]: [Worker; 2] = workers(&server, &limit(1000, "")).await;
    warm(&dead, CLIENT).await;
    let before = alive.remaining().await;
    // It gives nothing back any more.
    drop(dead);
    let allowed = alive.allowed(1200).await as u64;
    assert!(allowed >= before, "{allowed} of {before}");
    assert!(allowed <= 1000);
}

#[tokio::test]
async fn workers_that_lease_and_workers_that_do_not_share_one_limit() {
    let server = TestRedis::start();
    let [leasing, again]: [Worker; 2] = workers(&server, &limit(1000, "")).await;
    let [old, older]: [Worker; 2] = workers(&server, &limit(1000, "prefetch = 0")).await;
    let all = [leasing, old, again, older];
    let (first, total) = total(&all, 1000).await;
    assert_eq!(total, 1000);
    assert!(first >= 900, "{first}: a worker of an earlier release calls nothing back");
}

#[tokio::test]
async fn a_fleet_wide_limit_is_leased_and_its_headers_tell_the_limit() {
    let server = TestRedis::start();
    let [worker]: [Worker; 1] = workers(&server, &limit(10_000, "per = \"global\"")).await;
    let mut left = 10_000 - warm(&worker, CLIENT).await;
    let (mut paid, mut exact) = (0, 0);
    for number in 0..2000 {
        let client = format!("10.0.0.{}", number % 200);
        paid += u64::from(is_paid(&worker, &client).await);
        let Verdict::Allowed(granted) = worker.ask(&client).await else { panic!("denied") };
        let told = granted.decisions[0].unwrap().remaining;
        left -= 1;
        // Less by what is drawn at that very moment, and never more than there is.
        assert!(told <= left && left - told <= 500, "{told} of {left}");
        exact += u64::from(told == left);
    }
    assert!(paid >= 1000, "{paid} of 2000 were paid in advance");
    assert!(exact >= 1000, "{exact} of 2000 were told exactly what is left");
}

#[tokio::test]
async fn another_limit_after_a_reload_begins_anew_and_what_was_held_of_the_old_one_goes_back() {
    let server = TestRedis::start();
    let [old]: [Worker; 1] = workers(&server, &limit(1000, "")).await;
    warm(&old, CLIENT).await;
    let [new]: [Worker; 1] = workers(&server, &limit(200, "")).await;
    assert_ne!(old.look().key, new.look().key);
    let mut used = 0;
    eventually("it goes back", async || {
        let before = old.remaining().await;
        let same = is_paid(&old, CLIENT).await;
        used = 1000 - before;
        !same
    })
    .await;
    assert_eq!(new.allowed(300).await, 200);
    assert!(used <= 1000);
}

#[tokio::test]
async fn without_redis_what_is_held_is_used_and_then_each_workers_part() {
    let mut server = TestRedis::start();
    let [worker]: [Worker; 1] = workers(&server, &limit(1000, "")).await;
    warm(&worker, CLIENT).await;
    server.kill();
    let mut allowed = 0;
    for _ in 0..2500 {
        allowed += u64::from(worker.ask(CLIENT).await.is_allowed());
    }
    // The part of the only worker is the whole limit, whatever Redis has charged: as ever.
    assert!((1000..=1100).contains(&allowed), "{allowed}");
}

#[tokio::test]
async fn without_server_side_code_nothing_is_leased() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Plain).await;
    let [worker]: [Worker; 1] = workers(&server, &limit(1000, "")).await;
    let worker = worker.on(redis, &limit(1000, ""));
    for _ in 0..100 {
        worker.ask(CLIENT).await;
    }
    assert!(!is_paid(&worker, CLIENT).await);
}
