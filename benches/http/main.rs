//! `cargo bench --bench http`: the shipped program under load, and beside it the stacks it wants to beat.
//!
//! Figures only, never a verdict on them: no test asserts a speed. What must hold is correctness (no failed request,
//! no lost view), and that ends the run with an error when it does not. `wrk` and `redis-server` must be installed.
//! `--peers` also needs `cargo`, `node` and `npm`. See [`options`] for the rest.

#![allow(clippy::print_stdout, reason = "printing figures is what a benchmark is for")]

mod accounting;
mod client;
mod contender;
mod crash;
mod exact;
mod growth;
mod load;
mod machine;
mod options;
mod page;
mod peers;
mod process;
mod redis;
mod reference;
mod report;
mod rounds;
mod tables;
mod targets;

use std::error::Error;
use std::process::ExitCode;

use crate::growth::Growth;
use crate::options::Options;

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

fn run(options: &Options) -> Outcome<()> {
    let mut machine = machine::describe(options.peers)?;
    let folder = tempfile::Builder::new().prefix("regatta-bench").tempdir()?;
    let mut contenders = vec![contender::Contender::regatta(folder.path(), options)?];
    machine.push(("Redis", contenders[0].redis().connect()?.version()?));
    if let Some(program) = &options.before {
        contenders.push(contender::Contender::build("before", program, folder.path(), options)?);
    }
    if options.peers {
        for peer in peers::build()? {
            contenders.push(contender::Contender::peer(peer, folder.path(), options)?);
        }
    }
    let mut measured = Vec::new();
    for contender in &contenders {
        measured.push(rounds::prepare(contender, options)?);
    }
    let reference = |number: u8| {
        reference::hincrby_us(&options.server, &folder.path().join(format!("reference-{number}")))
    };
    let first = reference(1)?;
    rounds::run(&contenders, &mut measured, folder.path(), options)?;
    // Before and after the rounds, because the machine may have become slower.
    let hincrby_us = f64::midpoint(first, reference(2)?);
    for (contender, figures) in contenders.iter().zip(&mut measured) {
        rounds::finish(contender, figures, options)?;
    }
    // The peers and their servers leave first: they would share the caches.
    drop(contenders);
    let growth =
        options.growth.then(|| Growth::measure(&folder.path().join("growth"), options)).transpose()?;
    let targets = targets::all(&measured, hincrby_us);
    let page = report::page(&machine, options, &measured, (&targets, hincrby_us), growth.as_ref());
    println!("\n{page}");
    report::write(&page, options)?;
    println!("{}", targets::missed(&targets));
    rounds::verdict(&measured)?;
    match growth.map_or(0.0, |growth| growth.failed()) {
        0.0 => Ok(()),
        failed => Err(format!("{failed} requests failed or were stale in the growth tables").into()),
    }
}
