//! What can be asked for on the command line.

use std::path::PathBuf;
use std::str::FromStr;

use crate::Outcome;

/// How much is measured, and what is written down about it.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// `--peers`: build and measure the other stacks in the same run.
    pub(crate) peers: bool,
    /// `--appendonly`: Redis keeps an append-only file, written every second.
    pub(crate) appendonly: bool,
    /// `--tcp`: the contenders reach Redis over loopback TCP, as in a cluster, and not through a Unix socket.
    pub(crate) tcp: bool,
    /// `--rounds`: how often each route of each contender is measured; the median counts.
    pub(crate) rounds: usize,
    /// `--seconds`: length of one measurement.
    pub(crate) seconds: u64,
    /// `--warm-up`: load before each measurement, seconds.
    pub(crate) warm_up: u64,
    /// `--workers`: worker processes (threads for a peer that has no processes).
    pub(crate) workers: usize,
    /// `--connections`: kept open by wrk.
    pub(crate) connections: usize,
    /// `--sessions`: cookies in the pool.
    pub(crate) sessions: usize,
    /// `--kills`: workers killed for the crash figures; 0 leaves them out.
    pub(crate) kills: usize,
    /// `--date`: the day to note on the page; without it `docs/BENCHMARKS.md` is left as it is.
    pub(crate) date: Option<String>,
    /// `--out`: where to write the page instead, with a date or without.
    pub(crate) out: Option<PathBuf>,
    /// `--note`: a sentence to note there, such as what else ran on the machine.
    pub(crate) note: Option<String>,
    /// `--growth`: also how cost grows with sessions, workers and connections, and on other servers.
    pub(crate) growth: bool,
    /// `--most-sessions`: the largest pool of those; 10^6 takes minutes to make.
    pub(crate) most_sessions: usize,
    /// `--redis-server PATH[,PATH]`: servers that a visit is measured on, the first of which all else runs on.
    pub(crate) servers: Vec<PathBuf>,
    /// The server that a contender is started with.
    pub(crate) server: PathBuf,
    /// `--before`: another build of the program, measured in turn with this one.
    pub(crate) before: Option<PathBuf>,
}

impl Options {
    /// Reads the arguments after the program's name.
    pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Outcome<Self> {
        let mut options = Self {
            peers: false,
            appendonly: false,
            tcp: false,
            rounds: 3,
            seconds: 10,
            warm_up: 2,
            workers: 2,
            connections: 64,
            sessions: 10_000,
            kills: 50,
            date: None,
            out: None,
            note: None,
            before: None,
            growth: false,
            most_sessions: 1_000_000,
            servers: vec!["redis-server".into()],
            server: PathBuf::new(),
        };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
            match argument.as_str() {
                // Given by cargo.
                "--bench" => {}
                "--peers" => options.peers = true,
                "--appendonly" => options.appendonly = true,
                "--tcp" => options.tcp = true,
                "--rounds" => options.rounds = number(&value()?)?,
                "--seconds" => options.seconds = number(&value()?)?,
                "--warm-up" => options.warm_up = number(&value()?)?,
                "--workers" => options.workers = number(&value()?)?,
                "--connections" => options.connections = number(&value()?)?,
                "--sessions" => options.sessions = number(&value()?)?,
                "--kills" => options.kills = number(&value()?)?,
                "--date" => options.date = Some(value()?),
                "--out" => options.out = Some(value()?.into()),
                "--note" => options.note = Some(value()?),
                "--growth" => options.growth = true,
                "--most-sessions" => options.most_sessions = number(&value()?)?,
                "--redis-server" => options.servers = value()?.split(',').map(Into::into).collect(),
                "--before" => options.before = Some(value()?.into()),
                unknown => return Err(format!("unknown option {unknown}").into()),
            }
        }
        if options.rounds == 0 || options.seconds == 0 || options.workers == 0 || options.sessions == 0 {
            return Err("--rounds, --seconds, --workers and --sessions are at least 1".into());
        }
        options.server = options.servers.first().cloned().ok_or("--redis-server needs a path")?;
        Ok(options)
    }
}

fn number<T: FromStr>(text: &str) -> Outcome<T> {
    text.parse().map_err(|_| format!("{text} is not a number that fits").into())
}
