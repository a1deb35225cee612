//! Every fault of Redis is a defined state: how soon, what is served meanwhile, and how soon it is over.
//!
//! Figures are printed and not asserted: `cargo nextest run -E 'test(/^faults::/)' --success-output immediate`.

mod away;
mod refusing;
mod shaky;

use std::time::{Duration, Instant};

use crate::support::client::{CookieClient, Failure, Request, Response};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::parallel_clients::ParallelClients;
use crate::support::{client, wait};

/// How soon the fleet serves state again once Redis answers, as promised; twice, for a busy machine.
const BACK: Duration = Duration::from_secs(4);

/// No answer takes as long as this, whatever Redis does: far above the deadlines, far below a hang.
const HANG: Duration = Duration::from_secs(3);

/// After a fault began, the time in which it is noticed: what is slow in it is no figure of the state after it.
const NOTICED: Duration = Duration::from_millis(2000);

/// A short patience, so that what comes after it is seen soon.
fn impatient(plan: TestFleetBuilder) -> TestFleetBuilder {
    plan.set("REGATTA_REDIS__PATIENCE", "400ms")
}

/// What a visitor was answered.
#[derive(Debug, Clone)]
struct Sample {
    begun: Duration,
    took: Duration,
    status: u16,
    /// `Session-State`, empty when everything is as usual.
    state: String,
}

impl Sample {
    fn is_usual(&self) -> bool {
        self.status == 200 && self.state.is_empty()
    }

    fn ended(&self) -> Duration {
        self.begun + self.took
    }
}

/// That an answer is one of those that are promised: never an error of ours, never a cookie taken away or given
/// while the state is not there.
#[track_caller]
fn assert_defined(response: &Response) {
    let cookies = response.all("Set-Cookie");
    assert!(cookies.iter().all(|cookie| !cookie.contains("Max-Age=0")), "{response:?}");
    match response.status {
        200 if response.header("Session-State").is_empty() => {}
        // Only what says in words that nothing was counted: a program gets a number that is true, or none.
        200 => {
            assert!(cookies.is_empty() && response.header("Cache-Control") == "no-store", "{response:?}");
            assert!(response.text().contains("cannot be shown"), "{response:?}");
        }
        _ => {
            response.assert_problem(503);
            let retry_after: u64 = response.header("Retry-After").parse().expect("Retry-After in seconds");
            assert!((1..=60).contains(&retry_after) && cookies.is_empty(), "{response:?}");
        }
    }
}

/// Visitors before, during and after a fault: a program and a browser that come again, one that never has a cookie,
/// one that writes.
struct Watch {
    load: ParallelClients<Sample>,
    start: Instant,
    fault: Duration,
    over: Duration,
}

const CLIENTS: [&str; 4] = ["returning", "browser", "new", "writing"];

/// The front page as a browser asks for it.
fn page() -> Request {
    Request::get("/").header("Accept", "text/html")
}

impl Watch {
    fn start(fleet: &TestFleet) -> Self {
        let (address, start) = (fleet.listen, Instant::now());
        let load = ParallelClients::start(CLIENTS.len(), |client| {
            let (mut visitor, mut counted) = (CookieClient::default(), 0);
            move || {
                let begun = start.elapsed();
                let response: Result<Response, Failure> = match CLIENTS[client] {
                    "returning" => visitor.try_request(address, Request::get("/")),
                    "browser" => visitor.try_request(address, page()),
                    "new" => client::once(address, Request::get("/")),
                    _ => client::once(address, Request::post("/counters/x")),
                };
                let response = response.expect("every request is answered");
                assert_defined(&response);
                if let ("returning", 200) = (CLIENTS[client], response.status) {
                    let views = response.view().1;
                    // A server that lost everything begins anew.
                    assert!(views > counted || views == 1, "{views} after {counted}");
                    counted = views;
                }
                let took = start.elapsed() - begun;
                assert!(took < HANG, "an answer took {took:?}");
                Sample {
                    begun,
                    took,
                    status: response.status,
                    state: response.header("Session-State").into(),
                }
            }
        });
        let watch = Self { load, start, fault: Duration::MAX, over: Duration::MAX };
        watch.see(100);
        watch
    }

    /// Waits for so many answers.
    #[track_caller]
    fn see(&self, answers: usize) {
        let seen = self.load.seen();
        wait::until("visitors are answered", wait::LONG, || self.load.seen() > seen + answers);
    }

    fn fault_begins(&mut self) {
        self.fault = self.start.elapsed();
    }

    /// To be said before it is mended: from then on everything may be as usual at once.
    fn fault_is_over(&mut self) {
        self.over = self.start.elapsed();
    }

    /// Lets the fault last until it is noticed by all, and for so many answers after that.
    #[track_caller]
    fn last(&self, answers: usize) {
        wait::until("the fault is noticed", wait::LONG, || self.start.elapsed() > self.fault + NOTICED);
        self.see(answers);
    }

    /// Waits until the fleet is well, ends the load and prints the figures; what was answered during the fault, after
    /// it was noticed, by client.
    #[track_caller]
    fn end(self, name: &str, fleet: &TestFleet) -> Vec<Vec<Sample>> {
        wait::until(&format!("{name}: every worker is back"), BACK, || {
            (0..20).all(|_| fleet.get("/").status == 200)
        });
        self.see(100);
        let (fault, over) = (self.fault, self.over);
        let results = self.load.stop();
        let all = || results.iter().flatten();
        let degraded = all().filter(|sample| sample.begun >= fault && !sample.is_usual());
        let degraded = degraded.map(Sample::ended).min().map(|at| at.saturating_sub(fault));
        let during = |sample: &&Sample| sample.begun > fault + NOTICED && sample.ended() < over;
        let mut took: Vec<_> = all().filter(during).map(|sample| sample.took).collect();
        took.sort();
        let rank = |share: f64| took.get(((took.len() as f64 - 1.0).max(0.0) * share) as usize);
        let back = results.iter().map(|samples| {
            let usual = |sample: &&Sample| sample.begun >= over && sample.is_usual();
            samples.iter().find(usual).map(|sample| sample.ended() - over)
        });
        eprintln!(
            "{name}: degraded after {degraded:?}, then p50 {:?} p99 {:?} of {} answers, back after {:?}",
            rank(0.5),
            rank(0.99),
            took.len(),
            back.collect::<Option<Vec<_>>>().and_then(|all| all.into_iter().max()),
        );
        results.iter().map(|samples| samples.iter().filter(during).cloned().collect()).collect()
    }
}

/// That during the fault the page was shown with this state of its session, and every number refused.
#[track_caller]
fn assert_shown(during: &[Vec<Sample>], state: &str) {
    for (client, samples) in CLIENTS.iter().zip(during) {
        let expected = if *client == "browser" { (200, state) } else { (503, "") };
        let wrong: Vec<_> =
            samples.iter().filter(|sample| (sample.status, sample.state.as_str()) != expected).collect();
        assert!(!samples.is_empty() && wrong.is_empty(), "{client}: {wrong:?}");
    }
}
