//! The worker's reports of its subscribers to Redis, and what all workers report together.
//!
//! One call a second at most for all topics, and none while nothing changes.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::broadcasts::hub_state::HubState;
use crate::broadcasts::topic::TopicName;

/// Shortest time between two reports.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// How long a report counts, so that a killed worker's subscribers are soon gone.
const PRESENCE_TTL: Duration = Duration::from_secs(10);

/// Topics in one call.
const TOPICS_PER_CALL: usize = 128;

/// Longest time that a worker which exits spends on its last report.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(200);

/// Reports and queries for as long as the runtime lives.
pub(super) async fn run(state: Arc<HubState>) {
    loop {
        report(&state, &state.subscriber_counts()).await;
        sleep(REPORT_INTERVAL).await;
        if state.presence.is_empty() && state.topic_count() == 0 {
            state.presence.woken().await;
        }
    }
}

/// Withdraws this worker's reports, because it exits.
pub(super) async fn withdraw(state: &HubState) {
    let _ = timeout(SHUTDOWN_TIMEOUT, report(state, &[])).await.is_ok();
}

async fn report(state: &HubState, counts: &[(TopicName, u64)]) {
    let presence = &state.presence;
    for due in presence.due_reports(counts).chunks(TOPICS_PER_CALL) {
        let reports: Vec<_> = due.iter().map(|(topic, count)| (topic.as_str(), *count)).collect();
        match state.redis.report_presence(presence.worker_id(), PRESENCE_TTL, &reports).await {
            Ok(sums) => presence.record_reports(due, Some(&sums)),
            Err(error) => {
                tracing::debug!(%error, "presence not reported: {error}");
                presence.record_reports(due, None);
            }
        }
    }
}
