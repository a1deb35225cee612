//! What can be asked for on the command line.

use std::str::FromStr;

use crate::Outcome;

/// How much is measured, and what is written down about it.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// `--clients`: streams that are open at once.
    pub(crate) clients: usize,
    /// `--seconds`: length of one measurement.
    pub(crate) seconds: u64,
    /// `--workers`: worker processes of a host.
    pub(crate) workers: usize,
    /// `--rates`: messages a second that are published to all clients, one measurement after the other.
    pub(crate) rates: Vec<u32>,
    /// `--tasks`: small tasks whose throughput is measured.
    pub(crate) tasks: usize,
    /// `--kills`: workers killed while they have a task.
    pub(crate) kills: usize,
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
            clients: 2000,
            seconds: 10,
            workers: 2,
            rates: vec![10, 25, 50, 100, 200],
            tasks: 1000,
            kills: 5,
            only: Vec::new(),
            date: None,
            note: None,
        };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
            match argument.as_str() {
                // Given by cargo.
                "--bench" => {}
                "--clients" => options.clients = number(&value()?)?,
                "--seconds" => options.seconds = number(&value()?)?,
                "--workers" => options.workers = number(&value()?)?,
                "--rates" => options.rates = value()?.split(',').map(number).collect::<Outcome<_>>()?,
                "--tasks" => options.tasks = number(&value()?)?,
                "--kills" => options.kills = number(&value()?)?,
                "--only" => options.only = value()?.split(',').map(str::to_owned).collect(),
                "--date" => options.date = Some(value()?),
                "--note" => options.note = Some(value()?),
                unknown => return Err(format!("unknown option {unknown}").into()),
            }
        }
        if options.clients == 0 || options.seconds == 0 || options.workers == 0 || options.rates.contains(&0)
        {
            return Err("--clients, --seconds, --workers and --rates are at least 1".into());
        }
        Ok(options)
    }

    /// Whether this measurement is to be made.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }
}

fn number<T: FromStr>(text: &str) -> Outcome<T> {
    text.parse().map_err(|_| format!("{text} is not a number that fits").into())
}
