//! Applies what Redis lacks, or says what that is.

use std::io::{BufRead, IsTerminal, Write};
use std::{fmt, io};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::bootstrap::exit_code;
use crate::bootstrap::exit_code::{CommandFailure, print_line};
use crate::cli::args::MigrateOptions;
use crate::config::settings;
use crate::config::settings::{Config, RedisUrl};
use crate::redis;
use crate::redis::migrations::{
    LedgerProblem, MigrationState, MigrationStatus, MigrationSurvey, SHIPPED, WalkProgress,
};
use crate::redis::{RedisClient, RedisError};

/// What this command is called in the ledger and in `CLIENT LIST`.
const NAME: &str = "regatta-migrate";
/// How the bar of a walk looks; its length is a guess.
const BAR: &str = "{bar:30} {pos}/{len} keys  {msg}";
/// Lines of progress where there is no terminal: one for so many keys.
const KEYS_PER_LINE: u64 = 100_000;

/// Applies the pending migrations, or does what the flags say instead.
pub(super) fn migrate(config: &Config, order: &MigrateOptions) -> Result<u8, CommandFailure> {
    let Some(url) = &config.redis.url else {
        let message =
            "no Redis is configured (redis.url): a private one is migrated when its fleet starts".to_owned();
        return Err(CommandFailure { code: exit_code::USAGE, message });
    };
    let at = MigrationTarget { settings: &config.redis, url };
    if order.repair {
        return repair(at, order);
    }
    let report = match (order.check, order.dry_run) {
        (true, _) => MigrationReport::from_steps(at.with_redis(async |redis| SHIPPED.plan(&redis).await)?),
        (_, true) => {
            let planned =
                at.with_redis(async |redis| Ok((SHIPPED.plan(&redis).await?, SHIPPED.survey(&redis).await?)));
            let (steps, survey) = planned?;
            MigrationReport { survey: Some(survey), ..MigrationReport::from_steps(steps) }
        }
        _ => {
            let mut shown = MigrationProgress::default();
            let applied = at.with_redis(async |redis| SHIPPED.apply(&redis, |now| shown.update(now)).await);
            shown.finish();
            MigrationReport::from_steps(applied?)
        }
    };
    report.print(order.json);
    Ok(match (report.pending, order.check, order.dry_run) {
        (0, _, _) | (_, _, true) => exit_code::OK,
        (_, true, _) => exit_code::PENDING,
        _ => exit_code::FAILED,
    })
}

/// Where the migrations are.
#[derive(Clone, Copy)]
struct MigrationTarget<'a> {
    settings: &'a settings::RedisConfig,
    url: &'a RedisUrl,
}

impl MigrationTarget<'_> {
    fn with_redis<T>(
        self,
        work: impl AsyncFnOnce(RedisClient) -> Result<T, RedisError>,
    ) -> Result<T, CommandFailure> {
        let worked = redis::run_once(self.settings, self.url, NAME, |redis| work(redis));
        worked.flatten().map_err(|error| CommandFailure::new(exit_code(&error), &error))
    }
}

/// Says what is wrong, asks, and puts it right.
fn repair(at: MigrationTarget<'_>, order: &MigrateOptions) -> Result<u8, CommandFailure> {
    let findings = at.with_redis(async |redis| SHIPPED.diagnose(&redis).await)?;
    if !order.json {
        findings.iter().for_each(print_line);
    }
    if !findings.is_empty() && !order.yes && !confirm()? {
        return Err(CommandFailure { code: exit_code::FAILED, message: "nothing was changed".to_owned() });
    }
    let done = match findings.is_empty() {
        true => Vec::new(),
        false => at.with_redis(async |redis| SHIPPED.repair(&redis).await)?,
    };
    match order.json {
        true => print(&RepairReport { repaired: &done }),
        false if done.is_empty() => print_line("there is nothing to repair"),
        false => print_line(format_args!("{} repaired", done.len())),
    }
    Ok(exit_code::OK)
}

/// Asks on the terminal; without one the answer is no.
fn confirm() -> Result<bool, CommandFailure> {
    if !io::stdin().is_terminal() {
        let message = "nothing was changed: add --yes to have this done without a question".to_owned();
        return Err(CommandFailure { code: exit_code::USAGE, message });
    }
    let _ = write!(io::stderr(), "Do this? [y/N] ");
    let mut answer = String::new();
    let _ = io::stdin().lock().read_line(&mut answer);
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Redis that cannot be reached is a missing service; that it says no is a failure.
fn exit_code(error: &RedisError) -> u8 {
    match error {
        RedisError::Unavailable { .. } | RedisError::Timeout => exit_code::UNAVAILABLE,
        _ => exit_code::FAILED,
    }
}

#[derive(Serialize)]
struct RepairReport<'a> {
    repaired: &'a [LedgerProblem],
}

/// How it stands.
#[derive(Serialize)]
struct MigrationReport {
    migrations: Vec<MigrationState>,
    pending: usize,
    #[serde(flatten)]
    survey: Option<MigrationSurvey>,
}

impl MigrationReport {
    fn from_steps(migrations: Vec<MigrationState>) -> Self {
        let pending = migrations.iter().filter(|step| !step.is_applied()).count();
        Self { migrations, pending, survey: None }
    }

    fn print(&self, json: bool) {
        match json {
            true => print(self),
            false => print_line(self),
        }
    }
}

impl fmt::Display for MigrationReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.migrations {
            writeln!(f, "{}", MigrationLine(step))?;
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
struct MigrationLine<'a>(&'a MigrationState);

impl fmt::Display for MigrationLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}  {}  ", self.0.file, self.0.sha256.get(..12).unwrap_or_default())?;
        match &self.0.status {
            MigrationStatus::Pending => f.write_str("pending"),
            MigrationStatus::Started { by, keys: 0 } => write!(f, "begun by {by}, not finished"),
            MigrationStatus::Started { by, keys } => {
                write!(f, "begun by {by}, not finished: {keys} keys so far")
            }
            MigrationStatus::Applied { by, .. } => write!(f, "applied by {by}"),
        }
    }
}

fn print(report: &impl Serialize) {
    if let Ok(line) = serde_json::to_string(report) {
        print_line(line);
    }
}

/// How far a walk is, shown on standard error: a bar on a terminal, lines elsewhere.
#[derive(Default)]
struct MigrationProgress {
    bar: Option<ProgressBar>,
    last_reported: u64,
}

impl MigrationProgress {
    fn update(&mut self, now: &WalkProgress) {
        if !io::stderr().is_terminal() {
            if now.keys / KEYS_PER_LINE > self.last_reported {
                self.last_reported = now.keys / KEYS_PER_LINE;
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

    fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}
