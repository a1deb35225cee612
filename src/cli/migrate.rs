//! Applies what Redis lacks, or says what that is.

use std::fmt;
use std::io;
use std::io::BufRead;
use std::io::IsTerminal;
use std::io::Write;

use indicatif::ProgressBar;
use indicatif::ProgressStyle;
use serde::Serialize;

use crate::cli::args::Migrate;
use crate::cli::exit;
use crate::cli::exit::Failure;
use crate::cli::exit::say;
use crate::config::schema;
use crate::config::schema::Config;
use crate::config::schema::RedisUrl;
use crate::redis;
use crate::redis::Error;
use crate::redis::Redis;
use crate::redis::migrations::Finding;
use crate::redis::migrations::Progress;
use crate::redis::migrations::SHIPPED;
use crate::redis::migrations::Status;
use crate::redis::migrations::Step;
use crate::redis::migrations::Survey;

/// What this command is called in the ledger and in `CLIENT LIST`.
const NAME: &str = "regatta-migrate";
/// How the bar of a walk looks; its length is a guess.
const BAR: &str = "{bar:30} {pos}/{len} keys  {msg}";
/// Lines of progress where there is no terminal: one for so many keys.
const KEYS_PER_LINE: u64 = 100_000;

/// Applies the pending migrations, or does what the flags say instead.
pub(super) fn migrate(config: &Config, order: &Migrate) -> Result<u8, Failure> {
    let Some(url) = &config.redis.url else {
        let sentence =
            "no Redis is configured (redis.url): a private one is migrated when its fleet starts".to_owned();
        return Err(Failure { code: exit::USAGE, sentence });
    };
    let at = Place { settings: &config.redis, url };
    if order.repair {
        return repair(at, order);
    }
    let report = match (order.check, order.dry_run) {
        (true, _) => Report::of(at.ask(async |redis| SHIPPED.plan(&redis).await)?),
        (_, true) => {
            let looked =
                at.ask(async |redis| Ok((SHIPPED.plan(&redis).await?, SHIPPED.survey(&redis).await?)));
            let (steps, survey) = looked?;
            Report { survey: Some(survey), ..Report::of(steps) }
        }
        _ => {
            let mut shown = Shown::default();
            let applied = at.ask(async |redis| SHIPPED.apply(&redis, |now| shown.show(now)).await);
            shown.end();
            Report::of(applied?)
        }
    };
    report.print(order.json);
    Ok(match (report.pending, order.check, order.dry_run) {
        (0, _, _) | (_, _, true) => exit::OK,
        (_, true, _) => exit::PENDING,
        _ => exit::FAILED,
    })
}

/// Where the migrations are.
#[derive(Clone, Copy)]
struct Place<'a> {
    settings: &'a schema::Redis,
    url: &'a RedisUrl,
}

impl Place<'_> {
    fn ask<T>(self, work: impl AsyncFnOnce(Redis) -> Result<T, Error>) -> Result<T, Failure> {
        let worked = redis::once(self.settings, self.url, NAME, |redis| work(redis));
        worked.flatten().map_err(|error| Failure::new(code(&error), &error))
    }
}

/// Says what is wrong, asks, and puts it right.
fn repair(at: Place<'_>, order: &Migrate) -> Result<u8, Failure> {
    let findings = at.ask(async |redis| SHIPPED.diagnose(&redis).await)?;
    if !order.json {
        findings.iter().for_each(say);
    }
    if !findings.is_empty() && !order.yes && !agreed()? {
        return Err(Failure { code: exit::FAILED, sentence: "nothing was changed".to_owned() });
    }
    let done = match findings.is_empty() {
        true => Vec::new(),
        false => at.ask(async |redis| SHIPPED.repair(&redis).await)?,
    };
    match order.json {
        true => print(&Repaired { repaired: &done }),
        false if done.is_empty() => say("there is nothing to repair"),
        false => say(format_args!("{} repaired", done.len())),
    }
    Ok(exit::OK)
}

/// Asks on the terminal; where there is none no one can agree.
fn agreed() -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        let sentence = "nothing was changed: add --yes to have this done without a question".to_owned();
        return Err(Failure { code: exit::USAGE, sentence });
    }
    let _ = write!(io::stderr(), "Do this? [y/N] ");
    let mut answer = String::new();
    let _ = io::stdin().lock().read_line(&mut answer);
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Redis that cannot be reached is a missing service; that it says no is a failure.
fn code(error: &Error) -> u8 {
    match error {
        Error::Unavailable { .. } | Error::Timeout => exit::UNAVAILABLE,
        _ => exit::FAILED,
    }
}

#[derive(Serialize)]
struct Repaired<'a> {
    repaired: &'a [Finding],
}

/// How it stands.
#[derive(Serialize)]
struct Report {
    migrations: Vec<Step>,
    pending: usize,
    #[serde(flatten)]
    survey: Option<Survey>,
}

impl Report {
    fn of(migrations: Vec<Step>) -> Self {
        let pending = migrations.iter().filter(|step| !step.is_applied()).count();
        Self { migrations, pending, survey: None }
    }

    fn print(&self, json: bool) {
        match json {
            true => print(self),
            false => say(self),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.migrations {
            writeln!(f, "{}", Line(step))?;
        }
        if let Some(survey) = &self.survey {
            for (kind, count) in &survey.keys {
                writeln!(f, "{count:>10} {kind}")?;
            }
            for walk in &survey.walks {
                let time = humantime::format_duration(walk.time);
                writeln!(f, "{} would look at {} keys, about {time}", walk.file, walk.keys)?;
            }
            if survey.walks.is_empty() {
                writeln!(f, "no key would be changed")?;
            }
        }
        match (self.migrations.len(), self.pending) {
            (0, _) => {
                f.write_str("no server-side code is used here (redis.mode plain): nothing is to be applied")
            }
            (all, 0) => write!(f, "all {all} migrations are applied"),
            (all, pending) => write!(f, "{pending} of {all} migrations are pending"),
        }
    }
}

/// A migration in one line.
struct Line<'a>(&'a Step);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}  {}  ", self.0.file, self.0.sha256.get(..12).unwrap_or_default())?;
        match &self.0.status {
            Status::Pending => f.write_str("pending"),
            Status::Begun { by, keys: 0 } => write!(f, "begun by {by}, not finished"),
            Status::Begun { by, keys } => write!(f, "begun by {by}, not finished: {keys} keys so far"),
            Status::Applied { by, .. } => write!(f, "applied by {by}"),
        }
    }
}

fn print(report: &impl Serialize) {
    if let Ok(line) = serde_json::to_string(report) {
        say(line);
    }
}

/// How far a walk is, shown on standard error: a bar on a terminal, lines elsewhere.
#[derive(Default)]
struct Shown {
    bar: Option<ProgressBar>,
    said: u64,
}

impl Shown {
    fn show(&mut self, now: &Progress) {
        if !io::stderr().is_terminal() {
            if now.keys / KEYS_PER_LINE > self.said {
                self.said = now.keys / KEYS_PER_LINE;
                let _ = writeln!(
                    io::stderr(),
                    "{}: {} keys looked at, {} changed, of about {}",
                    now.file,
                    now.keys,
                    now.changed,
                    now.total
                );
            }
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let style = ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(now.total).with_style(style)
        });
        bar.set_position(now.keys.min(now.total));
        bar.set_message(format!("{}: {} changed", now.file, now.changed));
    }

    fn end(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}
