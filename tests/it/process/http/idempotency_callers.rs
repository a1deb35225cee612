//! Requests that are carried out once: whatever their client looks like by then, and for no other client.

use std::cell::Cell;
use std::time::Duration;

use crate::support::client::{CookieClient, Request, Response};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::TestRedis;
use crate::support::{client, parallel_clients};

const CARRIED_OUT: &str = "urn:regatta:problem:idempotency-carried-out";

/// A fleet whose handlers count how often they ran, and its Redis.
struct Site {
    redis: TestRedis,
    fleet: TestFleet,
    keys: Cell<u64>,
}

impl Site {
    fn start() -> Self {
        let redis = TestRedis::start();
        let plan = TestFleetBuilder::on(&redis).workers(2).example("faulty");
        let plan = plan.set("REGATTA_LIMITS__IDEMPOTENCY__RATE", "1000/s");
        let fleet = plan.set("REGATTA_LIMITS__IDEMPOTENCY__BURST", "1000").start();
        Self { redis, fleet, keys: Cell::new(0) }
    }

    /// A key that was not used yet, of either kind.
    fn key(&self, long: bool) -> String {
        self.keys.set(self.keys.get() + 1);
        let number = self.keys.get();
        if long { format!("8e03978e-40d5-43e8-bc93-{number:012}") } else { number.to_string() }
    }

    fn times(&self) -> u64 {
        self.redis.cli(&["GET", &format!("{}:c:once", self.fleet.plan().prefix())]).parse().unwrap_or(0)
    }

    fn ask(&self, visitor: &mut CookieClient, request: Request) -> Response {
        visitor.request(self.fleet.listen, request)
    }

    fn send(&self, request: Request) -> Response {
        client::once(self.fleet.listen, request).unwrap()
    }

    fn known(&self) -> CookieClient {
        let mut visitor = CookieClient::default();
        assert_eq!(self.ask(&mut visitor, Request::post("/once/0/note-x")).status, 200);
        // A session may be made only when its cookie comes back.
        assert_eq!(self.ask(&mut visitor, Request::post("/once/0/note-y")).status, 200);
        visitor
    }

    fn user(&self, name: &str) -> CookieClient {
        let mut visitor = self.known();
        self.ask(&mut visitor, Request::post(&format!("/once/0/login-{name}")));
        assert_eq!(self.who(&mut visitor), name);
        visitor
    }

    fn who(&self, visitor: &mut CookieClient) -> String {
        self.ask(visitor, Request::get("/who")).text()
    }

    /// Sends it again, and finds that it was carried out no more and answered as before.
    #[track_caller]
    fn again(&self, visitor: &mut CookieClient, request: Request, first: &Response) -> Response {
        let times = self.times();
        let again = self.ask(visitor, request);
        assert_eq!(self.times(), times, "carried out again: {}", again.text());
        assert_eq!(
            (again.status, again.text(), again.header("Idempotency-Replayed")),
            (first.status, first.text(), "true")
        );
        again
    }
}

fn keyed(what: &str, key: &str) -> Request {
    Request::post(&format!("/once/0/{what}")).header("Idempotency-Key", key)
}

#[test]
fn a_login_is_carried_out_once_and_its_cookie_is_given_again_to_who_lost_it() {
    let site = Site::start();
    for long in [false, true] {
        let (key, mut visitor) = (site.key(long), site.known());
        let mut lost = visitor.clone();
        let first = site.ask(&mut visitor, keyed("login-ann", &key));
        assert_eq!(site.who(&mut visitor), "ann");
        let with_new = site.again(&mut visitor, keyed("login-ann", &key), &first);
        assert_eq!(with_new.all("Set-Cookie"), Vec::<&str>::new(), "it has its cookie");
        let with_old = site.again(&mut lost, keyed("login-ann", &key), &first);
        assert_eq!((with_old.all("Set-Cookie").len(), with_old.all("Vary")), (1, vec!["Cookie"]));
        assert_eq!(lost.cookies, visitor.cookies);
        assert_eq!(site.who(&mut lost), "ann");
        // The same by a client that had no cookie at all.
        let (key, mut stranger) = (site.key(long), CookieClient::default());
        let first = site.ask(&mut stranger, keyed("login-bob", &key));
        site.again(&mut stranger, keyed("login-bob", &key), &first);
        assert_eq!(site.who(&mut stranger), "bob");
        if long {
            let mut lost = CookieClient::default();
            site.again(&mut lost, keyed("login-bob", &key), &first);
            assert_eq!(lost.cookies, stranger.cookies);
        }
    }
    let index = site.redis.keys().into_iter().filter(|key| key.contains(":u:")).collect::<Vec<_>>();
    for index in index {
        assert!(site.redis.cli(&["ZCARD", &index]).parse::<u64>().unwrap() <= 2, "one session a login");
    }
}

