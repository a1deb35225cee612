//! What a run would meet: how many keys of which kind, and how long it takes. Reads only.

use std::collections::BTreeMap;
use std::time::Duration;

use fred::types::Value;
use serde::Serialize;

use crate::redis::Redis;
use crate::redis::caller::Caller;
use crate::redis::error::Error;
use crate::redis::keys;
use crate::redis::library::Form;
use crate::redis::migrations::Kind;
use crate::redis::migrations::Series;
use crate::redis::migrations::ledger;
use crate::redis::migrations::walk;
use crate::redis::reach::Reach;

/// Keys of one SCAN: some 0.2 ms of the server's time.
const COUNT: &str = "500";

/// What lies below the prefix, and what pending walks mean to it. SCAN may count a key twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Survey {
    /// Keys below the prefix by what they hold.
    pub keys: BTreeMap<&'static str, u64>,
    /// Pending walks.
    pub walks: Vec<Walk>,
}

/// A pending walk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Walk {
    /// The migration's file.
    pub file: String,
    /// Keys that it would look at.
    pub keys: u64,
    /// About how long it would take.
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub time: Duration,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature serde calls")]
fn seconds<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(time.as_secs_f64().ceil() as u64)
}

impl Series {
    /// Counts what lies below the prefix; changes nothing. Needs no started connection.
    ///
    /// # Errors
    /// What the server said.
    pub async fn survey(&self, redis: &Redis) -> Result<Survey, Error> {
        let (link, prefix) = (Reach::open(&redis.inner).await?, &redis.inner.prefix);
        let form = link.form(redis.inner.mode).await?;
        let caller = link.patient();
        let mut keys = BTreeMap::new();
        scan(&caller, &keys::below(prefix, "*"), |key| {
            *keys.entry(keys::kind(prefix, key)).or_insert(0) += 1
        })
        .await?;
        let mut walks = Vec::new();
        if form != Form::Plain {
            let fields = ledger::read(&caller, prefix).await?;
            for (migration, step) in self.list.iter().zip(ledger::judge(&self.list, &fields)?) {
                let Kind::Walk { keys } = migration.kind() else { continue };
                if step.is_applied() {
                    continue;
                }
                let mut count = 0;
                scan(&caller, &keys::below(prefix, keys), |_| count += 1).await?;
                walks.push(Walk { file: step.file, keys: count, time: walk::estimate(count) });
            }
        }
        Ok(Survey { keys, walks })
    }
}

async fn scan(caller: &Caller, pattern: &str, mut each: impl FnMut(&str)) -> Result<(), Error> {
    let mut cursor = "0".to_owned();
    loop {
        let (next, keys) = walk::scan(caller, &cursor, pattern, COUNT).await?;
        keys.iter().filter_map(Value::as_str).for_each(|key| each(&key));
        if next == "0" {
            return Ok(());
        }
        cursor = next;
    }
}
