//! Which cookie counts: ours among any others, the secure one before the plain one, and never silently none.

use crate::support::client::{Connection, CookieClient, Request, Response};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::parallel_clients;
use crate::support::redis::TestRedis;
use crate::support::shop::sessions;

fn tls(request: Request) -> Request {
    request.header("X-Forwarded-For", "127.0.0.1").header("X-Forwarded-Proto", "https")
}

/// A visitor with a session, and its cookie's value.
fn known(fleet: &TestFleet) -> (CookieClient, String) {
    let mut visitor = CookieClient::default();
    visitor.view(fleet.listen);
    visitor.view(fleet.listen);
    let cookie = visitor.cookies["sid"].clone();
    assert!(cookie.starts_with("v1."));
    (visitor, cookie)
}

fn with(fleet: &TestFleet, lines: &[&str]) -> Response {
    let mut request = Request::get("/");
    for line in lines {
        request = request.header("Cookie", line);
    }
    Connection::open(fleet.listen).unwrap().request(&request).unwrap()
}

#[test]
fn ours_is_found_whatever_else_is_sent() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(1).start();
    let (_, own) = known(&fleet);
    let large = format!("analytics={}", "x".repeat(9_700));
    let own_pair = format!("sid={own}");
    let cases: [Vec<String>; 9] = [
        vec![format!("{large}; {own_pair}; {large}")],
        vec![large.clone(), own_pair.clone(), large.clone()],
        vec![format!("{}{own_pair}", "sid=a; sid=v1.b.c.d; ".repeat(50))],
        vec![format!("sid=\"{own}\"")],
        vec![format!("$Version=1; sid = {own} ; $Path=/")],
        vec![format!("a=1, {own_pair}")],
        vec![format!("sid2=x; si=y; xsid=z; {own_pair}; __Host-sid=v1.x.y.z")],
        vec!["a=1".into(), "b=2".into(), own_pair.clone()],
        vec![format!("=; ;;{own_pair};")],
    ];
    for (at, lines) in cases.iter().enumerate() {
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let response = with(&fleet, &lines);
        assert_eq!((response.status, response.view().1), (200, 3 + at as u64), "case {at}");
    }
    assert_eq!(sessions(&redis).len(), 1);
}

#[test]
fn a_request_whose_cookie_cannot_be_told_is_refused_and_never_a_stranger_s() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(1).start();
    let (mut visitor, own) = known(&fleet);
    // Signed for another name: the right form, a key of ours, and not genuine.
    let over_tls = visitor.clone().request(fleet.listen, tls(Request::get("/")));
    let other =
        over_tls.all("Set-Cookie")[0].split(';').next().unwrap().split_once('=').unwrap().1.to_owned();
    let flood = format!("sid={other}; ").repeat(40);
    let refused = with(&fleet, &[&format!("{flood}sid={own}")]);
    refused.assert_problem(431);
    assert!(refused.all("Set-Cookie").is_empty());
    let hello = Request::get("/hello").header("Cookie", &flood);
    assert_eq!(
        Connection::open(fleet.listen).unwrap().request(&hello).unwrap().status,
        200,
        "it asks for no state"
    );
    let _ = visitor.try_request(fleet.listen, Request::get("/"));
}

#[test]
fn a_cookie_that_went_without_tls_is_replaced_under_it() {
    for mode in ["fcall", "evalsha", "plain"] {
        let redis = TestRedis::start();
        let plan = TestFleetBuilder::on(&redis).workers(2).set("REGATTA_REDIS__MODE", mode);
        let fleet = plan.start();
        let (mut visitor, overheard) = known(&fleet);
        let moved = visitor.request(fleet.listen, tls(Request::get("/")));
        assert_eq!(moved.view().1, 3, "{mode}");
        assert_eq!(visitor.cookies.keys().collect::<Vec<_>>(), ["__Host-sid"], "{mode}");
        let id = |cookie: &str| cookie.split('.').nth(2).unwrap().to_owned();
        assert_ne!(id(&visitor.cookies["__Host-sid"]), id(&overheard), "{mode}");
        let removal = moved.all("Set-Cookie").into_iter().find(|cookie| cookie.starts_with("sid=;")).unwrap();
        assert!(removal.contains("Max-Age=0") && removal.contains("Path=/") && !removal.contains("Secure"));
        let again = visitor.request(fleet.listen, tls(Request::get("/")));
        assert_eq!((again.view().1, again.all("Set-Cookie").len()), (4, 0), "{mode}");
        // The id that was overheard is worth nothing.
        for request in [Request::get("/"), tls(Request::get("/"))] {
            let mut thief = CookieClient { cookies: [("sid".to_owned(), overheard.clone())].into() };
            assert_eq!(thief.request(fleet.listen, request).view().1, 1, "{mode}");
        }
        assert_eq!(visitor.request(fleet.listen, tls(Request::get("/"))).view().1, 5, "{mode}");
    }
}

