//! What can be asked for on the command line.

use std::str::FromStr;
use std::time::Duration;

use crate::Outcome;

/// What is measured.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// `--balance`: compare `listen.balance` on and off.
    pub(crate) balance: bool,
    /// `--workers`: worker processes, one fleet after the other.
    pub(crate) workers: Vec<usize>,
    /// `--connections`: clients at a time.
    pub(crate) connections: Vec<usize>,
    /// `--seconds`: length of one measurement.
    pub(crate) time: Duration,
    /// `--rounds`: how often each is measured.
    pub(crate) rounds: usize,
    /// `--heavy`: every how many requests one is CPU work; 0: none.
    pub(crate) heavy: u64,
    /// `--only`: names of loads; all otherwise.
    pub(crate) only: Vec<String>,
}

impl Options {
    /// Reads the arguments after the program's name.
    pub(crate) fn parse(arguments: &[String]) -> Outcome<Self> {
        let balance = arguments.iter().any(|argument| argument == "--balance");
        let mut options = if balance {
            Self {
                balance,
                workers: vec![2, 4, 8, 16],
                connections: vec![64, 16, 256],
                time: Duration::from_millis(400),
                rounds: 5,
                heavy: 0,
                only: Vec::new(),
            }
        } else {
            Self {
                balance,
                workers: vec![4],
                connections: vec![64],
                time: Duration::from_secs(5),
                rounds: 5,
                heavy: 0,
                only: Vec::new(),
            }
        };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
            match argument.as_str() {
                // The first is given by cargo.
                "--bench" | "--balance" => {}
                "--workers" => options.workers = numbers(value()?)?,
                "--connections" => options.connections = numbers(value()?)?,
                "--seconds" => options.time = Duration::try_from_secs_f64(value()?.parse()?)?,
                "--rounds" => options.rounds = value()?.parse()?,
                "--heavy" => options.heavy = value()?.parse()?,
                "--only" => options.only = value()?.split(',').map(str::to_owned).collect(),
                unknown => return Err(format!("unknown option {unknown}").into()),
            }
        }
        let none = options.workers.contains(&0) || options.connections.contains(&0);
        if none || options.rounds == 0 || options.time.is_zero() {
            return Err("--workers, --connections, --seconds and --rounds are more than 0".into());
        }
        Ok(options)
    }
}

fn numbers<T: FromStr>(text: &str) -> Outcome<Vec<T>>
where
    T::Err: std::error::Error + 'static,
{
    Ok(text.split(',').map(str::parse).collect::<Result<_, _>>()?)
}
