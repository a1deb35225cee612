//! Claims tasks while there are permits, and buries those that no program can run.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::redis::RedisError;
use crate::sys::clock;
use crate::tasks::service::{ActiveGuard, POLL_INTERVAL, QUEUE_WAIT_MAX, TaskService};
use crate::tasks::{IdleWorker, TaskDelivery, execution};

/// Shortest time from a claim that found nothing to the next one, however many notifications arrive.
const CLAIM_SPACING: Duration = Duration::from_millis(20);

/// Time between two checks whether calls fail.
const CHECK_EVERY: Duration = clock::TICK.saturating_mul(20);

/// Checks between two searches for overdue tasks.
const SEARCH_EVERY: u32 = 300;

/// Delay where tasks are not supported, which another connection may change.
const UNSUPPORTED_DELAY: Duration = Duration::from_secs(60);

/// Claims tasks until the worker drains, never more than it has permits for.
pub(super) async fn run(service: Arc<TaskService>) {
    let kinds = service.kinds();
    service.subscribe_queued();
    let _subscription = service.subscribe_worker_channel();
    let mut intake = service.intake.subscribe();
    // Before the first connection every call fails, which would look as if other workers could not renew either.
    service.redis.wait_for_first_attempt().await;
    loop {
        let permit = tokio::select! {
            permit = Arc::clone(&service.permits).acquire_owned() => permit,
            _ = intake.changed() => break,
        };
        let Ok(permit) = permit else { break };
        let Some((delivery, active)) = claim_next(&service, &kinds).await else { break };
        tokio::spawn(execution::run(Arc::clone(&service), delivery, permit, active));
    }
    let idle = IdleWorker { worker: &service.worker_channel, kinds: &kinds, has_capacity: false };
    if let Err(error) = service.redis.stop_waiting_for_tasks(&idle).await {
        tracing::debug!(%error, "idle worker not withdrawn: {error}");
    }
    // The channel stays subscribed until the tasks have finished: cancellations arrive there.
    service.wait_until_idle().await;
}

/// The next task; `None`: the worker drains.
async fn claim_next(service: &TaskService, kinds: &[&str]) -> Option<(TaskDelivery, ActiveGuard)> {
    let mut intake = service.intake.subscribe();
    let mut not_before = clock::monotonic();
    loop {
        if !service.is_draining() {
            tokio::select! {
                // The notification first: a claim answers every reason at once.
                biased;
                () = service.wake.notified() => sleep(clock::until(not_before)).await,
                () = sleep(clock::until(service.next_check_at())) => {}
                _ = intake.changed() => return None,
            }
        }
        // A claim in progress counts as active: dropping it would make its task wait for a lease.
        let active = service.activate();
        if service.is_draining() {
            return None;
        }
        let lease = service.may_reclaim().then_some(service.policy.lease);
        let before = service.redis.outage_stats();
        let has_capacity = service.permits.available_permits() > 0;
        let idle = IdleWorker { worker: &service.worker_channel, kinds, has_capacity };
        let claimed = service.redis.claim_task_for(&idle, lease).await;
        let after = service.redis.outage_stats();
        if (after.silences, after.waited) != (before.silences, before.waited) {
            service.reset_quiet_checks();
        }
        let delay = match claimed {
            Ok((Some(delivery), next)) => {
                // Without another permit the next claim waits for one, unless the finishing call returns a delay.
                let claims_at_once = next.has_more || !has_capacity;
                let delay = if claims_at_once { Duration::ZERO } else { service.check_delay(next.pause) };
                service.schedule_check(delay);
                return Some((delivery, active));
            }
            Ok((None, next)) => service.check_delay(next.pause),
            Err(RedisError::Unsupported { .. }) => UNSUPPORTED_DELAY,
            Err(error) => {
                service.record_failure("no task claimed", &error);
                POLL_INTERVAL
            }
        };
        drop(active);
        not_before = clock::monotonic() + CLAIM_SPACING;
        service.schedule_check(delay);
    }
}

/// Counts quiet checks, and searches for overdue tasks now and then, until the worker drains.
pub(super) async fn maintain(service: Arc<TaskService>) {
    // Workers that started together search at different times; several searches would do no harm.
    let mut until_search = std::process::id() % SEARCH_EVERY;
    loop {
        // At a common tick: the event loop wakes up once for everything that is periodic.
        sleep(clock::until_tick(CHECK_EVERY)).await;
        if service.is_draining() {
            return;
        }
        service.update_quiet_checks();
        until_search = match until_search.checked_sub(1) {
            Some(left) => left,
            None => {
                if let Err(error) = bury_expired(&service).await {
                    service.record_failure("overdue tasks not searched", &error);
                }
                SEARCH_EVERY
            }
        };
    }
}

/// Marks tasks dead that were queued for a day: no program has their jobs.
async fn bury_expired(service: &TaskService) -> Result<(), RedisError> {
    let reason = format!("no worker took it within {} h", QUEUE_WAIT_MAX.as_secs() / 3600);
    for (id, kind) in service.redis.overdue_tasks(QUEUE_WAIT_MAX).await? {
        let policy = service.settings_of(&kind).policy;
        if service.redis.expire_task(id, &kind, (QUEUE_WAIT_MAX, &reason), &policy).await? {
            tracing::warn!(%kind, %reason, "task dead: {reason}");
        }
    }
    Ok(())
}
