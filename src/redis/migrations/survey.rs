//! What a run would find: how many keys of which kind, and how long it would take. Reads only.

use std::collections::BTreeMap;
use std::time::Duration;

use fred::types::Value;
use serde::Serialize;

use crate::redis::client::RedisClient;
use crate::redis::error::RedisError;
use crate::redis::invocation_mode::InvocationMode;
use crate::redis::keys;
use crate::redis::migrations::migration::MigrationKind;
use crate::redis::migrations::set::MigrationSet;
use crate::redis::migrations::{ledger, walk};
use crate::redis::one_shot::OneShotConnection;
use crate::redis::transport::RedisTransport;

/// Keys of one SCAN: some 0.2 ms of the server's time.
const SCAN_COUNT: &str = "500";

/// The keys below the prefix, and the pending walks. SCAN may count a key twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MigrationSurvey {
    /// Keys below the prefix by kind.
    pub keys: BTreeMap<&'static str, u64>,
    /// Pending walks.
    pub walks: Vec<PendingWalk>,
}

/// A pending walk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PendingWalk {
    /// The migration's file.
    pub file: String,
    /// Keys that it would convert.
    pub keys: u64,
    /// About how long it would take.
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub time: Duration,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature serde calls")]
fn seconds<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(time.as_secs_f64().ceil() as u64)
}

impl MigrationSet {
    /// Counts the keys below the prefix; changes nothing. Needs no started connection.
    ///
    /// # Errors
    /// The server's error.
    pub async fn survey(&self, redis: &RedisClient) -> Result<MigrationSurvey, RedisError> {
        let (connection, prefix) = (OneShotConnection::open(&redis.inner).await?, &redis.inner.target.prefix);
        let mode = connection.detect_mode(redis.inner.target.mode).await?;
        let transport = connection.setup_transport();
        let mut keys = BTreeMap::new();
        scan_all(&transport, &keys::key_pattern(prefix, "*"), |key| {
            *keys.entry(keys::kind(prefix, key)).or_insert(0) += 1
        })
        .await?;
        let mut walks = Vec::new();
        if mode != InvocationMode::Plain {
            let fields = ledger::load_fields(&transport, prefix).await?;
            for (migration, step) in self.migrations.iter().zip(ledger::evaluate(&self.migrations, &fields)?)
            {
                let MigrationKind::Walk { keys } = migration.kind() else { continue };
                if step.is_applied() {
                    continue;
                }
                let mut count = 0;
                scan_all(&transport, &keys::key_pattern(prefix, keys), |_| count += 1).await?;
                walks.push(PendingWalk { file: step.file, keys: count, time: walk::estimate_time(count) });
            }
        }
        Ok(MigrationSurvey { keys, walks })
    }
}

async fn scan_all(
    transport: &RedisTransport,
    pattern: &str,
    mut each: impl FnMut(&str),
) -> Result<(), RedisError> {
    let mut cursor = "0".to_owned();
    loop {
        let (next, keys) = walk::scan_once(transport, &cursor, pattern, SCAN_COUNT).await?;
        keys.iter().filter_map(Value::as_str).for_each(|key| each(&key));
        if next == "0" {
            return Ok(());
        }
        cursor = next;
    }
}