#[test]
fn the_move_costs_one_call_and_a_login_keeps_its_user() {
    let redis = TestRedis::start();
    let secret = "a signing key of this test's own choice";
    let fleet = TestFleetBuilder::on(&redis).workers(1).set("REGATTA_SESSION__SECRETS", secret).start();
    let mut visitor = known(&fleet).0;
    let login = Request::post("/login").body("application/json", b"{\"name\":\"ann\"}");
    assert_eq!(visitor.request(fleet.listen, login).status, 200);
    redis.cli(&["CONFIG", "RESETSTAT"]);
    assert_eq!(visitor.request(fleet.listen, tls(Request::get("/me"))).json()["user"], "ann");
    assert_eq!(redis.commands()["fcall"], 2, "begin and the move");
    assert!(visitor.cookies["__Host-sid"].starts_with("v2."));
    assert_eq!(visitor.request(fleet.listen, tls(Request::get("/me"))).json()["user"], "ann");
    assert_eq!(redis.commands()["fcall"], 3);
}

#[test]
fn requests_that_come_during_the_move_lose_nothing_of_the_session() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(4).start();
    let (visitor, _) = known(&fleet);
    let jars = parallel_clients::parallel(8, 2, |_| {
        let mut visitor = visitor.clone();
        let views = visitor.request(fleet.listen, tls(Request::get("/"))).view().1;
        (views, visitor)
    });
    let moved: Vec<_> = jars.iter().filter(|(_, jar)| jar.cookies.contains_key("__Host-sid")).collect();
    assert_eq!(moved.len(), 1, "one of them moved it, and nobody else got a cookie");
    let counted = jars.iter().filter(|(views, _)| *views > 1).count() as u64;
    let views = moved[0].1.clone().request(fleet.listen, tls(Request::get("/"))).view().1;
    assert_eq!(views, 2 + counted + 1);
    assert_eq!(sessions(&redis).len(), 1);
}

#[test]
fn the_secure_cookie_counts_before_the_plain_one_which_is_removed_once() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(1).start();
    let mut visitor = known(&fleet).0;
    assert_eq!(visitor.request(fleet.listen, tls(Request::get("/"))).view().1, 3);
    // A page without TLS: the browser does not send the secure cookie there.
    let mut without = CookieClient::default();
    without.view(fleet.listen);
    visitor.cookies.extend(without.cookies);
    let both = visitor.request(fleet.listen, tls(Request::get("/")));
    assert_eq!((both.view().1, both.all("Set-Cookie").len()), (4, 1), "{both:?}");
    assert_eq!(visitor.cookies.keys().collect::<Vec<_>>(), ["__Host-sid"]);
    // A proxy that says now this, now that: browsers send the secure one over TLS alone, so that it was.
    for views in 5..9 {
        let request = if views % 2 == 0 { tls(Request::get("/")) } else { Request::get("/") };
        assert_eq!(visitor.request(fleet.listen, request).view().1, views);
        assert_eq!(visitor.cookies.keys().collect::<Vec<_>>(), ["__Host-sid"]);
    }
}

#[test]
fn the_plain_cookie_is_never_read_where_cookies_are_always_secure() {
    let redis = TestRedis::start();
    let plan = TestFleetBuilder::on(&redis)
        .workers(1)
        .set("REGATTA_SESSION__SECRETS", "a signing key of this test's own choice");
    let fleet = plan.start();
    let (_, own) = known(&fleet);
    drop(fleet);
    let fleet = plan.set("REGATTA_SESSION__SECURE", "always").start();
    for request in [Request::get("/"), tls(Request::get("/"))] {
        let mut visitor = CookieClient { cookies: [("sid".to_owned(), own.clone())].into() };
        assert_eq!(visitor.request(fleet.listen, request).view().1, 1);
        assert_eq!(visitor.cookies["sid"], own, "nor is it touched");
    }
}
