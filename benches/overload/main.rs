//! `cargo bench --bench overload`: what becomes of the clients when there is too much of everything.
//!
//! Every answer is checked: a refusal where none is allowed, a session as last known, a wrong count or a lost request
//! is shown in the tables by its kind, and ends the run with an error where the program promises that there is none.
//! Clients, workers and Redis share the machine. `redis-server` must be installed, and `cargo build --release
//! --examples` must have run for the handlers that take time. See [`options`] for the rest.

#![allow(clippy::print_stdout, reason = "printing figures is what a benchmark is for")]

mod closed;
#[allow(
    dead_code,
    clippy::expect_used,
    reason = "the tests use all of it, and a test panics where it cannot go on"
)]
#[path = "../../tests/it/support/client_swarm/mod.rs"]
mod crowd;
mod fleet;
mod hang;
mod open;
mod options;
#[path = "../http/page.rs"]
mod page;
#[allow(dead_code, reason = "the other benchmarks use all of it")]
#[path = "../http/process.rs"]
mod process;
#[allow(dead_code, reason = "the other benchmarks use all of it")]
#[path = "../http/redis.rs"]
mod redis;
mod rest;
mod restart;
mod starved;
mod table;

use std::error::Error;
use std::process::ExitCode;

use crate::options::Options;
use crate::table::Section;

/// What every step here returns: a benchmark has one way to fail, with a sentence.
type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    // `cargo test --all-targets` starts benchmarks too, without this flag; minutes of load are not what it asks for.
    if !std::env::args().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    match Options::parse(std::env::args().skip(1)).and_then(|options| run(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            println!("a promise was not kept: see the rows marked MISSED");
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("benchmark failed: {error}");
            ExitCode::FAILURE
        }
    }
}

/// One measurement.
type Step = fn(&Options) -> Outcome<Section>;

/// What is measured, by the name under which `--only` knows it.
const STEPS: [(&str, Step); 6] = [
    ("closed", closed::measure),
    ("open", open::measure),
    ("restart", restart::measure),
    ("hang", hang::measure),
    ("starved", starved::measure),
    ("rest", rest::measure),
];

/// Measures, and says whether every promise was kept.
fn run(options: &Options) -> Outcome<bool> {
    let mut text = format!("\n# Overload\n\n{}", table::INTRODUCTION);
    if let Some(date) = &options.date {
        text += &format!("\nMeasured on {date}. {}\n", options.note.as_deref().unwrap_or_default());
    }
    let mut kept = true;
    for (name, measure) in STEPS {
        if options.wants(name) {
            println!("{name} …");
            let section = measure(options)?;
            println!("{section}");
            kept &= section.is_kept();
            text += &section.to_string();
        }
    }
    text += table::REPEAT;
    match options.date {
        Some(_) => page::write(page::Part::Overload, &text)?,
        None => println!("no --date: docs/BENCHMARKS.md was left as it is"),
    }
    Ok(kept)
}