#[test]
fn a_first_visit_is_found_with_and_without_the_cookie_it_was_given() {
    let site = Site::start();
    let (key, mut visitor) = (site.key(true), CookieClient::default());
    let first = site.ask(&mut visitor, keyed("note-x", &key));
    assert_eq!(visitor.cookies.len(), 1);
    site.again(&mut visitor, keyed("note-x", &key), &first);
    let mut lost = CookieClient::default();
    site.again(&mut lost, keyed("note-x", &key), &first);
    assert_eq!(lost.cookies, visitor.cookies, "one visitor, one session");
    // The answer is lost, and another request brings a cookie.
    let mut other = site.known();
    site.again(&mut other, keyed("note-x", &key), &first);
    let elsewhere = keyed("note-x", &key).header("X-Forwarded-For", "192.0.2.77");
    site.again(&mut CookieClient::default(), elsewhere, &first);

    let (key, mut visitor) = (site.key(false), CookieClient::default());
    let first = site.ask(&mut visitor, keyed("note-x", &key));
    site.again(&mut visitor, keyed("note-x", &key), &first);
    let times = site.times();
    let unknown = site.send(keyed("note-x", &key));
    assert_eq!(unknown.assert_problem(409)["type"], CARRIED_OUT);
    assert_eq!((site.times(), unknown.all("Set-Cookie").len()), (times, 0));
}

/// Nothing is stored for a first visit but its ticket, which a repetition is given again.
#[test]
fn a_first_view_is_found_with_and_without_its_ticket() {
    let site = Site::start();
    let viewed = |key: &str| Request::post("/viewed").header("Idempotency-Key", key);
    let (key, mut visitor, mut lost) = (site.key(true), CookieClient::default(), CookieClient::default());
    let first = site.ask(&mut visitor, viewed(&key));
    assert_eq!(first.text(), "1 1");
    site.again(&mut lost, viewed(&key), &first);
    assert_eq!(lost.cookies, visitor.cookies, "the same ticket");
    site.again(&mut visitor, viewed(&key), &first);
    let sessions = || site.redis.keys().into_iter().filter(|key| key.contains(":s:")).count();
    assert_eq!(sessions(), 0, "a repetition makes no session");
    assert_eq!(site.ask(&mut lost, Request::post("/viewed")).text(), "2 2");
    site.again(&mut visitor, viewed(&key), &first);
}

#[test]
fn a_request_is_found_over_every_change_of_its_session() {
    let site = Site::start();
    for long in [false, true] {
        // Another request changes the session between two attempts.
        for change in ["login-ann", "rotate", "note-z"] {
            let (key, mut visitor) = (site.key(long), site.known());
            let old = visitor.clone();
            let first = site.ask(&mut visitor, keyed("200", &key));
            site.ask(&mut visitor, Request::post(&format!("/once/0/{change}")));
            site.again(&mut visitor, keyed("200", &key), &first);
            site.ask(&mut visitor, Request::post("/once/0/rotate"));
            site.again(&mut visitor, keyed("200", &key), &first);
            site.again(&mut old.clone(), keyed("200", &key), &first);
        }
        // The request does it itself.
        let (key, mut visitor) = (site.key(long), site.user("ann"));
        let mut lost = visitor.clone();
        let first = site.ask(&mut visitor, keyed("rotate", &key));
        assert_ne!(lost.cookies, visitor.cookies);
        site.again(&mut visitor, keyed("rotate", &key), &first);
        site.again(&mut lost, keyed("rotate", &key), &first);
        assert_eq!(lost.cookies, visitor.cookies);
        // The user comes with another of their sessions, which stays theirs.
        let mut device = site.user("ann");
        let cookies = device.cookies.clone();
        site.again(&mut device, keyed("rotate", &key), &first);
        assert_eq!(device.cookies, cookies);
        // And with a lifetime of its own.
        let key = site.key(long);
        let first = site.ask(&mut visitor, keyed("remember", &key));
        let again = site.again(&mut visitor, keyed("remember", &key), &first);
        assert!(again.header("Set-Cookie").contains("Max-Age=777"), "{:?}", again.all("Set-Cookie"));
    }
}

