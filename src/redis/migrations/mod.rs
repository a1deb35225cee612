//! Numbered changes of what lies on the server: applied once by the whole fleet, recorded, never edited afterwards.
//!
//! A file is known by its number and by the SHA-256 of its text; the ledger in Redis says which were applied. Whoever
//! comes first takes a lock and renews it; if it stops, its fencing number bars it from every further write. There
//! are two kinds: a **library** of server-side code, which every worker needs before it serves and loads itself, and
//! a **walk** over keys, which takes its time and is run by `regatta migrate`.

mod ledger;
mod repair;
mod run;
mod survey;
mod walk;

use std::sync::LazyLock;
use std::time::Duration;

use ring::digest;
use serde::Serialize;
use tokio::time::Instant;

use crate::redis::Redis;
use crate::redis::caller::Caller;
use crate::redis::error::Error;
use crate::redis::keys;
use crate::redis::library;
use crate::redis::library::Form;
use crate::redis::reach::Reach;
use ledger::State;
pub use repair::Finding;
use run::Run;
use run::Work;
pub use survey::Survey;
pub use walk::Progress;

/// Every migration that this program ships, in order: the libraries, and no walk so far. What version 1 wrote
/// version 2 reads as it is, and a session lives no longer than a walk would be worth.
pub static SHIPPED: LazyLock<Series> = LazyLock::new(|| {
    let libraries = library::ALL.iter().map(|it| Migration::new(it.number, it.name, it.text));
    Series { list: libraries.collect(), released: "0001" }
});

/// How long a worker waits for another one that runs the migrations, and how often it looks.
const WAIT: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// First line of a walk: which keys, as SCAN's MATCH has it, below the prefix.
const WALK: &str = "#!walk keys=";

/// One numbered change.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    number: &'static str,
    name: &'static str,
    text: &'static str,
}

/// What a migration does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind<'a> {
    /// Loads a library of functions.
    Library,
    /// Converts the keys that match.
    Walk { keys: &'a str },
}

impl Migration {
    /// A migration of this number, four digits, and name.
    ///
    /// The text of a library begins with `#!lua name=` and its name, which is the migration's. That of a walk begins
    /// with `#!walk keys=` and the keys below the prefix, as SCAN's MATCH has them, and defines in Lua a local
    /// function `convert(key)`, which is true if it changed the key and does no harm to a key it has changed before.
    pub const fn new(number: &'static str, name: &'static str, text: &'static str) -> Self {
        Self { number, name, text }
    }

    fn file(&self) -> String {
        format!("migrations/{}_{}.lua", self.number, self.name)
    }

    fn checksum(&self) -> String {
        checksum(self.text)
    }

    fn kind(&self) -> Kind<'_> {
        let first = self.text.lines().next().unwrap_or_default();
        first.strip_prefix(WALK).map_or(Kind::Library, |keys| Kind::Walk { keys: keys.trim() })
    }

    fn is_walk(&self) -> bool {
        self.kind() != Kind::Library
    }
}

/// Migrations in their order.
#[derive(Debug, Clone)]
pub struct Series {
    list: Vec<Migration>,
    /// The last number whose text was released: what was applied under it is never replaced, not even by a repair.
    released: &'static str,
}

/// A migration and whether it is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Its file in the source tree.
    pub file: String,
    /// SHA-256 of its text, hex.
    pub sha256: String,
    /// The keys it walks over, below the prefix; none for a library.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys: Option<String>,
    /// Whether it is done.
    #[serde(flatten)]
    pub status: Status,
}

impl Step {
    /// Whether it is done.
    pub fn is_applied(&self) -> bool {
        matches!(self.status, Status::Applied { .. })
    }
}

/// Whether a migration is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "status", rename_all = "lowercase")]
pub enum Status {
    /// Nobody began it.
    Pending,
    /// Somebody began it and has not finished, or died; the next run goes on.
    Begun {
        /// The worker's name.
        by: String,
        /// Keys it has looked at so far, if it is a walk.
        keys: u64,
    },
    /// It is done.
    Applied {
        /// The worker's name.
        by: String,
        /// When, ms since 1970 by Redis's clock.
        at_ms: u64,
    },
}

/// SHA-256 of a text, hex, as if every line ended with LF: a checkout with other line ends is the same file.
pub fn checksum(text: &str) -> String {
    let normal = text.replace("\r\n", "\n");
    library::hex(digest::digest(&digest::SHA256, normal.as_bytes()).as_ref())
}

impl Series {
    /// Migrations of your own, all of them unreleased.
    pub fn of(list: impl Into<Vec<Migration>>) -> Self {
        Self { list: list.into(), released: "" }
    }

    /// Every migration and whether it is done; changes nothing. Needs no started connection.
    ///
    /// Empty where no server-side code is used (mode plain): there is nothing to apply.
    ///
    /// # Errors
    /// `Diverged` if a file was edited after it was applied, `Gap` if one was passed over; otherwise what the server
    /// said.
    pub async fn plan(&self, redis: &Redis) -> Result<Vec<Step>, Error> {
        let link = Reach::open(&redis.inner).await?;
        match link.form(redis.inner.mode).await? {
            Form::Plain => Ok(Vec::new()),
            Form::Function | Form::Script => {
                ledger::judge(&self.list, &ledger::read(&link.patient(), &redis.inner.prefix).await?)
            }
        }
    }

