//! What a fleet under use leaves in Redis is on the page of Redis keys, with its type, and expires exactly where the page
//! says so.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::support::client::{self, CookieClient, Request};
use crate::support::fleet::TestFleetBuilder;
use crate::support::redis::TestRedis;
use crate::support::wait;

/// A row of the page.
#[derive(Debug)]
struct Row {
    pattern: String,
    types: Vec<String>,
    lives: String,
}

fn rows() -> Vec<Row> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/redis-keys.md");
    let text = fs::read_to_string(page).unwrap();
    let (_, table) = text.split_once("|---|---|---|---|---|---|\n").unwrap();
    let table = table.split("\n\n").next().unwrap();
    let row = |line: &str| {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let types = cells[2].split(", ").map(str::to_owned).collect();
        Row { pattern: cells[0].trim_matches('`').to_owned(), types, lives: cells[3].to_owned() }
    };
    table.lines().map(row).collect()
}

/// Whether a name is made by a pattern: a part in capitals, with or without braces, is filled with one part or several.
fn matches(pattern: &[&str], name: &[&str]) -> bool {
    let Some((first, rest)) = pattern.split_first() else { return name.is_empty() };
    let is_filled = first.trim_matches(['{', '}']).chars().all(|letter| letter.is_ascii_uppercase());
    match is_filled {
        true => (1..=name.len()).any(|parts| matches(rest, &name[parts..])),
        false => name.first() == Some(first) && matches(rest, &name[1..]),
    }
}

fn row_of<'a>(rows: &'a [Row], name: &str) -> Option<&'a Row> {
    let parts: Vec<_> = name.split(':').collect();
    let fits = |row: &&Row| matches(&row.pattern.split(':').collect::<Vec<_>>(), &parts);
    // Of several the most exact one: a mark beside a limit could be a subject with colons.
    rows.iter().filter(fits).max_by_key(|row| row.pattern.split(':').count())
}

/// What `TYPE` says of a type of the page.
fn is_type(stored: &str, types: &[String]) -> bool {
    types.iter().any(|one| match one.as_str() {
        "sorted set" => stored == "zset",
        "HyperLogLog" => stored == "string",
        "any" => true,
        other => stored == other,
    })
}

/// Uses everything that keeps state.
fn use_everything(plan: &TestFleetBuilder, server: &TestRedis) {
    let fleet = plan.start();
    let mut ann = CookieClient::default();
    (0..3).for_each(|_| _ = ann.view(fleet.listen));
    let login = Request::post("/login").body("application/json", b"{\"name\":\"ann\"}");
    assert_eq!(ann.request(fleet.listen, login).status, 200);
    let form = "application/x-www-form-urlencoded";
    let posts = [
        Request::post("/counters/bell"),
        Request::post("/counters/hot?kind=batched"),
        Request::post("/counters/seats?kind=bounded&max=9&token=5eed"),
        Request::post("/counters/x?kind=distinct&item=ann"),
        Request::post("/counters/orders").header("Idempotency-Key", "5eed-0001"),
        Request::post("/tasks").body(form, b"kind=fibonacci&n=100"),
    ];
    for post in posts {
        let sent = format!("{post:?}");
        let response = ann.request(fleet.listen, post);
        assert!((200..300).contains(&response.status), "{sent}: {response:?}");
    }
    // Without a cookie: a form of a visitor needs its token.
    let message = Request::post("/broadcast").body(form, b"message=ahoy");
    assert_eq!(client::once(fleet.listen, message).unwrap().status, 202);
    let mut live = client::Connection::open(fleet.listen).unwrap();
    live.send(&Request::get("/events").bytes()).unwrap();
    let wanted = [":j:", ":{b}:here:", ":{t}:totals", ":{seen}:", ":{fleet}:machines", ":once:", ":io:"];
    for part in wanted {
        wait::until(&format!("a key with {part} is written"), wait::LONG, || {
            server.keys().iter().any(|key| key.contains(part))
        });
    }
    assert!(ann.request(fleet.listen, Request::new("DELETE", "/me/sessions")).status < 400);
    check(plan.prefix(), server);
}

fn check(prefix: &str, server: &TestRedis) {
    let rows = rows();
    let mut met = BTreeSet::new();
    for key in server.keys() {
        let name = key.strip_prefix(&format!("{prefix}:")).unwrap_or_else(|| panic!("{key} has no prefix"));
        let row =
            row_of(&rows, name).unwrap_or_else(|| panic!("{name} is not in docs/reference/redis-keys.md"));
        let (stored, expires) = (server.cli(&["TYPE", &key]), server.cli(&["PTTL", &key]));
        if stored == "none" {
            continue;
        }
        assert!(is_type(&stored, &row.types), "{name} is a {stored}: {row:?}");
        assert_eq!(expires == "-1", row.lives == "for ever", "{name} ends after {expires} ms: {row:?}");
        met.insert(row.pattern.clone());
    }
    assert!(met.len() >= 20, "only these were met: {met:?}");
}

#[test]
fn every_key_of_a_fleet_under_use_is_on_the_page() {
    let server = TestRedis::start();
    let plan = TestFleetBuilder::on(&server).workers(2);
    let plan = plan.set("REGATTA_TASKS__CONCURRENCY", "1").set("REGATTA_FLEET__HEARTBEAT_INTERVAL", "200ms");
    use_everything(&plan, &server);
}

#[test]
fn names_are_told_apart() {
    let split = |text: &'static str| text.split(':').collect::<Vec<_>>();
    for (pattern, name, fits) in [
        ("s:DIGEST", "s:abc", true),
        ("s:DIGEST", "q:abc", false),
        ("l:POLICY:VERSION:SUBJECT", "l:site:1:2001:db8:", true),
        ("l:POLICY:VERSION:SUBJECT", "l:site:1", false),
        ("dw:LENGTH:NUMBER:{NAME}", "dw:1000:7:{a}", true),
        ("{t}:waiting", "{t}:waiting", true),
        ("{t}:waiting", "{t}:queue:a", false),
    ] {
        assert_eq!(matches(&split(pattern), &split(name)), fits, "{pattern} {name}");
    }
}
