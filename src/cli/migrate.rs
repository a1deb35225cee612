//! Applies what Redis lacks, or says what that is.

use crate::cli::exit;
use crate::cli::exit::Failure;
use crate::cli::exit::say;
use crate::config::schema::Config;
use crate::redis;
use crate::redis::Error;
use crate::redis::migrations;
use crate::redis::migrations::Status;
use crate::redis::migrations::Step;

/// Applies the pending migrations; `check` and `dry_run` change nothing.
pub(super) fn migrate(config: &Config, check: bool, dry_run: bool) -> Result<u8, Failure> {
    let Some(url) = &config.redis.url else {
        let sentence =
            "no Redis is configured (redis.url): a private one is migrated when its fleet starts".to_owned();
        return Err(Failure { code: exit::USAGE, sentence });
    };
    let only_look = check || dry_run;
    let worked = redis::once(&config.redis, url, "regatta-migrate", |redis| async move {
        if only_look { migrations::plan(&redis).await } else { migrations::apply(&redis).await }
    });
    let steps = worked.flatten().map_err(|error| Failure::new(code(&error), &error))?;
    steps.iter().for_each(|step| say(format_args!("{}", line(step))));
    let pending = steps.iter().filter(|step| !matches!(step.status, Status::Applied { .. })).count();
    match (pending, only_look) {
        (0, _) => say(format_args!("all {} migrations are applied", steps.len())),
        (_, true) => say(format_args!("{pending} of {} migrations are pending", steps.len())),
        (_, false) => {
            return Err(Failure {
                code: exit::FAILED,
                sentence: format!("{pending} migrations are pending"),
            });
        }
    }
    Ok(if check && pending > 0 { exit::PENDING } else { exit::OK })
}

/// Redis that cannot be reached is a missing service; that it says no is a failure.
fn code(error: &Error) -> u8 {
    match error {
        Error::Unavailable { .. } | Error::Timeout => exit::UNAVAILABLE,
        _ => exit::FAILED,
    }
}

fn line(step: &Step) -> String {
    let digest = step.sha256.get(..12).unwrap_or_default();
    match &step.status {
        Status::Pending => format!("{}  {digest}  pending", step.file),
        Status::Begun { by } => format!("{}  {digest}  begun by {by}, not finished", step.file),
        Status::Applied { by, .. } => format!("{}  {digest}  applied by {by}", step.file),
    }
}
