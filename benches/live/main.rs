//! `cargo bench --bench live`: what streams, broadcasts, tasks and pages cost.
//!
//! Figures only, never a verdict on them: no test asserts a speed. What must hold is correctness (every message once and
//! in order), and that ends the run with an error when it does not. Clients, workers and Redis share the machine.
//! `redis-server` must be installed. See [`options`] for the rest.

#![allow(clippy::print_stdout, reason = "printing figures is what a benchmark is for")]

mod clients;
#[allow(dead_code, reason = "the tests use all of it")]
#[path = "../../tests/it/support/events/mod.rs"]
mod events;
mod host;
mod idle;
mod jobs;
mod latency;
mod options;
#[path = "../http/page.rs"]
mod page;
mod pages;
#[allow(dead_code, reason = "the other benchmark uses all of it")]
#[path = "../http/process.rs"]
mod process;
#[allow(dead_code, reason = "the other benchmark uses all of it")]
#[path = "../http/redis.rs"]
mod redis;
mod table;
mod web;

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
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("benchmark failed: {error}");
            ExitCode::FAILURE
        }
    }
}

/// One measurement.
type Step = fn(&Options) -> Outcome<Section>;

/// What is measured, by the name under which `--only` knows it.
const STEPS: [(&str, Step); 5] = [
    ("latency", latency::measure),
    ("clients", clients::measure),
    ("idle", idle::measure),
    ("tasks", jobs::measure),
    ("pages", pages::measure),
];

fn run(options: &Options) -> Outcome<()> {
    let mut text = format!("\n# Live\n\n{}", table::INTRODUCTION);
    if let Some(date) = &options.date {
        text += &format!("\nMeasured on {date}. {}\n", options.note.as_deref().unwrap_or_default());
    }
    for (name, measure) in STEPS {
        if options.wants(name) {
            println!("{name} …");
            let section = measure(options)?.to_string();
            println!("{section}");
            text += &section;
        }
    }
    text += &table::repeat(options);
    match options.date {
        Some(_) => page::write(page::Part::Live, &text)?,
        None => println!("no --date: docs/BENCHMARKS.md was left as it is"),
    }
    Ok(())
}