#[test]
fn a_logout_is_found_with_the_cookie_that_it_ended_and_without_it() {
    let site = Site::start();
    for long in [false, true] {
        let (key, mut visitor) = (site.key(long), site.user("ann"));
        let mut lost = visitor.clone();
        let first = site.ask(&mut visitor, keyed("logout", &key));
        assert!(visitor.cookies.is_empty());
        let again = site.again(&mut lost, keyed("logout", &key), &first);
        assert!(lost.cookies.is_empty(), "{:?}", again.all("Set-Cookie"));
        if long {
            site.again(&mut visitor, keyed("logout", &key), &first);
        }
    }
}

#[test]
fn a_request_is_found_after_the_site_moved_to_https() {
    let site = Site::start();
    for long in [false, true] {
        let (key, mut visitor) = (site.key(long), site.known());
        let secure = || keyed("200", &key).header("X-Forwarded-Proto", "https");
        let first = site.ask(&mut visitor, keyed("200", &key));
        site.again(&mut visitor, secure(), &first);
        site.ask(&mut visitor, Request::post("/once/0/note-z").header("X-Forwarded-Proto", "https"));
        site.again(&mut visitor, secure(), &first);
    }
}

#[test]
fn nobody_gets_what_somebody_else_sent() {
    let site = Site::start();
    let answer = |visitor: &mut CookieClient, request: Request| {
        let before = site.times();
        let response = site.ask(visitor, request);
        (response.status, site.times() - before, response.header("Idempotency-Replayed").to_owned())
    };
    let carried_out = (200, 1, String::new());
    // Two clients of one address with a short key.
    let key = site.key(false);
    let first = site.send(keyed("login-ann", &key));
    assert_eq!((first.status, first.all("Set-Cookie").len()), (200, 1));
    let second = site.send(keyed("login-ann", &key));
    assert_eq!(second.assert_problem(409)["type"], CARRIED_OUT);
    assert_eq!((second.all("Set-Cookie").len(), second.text().contains(&first.text())), (0, false));
    site.send(keyed("login-bob", &key)).assert_problem(422);
    // One with a cookie is not held up by it.
    assert_eq!(answer(&mut site.known(), keyed("200", &key)), carried_out);
    for long in [false, true] {
        let key = site.key(long);
        let (mut one, mut two) = (site.known(), site.known());
        assert_eq!(answer(&mut one, keyed("200", &key)), carried_out);
        assert_eq!(answer(&mut two, keyed("200", &key)), carried_out);
        // A cookie from before a login gets nothing of what came after it.
        let key = site.key(long);
        let mut planted = site.known();
        let mut victim = planted.clone();
        site.ask(&mut victim, Request::post("/once/0/login-ann"));
        assert_eq!(answer(&mut victim, keyed("rotate", &key)), carried_out);
        assert_eq!(answer(&mut planted, keyed("rotate", &key)).2, "");
        assert_eq!(site.who(&mut planted), "nobody");
        // Nor does the next user of the same browser.
        site.ask(&mut victim, Request::post("/once/0/login-bob"));
        assert_eq!(answer(&mut victim, keyed("rotate", &key)), carried_out);
        // One jar of cookies, two accounts of an API.
        let key = site.key(long);
        let bearer = |name: &str| keyed("200", &key).header("Authorization", &format!("Bearer {name}"));
        assert_eq!(answer(&mut one, bearer("one")), carried_out);
        assert_eq!(answer(&mut one, bearer("two")), carried_out);
        // An `Authorization` names a client only with a key that no one guesses.
        let expected = if long { (200, 0, "true".to_owned()) } else { carried_out.clone() };
        assert_eq!(answer(&mut two, bearer("one")), expected);
        assert_eq!(answer(&mut one, bearer("one")), (200, 0, "true".to_owned()));
        // A session that was ended names no user.
        let key = site.key(long);
        let mut gone = site.user("ann");
        let ended = gone.clone();
        site.ask(&mut gone, Request::post("/once/0/logout"));
        assert_eq!(answer(&mut site.user("ann"), keyed("200", &key)), carried_out);
        assert_eq!(answer(&mut ended.clone(), keyed("200", &key)), carried_out);
    }
}

