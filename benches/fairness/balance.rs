//! `listen.balance` on and off: two fleets beside each other, which are under the same load in turns.
//!
//! Every round opens its connections anew, because how uneven the kernel's hash is differs from one time to the next.
//! Loads: `hello` and `visit` (a closed loop), `work` (the same with 1 ms of CPU on the worker's one thread), `paced`
//! (that work at 60 % of what the cores can do, each answer timed since it was due), `closed` (a connection a request),
//! `opened` (connections opened one after the other and kept, where every worker but one is asleep: what passing costs
//! at most). What opening a burst of connections takes is left out of the others by a warm-up. Figures are medians over
//! the rounds, in brackets the worst round; a ratio is that of `on` to `off` in the same round. CPU is that of the
//! workers alone.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::app::WORK;
use crate::fleet::{Fleet, SERVES};
use crate::load::{Load, Seen, load, open_one_by_one};
use crate::options::Options;

/// How long a load goes on before it counts.
const WARM_UP: Duration = Duration::from_millis(300);

/// Part of the cores' time that paced work takes.
const PACED: f64 = 0.6;

/// What is not in the way: limits and new sessions.
const SETTINGS: &[(&str, &str)] = &[
    (SERVES, "1"),
    ("REGATTA_SESSION__CREATE_RATE", "off"),
    ("REGATTA_LIMITS__DEFAULT__RATE", "1000000/s"),
    ("REGATTA_LIMITS__DEFAULT__BURST", "1000000"),
    ("REGATTA_LIMITS__DEFAULT__ROUTES", "state"),
];

/// Names of the loads, and whether each is measured with every number of connections or the first alone. `closed` is the
/// last one: in the second after it a worker that is to pass connections on takes them for short ones.
const LOADS: &[(&str, bool)] = &[
    ("hello", true),
    ("visit", false),
    ("work", false),
    ("paced", true),
    ("opened", false),
    ("closed", false),
];

/// The figures of one round of one fleet.
#[derive(Debug, Clone, Copy, Default)]
struct Figures {
    max_to_mean: f64,
    rate: f64,
    p50_ms: f64,
    p99_ms: f64,
    cpu_us: f64,
    passed: f64,
    failed: u64,
}

pub(crate) fn run(options: &Options) -> Outcome<()> {
    println!(
        "| load | workers | connections | max/mean off (worst) | on | req/s off | on | ratio | p50 ms off | on | p99 ms off (worst) | on | ratio | CPU µs off | on | ratio | passed % | failed |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for workers in &options.workers {
        let folders = [tempfile::tempdir()?, tempfile::tempdir()?];
        let fleets =
            [start(folders[0].path(), *workers, "false")?, start(folders[1].path(), *workers, "true")?];
        for (name, all) in LOADS.iter().filter(|(name, _)| wanted(options, name)) {
            for clients in options.connections.iter().take(if *all { usize::MAX } else { 1 }) {
                let mut rounds = Vec::new();
                for round in 0..options.rounds {
                    let mut pair = [Figures::default(); 2];
                    // What one round leaves behind, such as a warm cache, is each one's turn by turn.
                    for turn in [round % 2, 1 - round % 2] {
                        let measured = measure(name, &fleets[turn], (*workers, *clients), options);
                        pair[turn] = runtime.block_on(measured)?;
                    }
                    rounds.push(pair);
                }
                print(name, *workers, *clients, &rounds);
            }
        }
    }
    Ok(())
}

fn wanted(options: &Options, name: &str) -> bool {
    options.only.is_empty() || options.only.iter().any(|only| only == name)
}

fn start(folder: &Path, workers: usize, balance: &str) -> Outcome<Fleet> {
    let settings: Vec<_> = SETTINGS.iter().copied().chain([("REGATTA_LISTEN__BALANCE", balance)]).collect();
    Fleet::start(Command::new(std::env::current_exe()?), folder, workers, &settings)
}

