//! What becomes of a stream or a socket when its worker leaves.

use std::future;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::http::drain_state::DrainState;

/// Time before the drain's deadline at which streams that were to finish end: a client that is cut by the deadline does
/// not learn when to connect again.
const FINISH_MARGIN: Duration = Duration::from_secs(1);

/// What becomes of a stream or socket when its worker leaves.
///
/// An extension of a response of server-sent events, and an option of a WebSocket. Without it: [`OnDrain::Close`].
///
/// ```
/// use std::convert::Infallible;
///
/// use axum::Extension;
/// use axum::response::IntoResponse;
/// use axum::response::sse::{Event, Sse};
/// use futures_util::stream;
/// use regatta::OnDrain;
///
/// /// An answer that is of no use unless it is complete.
/// async fn report() -> impl IntoResponse {
///     let events = stream::iter((1..=3).map(|part| Ok::<_, Infallible>(Event::default().data(part.to_string()))));
///     (Extension(OnDrain::Finish), Sse::new(events))
/// }
/// # let _: axum::Router = axum::Router::new().route("/report", axum::routing::get(report));
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnDrain {
    /// It ends at once, and its client is told to connect again: another worker serves it.
    #[default]
    Close,
    /// It goes on until it ends by itself, or until a second before `drain.timeout`.
    Finish,
}

/// Returns when a stream is to end because its worker leaves; never outside a fleet.
pub(crate) async fn until_leaving(drain: DrainState, on_drain: OnDrain) {
    if on_drain == OnDrain::Close {
        return drain.streams_closed().await;
    }
    let shutdown = drain.shutdown();
    shutdown.wait().await;
    match shutdown.deadline().and_then(|deadline| deadline.checked_sub(FINISH_MARGIN)) {
        Some(end) => sleep_until(Instant::from_std(end)).await,
        None => future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn what_is_to_finish_ends_before_the_deadline_and_the_rest_at_once() {
        let drain = DrainState::default();
        drain.set_deadline((Instant::now() + FINISH_MARGIN + Duration::from_millis(200)).into_std());
        drain.start_drain();
        until_leaving(drain.clone(), OnDrain::Close).now_or_never().expect("it ends at once");
        assert!(until_leaving(drain.clone(), OnDrain::Finish).now_or_never().is_none(), "it may finish");
        tokio::time::timeout(Duration::from_secs(10), until_leaving(drain, OnDrain::Finish)).await.unwrap();
    }

    #[tokio::test]
    async fn without_a_drain_neither_ends() {
        for on_drain in [OnDrain::Close, OnDrain::Finish] {
            assert!(until_leaving(DrainState::default(), on_drain).now_or_never().is_none());
        }
    }
}