/// A site behind Basic authentication, all of whose clients send the same.
#[test]
fn clients_of_one_authorization_get_nothing_of_each_others_by_a_key_that_both_may_use() {
    let site = Site::start();
    let basic = |what: &str, key: &str| keyed(what, key).header("Authorization", "Basic c2l0ZTpzaXRl");
    let refused = |visitor: &mut CookieClient, request: Request, first: &Response| {
        let (times, cookies) = (site.times(), visitor.cookies.clone());
        let second = site.ask(visitor, request);
        assert_eq!(second.assert_problem(409)["type"], CARRIED_OUT);
        assert_eq!((site.times(), &visitor.cookies), (times, &cookies));
        assert!(!second.text().contains(&first.text()) && second.all("Set-Cookie").is_empty());
    };
    for what in ["login-ann", "note-x", "200"] {
        let (key, mut one) = (site.key(false), CookieClient::default());
        let first = site.ask(&mut one, basic(what, &key));
        assert_eq!(first.status, 200);
        refused(&mut CookieClient::default(), basic(what, &key), &first);
        // The cookie that came with the answer finds it, and only with the same `Authorization`.
        if !one.cookies.is_empty() {
            site.again(&mut one.clone(), basic(what, &key), &first);
        }
        // Clients elsewhere and with cookies of their own are not held up.
        let before = site.times();
        let elsewhere = basic(what, &key).header("X-Forwarded-For", "192.0.2.77");
        let mut other = CookieClient::default();
        let theirs = site.ask(&mut other, elsewhere);
        assert_eq!((theirs.status, site.times()), (200, before + 1));
        assert!(one.cookies.is_empty() || one.cookies != other.cookies);
        assert_eq!(theirs.header("Idempotency-Replayed"), "");
    }
    // With cookies: each has its own answer, over a login too.
    let (key, mut one, mut two) = (site.key(false), site.known(), site.known());
    let mut lost = one.clone();
    let first = site.ask(&mut one, basic("login-ann", &key));
    let before = site.times();
    let second = site.ask(&mut two, basic("login-ann", &key));
    assert_eq!((second.status, second.header("Idempotency-Replayed"), site.times()), (200, "", before + 1));
    assert_ne!(one.cookies, two.cookies);
    site.again(&mut one, basic("login-ann", &key), &first);
    site.again(&mut lost, basic("login-ann", &key), &first);
    assert_eq!(lost.cookies, one.cookies);
    // A key that no one guesses is found from anywhere, as ever.
    let (key, mut one) = (site.key(true), CookieClient::default());
    let first = site.ask(&mut one, basic("note-x", &key));
    let elsewhere = basic("note-x", &key).header("X-Forwarded-For", "192.0.2.77");
    site.again(&mut CookieClient::default(), elsewhere, &first);
    site.again(&mut site.known(), basic("note-x", &key), &first);
}