async fn measure(
    name: &str,
    fleet: &Fleet,
    (workers, clients): (usize, usize),
    options: &Options,
) -> Outcome<Figures> {
    let passed = fleet.passed()?;
    let (mut cpu, mut begun) = (fleet.cpu()?, Instant::now());
    let mut seen = if name == "opened" {
        open_one_by_one(fleet.address, clients).await?
    } else {
        let wanted = loads(name, workers, clients, options.time)?;
        let warm = async {
            tokio::time::sleep(wanted.warm_up).await;
            fleet.cpu().map(|cpu| (cpu, Instant::now()))
        };
        let (seen, warm) = tokio::join!(load(fleet.address, wanted), warm);
        (cpu, begun) = warm?;
        seen?
    };
    let (cpu, time) = (fleet.cpu()?.saturating_sub(cpu), begun.elapsed());
    let answers = seen.answers.values().sum::<u64>() as f64;
    let opened = seen.connections.values().sum::<u64>() as f64;
    let figures = Figures {
        max_to_mean: max_to_mean(&seen, workers),
        rate: answers / time.as_secs_f64(),
        p50_ms: seen.quantile(50) as f64 / 1e3,
        p99_ms: seen.quantile(99) as f64 / 1e3,
        cpu_us: cpu.as_secs_f64() * 1e6 / answers.max(1.0),
        passed: (fleet.passed()? - passed) * 100.0 / opened.max(1.0),
        failed: seen.failed,
    };
    // The end of these connections is no part of the next measurement.
    tokio::time::sleep(Duration::from_millis(50)).await;
    Ok(figures)
}

fn loads(name: &str, workers: usize, clients: usize, time: Duration) -> Outcome<Load> {
    let closed =
        Load { path: "/hello", other: None, keep: true, clients, warm_up: WARM_UP, time, interval: None };
    Ok(match name {
        "hello" => closed,
        "visit" => Load { path: "/", ..closed },
        "work" => Load { path: "/work", ..closed },
        "paced" => {
            let cores = std::thread::available_parallelism()?.get().min(workers) as f64;
            let interval = WORK.mul_f64(clients as f64 / (cores * PACED));
            Load { path: "/work", interval: Some(interval), ..closed }
        }
        "closed" => Load { keep: false, ..closed },
        other => return Err(format!("there is no load {other}").into()),
    })
}

fn max_to_mean(seen: &Seen, workers: usize) -> f64 {
    let counts = || seen.connections.values().map(|count| *count as f64);
    counts().fold(0.0, f64::max) * workers as f64 / counts().sum::<f64>().max(1.0)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn print(name: &str, workers: usize, clients: usize, rounds: &[[Figures; 2]]) {
    let all = |of: fn(&Figures) -> f64| -> [Vec<f64>; 2] {
        [0, 1].map(|fleet| rounds.iter().map(|pair| of(&pair[fleet])).collect())
    };
    let both = |of: fn(&Figures) -> f64| all(of).map(median);
    let worst = |of: fn(&Figures) -> f64| all(of).map(|values| values.into_iter().fold(0.0, f64::max));
    let ratio = |of: fn(&Figures) -> f64| {
        median(rounds.iter().map(|[off, on]| of(on) / of(off).max(f64::EPSILON)).collect())
    };
    let even = both(|figures| figures.max_to_mean);
    let evenest = worst(|figures| figures.max_to_mean);
    let (rate, p50, p99) =
        (both(|figures| figures.rate), both(|figures| figures.p50_ms), both(|figures| figures.p99_ms));
    let (highest, cpu) = (worst(|figures| figures.p99_ms), both(|figures| figures.cpu_us));
    println!(
        "| {name} | {workers} | {clients} | {:.2} ({:.2}) | {:.2} ({:.2}) | {:.0} | {:.0} | {:.3} | {:.2} | {:.2} | {:.1} ({:.1}) | {:.1} ({:.1}) | {:.3} | {:.1} | {:.1} | {:.3} | {:.0} | {} |",
        even[0],
        evenest[0],
        even[1],
        evenest[1],
        rate[0],
        rate[1],
        ratio(|figures| figures.rate),
        p50[0],
        p50[1],
        p99[0],
        highest[0],
        p99[1],
        highest[1],
        ratio(|figures| figures.p99_ms),
        cpu[0],
        cpu[1],
        ratio(|figures| figures.cpu_us),
        both(|figures| figures.passed)[1],
        rounds.iter().flatten().map(|figures| figures.failed).sum::<u64>()
    );
}
