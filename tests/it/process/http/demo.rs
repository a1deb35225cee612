//! What the shipped application lets strangers do: nothing in a visitor's name, and nothing that stays for ever.

use std::collections::BTreeSet;
use std::path::Path;

use crate::support::client::{CookieClient, Request, Response};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::TestRedis;
use crate::support::sockets::WebSocketClient;

const FORM: &str = "application/x-www-form-urlencoded";

/// Every route that writes, and what it is sent.
const WRITES: [(&str, &str, &str); 12] = [
    ("POST", "/counters/bell", "by=5"),
    ("POST", "/counters/bell?by=5", ""),
    ("POST", "/counters/seats?kind=bounded&max=9", ""),
    ("POST", "/login", "name=eve"),
    ("POST", "/logout", ""),
    ("POST", "/broadcast", "message=x"),
    ("POST", "/me/sessions", "end=all"),
    ("DELETE", "/me/sessions", ""),
    ("DELETE", "/me/sessions/nonsense", ""),
    ("POST", "/tasks", "kind=primes&n=10"),
    ("DELETE", "/tasks/nonsense", ""),
    ("POST", "/tasks/nonsense/cancel", ""),
];

/// What browsers say of a request that another site's page sends.
const STRANGE: [&[(&str, &str)]; 8] = [
    &[("Origin", "https://evil.test")],
    &[("Origin", "null")],
    &[("Origin", "http://www.localhost")],
    &[("Origin", "http://localhost:1")],
    &[("Origin", "")],
    &[("Sec-Fetch-Site", "cross-site")],
    &[("Sec-Fetch-Site", "same-site"), ("Origin", "http://localhost")],
    &[("Sec-Fetch-Site", "cross-site"), ("X-Forwarded-Host", "evil.test"), ("Origin", "https://evil.test")],
];

fn with(request: Request, headers: &[(&str, &str)]) -> Request {
    headers.iter().fold(request, |request, (name, value)| request.header(name, value))
}

fn get(visitor: &mut CookieClient, fleet: &TestFleet, target: &str) -> Response {
    visitor.request(fleet.listen, Request::get(target))
}

/// The text that a page's forms carry.
fn token(page: &Response) -> String {
    let text = page.text();
    let field = text.split("name=\"token\" value=\"").nth(1).unwrap_or_else(|| panic!("no token in {text}"));
    field.split('"').next().unwrap().to_owned()
}

fn page(visitor: &mut CookieClient, fleet: &TestFleet, target: &str) -> Response {
    visitor.request(fleet.listen, Request::get(target).header("Accept", "text/html"))
}

#[test]
fn pages_of_other_sites_change_nothing_whatever_they_send() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(2).start();
    let mut ann = CookieClient::default();
    let login = Request::post("/login").body("application/json", b"{\"name\":\"ann\"}");
    assert_eq!(ann.request(fleet.listen, login).status, 200);
    let counted = |visitor: &mut CookieClient| get(visitor, &fleet, "/counters/bell").json()["value"].clone();
    for (method, target, body) in WRITES {
        for headers in STRANGE {
            for kind in [FORM, "text/plain", "application/json", ""] {
                let request = with(Request::new(method, target), headers);
                let request = match kind {
                    "" => request,
                    kind => request.body(kind, body.as_bytes()),
                };
                let refused = ann.request(fleet.listen, request);
                assert_eq!(refused.status, 403, "{method} {target} {headers:?} {kind}: {}", refused.text());
                refused.assert_problem(403);
            }
        }
    }
    for headers in STRANGE {
        let refused = WebSocketClient::try_open(fleet.listen, "/ws", headers).map(|_| ()).unwrap_err();
        assert_eq!(refused.status, 403, "{headers:?}");
    }
    assert_eq!(counted(&mut ann), 0);
    assert_eq!(get(&mut ann, &fleet, "/me").json()["user"], "ann");
    let left: BTreeSet<String> = redis.keys().into_iter().filter(|key| key.contains("topic")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn own_pages_and_programs_write() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).start();
    let here = format!("http://{}", fleet.listen);
    let own: [&[(&str, &str)]; 5] = [
        &[],
        &[("Sec-Fetch-Site", "same-origin"), ("Origin", &here)],
        &[("Sec-Fetch-Site", "none")],
        &[("Origin", "http://localhost")],
        // Behind a proxy that tells the name it was asked under, with another port and over TLS.
        &[
            ("X-Forwarded-Host", "a.test:8443"),
            ("X-Forwarded-Proto", "https"),
            ("Origin", "https://a.test:8443"),
        ],
    ];
    for (number, headers) in own.iter().enumerate() {
        let mut visitor = CookieClient::default();
        let added = visitor.request(fleet.listen, with(Request::post("/counters/bell"), headers));
        assert_eq!(
            (added.status, added.json()["value"].as_u64()),
            (200, Some(number as u64 + 1)),
            "{headers:?}"
        );
    }
    let plain = with(
        Request::post("/counters/bell"),
        &[("X-Forwarded-Host", "a.test"), ("X-Forwarded-Proto", "https")],
    );
    CookieClient::default()
        .request(fleet.listen, plain.header("Origin", "http://a.test"))
        .assert_problem(403);
}