/// Names outlive the record that they lead to, and another client may claim it anew.
#[test]
fn a_name_that_is_left_over_leads_to_no_answer_of_another_client() {
    let site = Site::start();
    let forget_records = || {
        for record in site.redis.keys().into_iter().filter(|key| key.contains(":i:")) {
            site.redis.cli(&["DEL", &record]);
        }
    };
    for long in [false, true] {
        let (key, mut victim) = (site.key(long), site.known());
        let mut planted = victim.clone();
        site.ask(&mut victim, keyed("200", &key));
        forget_records();
        site.ask(&mut victim, Request::post("/once/0/login-ann"));
        let before = site.times();
        let first = site.ask(&mut victim, keyed("200", &key));
        assert_eq!(site.times(), before + 1, "it is a user's now");
        assert_eq!(site.ask(&mut planted, keyed("200", &key)).assert_problem(409)["type"], CARRIED_OUT);
        site.again(&mut victim, keyed("200", &key), &first);
    }
    // Two clients of one address with a short key.
    let (key, mut one) = (site.key(false), CookieClient::default());
    site.ask(&mut one, keyed("note-x", &key));
    forget_records();
    assert_eq!(site.send(keyed("note-x", &key)).status, 200);
    assert_eq!(site.ask(&mut one, keyed("note-x", &key)).assert_problem(409)["type"], CARRIED_OUT);
}

#[test]
fn only_final_answers_are_kept_unless_the_handler_says_otherwise() {
    let site = Site::start();
    let runs = |what: &str| {
        let (key, before) = (site.key(true), site.times());
        let mut visitor = site.known();
        let made = site.times();
        let statuses = [(); 2].map(|()| site.ask(&mut visitor, keyed(what, &key)).status);
        assert_eq!(statuses[0], statuses[1], "{what}");
        assert!(made > before);
        site.times() - made
    };
    for status in ["200", "201", "303", "400", "402", "404", "410", "422"] {
        assert_eq!(runs(status), 1, "{status}");
    }
    for status in ["401", "403", "408", "409", "421", "425", "429", "500", "502", "503"] {
        assert_eq!(runs(status), 2, "{status}");
    }
    assert_eq!((runs("503-keep"), runs("401-keep"), runs("200-release"), runs("404-release")), (1, 1, 2, 2));
}

#[test]
fn a_handler_may_insist_on_a_key() {
    let site = Site::start();
    let missing = site.send(Request::post("/keyed")).assert_problem(400);
    assert_eq!(missing["type"], "urn:regatta:problem:idempotency-key-missing");
    let with = |key: &str| site.send(Request::post("/keyed").header("Idempotency-Key", key));
    assert_eq!(with("\"8e03978e\"").text(), "8e03978e");
    with("\"half").assert_problem(400);
    assert_eq!(site.send(Request::post("/once/0/200")).status, 200, "others need none");
}

#[test]
fn of_many_at_once_with_one_session_one_is_carried_out() {
    let site = Site::start();
    let (key, visitor) = (site.key(true), site.known());
    let before = site.times();
    let answers = parallel_clients::parallel(10, 1, |_| {
        let request = Request::post("/once/300/200").header("Idempotency-Key", &key);
        visitor.clone().request(site.fleet.listen, request)
    });
    assert_eq!(site.times() - before, 1);
    assert!(answers.iter().all(|answer| [200, 409].contains(&answer.status)), "{answers:?}");
}

#[test]
fn strangers_have_little_kept_for_a_short_time_and_only_so_often() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(2).example("faulty").start();
    let mut user = CookieClient::default();
    user.request(fleet.listen, Request::post("/once/0/login-ann"));
    let kept = || redis.keys().into_iter().filter(|key| key.contains(":i:")).collect::<Vec<_>>();
    let longest = |keys: &[String]| {
        let left = keys.iter().map(|key| redis.cli(&["PTTL", key]).parse::<u64>().unwrap());
        Duration::from_millis(left.max().unwrap_or(0))
    };
    let send = |number: usize| {
        let key = format!("8e03978e-40d5-43e8-bc93-{number:012}");
        client::once(fleet.listen, keyed("200", &key)).unwrap().status
    };
    let statuses: Vec<u16> = (0..40).map(send).collect();
    let refused = statuses.iter().filter(|status| **status == 429).count();
    assert!((8..=10).contains(&refused), "{statuses:?}");
    let records = kept();
    assert!(longest(&records) <= Duration::from_secs(600), "{records:?}");
    assert_eq!(records.len(), 40 - refused);
    // The policy holds for strangers and not for users.
    for number in 0..40 {
        assert_eq!(user.request(fleet.listen, keyed("200", &format!("{number}"))).status, 200);
    }
    assert!(longest(&kept()) > Duration::from_secs(80_000));
}
