//! `make gate`: what a request costs, counted and not timed, and compared with `benches/baseline.toml`.
//!
//! The worker and its Redis run under valgrind's callgrind, one connection asks in lock-step, and the difference of a
//! long stretch and a short one is what a request costs: instructions, allocations, system calls, calls of Redis and
//! bytes. No figure depends on how fast the machine is or what else it does.

#![allow(clippy::print_stdout, reason = "printing figures is what the gate is for")]

mod app;
mod client;
mod figures;
mod fleet;
#[allow(dead_code, reason = "the other benchmarks use all of it")]
#[path = "../http/process.rs"]
mod process;
mod profile;
mod redis;
mod scenarios;
mod valgrind;

use std::error::Error;
use std::process::ExitCode;

use crate::figures::Figures;
use crate::fleet::Fleet;
use crate::scenarios::Scenario;

/// What every step here returns: a gate that cannot count fails with a sentence.
type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    if std::env::var_os(fleet::SERVES).is_some() {
        return app::serve();
    }
    // `cargo test --all-targets` starts benchmarks too, without this flag.
    if !std::env::args().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("gate: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome<()> {
    let mut fleet = Fleet::start()?;
    for name in scenarios::NAMES {
        let begin = std::time::Instant::now();
        let counted = count(name, &mut fleet)?;
        println!("{name} ({:.1} s)", begin.elapsed().as_secs_f64());
        for (name, value) in &counted.values {
            println!("    {name:26} {value:12.2}");
        }
    }
    Ok(())
}

fn count(name: &'static str, fleet: &mut Fleet) -> Outcome<Figures> {
    let mut scenario = Scenario::prepare(name, fleet)?;
    let (short, long) = scenario.sizes();
    // Caches fill, tables grow, and what is compiled or learned once is.
    scenario.run(short)?;
    let (start, bytes) = (fleet.mark()?, scenario.received());
    scenario.run(short)?;
    let (first, first_bytes) = (fleet.mark()?, scenario.received());
    scenario.run(long)?;
    let (second, second_bytes) = (fleet.mark()?, scenario.received());
    let bytes = [bytes, first_bytes, second_bytes];
    Ok(figures::figures(&start, &first, &second, bytes, (long - short) as f64))
}