#[test]
fn what_only_looks_changes_nothing_and_no_header_makes_it_write() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).start();
    let mut visitor = CookieClient::default();
    let override_by = ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"];
    for method in ["GET", "HEAD"] {
        for (_, target, _) in WRITES {
            let request = override_by
                .iter()
                .fold(Request::new(method, target), |request, name| request.header(name, "POST"));
            let target = format!("{target}{}_method=POST", if target.contains('?') { '&' } else { '?' });
            visitor.request(fleet.listen, request);
            visitor.request(fleet.listen, Request::new(method, &target));
        }
    }
    assert_eq!(get(&mut visitor, &fleet, "/counters/bell").json()["value"], 0);
    assert_eq!(get(&mut visitor, &fleet, "/logout").status, 405);
    let override_delete = Request::post("/me/sessions").header("X-HTTP-Method-Override", "DELETE");
    assert_eq!(visitor.request(fleet.listen, override_delete).status, 415);
}

/// A route that writes is refused to other sites only among the others: none may stand anywhere else.
#[test]
fn every_route_that_writes_stands_behind_the_layer() {
    let app = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bin/regatta/app");
    let mut behind = 0;
    let folders = [app.clone(), app.join("tasks")];
    for file in folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap()) {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let (before, writes) = text.split_once("fn write_routes()").unwrap_or((&text, ""));
        for method in ["post(", "delete(", "put(", "patch(", "any("] {
            let routes = |text: &str| {
                text.lines().filter(|line| line.contains(".route") && line.contains(method)).count()
            };
            assert_eq!(routes(before), 0, "{}: {method}", path.display());
            behind += routes(writes);
        }
        assert!(writes.is_empty() || writes.contains(".route_layer(SameOrigin::new())"));
    }
    assert!(behind >= 9, "{behind}");
}

#[test]
fn there_are_counters_of_some_names_and_no_others() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).start();
    let mut visitor = CookieClient::default();
    let names: Vec<String> = get(&mut visitor, &fleet, "/counters").json()["counters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap().to_owned())
        .collect();
    assert!(names.contains(&"bell".to_owned()) && names.len() <= 16, "{names:?}");
    for name in &names {
        let added = visitor.request(fleet.listen, Request::post(&format!("/counters/{name}")));
        assert_eq!(
            (added.json()["name"].as_str(), added.json()["value"].as_u64()),
            (Some(name.as_str()), Some(1))
        );
    }
    let keys = redis.keys().len();
    for name in ["other", "BELL", "bell%20", "bell.", "%62ells", "a:b", &"x".repeat(64), "..", "%00"] {
        for query in [
            "",
            "?by=1",
            "?kind=batched&by=1",
            "?kind=bounded&max=1&token=t",
            "?kind=distinct&item=i&window=day",
        ] {
            let target = format!("/counters/{name}{query}");
            let refused = visitor.request(fleet.listen, Request::post(&target)).assert_problem(404);
            if name != ".." {
                let detail = refused["detail"].as_str().unwrap().to_owned();
                assert!(names.iter().all(|name| detail.contains(name.as_str())), "{target}: {detail}");
            }
            get(&mut visitor, &fleet, &target).assert_problem(404);
        }
    }
    let known = |key: &String| !key.contains(":once:") && !key.contains(":l:") && !key.contains("seen");
    let more: Vec<String> = redis.keys().into_iter().filter(known).collect();
    assert!(more.len() <= keys, "{more:?}");
}

