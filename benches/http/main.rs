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
mod load;
mod machine;
mod options;
mod page;
mod peers;
mod process;
mod redis;
mod report;
mod rounds;
mod tables;

use std::error::Error;
use std::process::ExitCode;

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
    let machine = machine::describe(options.peers)?;
    let folder = tempfile::Builder::new().prefix("regatta-bench").tempdir()?;
    let mut contenders = vec![contender::Contender::regatta(folder.path(), options)?];
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
    rounds::run(&contenders, &mut measured, folder.path(), options)?;
    for (contender, figures) in contenders.iter().zip(&mut measured) {
        rounds::finish(contender, figures, options)?;
    }
    let page = report::page(&machine, options, &measured);
    println!("\n{page}");
    report::write(&page, options)?;
    rounds::verdict(&measured)
}
