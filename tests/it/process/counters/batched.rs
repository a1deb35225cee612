//! Batched counters: nothing lost, nothing twice, whatever is killed or cut, and few commands.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use regatta::__internals::config::settings::ScriptingMode;
use regatta::__internals::counters::CounterName;
use regatta::__internals::counters::batched::BatchedCounters;
use regatta::__internals::redis::RedisClient;
use regatta::__internals::scoreboard::Scoreboard;

use crate::support::client::{Connection, Failure, Request};
use crate::support::exposition::sum;
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::parallel_clients::ParallelClients;
use crate::support::redis::{TestRedis, connect, eventually};
use crate::support::{client, process, soak, wait};

const HOT: &str = "/counters/hot?kind=batched";

/// What lies in Redis under the counter.
fn stored(redis: &TestRedis, fleet: &TestFleet, name: &str) -> i64 {
    let prefix = fleet.plan().prefix();
    redis.cli(&["GET", &format!("{prefix}:c:{name}")]).parse().unwrap_or(0)
}

/// A figure of all slots.
fn metric(fleet: &TestFleet, name: &str) -> f64 {
    sum(&fleet.operator("/metrics").text(), name, &[])
}

/// A client that adds 1 for ever, over one connection as long as that holds; whether each was answered.
fn adder(address: std::net::SocketAddr, target: &'static str) -> impl FnMut() -> Result<(), Failure> + Send {
    let mut connection: Option<Connection> = None;
    move || {
        let mut open = match connection.take() {
            Some(open) if !open.is_closed() => open,
            _ => Connection::open(address)?,
        };
        let response = open.request(&Request::post(target))?;
        assert_eq!(response.status, 200, "{response:?}");
        if response.keeps_alive() {
            connection = Some(open);
        }
        Ok(())
    }
}

/// A client that was refused or cut off before the request was sent added nothing; every other failure may have.
fn tally(results: &[Result<(), Failure>]) -> (i64, i64) {
    let answered = results.iter().filter(|result| result.is_ok()).count();
    let unknown =
        results.iter().filter(|result| matches!(result, Err(failure) if *failure != Failure::Refused));
    (i64::try_from(answered).unwrap(), i64::try_from(unknown.count()).unwrap())
}

fn assert_settles(redis: &TestRedis, fleet: &TestFleet, answered: i64, unknown: i64) {
    wait::until("nothing is pending", wait::LONG, || {
        metric(fleet, "regatta_counter_increments_pending") == 0.0
    });
    let total = stored(redis, fleet, "hot");
    assert!(
        (answered..=answered + unknown).contains(&total),
        "{total}: {answered} answered, {unknown} unknown"
    );
    assert_eq!(metric(fleet, "regatta_counter_increments_dropped_total"), 0.0);
    soak::log("batched", &format!("{total} counted, {answered} answered, {unknown} without an answer"));
}

#[test]
fn killed_workers_and_cut_connections_lose_nothing_and_count_nothing_twice() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(4).start();
    let address = fleet.listen;
    let load = ParallelClients::start(6, |_| adder(address, HOT));
    for round in 0..soak::length(3, 30) {
        let pids = fleet.workers();
        let seen = load.seen();
        wait::until("additions", wait::LONG, || load.seen() > seen + 200);
        redis.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
        process::signal(pids[round % pids.len()], Signal::SIGKILL);
        let ready = fleet.ready().len();
        wait::until("the slot is taken again", wait::LONG, || {
            fleet.ready().len() > ready || fleet.workers().len() == 4
        });
    }
    let (answered, unknown) = tally(&load.stop().concat());
    assert!(unknown <= 6 * 30, "at most what the clients had under way: {unknown}");
    assert_settles(&redis, &fleet, answered, unknown);
}

#[test]
fn a_reload_and_a_stop_take_everything_along() {
    let redis = TestRedis::start();
    let mut fleet =
        TestFleetBuilder::on(&redis).workers(3).set("REGATTA_WORKERS__CANARY_PERIOD", "100ms").start();
    let address = fleet.listen;
    let load = ParallelClients::start(4, |_| adder(address, HOT));
    wait::until("additions", wait::LONG, || load.seen() > 100);
    fleet.signal(Signal::SIGHUP);
    wait::until("all slots have new workers", wait::LONG, || fleet.ready().len() == 6);
    let seen = load.seen();
    wait::until("additions go on", wait::LONG, || load.seen() > seen + 100);
    let results = load.stop().concat();
    let (answered, unknown) = tally(&results);
    assert_eq!(unknown, 0, "a reload fails nobody");
    let last = client::once(address, Request::post("/counters/hot?kind=batched&by=1000")).unwrap();
    assert_eq!(last.status, 200);
    let key = format!("{}:c:hot", fleet.plan().prefix());
    assert_eq!(fleet.stop(), 0);
    assert_eq!(redis.cli(&["GET", &key]), (answered + 1000).to_string(), "sent on at the end of the drain");
}

#[test]
fn while_redis_is_away_additions_are_taken_and_come_later_once() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(2).start();
    assert_eq!(fleet.get(HOT).json()["value"], 0);
    redis.stop();
    for _ in 0..100 {
        let response = client::once(fleet.listen, Request::post(HOT)).unwrap();
        assert_eq!(response.status, 200, "{response:?}");
    }
    wait::until("the outage is seen", wait::LONG, || {
        metric(&fleet, "regatta_counter_oldest_pending_seconds") > 0.5
    });
    assert_eq!(metric(&fleet, "regatta_counter_increments_pending"), 100.0);
    // What was sent while it stood still is executed late, and again: each batch counts once.
    redis.cont();
    assert_settles(&redis, &fleet, 100, 0);
}

