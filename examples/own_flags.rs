//! A program with a command line of its own, which the library never reads.
//!
//! `cargo run --example own_flags -- --greeting ahoy`, then `curl localhost:3000/hello`; `kill -USR2` has it go on as the
//! program that lies at its path.

#![allow(clippy::print_stderr, reason = "a program of its own says why it ends")]

use std::process::ExitCode;

use axum::Router;
use axum::routing::get;
use clap::Parser;
use regatta::{Context, Fleet};

/// Greets.
#[derive(Parser)]
struct Flags {
    /// What it says
    #[arg(long)]
    greeting: String,
}

fn main() -> ExitCode {
    let Flags { greeting } = Flags::parse();
    let fleet = Fleet::new(move |_: Context| {
        let greeting = format!("{greeting}\n");
        let routes = Router::new().route("/hello", get(move || async move { greeting }));
        std::future::ready(routes)
    });
    match fleet.serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("own_flags: {error}");
            error.exit_code()
        }
    }
}
