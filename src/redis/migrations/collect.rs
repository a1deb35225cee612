//! Old libraries: deleted once nobody uses them, and never the one before the present.
//!
//! A worker that still needed one would load it again at its next call, so a mistake here costs one round trip.

use std::collections::HashMap;

use fred::types::Value;

use crate::redis::caller::Caller;
use crate::redis::error::Error;
use crate::redis::keys;
use crate::redis::library;
use crate::redis::library::Form;
use crate::redis::migrations::Place;
use crate::redis::migrations::Series;
use crate::redis::migrations::run::Run;
use crate::redis::migrations::run::now_ms;

/// A library that no heartbeat has named for this long is in nobody's use, ms.
const UNSEEN_MS: u64 = 10 * 60 * 1000;
/// Versions that stay whoever uses them: the present one, and the one before it for a roll-back.
const KEPT: u32 = 2;

impl Series {
    /// Deletes libraries of ours that are two versions old and in nobody's use.
    pub(super) async fn collect(&self, run: &Run<'_>, at: Place<'_>) -> Result<(), Error> {
        if at.form != Form::Function {
            return Ok(());
        }
        let ours: Vec<&str> =
            self.list.iter().filter(|it| !it.is_walk()).map(|migration| migration.name).collect();
        let there = library::names(at.caller).await?;
        // One that lists nothing to delete need not be asked for more.
        if outdated(&there, &ours, &HashMap::new(), 0).is_empty() {
            return Ok(());
        }
        let seen = seen(at.caller, at.prefix).await?;
        for name in outdated(&there, &ours, &seen, now_ms(at.caller).await?) {
            // Not behind the fence, as no script can delete a library; see above for what a late deletion costs.
            run.renew().await?;
            library::delete(at.caller, &name).await?;
            tracing::info!(library = %name, "an old library that nobody uses was deleted");
        }
        Ok(())
    }
}

/// When each library was last named by a heartbeat, ms by Redis's clock.
async fn seen(caller: &Caller, prefix: &str) -> Result<HashMap<String, u64>, Error> {
    let answer = caller.call("ZRANGE", [&keys::libraries_seen(prefix), "0", "-1", "WITHSCORES"]).await?;
    let Value::Array(flat) = answer else { return Ok(HashMap::new()) };
    let pairs =
        flat.chunks_exact(2).filter_map(|pair| Some((pair[0].as_string()?, millis(pair[1].as_f64()?))));
    Ok(pairs.collect())
}

/// A score, which is a double.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time in ms, far below 2^53")]
fn millis(score: f64) -> u64 {
    score.max(0.0) as u64
}

/// Which of the libraries that are there nobody needs any more.
fn outdated(there: &[String], ours: &[&str], seen: &HashMap<String, u64>, now_ms: u64) -> Vec<String> {
    let present = |family: &str| {
        ours.iter().filter_map(|name| version(name)).filter(|(of, _)| *of == family).map(|(_, it)| it).max()
    };
    let old = |name: &&String| {
        let Some((family, version)) = version(name) else { return false };
        // Of one that this program calls, only a part has a newer version.
        let called = library::named(name).is_some_and(|library| library.current);
        let old = !called && present(family).is_some_and(|present| version + KEPT <= present);
        old && seen.get(*name).is_none_or(|at| at.saturating_add(UNSEEN_MS) < now_ms)
    };
    there.iter().filter(old).cloned().collect()
}

/// A library's name without its version, and the version: `regatta_session`, 1.
fn version(name: &str) -> Option<(&str, u32)> {
    let (family, number) = name.rsplit_once("_v")?;
    Some((family, number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_two_versions_old_and_unseen_for_ten_minutes_goes() {
        let there =
            ["regatta_v1", "regatta_v2", "regatta_v3", "regatta_v4", "regatta_session_v1", "other_v1"];
        let there: Vec<String> = there.iter().map(ToString::to_string).collect();
        let ours = ["regatta_v3", "regatta_v2", "regatta_session_v2"];
        let gone = |seen: &[(&str, u64)], now_ms| {
            let seen = seen.iter().map(|(name, at)| ((*name).to_owned(), *at)).collect();
            outdated(&there, &ours, &seen, now_ms)
        };
        // Not v2, the one before; not v4, a newer program's; not the session's v1, the one before there; no stranger.
        assert_eq!(gone(&[], 0), ["regatta_v1"]);
        assert_eq!(gone(&[("regatta_v1", 1_000_000)], 1_000_000 + UNSEEN_MS), Vec::<String>::new());
        assert_eq!(gone(&[("regatta_v1", 1_000_000)], 1_000_001 + UNSEEN_MS), ["regatta_v1"]);
    }
}
