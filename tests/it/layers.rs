//! The house rules of `docs/ARCHITECTURE.md`, held by a test: floors, walls, and the size of a file.

use std::fs;
use std::path::Path;

/// Rooms and their floors: a room names only rooms of lower floors, rooms on one floor are strangers.
const FLOORS: &[(&str, u8)] = &[
    ("cli", 11),
    ("test", 11),
    ("bootstrap", 10),
    ("supervisor", 9),
    ("worker", 9),
    ("application", 8),
    ("facade", 7),
    ("http", 6),
    ("request_state", 5),
    ("sessions", 4),
    ("counters", 4),
    ("limiter", 4),
    ("broadcasts", 4),
    ("tasks", 4),
    ("idempotency", 4),
    ("registry", 4),
    ("control", 4),
    ("logging", 3),
    ("fixed_window", 3),
    ("status", 3),
    ("listener", 2),
    ("redis", 2),
    ("scoreboard", 2),
    ("config", 1),
    ("breaker", 1),
    ("sse", 1),
    ("sys", 0),
    ("backoff", 0),
    ("digest", 0),
    ("panics", 0),
    ("units", 0),
];

/// A name and the only paths below `src/` that may say it; in unit tests too, unless it is a clock.
struct Wall(&'static str, &'static [&'static str]);

/// The loops: everything else is told what time it is.
const LOOPS: &[&str] =
    &["worker/", "http/", "request_state/batching/", "tasks/claim.rs", "redis/", "test/", "bin/"];

const WALLS: &[Wall] = &[
    // Workers are forked, and tokio survives that only if the supervisor has never used it.
    Wall(
        "tokio::",
        &[
            "worker/",
            "application/",
            "http/",
            "facade/",
            "redis/",
            "sessions/",
            "counters/",
            "limiter/",
            "broadcasts/",
            "tasks/",
            "registry/",
            "request_state/",
            "bin/",
        ],
    ),
    Wall("unsafe", &["sys/"]),
    Wall("nix::", &["sys/"]),
    Wall("libc::", &["sys/"]),
    Wall("axum::", &["application/", "http/", "facade/", "test/", "bin/regatta/app/"]),
    Wall("fred::", &["redis/"]),
    Wall("clap::", &["cli/"]),
    Wall("indicatif::", &["cli/"]),
    Wall("ratatui::", &["cli/top/"]),
    // Its machines are told what they must know and return what is to be done: they know no supervisor.
    Wall("Supervisor", &["supervisor/mod.rs", "supervisor/driver.rs", "bootstrap/"]),
    Wall(
        "send_signal",
        &[
            "supervisor/mod.rs",
            "supervisor/driver.rs",
            "supervisor/slots/mod.rs",
            "supervisor/private_redis/",
            "supervisor/orphans.rs",
        ],
    ),
    Wall("env::var", &["config/"]),
    Wall("env::vars", &["config/"]),
    Wall("env::var_os", &["config/"]),
    Wall("env::vars_os", &["config/"]),
    Wall("SystemTime::now", &[]),
    Wall("Instant::now", LOOPS),
    Wall("process::exit", &[]),
    Wall("env::set_var", &[]),
    // Names of keys are made by their domain, in one file.
    Wall(
        "KeySpace",
        &[
            "redis/",
            "sessions/keys.rs",
            "limiter/keys.rs",
            "counters/keys.rs",
            "idempotency/keys.rs",
            "broadcasts/keys.rs",
            "tasks/keys.rs",
            "registry/keys.rs",
            "request_state/keys.rs",
        ],
    ),
    // Either would carry a room past the walls unseen.
    Wall("#[path", &[]),
    Wall("include!", &[]),
];

/// Longest file, lines without its inline tests.
const FILE_MAX: usize = 700;

/// What `text`, standing at `path` below `src/`, breaks; one `file:line: what` each.
fn violations(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    if !text.starts_with("//!") {
        found.push(format!("{path}:1: a module opens with //!"));
    }
    let lines = text.lines().take_while(|line| !line.starts_with("mod tests {")).count();
    if lines > FILE_MAX {
        found.push(format!("{path}:{lines}: a file has at most {FILE_MAX} lines"));
    }
    let mut in_tests = false;
    for (index, line) in expand_groups(&code_only(text)).lines().enumerate() {
        in_tests |= line.trim_start().starts_with("mod tests");
        let mut complain = |what: String| found.push(format!("{path}:{}: {what}", index + 1));
        rooms_named(path, line)
            .into_iter()
            .filter_map(|named| wrong_floor(path, &named))
            .for_each(&mut complain);
        for Wall(name, allowed) in WALLS {
            let clock_in_test = in_tests && name.ends_with("::now");
            if says(line, name) && !allowed.iter().any(|start| path.starts_with(start)) && !clock_in_test {
                complain(format!("{} names {}", room(path), name.trim_end_matches("::")));
            }
        }
    }
    found
}

/// What is wrong with the imports at the head of a file: they stand in the order `std`, crates, `crate`, and what is imported
/// from one path stands in one `use`. Re-exports and what is behind a feature are left out.
fn scattered_imports(path: &str, text: &str) -> Vec<String> {
    let code = code_only(text);
    let head = code.split("\nmod tests {").next().unwrap_or_default();
    let lines: Vec<&str> = head.lines().collect();
    let declared = |name: &str| lines.iter().any(|line| line.ends_with(&format!("mod {name};")));
    let (mut found, mut last, mut paths) = (Vec::new(), 0, Vec::new());
    for (index, line) in lines.iter().enumerate() {
        let Some(first) = line.strip_prefix("use ") else { continue };
        let room = first.split([':', ';']).next().unwrap_or_default();
        if declared(room) || index > 0 && lines[index - 1].starts_with("#[") {
            continue;
        }
        let rank = match room {
            "std" => 0,
            "crate" | "super" | "self" => 2,
            _ => 1,
        };
        if rank < last {
            found.push(format!("{path}:{}: imports are in the order std, crates, crate", index + 1));
        }
        last = rank;
        let parent = match first.split_once('{') {
            Some((parent, _)) => parent,
            None => first.rsplit_once("::").map_or(first, |(parent, _)| &first[..parent.len() + 2]),
        };
        if paths.contains(&parent) {
            found.push(format!("{path}:{}: two imports from {parent}", index + 1));
        }
        paths.push(parent);
    }
    found
}

/// The room a file stands in: its first folder, or the file itself.
fn room(path: &str) -> &str {
    let first = path.split('/').next().unwrap_or(path);
    first.strip_suffix(".rs").unwrap_or(first)
}

fn floor(name: &str) -> Option<u8> {
    FLOORS.iter().find(|(room, _)| *room == name).map(|(_, floor)| *floor)
}

/// Why a file at `path` must not name the room `named`, if it must not.
fn wrong_floor(path: &str, named: &str) -> Option<String> {
    let own = room(path);
    if own == named || own == "lib" {
        return None;
    }
    // The shipped application is what users copy: it sees the library's public names and its own.
    let application = path.starts_with("bin/regatta/app/") && named != "app";
    match (floor(own), floor(named)) {
        (Some(above), Some(below)) if above <= below => Some(format!("{own} names {named}")),
        (Some(_), None) => Some(format!("{own} names {named}, which is no room")),
        (None, _) if application => Some(format!("the application names {named}")),
        _ => None,
    }
}

/// Every word that follows `crate::`, or as many `super::` as lead out of the room.
fn rooms_named(path: &str, line: &str) -> Vec<String> {
    let after = |rest: &str| rest.chars().take_while(|c| c.is_alphanumeric() || "_{*".contains(*c)).collect();
    let starts = line.match_indices("crate::").filter(|(at, _)| boundary(line, *at));
    let mut named: Vec<String> = starts.map(|(at, found)| after(&line[at + found.len()..])).collect();
    let depth = path.split('/').filter(|part| *part != "mod.rs").count();
    for (at, _) in line
        .match_indices("super::")
        .filter(|(at, _)| boundary(line, *at) && !line[..*at].ends_with("super::"))
    {
        let rest = line[at..].trim_start_matches("super::");
        let word = after(rest);
        if (line.len() - at - rest.len()) / "super::".len() >= depth && floor(&word).is_some() {
            named.push(word);
        }
    }
    named
}

/// Whether `line` says `name` as whole words.
fn says(line: &str, name: &str) -> bool {
    let open = name.ends_with("::");
    line.match_indices(name).any(|(at, _)| {
        let after = line[at + name.len()..].chars().next();
        boundary(line, at) && (open || !after.is_some_and(|c| c.is_alphanumeric() || c == '_'))
    }) || (open && line.trim() == format!("use {};", name.trim_end_matches("::")))
}

/// Whether a word may begin at `at`.
fn boundary(line: &str, at: usize) -> bool {
    !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_')
}

/// The text with comments and literals blanked, line for line.
pub(crate) fn code_only(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = match rest.as_bytes() {
            [b'/', b'/', ..] => rest.find('\n').unwrap_or(rest.len()),
            [b'/', b'*', ..] => rest.find("*/").map_or(rest.len(), |end| end + 2),
            [b'r', b'"', ..] | [b'r', b'#', b'"', ..] | [b'r', b'#', b'#', ..] => raw_literal(rest),
            [b'"', ..] => literal(rest),
            [b'\'', b'"', b'\'', ..] => 3,
            [b'\'', b'\\', b'"', b'\'', ..] => 4,
            _ => 0,
        };
        if skipped == 0 {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            code.extend(rest[..skipped].chars().filter(|c| *c == '\n'));
            code.push(' ');
            rest = &rest[skipped..];
        }
    }
    code
}

/// The text with `crate::{a, b::{c, d}}` written as `crate::a, crate::b::{c, d}`, line for line.
fn expand_groups(code: &str) -> String {
    const GROUP: &str = "crate::{";
    let mut expanded = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(at) = rest.find(GROUP) {
        let body = &rest[at + GROUP.len()..];
        expanded.push_str(&rest[..at]);
        let (mut depth, mut starts, mut end) = (1, true, body.len());
        for (index, c) in body.char_indices() {
            depth += i32::from(c == '{') - i32::from(c == '}');
            if depth == 0 {
                end = index + 1;
                break;
            }
            if starts && (c.is_alphanumeric() || "_*{".contains(c)) {
                expanded.push_str("crate::");
                starts = false;
            }
            starts |= c == ',' && depth == 1;
            expanded.push(c);
        }
        rest = &body[end..];
    }
    expanded + rest
}

/// Length of the string literal `text` begins with.
fn literal(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            '"' if !escaped => return at + 1,
            _ => escaped = c == '\\' && !escaped,
        }
    }
    text.len()
}

