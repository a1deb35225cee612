//! The shipped application's pages: logging in and out, who you are, and where else you are logged in.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::support::client::{CookieClient, Request, Response};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::TestRedis;

const HTML: &str = "text/html,application/xhtml+xml,*/*;q=0.8";
const FORM: &str = "application/x-www-form-urlencoded";

fn page(visitor: &mut CookieClient, fleet: &TestFleet, target: &str) -> Response {
    visitor.request(fleet.listen, Request::get(target).header("Accept", HTML))
}

fn send(visitor: &mut CookieClient, fleet: &TestFleet, target: &str, body: &str) -> Response {
    let request = Request::post(target).header("Accept", HTML).body(FORM, body.as_bytes());
    visitor.request(fleet.listen, request)
}

fn json(visitor: &mut CookieClient, fleet: &TestFleet, target: &str) -> Response {
    visitor.request(fleet.listen, Request::get(target))
}

fn token(page: &Response) -> String {
    let text = page.text();
    let field = text.split("name=\"token\" value=\"").nth(1).unwrap_or_else(|| panic!("no token in {text}"));
    field.split('"').next().unwrap().to_owned()
}

/// Logs in as a browser does, through the page.
fn log_in(visitor: &mut CookieClient, fleet: &TestFleet, name: &str) -> Response {
    let token = token(&page(visitor, fleet, "/login"));
    send(visitor, fleet, "/login", &format!("name={name}&token={token}"))
}

#[test]
fn a_browser_logs_in_by_the_form_and_out_again() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).start();
    let mut visitor = CookieClient::default();
    assert_eq!(page(&mut visitor, &fleet, "/me").header("Location"), "/login");
    let done = log_in(&mut visitor, &fleet, "ann");
    assert_eq!((done.status, done.header("Location")), (303, "/me"), "{done:?}");
    let me = page(&mut visitor, &fleet, "/me");
    assert!(me.text().contains("<strong>ann</strong>"), "{me:?}");
    assert_eq!(me.header("Cache-Control"), "no-store");
    assert!(me.all("Vary").join(",").contains("Cookie"), "{me:?}");
    let out = send(&mut visitor, &fleet, "/logout", &format!("token={}", token(&me)));
    assert_eq!((out.status, out.header("Location")), (303, "/"));
    assert!(visitor.cookies.is_empty());
    json(&mut visitor, &fleet, "/me").assert_problem(401);
}

#[test]
fn forms_that_are_not_from_here_change_nothing() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).start();
    let mut visitor = CookieClient::default();
    log_in(&mut visitor, &fleet, "ann");
    let strange = |visitor: &mut CookieClient, target: &str, name: &str, value: &str| {
        let request =
            Request::post(target).header(name, value).body("application/json", b"{\"name\":\"eve\"}");
        visitor.request(fleet.listen, request).status
    };
    for target in ["/login", "/logout"] {
        assert_eq!(strange(&mut visitor, target, "Origin", "https://elsewhere.test"), 403);
        assert_eq!(strange(&mut visitor, target, "Origin", "null"), 403);
        assert_eq!(strange(&mut visitor, target, "Sec-Fetch-Site", "cross-site"), 403);
        assert_eq!(send(&mut visitor, &fleet, target, "name=eve").status, 403, "no token");
        assert_eq!(send(&mut visitor, &fleet, target, "name=eve&token=x.y").status, 403, "a wrong one");
    }
    let mut other = CookieClient::default();
    let theirs = token(&page(&mut other, &fleet, "/login"));
    assert_eq!(send(&mut visitor, &fleet, "/login", &format!("name=eve&token={theirs}")).status, 403);
    assert_eq!(send(&mut visitor, &fleet, "/me/sessions", "end=all").status, 403);
    let from_afar = Request::new("DELETE", "/me/sessions").header("Sec-Fetch-Site", "same-site");
    assert_eq!(visitor.request(fleet.listen, from_afar).status, 403);
    assert_eq!(json(&mut visitor, &fleet, "/me").json()["user"], "ann");
}

#[test]
fn a_name_that_is_none_is_explained_on_the_page() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).start();
    let mut visitor = CookieClient::default();
    let refused = log_in(&mut visitor, &fleet, "++");
    assert_eq!(refused.status, 400);
    assert!(refused.text().contains("role=\"alert\""), "{}", refused.text());
    let long = log_in(&mut visitor, &fleet, &"x".repeat(65));
    assert_eq!(long.status, 400);
    let markup = log_in(&mut visitor, &fleet, "%3Cb%3Eann%3C%2Fb%3E");
    assert_eq!(markup.status, 303);
    let me = page(&mut visitor, &fleet, "/me").text();
    assert!(!me.contains("<b>ann"), "{me}");
    let program = Request::post("/login").body("application/json", b"{\"name\":\"\"}");
    CookieClient::default().request(fleet.listen, program).assert_problem(400);
}