#[test]
fn a_read_contains_what_this_machine_was_told_before() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(3).start();
    let (mut told, mut told_by_post) = (0, 0);
    for round in 0..60 {
        let posted = client::once(fleet.listen, Request::post("/counters/hot?kind=batched&by=3")).unwrap();
        told += 3;
        if posted.json()["value"].is_number() {
            told_by_post += 1;
            assert!(posted.json()["staleness_seconds"].as_f64().unwrap() >= 0.05);
        }
        // From whichever worker, and in whichever moment between adding, sealing, sending and settling.
        let read = fleet.get(HOT).json();
        assert_eq!(
            (read["value"].as_i64(), read["kind"].as_str()),
            (Some(told), Some("batched")),
            "round {round}"
        );
    }
    assert!(told_by_post > 0, "a worker that has heard of the counter tells its value without asking");
    assert_eq!(fleet.get("/counters/hot").json()["kind"], "exact");
    wait::until("exact and batched are one number", wait::LONG, || {
        fleet.get("/counters/hot").json()["value"].as_i64() == Some(told)
    });
}

#[test]
fn a_hot_counter_costs_some_twenty_commands_a_second_and_worker() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(4).start();
    let address = fleet.listen;
    redis.cli(&["CONFIG", "RESETSTAT"]);
    let begun = Instant::now();
    let load = ParallelClients::start(4, |_| adder(address, HOT));
    wait::let_pass(soak::length(Duration::from_secs(1), Duration::from_secs(10)));
    let (answered, _) = tally(&load.stop().concat());
    let calls = redis.commands().get("fcall").copied().unwrap_or(0);
    let ticks = begun.elapsed().as_millis() as u64 / 45 + 2;
    assert!(calls <= 4 * ticks, "{calls} calls in {ticks} ticks for {answered} additions");
    soak::log("hot counter", &format!("{answered} additions, {calls} commands, {:?}", begun.elapsed()));
}

#[test]
fn additions_that_cannot_be_are_told_and_stop_nothing() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(1).start();
    client::once(fleet.listen, Request::post(&format!("/counters/orders?by={}", i64::MAX))).unwrap();
    for target in ["/counters/orders?kind=batched&by=2", "/counters/bell?kind=batched&by=5"] {
        assert_eq!(client::once(fleet.listen, Request::post(target)).unwrap().status, 200);
    }
    wait::until("the drop is counted", wait::LONG, || {
        metric(&fleet, "regatta_counter_increments_dropped_total") == 2.0
    });
    assert_eq!((stored(&redis, &fleet, "orders"), stored(&redis, &fleet, "bell")), (i64::MAX, 5));
}

#[test]
fn names_beyond_the_journals_room_are_added_at_once() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(1).example("faulty").start();
    let mut connection = Connection::open(fleet.listen).unwrap();
    for number in 0..200 {
        let response = connection.request(&Request::post(&format!("/batched/n{number}"))).unwrap();
        assert_eq!(response.status, 200, "{response:?}");
    }
    let prefix = fleet.plan().prefix();
    let keys: Vec<_> = (0..200).map(|number| format!("{prefix}:c:n{number}")).collect();
    let ask: Vec<_> = std::iter::once("MGET").chain(keys.iter().map(String::as_str)).collect();
    wait::until("all have come", wait::LONG, || {
        redis.cli(&ask).lines().filter(|value| *value == "1").count() == 200
    });
}

fn seat(table: &Arc<Scoreboard>, redis: &RedisClient, cell: usize) -> BatchedCounters {
    table.cell(0, cell).reset(1, 0);
    table.cell(0, cell).set_pid(1);
    BatchedCounters::new(Arc::clone(table), redis.clone(), "p", 0, cell)
}

/// Lives of workers that end at any await, with connections that are cut, on functions and scripts: an exact total.
#[tokio::test]
async fn any_number_of_lives_and_cuts_adds_up_exactly() {
    for mode in [ScriptingMode::Fcall, ScriptingMode::Evalsha] {
        let server = TestRedis::start();
        let redis = connect(&server, "p", mode).await;
        let table = Arc::new(Scoreboard::create(NonZeroUsize::MIN, 1, 0).unwrap());
        let names: Vec<_> = (0..5).map(|name| CounterName::parse(&format!("n{name}")).unwrap()).collect();
        let rounds = soak::length(1_000, 20_000_i64);
        let mut added = 0;
        let mut batches = seat(&table, &redis, 0);
        for round in 0..rounds {
            for step in 0..25 {
                batches.add(&names[step % names.len()], 2, 1).unwrap();
                added += 2;
            }
            // Cut off after a part of the way: before it is sent, before it is answered, or not at all.
            let patience = Duration::from_micros((round % 7) as u64 * 60);
            let _ = tokio::time::timeout(patience, batches.flush(1)).await;
            if round % 50 == 49 {
                server.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
            }
            if round % 10 == 9 {
                table.cell(0, (round / 10 % 3) as usize).clear();
                batches = seat(&table, &redis, ((round / 10 + 1) % 3) as usize);
            }
        }
        eventually("everything is sent", async || {
            while let Ok(true) = batches.flush(1).await {}
            // Both calls may have had nothing to ask.
            let connected = batches.value(&names[0], 1).await.is_ok();
            connected
                && batches.flush_abandoned().await.is_ok()
                && table.snapshot().slots[0].pending_increments == 0
        })
        .await;
        let mut total = 0;
        for name in &names {
            let value = batches.value(name, 1).await.unwrap().value;
            assert_eq!(batches.cached(name, 1).map(|known| known.value), Some(value));
            total += value;
        }
        assert_eq!(total, added, "{mode:?}");
        soak::log("lives and cuts", &format!("{added} in {rounds} rounds, {mode:?}: {total}"));
    }
}