/// Length of the raw string literal `text` begins with.
fn raw_literal(text: &str) -> usize {
    let hashes = text[1..].chars().take_while(|c| *c == '#').count();
    let end = format!("\"{}", "#".repeat(hashes));
    let body = 2 + hashes;
    text.get(body..).and_then(|rest| rest.find(&end)).map_or(text.len(), |at| body + at + end.len())
}

pub(crate) fn walk(folder: &Path, visit: &mut dyn FnMut(&Path)) {
    let mut entries: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            walk(&path, visit);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            visit(&path);
        }
    }
}

#[test]
fn every_room_keeps_to_its_floor_and_its_walls() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&source, &mut |path| {
        let below = path.strip_prefix(&source).unwrap().to_str().unwrap();
        found.extend(violations(below, &fs::read_to_string(path).unwrap()));
    });
    assert!(found.is_empty(), "the house rules are broken:\n{}", found.join("\n"));
}

#[test]
fn imports_are_grouped() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&source, &mut |path| {
        let below = path.strip_prefix(&source).unwrap().to_str().unwrap();
        found.extend(scattered_imports(below, &fs::read_to_string(path).unwrap()));
    });
    assert!(found.is_empty(), "imports are scattered:\n{}", found.join("\n"));
}

#[test]
fn scattered_imports_are_found() {
    let order = "use crate::sys;\nuse std::fmt;\n";
    assert_eq!(scattered_imports("a.rs", order), ["a.rs:2: imports are in the order std, crates, crate"]);
    let twice = "use crate::sys::{a,\n b};\nuse crate::sys::c;\n";
    assert_eq!(scattered_imports("a.rs", twice), ["a.rs:3: two imports from crate::sys::"]);
    let fine =
        "mod b;\nuse std::fmt;\nuse b::X;\nuse tokio::time;\nuse crate::{a, c};\n#[cfg(x)]\nuse std::io;\n";
    assert_eq!(scattered_imports("a.rs", fine), [""; 0]);
}

