//! Load on one route by `wrk`, and what the processes and Redis spent meanwhile.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::contender::Contender;
use crate::options::Options;
use crate::redis::Link;
use crate::{Outcome, process};

/// The script that rotates over the pool of cookies.
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/http/visits.lua");

/// Commands that call server-side code, as `INFO commandstats` names them.
const CODE: [&str; 3] = ["fcall", "evalsha", "eval"];

/// Seconds of a load that are not measured, besides the warm-up: reading the counters takes a part of them.
const BESIDES: u64 = 1;

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// `/hello`: no state at all.
    Hello,
    /// `/` as text: limit, session, view count and total.
    Visit,
    /// `/` as a browser's page, with the same state; its connection is closed after each answer.
    Page,
    /// `/bare`: a peer's session alone, neither limit nor total.
    Bare,
}

impl Route {
    /// All of them, in the order they are measured.
    pub(crate) const ALL: [Self; 4] = [Self::Hello, Self::Visit, Self::Page, Self::Bare];

    /// Its name in the tables.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Hello => "/hello",
            Self::Visit => "/ (text)",
            Self::Page => "/ (page)",
            Self::Bare => "/bare",
        }
    }

    /// The path asked for.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Hello => "/hello",
            Self::Visit | Self::Page => "/",
            Self::Bare => "/bare",
        }
    }

    fn accept(self) -> &'static str {
        match self {
            Self::Hello | Self::Visit | Self::Bare => "*/*",
            Self::Page => "text/html",
        }
    }
}

/// What wrk saw.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// Requests answered.
    pub(crate) requests: f64,
    /// Length of the measurement, seconds.
    pub(crate) seconds: f64,
    /// Median latency, milliseconds.
    pub(crate) p50_ms: f64,
    /// 99th percentile of latency, milliseconds.
    pub(crate) p99_ms: f64,
    /// Answers with a status above 399.
    pub(crate) refused: f64,
    /// Connections that failed, broke off or gave no answer for 2 s.
    pub(crate) broken: f64,
}

/// One measurement: what wrk saw, and what it cost, in all.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    /// What wrk saw.
    pub(crate) seen: Seen,
    /// CPU time of the serving processes, microseconds.
    pub(crate) app_us: f64,
    /// CPU time of the supervisor, microseconds.
    pub(crate) supervisor_us: f64,
    /// CPU time of Redis, microseconds.
    pub(crate) redis_us: f64,
    /// Commands Redis executed, those inside scripts included.
    pub(crate) commands: f64,
    /// Calls of server-side code, each of which may bring several visits.
    pub(crate) calls: f64,
    /// Times Redis read from a socket; one read may bring several commands.
    pub(crate) reads: f64,
    /// Answers with status 200 that showed a session as last known: wrk takes them for successes.
    pub(crate) stale: f64,
}

impl Run {
    /// Answers a second.
    pub(crate) fn rate(&self) -> f64 {
        self.seen.requests / self.seen.seconds
    }
}

/// Threads of wrk: half the cores, so that on two cores one drives and the contenders are not starved by two.
pub(crate) fn threads() -> usize {
    thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1))
}

