//! Some three hundred odd requests (`tests/odd/*.txt`), each with its right answer: over HTTP/1.1, through the shipped
//! nginx, and over HTTP/2.

mod case;
mod frames;
mod wire;

use std::sync::Mutex;
use std::thread;

use case::Case;

use crate::support::client::{CookieClient, Request};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::nginx::TestNginx;
use crate::support::redis::TestRedis;

/// Asked at once: what takes time is waiting.
const AT_ONCE: usize = 8;

fn messages() -> Vec<Case> {
    ["host.txt", "target.txt", "framing.txt", "answers.txt"]
        .iter()
        .flat_map(|file| case::read(file))
        .collect()
}

/// Asks every case, and says all that is wrong.
#[track_caller]
fn all_right(cases: &[Case], ask: impl Fn(&Case) -> Option<String> + Sync) {
    let next = Mutex::new(cases.iter());
    let wrong = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let Some(case) = next.lock().unwrap().next() else { return };
                    if let Some(text) = ask(case) {
                        wrong.lock().unwrap().push(text);
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

fn fleet(redis: &TestRedis) -> TestFleet {
    let plan = TestFleetBuilder::on(redis).set("REGATTA_SESSION__SECRETS", &"a secret of mine".repeat(2));
    plan.set("REGATTA_HTTP__HEADER_TIMEOUT", "3s").set("REGATTA_HTTP__BODY_TIMEOUT", "3s").start()
}

/// A visitor whose cookie goes with every refused request, and the views that were counted for them.
struct Witness(CookieClient);

impl Witness {
    fn new(fleet: &TestFleet) -> Self {
        let mut visitor = CookieClient::default();
        assert_eq!(visitor.view(fleet.listen).1, 1);
        Self(visitor)
    }

    fn cookie(&self) -> String {
        self.0.cookie_search()
    }

    /// What was refused has counted nothing, and the fleet is as it was.
    #[track_caller]
    fn saw_nothing(mut self, fleet: &TestFleet) {
        assert_eq!(self.0.view(fleet.listen).1, 2, "a refused request is no visit");
        assert_eq!(fleet.get("/counters/orders").json()["value"], 0, "what is refused counts nothing");
        assert_eq!(fleet.ready().len(), 2, "no worker ended: {}", fleet.log());
    }
}

#[test]
fn every_odd_request_gets_its_answer() {
    let redis = TestRedis::start();
    let fleet = fleet(&redis);
    let witness = Witness::new(&fleet);
    all_right(&messages(), |case| wire::ask(case, fleet.listen, &case.right, &witness.cookie()));
    witness.saw_nothing(&fleet);
}

#[test]
fn every_odd_request_gets_its_answer_over_http_2() {
    let redis = TestRedis::start();
    let fleet = fleet(&redis);
    let witness = Witness::new(&fleet);
    all_right(&case::read("frames.txt"), |case| frames::ask(case, fleet.listen));
    let translated: Vec<_> = messages().into_iter().filter(|case| case.everywhere).collect();
    assert!(translated.len() > 40);
    all_right(&translated, |case| frames::ask_translated(case, fleet.listen, &witness.cookie()));
    witness.saw_nothing(&fleet);
}

#[test]
fn every_odd_request_gets_its_answer_behind_nginx() {
    let redis = TestRedis::start();
    let fleet = fleet(&redis);
    let front = TestNginx::before([&fleet]);
    let witness = Witness::new(&fleet);
    all_right(&messages(), |case| {
        let right = case.right_behind_nginx.as_ref().unwrap_or(&case.right);
        wire::ask(case, front.address, right, &witness.cookie())
    });
    witness.saw_nothing(&fleet);
    // What a target names counts, whatever the field says.
    let named = Request::get("http://target.test:3000/hello").header("Connection", "close");
    assert_eq!(crate::support::client::once(front.address, named).unwrap().status, 200);
}