    /// Applies what is not done, tells how far walks are, and returns the state afterwards. Needs no started
    /// connection.
    ///
    /// # Errors
    /// As [`Series::plan`]; `Locked` if another one holds the lock for too long; `Fenced` if this one lost it on the
    /// way, in which case another one has taken over; `Key` if a key cannot be converted.
    ///
    /// # Cancel safety
    /// What is done is recorded; the next call goes on where this one was dropped.
    pub async fn apply(&self, redis: &Redis, mut told: impl FnMut(&Progress)) -> Result<Vec<Step>, Error> {
        let inner = &redis.inner;
        let link = Reach::open(inner).await?;
        let form = link.form(inner.mode).await?;
        if form == Form::Plain {
            return Ok(Vec::new());
        }
        let at = Place { caller: &link.patient(), form, prefix: &inner.prefix, by: &inner.name };
        self.libraries(at, Lost::Fails).await?;
        self.walks(at, &mut told).await?;
        ledger::judge(&self.list, &ledger::read(at.caller, at.prefix).await?)
    }

    /// Has every library recorded and there.
    async fn libraries(&self, at: Place<'_>, lost: Lost) -> Result<(), Error> {
        let deadline = Instant::now() + WAIT;
        loop {
            let steps = ledger::judge(&self.list, &ledger::read(at.caller, at.prefix).await?)?;
            if steps.iter().filter(|step| step.keys.is_none()).all(Step::is_applied) {
                // The ledger outlives FUNCTION FLUSH; the libraries may be gone all the same.
                return library::ensure(at.caller, at.form).await;
            }
            if let Some(run) = Run::begin(at.caller, at.prefix, at.by, Work::Libraries).await? {
                let outcome = self.load(&run, at).await;
                run.release().await;
                match outcome {
                    Err(Error::Fenced) if lost == Lost::Waits => {}
                    other => return other,
                }
            }
            if Instant::now() >= deadline {
                return Err(Error::Locked);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Does what is not done, in order. What a dead worker began is done again: loading may be repeated.
    async fn load(&self, run: &Run<'_>, at: Place<'_>) -> Result<(), Error> {
        // Read again: somebody may have finished between our look and our lock.
        let fields = ledger::read(at.caller, at.prefix).await?;
        for migration in self.list.iter().filter(|migration| !migration.is_walk()) {
            if ledger::record(&fields, migration)?.is_some_and(|record| record.state == State::Applied) {
                continue;
            }
            run.record(migration, State::Running, None).await?;
            run.holding(library::apply(at.caller, at.form, migration.name, migration.text)).await?;
            run.record(migration, State::Applied, None).await?;
            tracing::info!(file = %migration.file(), by = %at.by, "migration applied");
        }
        run.holding(library::ensure(at.caller, at.form)).await
    }

    /// Walks what is not walked.
    async fn walks(&self, at: Place<'_>, told: &mut dyn FnMut(&Progress)) -> Result<(), Error> {
        let open = |fields: &ledger::Fields, migration: &Migration| {
            Ok::<_, Error>(ledger::record(fields, migration)?.is_none_or(|it| it.state != State::Applied))
        };
        for migration in &self.list {
            let Kind::Walk { keys } = migration.kind() else { continue };
            if !open(&ledger::read(at.caller, at.prefix).await?, migration)? {
                continue;
            }
            let run = Run::begin(at.caller, at.prefix, at.by, Work::Walks).await?.ok_or(Error::Locked)?;
            let before = ledger::record(&ledger::read(at.caller, at.prefix).await?, migration)?;
            // Somebody may have finished between our look and our lock.
            if before.as_ref().is_some_and(|it| it.state == State::Applied) {
                run.release().await;
                continue;
            }
            let pattern = keys::below(at.prefix, keys);
            let walked = walk::walk(&run, migration, &pattern, before.and_then(|it| it.walk), told).await;
            run.release().await;
            walked?;
            tracing::info!(file = %migration.file(), by = %at.by, "migration applied");
        }
        Ok(())
    }
}

/// Where migrations are run, and by whom.
#[derive(Clone, Copy)]
struct Place<'a> {
    caller: &'a Caller,
    form: Form,
    prefix: &'a str,
    by: &'a str,
}

/// What becomes of somebody who lost the lock on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lost {
    /// A worker waits until whoever took over has finished: it only needs the result.
    Waits,
    /// An operator's command says so.
    Fails,
}

/// Brings a server to where a worker can use it: every library recorded and there. Walks are not waited for.
pub(super) async fn bring_up(caller: &Caller, form: Form, prefix: &str, by: &str) -> Result<(), Error> {
    if form == Form::Plain {
        return Ok(());
    }
    SHIPPED.libraries(Place { caller, form, prefix, by }, Lost::Waits).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends_do_not_change_a_checksum_and_anything_else_does() {
        assert_eq!(checksum("a\nb\n"), checksum("a\r\nb\r\n"));
        assert_ne!(checksum("a\nb\n"), checksum("a\nb"));
    }

    #[test]
    fn numbers_rise_without_a_gap() {
        let numbers: Vec<u32> =
            SHIPPED.list.iter().map(|migration| migration.number.parse().unwrap()).collect();
        let expected: Vec<u32> = (1..).take(numbers.len()).collect();
        assert_eq!(numbers, expected);
    }

    #[test]
    fn the_first_line_says_what_a_migration_does() {
        let walk = Migration::new("0009", "w", "#!walk keys=s:* \nlocal function convert(key) end");
        assert_eq!(walk.kind(), Kind::Walk { keys: "s:*" });
        for shipped in SHIPPED.list.iter().filter(|migration| !migration.is_walk()) {
            assert!(
                shipped.text.starts_with(&format!("#!lua name={}\n", shipped.name)),
                "{}",
                shipped.file()
            );
        }
    }
}