/// Loads the route for this many seconds.
pub(crate) fn drive(
    contender: &Contender,
    route: Route,
    cookies: &Path,
    seconds: u64,
    options: &Options,
) -> Outcome<Seen> {
    let mut wrk = Command::new("wrk");
    wrk.arg(format!("--threads={}", threads())).arg(format!("--connections={}", options.connections));
    wrk.arg(format!("--duration={seconds}s")).args(["--latency", "--script", SCRIPT]);
    wrk.arg(format!("http://{}", contender.address)).args(["--", route.path(), route.accept()]);
    if route != Route::Hello {
        wrk.arg(cookies);
    }
    let output = wrk.output().map_err(|error| format!("cannot run wrk: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix("figures "));
    let line = line.ok_or_else(|| format!("wrk printed no figures: {text}"))?;
    let figures: Vec<f64> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
    let [requests, duration_us, p50_us, p99_us, refused, connect, broken, timeout] = figures[..] else {
        return Err(format!("wrk printed other figures: {line}").into());
    };
    Ok(Seen {
        requests,
        seconds: duration_us / 1e6,
        p50_ms: p50_us / 1e3,
        p99_ms: p99_us / 1e3,
        refused,
        broken: connect + broken + timeout,
    })
}

/// Loads the route and takes the difference of everything that is counted before and after.
pub(crate) fn measure(
    contender: &Contender,
    route: Route,
    cookies: &Path,
    options: &Options,
) -> Outcome<Run> {
    let mut counters = Counters::of(contender)?;
    let before = counters.read()?;
    let seen = drive(contender, route, cookies, options.seconds, options)?;
    let after = counters.read()?;
    counters.run(seen, (before, after))
}

/// Loads visits for longer than is measured, and takes the difference over a part of that in which every connection is
/// open: thousands of them cost more to open than they are asked for in a few seconds. Visits are counted by the total
/// of all; the second result is what wrk saw of the whole load, whose latencies are in both.
pub(crate) fn measure_within(
    contender: &Contender,
    cookies: &Path,
    options: &Options,
) -> Outcome<(Run, Seen)> {
    let mut counters = Counters::of(contender)?;
    let total = || -> Outcome<u64> { Ok(contender.total()?.ok_or("the total is not known")?) };
    let first = total()?;
    let length = options.warm_up + options.seconds + BESIDES;
    thread::scope(|scope| {
        let wrk = scope.spawn(|| {
            drive(contender, Route::Visit, cookies, length, options).map_err(|error| error.to_string())
        });
        process::wait_until("the first visit is counted", || total().is_ok_and(|now| now > first))?;
        thread::sleep(Duration::from_secs(options.warm_up));
        let (before, visits, begun) = (counters.read()?, total()?, Instant::now());
        thread::sleep(Duration::from_secs(options.seconds));
        let (after, visits, elapsed) = (counters.read()?, total()? - visits, begun.elapsed());
        let whole = wrk.join().map_err(|_| "a thread panicked")??;
        let seen = Seen { requests: float(visits), seconds: elapsed.as_secs_f64(), ..whole.clone() };
        Ok((counters.run(seen, (before, after))?, whole))
    })
}

/// What is read before and after a load.
struct Counters<'a> {
    contender: &'a Contender,
    serving: Vec<u32>,
    link: Link,
}

impl<'a> Counters<'a> {
    fn of(contender: &'a Contender) -> Outcome<Self> {
        Ok(Self { contender, serving: contender.serving(), link: contender.redis().connect()? })
    }

    fn read(&mut self) -> Outcome<[f64; 7]> {
        let calls = self.link.calls()?;
        let code: u64 = CODE.iter().filter_map(|name| calls.get(*name)).sum();
        let calls: u64 = calls.values().sum();
        let reads = self.link.reads()?;
        let supervisor: Vec<u32> = self.contender.supervisor().into_iter().collect();
        let redis = [self.contender.redis().pid()];
        let stale = self.contender.stale()?;
        let cpu = [&self.serving[..], &supervisor, &redis].map(process::cpu_us);
        let [serving, supervisor, redis] = cpu;
        Ok([serving?, supervisor?, redis?, float(calls), float(code), float(reads), float(stale)])
    }

    fn run(&self, seen: Seen, (before, after): ([f64; 7], [f64; 7])) -> Outcome<Run> {
        if self.contender.serving() != self.serving {
            return Err(format!("{} lost a process under load", self.contender.name).into());
        }
        let [app_us, supervisor_us, redis_us, commands, calls, reads, stale] =
            std::array::from_fn(|i| after[i] - before[i]);
        Ok(Run { seen, app_us, supervisor_us, redis_us, commands, calls, reads, stale })
    }
}

/// A count as a number to divide: exact, since counts here stay far below 2^52.
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}
