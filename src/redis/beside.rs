//! What becomes of a connection that is silent: while requests wait for it another one is tried beside it.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::redis::Inner;
use crate::redis::error::Error;
use crate::redis::line::Line;
use crate::redis::line::PASSES;
use crate::redis::pauses::between;
use crate::redis::pauses::random;

/// Pause between two connections that are tried beside one that is silent.
const BESIDE: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(100)];
/// Where a silence led.
pub(super) enum Silenced<T> {
    /// The server answers on another connection.
    Instead(T),
    /// The server does not answer, and no call waits any longer; since when it has been silent.
    GivenUp(Instant),
}

/// Why a connection ended on which nothing was answered.
const SILENT: &str = "it does not answer although the connection is open";

/// Why a connection ended that was silent for too long.
pub(super) fn silent() -> Error {
    Error::unavailable(SILENT)
}

/// Ends a task of its own with this value.
pub(super) struct Strict(JoinHandle<()>);

impl Strict {
    pub(super) fn new(line: &Arc<Line>) -> Self {
        let (line, mut silences) = (Arc::clone(line), line.silences());
        Self(tokio::spawn(async move {
            if silences.wait_for(|silent| *silent).await.is_ok() {
                line.end(SILENT);
            }
        }))
    }
}

impl Drop for Strict {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Waits for a silence, and for what becomes of it: the connection goes on, and nothing was lost; or another one that is
/// made beside it is answered, and this one is dead; or neither until no call waits any longer.
pub(super) async fn mind<T, F>(
    inner: &Inner,
    line: &Line,
    fell: impl Fn(Option<Instant>),
    beside: impl Fn() -> F,
) -> Silenced<T>
where
    F: Future<Output = Result<T, Error>>,
{
    let mut silences = line.silences();
    loop {
        if silences.wait_for(|silent| *silent).await.is_err() {
            // The line is there for as long as its connection, whose end is told elsewhere.
            std::future::pending::<()>().await;
        }
        let since = line.since();
        inner.waits.silences.fetch_add(1, Relaxed);
        fell(Some(since));
        let another = async {
            loop {
                match beside().await {
                    Ok(another) => return another,
                    Err(_) => tokio::time::sleep(between(BESIDE, random())).await,
                }
            }
        };
        let given_up = async {
            tokio::time::sleep_until(since + inner.hold).await;
            for _ in 0..PASSES {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            _ = silences.wait_for(|silent| !silent) => fell(None),
            another = another => return Silenced::Instead(another),
            () = given_up => return Silenced::GivenUp(since),
        }
    }
}
