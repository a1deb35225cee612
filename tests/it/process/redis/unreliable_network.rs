//! Redis over bad lines: what was asked is done once or not at all, no one sees a 500, and no one loses a session.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::client::{CookieClient, Request};
use crate::support::fault_proxy::FaultProxy;
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::parallel_clients::ParallelClients;
use crate::support::redis::TestRedis;
use crate::support::{client, process, soak, wait};

/// The call that begins a request's state.
const BEGIN: &str = "regatta_v6_batch";

fn post(fleet: &TestFleet, name: &str) -> client::Response {
    client::once(fleet.listen, Request::post(&format!("/counters/{name}"))).unwrap()
}

/// The counter as Redis has it.
fn stored(server: &TestRedis, fleet: &TestFleet, name: &str) -> u64 {
    let prefix = fleet.plan().setting("REGATTA_REDIS__PREFIX");
    server.cli(&["GET", &format!("{prefix}:c:{name}")]).parse().unwrap_or(0)
}

#[test]
fn a_request_whose_answer_was_lost_is_charged_exactly_once() {
    let server = TestRedis::start();
    let proxy = FaultProxy::before(&server);
    let plan = TestFleetBuilder::through(&proxy).workers(1);
    let plan = plan.set("REGATTA_LIMITS__DEFAULT__RATE", "1000/h");
    // A worker that insures charges what it does not know itself too, so that it never allows too many.
    let plan = plan.set("REGATTA_LIMITS__DEFAULT__ON_REDIS_DOWN", "open");
    let fleet = plan.set("REGATTA_LIMITS__DEFAULT__BURST", "100000").start();
    let rounds = soak::length(15, 1000);
    for round in 1..=rounds {
        let before = proxy.faults_injected();
        proxy.lose_replies(BEGIN, 1);
        let answer = post(&fleet, "laps");
        assert_eq!((answer.status, proxy.faults_injected()), (200, before + 1), "{answer:?}");
        assert_eq!(answer.json()["value"], round);
        assert_eq!(stored(&server, &fleet, "laps"), round);
    }
    let answer = post(&fleet, "laps");
    assert_eq!(answer.json()["value"], rounds + 1);
    // A thousand an hour give back one in four seconds.
    let left: u64 =
        answer.header("RateLimit").split("r=").nth(1).unwrap().split(';').next().unwrap().parse().unwrap();
    let spent = 100_000 - left;
    assert!(spent <= rounds + 1 && spent + 10 + rounds / 10 > rounds, "{spent} charged of {}", rounds + 1);
}

/// What visitors saw.
#[derive(Debug, Default)]
struct Seen {
    statuses: BTreeMap<String, u64>,
    /// Posts that were answered 200, and posts whose outcome no one knows.
    counted: u64,
    unknown: u64,
    /// Each visitor's views that were answered, and those that were asked for.
    views: [u64; VISITORS],
    asked: [u64; VISITORS],
}

const VISITORS: usize = 4;

type Answer = Result<client::Response, client::Failure>;

impl Seen {
    fn note(&mut self, number: usize, posted: bool, answer: &Answer) {
        let status = match answer {
            Ok(answer) => answer.status.to_string(),
            Err(failure) => format!("{failure:?}"),
        };
        let done = u64::from(status == "200");
        *self.statuses.entry(status).or_default() += 1;
        if posted {
            self.counted += done;
            self.unknown += 1 - done;
        } else {
            self.views[number] += done;
            self.asked[number] += 1;
        }
    }

    /// That nothing was lost, and nothing done twice; the share that was answered 200.
    #[track_caller]
    fn judge(&self, server: &TestRedis, fleet: &TestFleet, scenario: &str, visitors: &[CookieClient]) -> f64 {
        let known = ["200", "503", "Reset", "Closed", "Refused"];
        assert!(self.statuses.keys().all(|status| known.contains(&status.as_str())), "{scenario}: {self:?}");
        let total = stored(server, fleet, "hits");
        let possible = self.counted..=self.counted + self.unknown;
        assert!(possible.contains(&total), "{scenario}: {total} counted, {self:?}");
        for (number, visitor) in visitors.iter().enumerate() {
            let mut attempts = 0;
            let now = wait::until_some("Redis is used again", wait::LONG, || {
                attempts += 1;
                let answer = visitor.clone().try_request(fleet.listen, Request::get("/")).ok()?;
                (answer.status == 200).then(|| answer.view().1)
            });
            // The two before it too.
            let possible = self.views[number] + 3..=self.asked[number] + 2 + attempts;
            assert!(possible.contains(&now), "{scenario}: {now} views of {number}, {self:?}");
        }
        let all: u64 = self.statuses.values().sum();
        let good = self.statuses.get("200").copied().unwrap_or(0);
        soak::log(scenario, &format!("{good} of {all} answered 200; {total} counted; {:?}", self.statuses));
        good as f64 / all as f64
    }
}