#[test]
fn a_broken_wall_is_found() {
    let broken = [
        ("limiter/mod.rs", "use crate::sessions::Id;", "limiter/mod.rs:2: limiter names sessions"),
        ("redis/mod.rs", "fn f() { crate::http::go() }", "redis/mod.rs:2: redis names http"),
        ("redis/keys.rs", "use super::super::sessions;", "redis/keys.rs:2: redis names sessions"),
        ("http/mod.rs", "use crate::{config, cli, redis::{self, keys}};", "http/mod.rs:2: http names cli"),
        ("supervisor/mod.rs", "use tokio::time;", "supervisor/mod.rs:2: supervisor names tokio"),
        ("cli/mod.rs", "unsafe { go() }", "cli/mod.rs:2: cli names unsafe"),
        ("worker/mod.rs", "std::process::exit(1)", "worker/mod.rs:2: worker names process::exit"),
        ("supervisor/plan.rs", "Instant::now()", "supervisor/plan.rs:2: supervisor names Instant::now"),
        ("http/mod.rs", "env::var(\"X\")", "http/mod.rs:2: http names env::var"),
        (
            "bin/regatta/app/mod.rs",
            "use crate::cli::X;",
            "bin/regatta/app/mod.rs:2: the application names cli",
        ),
        (
            "supervisor/slots/exits.rs",
            "impl Supervisor<'_> {}",
            "supervisor/slots/exits.rs:2: supervisor names Supervisor",
        ),
        ("bin/regatta/main.rs", "#[path = \"x.rs\"]", "bin/regatta/main.rs:2: bin names #[path"),
    ];
    for (path, line, expected) in broken {
        assert_eq!(violations(path, &format!("//! Text.\n{line}\n")), [expected], "{line}");
    }
    assert_eq!(violations("sys/mod.rs", "fn f() {}").len(), 1, "no module doc");
    assert_eq!(
        violations("sys/mod.rs", &format!("//! Text.\n{}", "\n".repeat(FILE_MAX))).len(),
        1,
        "too long"
    );
}

#[test]
fn words_in_comments_and_literals_break_nothing() {
    let fine = [
        ("sys/fork.rs", "// crate::http is far above, and tokio:: is not for us"),
        ("sys/fork.rs", "/* crate::http */ let x = \"crate::http \\\" unsafe\"; let y = r#\"tokio::\"#;"),
        ("sys/fork.rs", "let quote = '\"'; unsafe { fork() }"),
        ("supervisor/plan.rs", "#[cfg(test)]\nmod tests { fn now() { Instant::now() } }"),
        ("http/mod.rs", "use crate::sessions::cookie; use super::http; use crate::http::state;"),
        ("http/routes/counter.rs", "use super::counter; my_crate::worker(); super::session::x()"),
        ("lib.rs", "pub use crate::cli::Fleet;"),
    ];
    for (path, line) in fine {
        assert_eq!(violations(path, &format!("//! Text.\n{line}\n")), [""; 0], "{line}");
    }
}
