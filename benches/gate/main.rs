//! `make gate`: what a request costs, counted and not timed, and compared with `benches/baseline.toml`.
//!
//! The worker and its Redis run under valgrind's callgrind, one connection asks in lock-step, and the difference of a
//! long stretch and a short one is what a request costs: instructions, allocations, system calls, calls of Redis and
//! bytes. No figure depends on how fast the machine is or what else it does.

#![allow(clippy::print_stdout, reason = "printing figures is what the gate is for")]

mod app;
mod baseline;
mod client;
mod figures;
mod fleet;
#[allow(dead_code, reason = "the other benchmarks use all of it")]
#[path = "../http/process.rs"]
mod process;
mod profile;
mod redis;
mod report;
mod scenarios;
mod start;
mod valgrind;
mod verdict;
mod versions;

use std::collections::BTreeMap;
use std::error::Error;
use std::process::ExitCode;
use std::time::Instant;

use crate::baseline::Baseline;
use crate::figures::Figures;
use crate::fleet::Fleet;
use crate::scenarios::Scenario;
use crate::verdict::{Row, Values, Verdict};

/// How often each scenario is counted: the median leaves out what a worker does by itself every few seconds.
const ROUNDS: usize = 3;

/// What every step here returns: a gate that cannot count fails with a sentence.
type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    if let Some(code) = start::not_to_measure(fleet::SERVES, app::serve) {
        return code;
    }
    let write = std::env::args().any(|argument| argument == "--write");
    match run(write) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("gate: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Counts, and compares or writes; whether a request costs no more than it did.
fn run(write: bool) -> Outcome<bool> {
    let (baseline, here) = (Baseline::read()?, versions::here()?);
    let other = differences(&baseline.versions, &here);
    if !write && !other.is_empty() {
        println!(
            "gate: SKIPPED, nothing was compared: benches/baseline.toml was written with other versions."
        );
        other.iter().for_each(|line| println!("gate: {line}"));
        println!("gate: `make gate BASELINE=write` on this machine would write one for them.");
        return Ok(true);
    }
    let begin = Instant::now();
    valgrind::on_one_processor()?;
    let mut fleet = Fleet::start()?;
    let mut counted = BTreeMap::new();
    for name in scenarios::NAMES {
        counted.insert(name.to_owned(), count(name, &mut fleet)?);
    }
    drop(fleet);
    let rows = compare(&baseline, &counted);
    println!("{}", report::table(&rows));
    println!("gate: counted in {} s", begin.elapsed().as_secs());
    if write {
        baseline.write(&here, &counted)?;
        println!("gate: benches/baseline.toml is written; say in its commit why.");
        return Ok(true);
    }
    print!("{}", report::culprits(&rows, &counted, &baseline::read_functions()));
    Ok(verdict(&baseline, &rows, &counted))
}

/// What is not as the baseline's versions are.
fn differences(before: &BTreeMap<String, String>, here: &BTreeMap<String, String>) -> Vec<String> {
    let differs = |(name, here): (&String, &String)| {
        let before = before.get(name).map_or("none", String::as_str);
        (before != here).then(|| format!("{name}: {before} there, {here} here"))
    };
    here.iter().filter_map(differs).collect()
}

fn compare(baseline: &Baseline, counted: &BTreeMap<String, Figures>) -> Vec<Row> {
    let none = Values::new();
    let of = |name: &str| {
        (baseline.figures.get(name).unwrap_or(&none), baseline.tolerance.get(name).unwrap_or(&none))
    };
    // In the order in which they were counted.
    let counted = scenarios::NAMES.into_iter().filter_map(|name| Some((name, counted.get(name)?)));
    counted
        .flat_map(|(name, figures)| {
            let (before, wider) = of(name);
            verdict::compare(name, before, &figures.values, wider)
        })
        .collect()
}

/// The last word, and what is to be done.
fn verdict(baseline: &Baseline, rows: &[Row], counted: &BTreeMap<String, Figures>) -> bool {
    let count = |verdict: Verdict| rows.iter().filter(|row| row.verdict == verdict).count();
    let (dearer, cheaper, new) = (count(Verdict::Dearer), count(Verdict::Cheaper), count(Verdict::New));
    let gone: Vec<_> = baseline.figures.keys().filter(|name| !counted.contains_key(*name)).collect();
    if cheaper > 0 {
        println!(
            "gate: {cheaper} figures are cheaper: write a new baseline (`make gate BASELINE=write`), or they"
        );
        println!("gate: may become as dear again without a word.");
    }
    if new > 0 || !gone.is_empty() {
        println!("gate: FAILED: {new} figures are not in the baseline, and {gone:?} were not counted.");
    }
    if dearer > 0 {
        println!(
            "gate: FAILED: {dearer} figures are dearer. If that is meant, `make gate BASELINE=write` and a commit"
        );
        println!("gate: that says why.");
    }
    let passed = dearer == 0 && new == 0 && gone.is_empty();
    if passed {
        println!("gate: passed: no figure is dearer than the baseline allows.");
    }
    passed
}

/// Counts a short and a long stretch several times over.
fn count(name: &'static str, fleet: &mut Fleet) -> Outcome<Figures> {
    let mut scenario = Scenario::prepare(name, fleet)?;
    let (short, long) = scenario.sizes();
    // Caches fill, tables grow, and what is compiled or learned once is.
    scenario.run(short)?;
    let mut before = fleet.mark(&scenario)?;
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        scenario.run(short)?;
        let first = fleet.mark(&scenario)?;
        scenario.run(long)?;
        let second = fleet.mark(&scenario)?;
        rounds.push(figures::figures(&before, &first, &second, (long - short) as f64));
        before = second;
    }
    Ok(figures::median(&rounds))
}
