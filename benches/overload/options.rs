//! What can be asked for on the command line.

use std::path::PathBuf;
use std::str::FromStr;

use crate::Outcome;

/// How much is measured, and what is written down about it.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// `--program`: the program under test; another build than this one, for a comparison.
    pub(crate) program: PathBuf,
    /// `--seconds`: length of one measurement under load.
    pub(crate) seconds: u64,
    /// `--minutes`: how long the fleet starves.
    pub(crate) minutes: f64,
    /// `--workers`: worker processes.
    pub(crate) workers: usize,
    /// `--clients`: kept connections of the closed loops, one measurement after the other.
    pub(crate) clients: Vec<usize>,
    /// `--only`: names of measurements; all otherwise.
    pub(crate) only: Vec<String>,
    /// `--date`: the day to note in `docs/BENCHMARKS.md`; without it nothing is written.
    pub(crate) date: Option<String>,
    /// `--note`: a sentence to note there, such as what else ran on the machine.
    pub(crate) note: Option<String>,
}

impl Options {
    /// Reads the arguments after the program's name.
    pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Outcome<Self> {
        let mut options = Self {
            program: env!("CARGO_BIN_EXE_regatta").into(),
            seconds: 8,
            minutes: 10.0,
            workers: 2,
            clients: vec![64, 256, 1000, 4000, 6000],
            only: Vec::new(),
            date: None,
            note: None,
        };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
            match argument.as_str() {
                // Given by cargo.
                "--bench" => {}
                "--program" => options.program = value()?.into(),
                "--seconds" => options.seconds = number(&value()?)?,
                "--minutes" => options.minutes = number(&value()?)?,
                "--workers" => options.workers = number(&value()?)?,
                "--clients" => options.clients = value()?.split(',').map(number).collect::<Outcome<_>>()?,
                "--only" => options.only = value()?.split(',').map(str::to_owned).collect(),
                "--date" => options.date = Some(value()?),
                "--note" => options.note = Some(value()?),
                unknown => return Err(format!("unknown option {unknown}").into()),
            }
        }
        if options.seconds == 0 || options.workers == 0 || options.clients.contains(&0) {
            return Err("--seconds, --workers and --clients are at least 1".into());
        }
        Ok(options)
    }

    /// Whether this measurement is to be made.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }

    /// The program of the examples whose handlers take time, built beside this one's.
    pub(crate) fn faulty(&self) -> Outcome<PathBuf> {
        let beside = self.program.with_file_name("examples").join("faulty");
        match beside.exists() {
            true => Ok(beside),
            false => Err(format!("{} is missing: cargo build --release --examples", beside.display()).into()),
        }
    }
}

fn number<T: FromStr>(text: &str) -> Outcome<T> {
    text.parse().map_err(|_| format!("{text} is not a number that fits").into())
}