/// Visitors with sessions of their own go on while `act` does its worst; then everything is exact.
fn under(server: &TestRedis, fleet: &TestFleet, scenario: &str, act: impl FnOnce()) -> f64 {
    let address = fleet.listen;
    let visitors: Vec<_> = (0..VISITORS)
        .map(|_| {
            let mut visitor = CookieClient::default();
            visitor.view(address);
            // The session is made when its ticket comes back.
            visitor.view(address);
            visitor
        })
        .collect();
    let load = ParallelClients::start(VISITORS, |number| {
        let mut visitor = visitors[number].clone();
        let own = visitor.cookies.clone();
        let mut posts = false;
        move || {
            posts = !posts;
            let request = if posts { Request::post("/counters/hits") } else { Request::get("/") };
            let answer = visitor.try_request(address, request);
            // No fault takes a visitor's cookie away, or leads it to another session.
            assert_eq!(visitor.cookies, own);
            (number, posts, answer)
        }
    });
    act();
    let mut seen = Seen::default();
    for (number, posted, answer) in load.stop().into_iter().flatten() {
        seen.note(number, posted, &answer);
    }
    seen.judge(server, fleet, scenario, &visitors)
}

fn for_a_while() {
    wait::let_pass(Duration::from_secs(soak::length(3, 30)));
}

#[test]
fn one_reset_in_a_hundred_commands_loses_and_doubles_nothing() {
    let server = TestRedis::start();
    let proxy = FaultProxy::before(&server);
    let fleet = TestFleetBuilder::through(&proxy).start();
    let good = under(&server, &fleet, "1 % resets", || {
        proxy.set_faults(|toxics| toxics.resets = 0.01);
        for_a_while();
        proxy.set_faults(|toxics| toxics.resets = 0.0);
    });
    assert!(proxy.faults_injected() > 0 && good > 0.5, "{good}");
}

#[test]
fn clients_killed_five_times_a_second_lose_and_double_nothing() {
    let server = TestRedis::start();
    let proxy = FaultProxy::before(&server);
    let fleet = TestFleetBuilder::through(&proxy).start();
    let before = proxy.accepted().len();
    let good = under(&server, &fleet, "CLIENT KILL every 200 ms", || {
        let over = Arc::new(AtomicBool::new(false));
        thread::scope(|scope| {
            let ended = Arc::clone(&over);
            let server = &server;
            scope.spawn(move || {
                while !ended.load(Relaxed) {
                    server.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
                    wait::let_pass(Duration::from_millis(200));
                }
            });
            for_a_while();
            over.store(true, Relaxed);
        });
    });
    assert!(proxy.accepted().len() > before + 5 && good > 0.3, "{good}");
}

#[test]
fn workers_killed_while_lines_break_lose_and_double_nothing() {
    let server = TestRedis::start();
    let proxy = FaultProxy::before(&server);
    let fleet = TestFleetBuilder::through(&proxy).start();
    under(&server, &fleet, "resets and worker kills", || {
        proxy.set_faults(|toxics| toxics.resets = 0.01);
        for _ in 0..soak::length(2, 15) {
            wait::let_pass(Duration::from_secs(1));
            if let Some(pid) = fleet.workers().first() {
                process::signal(*pid, Signal::SIGKILL);
            }
        }
        proxy.set_faults(|toxics| toxics.resets = 0.0);
    });
}

#[test]
fn pieces_of_ten_bytes_and_little_bandwidth_are_only_slower() {
    let server = TestRedis::start();
    let proxy = FaultProxy::before(&server);
    let fleet = TestFleetBuilder::through(&proxy).start();
    let good = under(&server, &fleet, "slices and bandwidth", || {
        proxy.set_faults(|toxics| (toxics.slices, toxics.bandwidth) = (10, 1 << 20));
        for_a_while();
    });
    assert!(good >= 1.0, "{good}");
}
