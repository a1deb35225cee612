//! The page `docs/BENCHMARKS.md`: what was measured, how, and how to repeat it.

use crate::growth::{Growth, Point};
use crate::options::Options;
use crate::page::Part;
use crate::rounds::Figures;
use crate::targets::Target;
use crate::{Outcome, load, page, tables, targets};

/// The whole page.
pub(crate) fn page(
    machine: &[(&'static str, String)],
    options: &Options,
    measured: &[Figures],
    (targets, hincrby_us): (&[Target], f64),
    growth: Option<&Growth>,
) -> String {
    let mut page = String::from("# Benchmarks\n\n");
    page.push_str(
        "Written by `cargo bench --bench http`; see the end for how to repeat it. Ratios within one run ",
    );
    page.push_str("mean something; absolute figures depend on the machine.\n\n");
    if let Some(date) = &options.date {
        page.push_str(&format!("Measured on {date}. {}\n\n", options.note.as_deref().unwrap_or_default()));
    }
    page.push_str(&tables::machine(machine));
    let goals = format!("{TARGETS} A plain HINCRBY cost {hincrby_us:.2} µs here.");
    let points =
        |what, points: fn(&Growth) -> &Vec<Point>| growth.map(|growth| tables::growth(what, points(growth)));
    let servers = format!("{SERVERS} {}", growth.map_or_else(String::new, missing));
    let sections = [
        ("Targets", Some(targets::page(targets)), goals.as_str()),
        ("Speed and cost of a request", Some(tables::routes(measured)), SPEED),
        ("Against the peers", tables::ratios(measured), RATIOS),
        ("Commands and round trips of a request", Some(tables::accounting(measured)), ACCOUNTING),
        ("Memory", Some(tables::memory(measured)), MEMORY),
        ("How cost grows: sessions", points("sessions", |growth| &growth.sessions), SESSIONS),
        ("How cost grows: workers", points("workers", |growth| &growth.workers), WORKERS),
        (
            "How cost grows: connections, and visits of one call",
            points("connections", |growth| &growth.connections),
            CONNECTIONS,
        ),
        ("Other servers", points("", |growth| &growth.servers), &servers),
        ("Does every visit count?", Some(tables::exactness(measured)), EXACT),
        ("A worker killed by SIGKILL", tables::crashes(measured), CRASHES),
        ("Spread", Some(tables::rounds(measured)), SPREAD),
    ];
    for (title, table, text) in sections {
        if let Some(table) = table {
            page.push_str(&format!("\n## {title}\n\n{text}\n\n{table}"));
        }
    }
    page.push_str(&method(options));
    page
}

const TARGETS: &str = "CPU is user and system time, medians over the rounds. *Visit* is `/` as text: a limit, a session, its view and \
the shared total. The peers are in the same run. HINCRBYs are plain ones, sixteen in a pipeline, of a server of their own.";

const SESSIONS: &str = "A visit's CPU and Redis commands, by the number of sessions that take turns; one measurement each, while all \
connections are open. *Bytes a session* is what the data set of Redis grew by for each while they were made. p50 is here and below of \
all clients together, each of which asks again as soon as it was answered.";

const WORKERS: &str = "More workers than cores: answers a second would say nothing, cost does. Eight connections a worker, as many in all \
as elsewhere at least; fewer connections a worker are fewer visits a call. *At rest* is before the first session: private memory of a \
worker, and what all of them together ask of Redis.";

const CONNECTIONS: &str = "More connections are more load: *visits a call* is how many of them a worker sent together. What one core of \
Redis carries is 10⁶ divided by its CPU a visit.";

const SERVERS: &str =
    "The same visit on each server that `--redis-server PATH[,PATH]` names, one measurement each.";

/// Servers that the page should have: their names, and how their versions begin.
const WANTED: [(&str, &str); 4] =
    [("Redis 7.0", "redis 7.0"), ("Redis 7.4", "redis 7.4"), ("Redis 8", "redis 8."), ("Valkey", "valkey ")];

/// Which of them are not there.
fn missing(growth: &Growth) -> String {
    let is_missing =
        |(_, begin): &&(&str, &str)| !growth.servers.iter().any(|point| point.at.starts_with(begin));
    let missing: Vec<_> = WANTED.iter().filter(is_missing).map(|(name, _)| *name).collect();
    if missing.is_empty() { String::new() } else { format!("Not at hand: {}.", missing.join(", ")) }
}

const SPEED: &str = "Medians over the rounds, CPU in microseconds for each request. *App* is all processes that serve \
(Node's first process hands out connections and is one of them). *Redis commands* includes those inside scripts. \
*Visits a call* is how many requests shared a call of server-side code. *Redis reads* is how often Redis read from a socket: below one, requests that arrive together share a read. \
*4xx/5xx* and *broken* (connections that failed or gave no answer for 2 s) are over all rounds. The page closes its connection after each \
answer, so that a browser meets another worker on reload: its figures include a new TCP connection for each request.";

const RATIOS: &str = "Above 1 Regatta is faster, or the peer spends more (for each `/` as text). CPU is the steadier \
figure where other programs share the cores. The peers do the job as their \
documentation shows it: session views, a shared total, and a fixed-window limit whose two commands share a round \
trip in their favour. Regatta's limit is GCRA, its cookies are signed, its sessions have idle and absolute \
lifetimes, and all of it was on.";

const ACCOUNTING: &str = "One connection, one request after the other, under `MONITOR`; nothing can share a round \
trip here. A figure slightly above the whole number is a client's own housekeeping.";

const MEMORY: &str = "`Private_Clean` + `Private_Dirty` of `smaps_rollup`: what one more process costs.";

const EXACT: &str = "200 visits with one cookie, 20 at a time; and the views of all sessions of the pool, added up \
after the load, against the visits that were answered. Up to one visit for each connection and wrk run may be \
counted although wrk was gone before the answer. *Shared total* is by how much the total of all visitors grew beyond the answers, \
with the same room; lost or invented visits end the run with an error, and so does a stale answer.";

const CRASHES: &str = "From the kill to the first answer of the successor. Connections of their own are opened one \
after the other; one that the kernel puts in the dead worker's queue waits there for its successor, and the clock \
stops when a process that was not there before answers. A worker has served for more than a second when it is \
killed. With 50 kills p99 is the longest. *Broken* are connections the victim had accepted, *hanging* those \
that were taken and not answered within 250 ms.";

const SPREAD: &str = "The rounds one by one.";

fn method(options: &Options) -> String {
    let Options { rounds, seconds, warm_up, workers, connections, sessions, kills, .. } = options;
    let threads = load::threads();
    let file =
        if options.appendonly { "on, written every second" } else { "off (`--appendonly` turns it on)" };
    let place =
        if options.tcp { "reached over loopback TCP" } else { "on a Unix socket (`--tcp`: over TCP)" };
    let peers = if options.peers { " --peers" } else { "" };
    format!(
        "
## Method

Each contender has {workers} workers and a Redis of its own {place}, append-only file {file}. wrk drives \
{connections} connections from {threads} thread(s) on the same machine; a request takes the next of {sessions} \
session cookies, each made by a real first visit and a return. Each figure is the median of {rounds} round(s) of {seconds} s \
after {warm_up} s of warm-up; within a round the contenders take turns, so that a slow minute of the machine meets \
all of them. Workers killed: {kills}. Regatta runs with its defaults and a limit that is checked and never reached.

## Repeat it

Needs `wrk` and `redis-server` (Debian's packages of these names), with `--peers` also `node` and `npm`.

```sh
cargo bench --bench http --{peers} --date \"$(date +%F)\"
```

Without `--date` the page is printed and not written. `--out FILE` writes it to another file. Shorter: `--rounds 1 --seconds 3 --kills 5`. `--growth` adds how cost grows with sessions, workers and connections, and `--redis-server PATH,PATH` with which servers: six minutes, three with `--most-sessions 10000`, never more than fifteen. All options are \
in `benches/http/options.rs`, the peers' sources in `benches/peers/`.
"
    )
}

/// Writes the page to where it was asked for, or to its own place if a date was given for it.
pub(crate) fn write(page_text: &str, options: &Options) -> Outcome<()> {
    if let Some(out) = &options.out {
        std::fs::write(out, page_text).map_err(|error| format!("{}: {error}", out.display()))?;
        println!("written to {}", out.display());
        return Ok(());
    }
    if options.date.is_none() {
        println!("no --date: docs/BENCHMARKS.md was left as it is");
        return Ok(());
    }
    page::write(Part::Http, page_text)?;
    println!("written to docs/BENCHMARKS.md");
    Ok(())
}
