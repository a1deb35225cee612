//! `cargo bench --bench fairness`: how evenly connections and requests are spread over the workers, and what it costs.
//!
//! Figures only, never a verdict on them. `redis-server` must be installed. Two comparisons:
//!
//! - by default, each `listen.steering`. Every connection is a client with an address of its own (127.0.1.1 and so on),
//!   so that `client-ip` has something to choose by. Jain's index is 1 when all workers answer equally often and 1/n
//!   when one answers everything. Options: `--workers 4 --connections 64 --seconds 5 --rounds 5 --heavy 0` (every how
//!   many requests one is CPU work; 0: none).
//! - with `--balance`, `listen.balance` on and off, in turns: see `balance.rs`. Options: `--workers 2,4,8,16
//!   --connections 64,16,256 --seconds 0.4 --rounds 5 --only hello,visit,work,paced,closed,opened`.

#![allow(clippy::print_stdout, reason = "printing figures is what a benchmark is for")]

mod app;
mod balance;
mod fleet;
mod load;
mod options;
#[allow(dead_code, reason = "the gate uses all of it")]
#[path = "../gate/app.rs"]
mod pages;
#[allow(dead_code, reason = "the other benchmarks use all of it")]
#[path = "../http/process.rs"]
mod process;
#[path = "../gate/start.rs"]
mod start;
mod steering;

use std::error::Error;
use std::process::ExitCode;

use crate::options::Options;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    if let Some(code) = start::not_to_measure(fleet::SERVES, app::serve) {
        return code;
    }
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match Options::parse(&arguments).and_then(|options| run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("benchmark failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Outcome<()> {
    println!("{options:?}\n");
    if options.balance { balance::run(options) } else { steering::run(options) }
}