#[test]
fn a_user_sees_his_sessions_and_ends_them() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(4).start();
    let mut devices: Vec<CookieClient> = Vec::new();
    for name in ["Laptop", "Telephone", "Tablet"] {
        let mut visitor = CookieClient::default();
        let login = Request::post("/login").header("User-Agent", name);
        let login = login.body("application/json", b"{\"name\":\"ann\", \"remember\": true}");
        let told = visitor.request(fleet.listen, login);
        assert_eq!((told.status, told.json()["user"].clone()), (200, "ann".into()));
        assert!(told.header("Set-Cookie").contains("Max-Age=2592000"), "{told:?}");
        devices.push(visitor);
    }
    let listed = json(&mut devices[0], &fleet, "/me/sessions").json();
    let sessions = listed["sessions"].as_array().unwrap().clone();
    assert_eq!((sessions.len(), &listed["user"]), (3, &"ann".into()), "{listed}");
    assert_eq!((&sessions[0]["current"], &sessions[0]["agent"]), (&true.into(), &"Laptop".into()));
    // Any name is let in, so the other sessions may be strangers'.
    assert_eq!(sessions[0]["address"], "127.0.0.1");
    assert!(sessions[1..].iter().all(|session| session.get("address").is_none()), "{listed}");
    let id = devices[0].cookies["sid"].split('.').nth(2).unwrap().to_owned();
    assert!(!listed.to_string().contains(&id), "no id is shown");
    let shown = page(&mut devices[0], &fleet, "/me/sessions").text();
    assert!(["Laptop", "Telephone", "Tablet"].iter().all(|agent| shown.contains(agent)), "{shown}");

    let handle = |agent: &str| {
        let session = sessions.iter().find(|session| session["agent"] == agent).unwrap();
        session["handle"].as_str().unwrap().to_owned()
    };
    let end = |visitor: &mut CookieClient, target: &str| {
        visitor.request(fleet.listen, Request::new("DELETE", target)).status
    };
    assert_eq!(end(&mut devices[0], "/me/sessions/nonsense"), 404);
    assert_eq!(end(&mut devices[0], &format!("/me/sessions/{}", handle("Telephone"))), 204);
    json(&mut devices[1], &fleet, "/me").assert_problem(401);
    let mut eve = CookieClient::default();
    log_in(&mut eve, &fleet, "eve");
    assert_eq!(end(&mut eve, &format!("/me/sessions?id={}", handle("Tablet"))), 404, "not hers to end");
    assert_eq!(json(&mut devices[2], &fleet, "/me").json()["user"], "ann");
    assert_eq!(end(&mut devices[0], "/me/sessions"), 204, "everywhere");
    for device in &mut devices {
        json(device, &fleet, "/me").assert_problem(401);
    }
    assert_eq!(json(&mut eve, &fleet, "/me").json()["user"], "eve");
    assert_eq!(end(&mut CookieClient::default(), "/me/sessions"), 401);
}

/// What a browser keeps of cookies over TLS, by the rules for names with a prefix (RFC 6265bis §4.1.3).
#[derive(Default)]
struct Jar(BTreeMap<String, String>);

impl Jar {
    fn take(&mut self, response: &Response) {
        for text in response.all("Set-Cookie") {
            let mut parts = text.split(';').map(str::trim);
            let (name, value) = parts.next().unwrap().split_once('=').unwrap();
            let attributes: Vec<String> = parts.map(str::to_ascii_lowercase).collect();
            let has = |wanted: &str| attributes.iter().any(|attribute| attribute == wanted);
            let sound =
                has("secure") && has("path=/") && !attributes.iter().any(|at| at.starts_with("domain"));
            if name.starts_with("__Host-") && !sound {
                continue;
            }
            match has("max-age=0") {
                true => _ = self.0.remove(name),
                false => _ = self.0.insert(name.to_owned(), value.to_owned()),
            }
        }
    }

    fn ask(&mut self, fleet: &TestFleet, request: Request) -> Response {
        let mut plain = CookieClient { cookies: self.0.clone() };
        let request = request.header("X-Forwarded-For", "203.0.113.7").header("X-Forwarded-Proto", "https");
        let response = plain.request(fleet.listen, request);
        self.take(&response);
        response
    }
}

#[test]
fn a_host_cookie_is_really_cleared_at_logout() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).start();
    let mut jar = Jar::default();
    let login = Request::post("/login").body("application/json", b"{\"name\":\"ann\"}");
    assert_eq!(jar.ask(&fleet, login).status, 200);
    assert!(jar.0["__Host-sid"].starts_with("v2."));
    assert_eq!(jar.ask(&fleet, Request::get("/me")).json()["user"], "ann");
    let out = jar.ask(&fleet, Request::post("/logout"));
    assert_eq!(out.status, 204);
    let removal = out.header("Set-Cookie");
    for attribute in ["Secure", "HttpOnly", "Path=/", "SameSite=Lax", "Max-Age=0"] {
        assert!(removal.contains(attribute), "{attribute} is missing in {removal}");
    }
    assert!(jar.0.is_empty(), "{:?}", jar.0);
    assert_eq!(jar.ask(&fleet, Request::get("/me")).json()["status"], Value::from(401));
}

#[test]
fn logins_are_limited_more_strictly_where_a_policy_says_so() {
    let redis = TestRedis::shared();
    let plan = TestFleetBuilder::on(&redis).set("REGATTA_LIMITS__LOGIN__RATE", "5/min");
    let plan = plan.set("REGATTA_LIMITS__LOGIN__BURST", "3").set("REGATTA_LIMITS__LOGIN__ROUTES", "/login");
    let fleet = plan.start();
    let attempt = || {
        let login = Request::post("/login").body("application/json", b"{\"name\":\"ann\"}");
        CookieClient::default().request(fleet.listen, login).status
    };
    assert_eq!([attempt(), attempt(), attempt(), attempt()], [200, 200, 200, 429]);
    assert_eq!(fleet.get("/").status, 200);
}