#[test]
fn there_are_topics_of_some_names_and_no_others() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).start();
    let mut visitor = CookieClient::default();
    for topic in ["other", "NEWS", "news2", "a77", "aa", "0", "a/b", "a.b", &"x".repeat(64)] {
        let message = format!("{{\"topic\":\"{topic}\",\"message\":\"x\"}}");
        let sent = Request::post("/broadcast").body("application/json", message.as_bytes());
        let refused = visitor.request(fleet.listen, sent).assert_problem(404);
        assert!(refused["detail"].as_str().unwrap().contains("news, boats"), "{refused}");
        get(&mut visitor, &fleet, &format!("/events?topic={topic}")).assert_problem(404);
        let refused = WebSocketClient::try_open(fleet.listen, &format!("/ws?topic={topic}"), &[])
            .map(|_| ())
            .unwrap_err();
        assert_eq!(refused.status, 404, "{topic}");
    }
    assert!(!redis.keys().iter().any(|key| key.contains("topic")));
    for topic in ["", "news", "boats", "a", "t7"] {
        let message = format!("{{\"topic\":\"{topic}\",\"message\":\"x\"}}");
        let sent = Request::post("/broadcast").body("application/json", message.as_bytes());
        assert_eq!(visitor.request(fleet.listen, sent).status, 202, "{topic}");
    }
}

#[test]
fn the_forms_text_is_another_one_on_every_page_and_each_of_them_is_good() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(2).start();
    let mut ann = CookieClient::default();
    let first = token(&page(&mut ann, &fleet, "/login"));
    let login = |visitor: &mut CookieClient, text: &str| {
        let form = format!("name=ann&token={text}");
        visitor.request(fleet.listen, Request::post("/login").body(FORM, form.as_bytes())).status
    };
    let texts: Vec<String> =
        ["/", "/", "/login", "/login"].map(|target| token(&page(&mut ann, &fleet, target))).into();
    let different: BTreeSet<&String> = texts.iter().chain([&first]).collect();
    assert_eq!(different.len(), 5, "{different:?}");
    // No eight characters in a row are the same on two pages, but those of the key's name.
    let parts = |text: &str| text.split('.').skip(1).collect::<String>();
    let windows = |text: &str| parts(text).as_bytes().windows(8).map(<[u8]>::to_vec).collect::<BTreeSet<_>>();
    assert!(windows(&texts[0]).is_disjoint(&windows(&texts[1])));
    let mut stranger = CookieClient::default();
    page(&mut stranger, &fleet, "/login");
    assert_eq!(login(&mut stranger, &first), 403, "of another session");
    assert_eq!(login(&mut ann, &first), 200, "of a page that was opened long ago");
    assert_eq!(login(&mut ann, &texts[3]), 403, "from before the login");
}

#[test]
fn the_demonstration_says_that_any_name_is_let_in_and_tells_no_addresses() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).start();
    let mut visitors = [("192.0.2.1", CookieClient::default()), ("192.0.2.2", CookieClient::default())];
    for (address, visitor) in &mut visitors {
        let login = Request::post("/login").body("application/json", b"{\"name\":\"ann\"}");
        assert_eq!(visitor.request(fleet.listen, login.header("X-Forwarded-For", address)).status, 200);
    }
    let [_, (own, eve)] = &mut visitors;
    for shown in [page(eve, &fleet, "/me/sessions").text(), get(eve, &fleet, "/me/sessions").text()] {
        assert!(!shown.contains("192.0.2.1") && shown.contains(*own), "{shown}");
    }
    let said = page(&mut CookieClient::default(), &fleet, "/login").text();
    assert!(said.contains("any name is accepted, without a password"), "{said}");
}

#[test]
fn the_page_and_the_line_say_the_same_in_the_same_words() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(1).start();
    let mut visitor = CookieClient::default();
    let (pid, views) = visitor.view(fleet.listen);
    let shown = page(&mut visitor, &fleet, "/").text();
    assert!(shown.contains(&format!("<dt>PID</dt> <dd id=\"pid\">{pid}</dd>")), "{shown}");
    assert!(shown.contains(&format!("<dt>Views</dt> <dd id=\"views\">{}</dd>", views + 1)), "{shown}");
    assert!(shown.contains(&format!("PID: {pid} | Views: {}", views + 1)), "{shown}");
}
