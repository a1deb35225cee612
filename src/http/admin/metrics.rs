//! `/metrics`: the scoreboard as text, the same totals whichever worker answers.
//!
//! Totals belong to slots and outlive workers, so no counter decreases over a crash or a reload. Series whose labels are
//! known have their zeros from the start: an alert must not wait for a series to appear.

use std::fmt;
use std::sync::Arc;

use axum::extract::State as Shared;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use crate::http::admin::metric_encoding::{add_counter, gauge, micros_to_seconds, millis_to_seconds};
use crate::http::admin::task_metrics::TaskQueueMetrics;
use crate::http::admin::text_format::TextFormat;
use crate::http::services::admin::AdminServices;
use crate::scoreboard::cell::CellState;
use crate::scoreboard::refusal_reason::{ConnectionCloseReason, RefusalReason};
use crate::scoreboard::row::SlotState;
use crate::scoreboard::snapshot::{ScoreboardSnapshot, SlotSnapshot};
use crate::scoreboard::{ExitReason, latency};
use crate::sys::clock;

/// Bounds of the exported histogram are a doubling apart, not a quarter of one: a quarter of the series.
const BUCKETS_PER_DOUBLING: usize = 4;

/// Names of the status classes, as [`SlotSnapshot::responses`] orders them.
const CLASSES: [&str; 6] = ["other", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// Names of the breakers, as [`SlotSnapshot::breaker_opens`] orders them.
const BREAKERS: [&str; 2] = ["reads", "writes"];

pub(in crate::http) async fn metrics(
    Shared(state): Shared<Arc<AdminServices>>,
    headers: HeaderMap,
) -> Response {
    let now_ms = u64::try_from(clock::monotonic().as_millis()).unwrap_or(u64::MAX);
    let scrape = Scrape { snapshot: state.scoreboard.snapshot(), now_ms };
    // Without Redis, and where no kind of task is registered, the series of tasks are missing.
    let tasks = match state.tasks.is_used() {
        true => state.tasks.stats().await.ok().map(TaskQueueMetrics),
        false => None,
    };
    match encode(scrape, tasks) {
        Ok(text) => {
            let format = TextFormat::negotiate(&headers);
            let headers = [
                (header::CONTENT_TYPE, format.content_type()),
                (header::CACHE_CONTROL, "no-store"),
                (header::VARY, "Accept"),
            ];
            (headers, format.convert(text)).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Every series in the `OpenMetrics` text format.
fn encode(scrape: Scrape, tasks: Option<TaskQueueMetrics>) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("regatta");
    registry.register_collector(Box::new(scrape));
    if let Some(tasks) = tasks {
        registry.register_collector(Box::new(tasks));
    }
    let mut text = String::with_capacity(16 * 1024);
    text::encode(&mut text, &registry)?;
    Ok(text)
}

/// Every series that there can be, for the reference.
#[cfg(test)]
pub(crate) fn all_series() -> String {
    let slots = std::num::NonZeroUsize::new(SlotState::ALL.len()).unwrap();
    let table = crate::scoreboard::Scoreboard::create(slots, 1, 0).unwrap();
    table.set_slots(slots.get());
    for (slot, state) in SlotState::ALL.into_iter().enumerate() {
        table.cell(slot, 0).reset(1, 0);
        table.cell(slot, 0).record_heartbeat(1, 0, 0, 0);
        table.row(slot).set_state(state, Some(0));
    }
    let tasks = TaskQueueMetrics(crate::tasks::TaskQueueStats::default());
    encode(Scrape { snapshot: table.snapshot(), now_ms: 1 }, Some(tasks)).unwrap()
}

/// One scrape: the snapshot, and when it was taken, milliseconds on the monotonic clock.
#[derive(Debug)]
struct Scrape {
    snapshot: ScoreboardSnapshot,
    now_ms: u64,
}

/// A number of each slot: name, help, value.
type SlotMetric = (&'static str, &'static str, fn(&SlotSnapshot) -> u64);

const COUNTERS: [SlotMetric; 24] = [
    ("connections_accepted", "Connections accepted", |slot| slot.accepted),
    ("connections_transferred", "Of these, taken over from workers of other slots", |slot| slot.transferred),
    (
        "connections_aborted",
        "Connections aborted at the end of a drain: requests outlived drain.timeout",
        |slot| slot.aborted_connections,
    ),
    ("views", "Page views counted in sessions", |slot| slot.views),
    ("requests_rate_limited", "Requests denied by a rate limit", |slot| slot.rate_limited),
    ("requests_rate_limited_from_cache", "Of these, denied without asking Redis", |slot| {
        slot.denied_from_cache
    }),
    ("rate_limit_shadow_denials", "Times a limit in shadow mode would have denied a request", |slot| {
        slot.shadow_denials
    }),
    ("rate_limit_local_decisions", "Requests whose limits were decided without Redis", |slot| {
        slot.local_decisions
    }),
    ("requests_unavailable", "Requests answered 503 because Redis was unavailable", |slot| slot.unavailable),
    (
        "requests_stale",
        "Responses that showed a session as last known, or of a Redis that accepts no writes",
        |slot| slot.stale,
    ),
    ("redis_silences", "Times calls waited on a connection to Redis without any reply", |slot| {
        slot.redis_absences[0]
    }),
    ("redis_calls_queued", "Calls that waited for a connection to Redis", |slot| slot.redis_absences[1]),
    ("session_corruptions", "Session keys that held something else, moved to quarantine", |slot| {
        slot.corrupt_sessions
    }),
    ("session_commit_failures", "Responses sent although their session changes were not stored", |slot| {
        slot.failed_commits
    }),
    ("counter_batches_flushed", "Batches of increments of batched counters sent to Redis", |slot| {
        slot.counter_batches
    }),
    (
        "counter_increments_dropped",
        "Increments of batched counters that Redis rejected for good: the counter would overflow or holds no number",
        |slot| slot.dropped_increments,
    ),
    ("broadcast_messages_published", "Messages published through the slot", |slot| slot.broadcast_totals[0]),
    ("broadcast_messages_delivered", "Messages delivered, once for each subscriber", |slot| {
        slot.broadcast_totals[1]
    }),
    ("broadcast_gaps", "Gaps sent to subscribers: messages may be missing", |slot| slot.broadcast_totals[2]),
    (
        "broadcast_catch_up_reads",
        "Reads of messages that no notification brought: a few while connections are cut, many if notifications get lost",
        |slot| slot.broadcast_totals[3],
    ),
    ("broadcast_subscribers_lagged", "Subscribers dropped because they fell too far behind", |slot| {
        slot.broadcast_totals[4]
    }),
    ("worker_starts", "Workers started in the slot", |slot| slot.starts),
    ("worker_crashes", "Workers that exited without an order", |slot| slot.crashes),
    ("worker_restarts", "Workers that replaced another one in the slot", |slot| {
        slot.starts.saturating_sub(1)
    }),
];

/// Counted in microseconds, exported in seconds.
const DURATIONS: [SlotMetric; 2] = [
    ("worker_busy", "Time that the slot's event loops worked; its rate is the busy share", |slot| {
        slot.busy_us
    }),
    ("worker_cpu", "CPU time of the slot's workers", |slot| slot.cpu_us),
];

/// States of a worker, each a label.
const WORKER_STATES: [CellState; 5] =
    [CellState::Booting, CellState::Ready, CellState::Draining, CellState::Hung, CellState::Killed];

const GAUGES: [SlotMetric; 10] = [
    ("connections_open", "Open connections", |slot| slot.sum(|worker| worker.connections)),
    ("broadcast_subscribers", "Clients subscribed to broadcasts", |slot| {
        slot.sum(|worker| worker.subscribers)
    }),
    ("streams_open", "Open streams of events and WebSockets", |slot| slot.sum(|worker| worker.open_streams)),
    ("requests_in_flight", "Requests being answered", |slot| slot.sum(|worker| worker.in_flight)),
    ("requests_queued", "Requests that wait for their turn", |slot| slot.sum(|worker| worker.waiting)),
    ("worker_shedding", "Workers of the slot that are overloaded and refuse requests", |slot| {
        slot.sum(|worker| u64::from(worker.shedding))
    }),
    ("worker_up", "1 if the slot's worker serves", |slot| u64::from(slot.state == SlotState::Ready)),
    ("worker_generation", "Generation of the slot's worker", |slot| slot.generation()),
    ("counter_increments_pending", "Increments of batched counters not sent to Redis yet", |slot| {
        slot.pending_increments
    }),
    ("redis_up", "1 if the slot's worker has a connection to Redis", |slot| u64::from(slot.redis_up())),
];

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let out = &mut encoder;
        let snapshot = &self.snapshot;
        info(out)?;
        start_times(out, snapshot)?;
        gauge(out, "generation", "Number of the configuration and binary in use", snapshot.generation)?;
        gauge(out, "workers_ready", "Slots whose worker serves", snapshot.ready() as u64)?;
        gauge(
            out,
            "redis_ever_connected",
            "1 once any worker has been connected to Redis",
            u64::from(snapshot.redis_ever_connected),
        )?;
        sizes(out, snapshot)?;
        log_lines(out, snapshot)?;
        responses(out, snapshot)?;
        durations(out, snapshot)?;
        for (name, help, number) in COUNTERS {
            let mut family = out.encode_descriptor(name, help, None, MetricType::Counter)?;
            for slot in &snapshot.slots {
                add_counter(&mut family, &[("slot", slot.slot.to_string())], number(slot))?;
            }
        }
        for (name, help, number) in GAUGES {
            let mut family = out.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for slot in &snapshot.slots {
                family.encode_family(&[("slot", slot.slot.to_string())])?.encode_gauge(&number(slot))?;
            }
        }
        for (name, help, micros) in DURATIONS {
            let mut family = out.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Counter)?;
            for slot in &snapshot.slots {
                let labels = [("slot", slot.slot.to_string())];
                let total = micros_to_seconds(micros(slot));
                family.encode_family(&labels)?.encode_counter::<NoLabelSet, f64, u64>(&total, None)?;
            }
        }
        breakers(out, snapshot)?;
        rejections(out, snapshot)?;
        loop_turns(out, snapshot)?;
        heartbeats(out, snapshot, self.now_ms)?;
        pending_increments(out, snapshot, self.now_ms)?;
        workers(out, snapshot)?;
        exits(out, snapshot)?;
        slot_states(out, snapshot)
    }
}

fn info(out: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let mut metric = out.encode_descriptor("build", "The program", None, MetricType::Info)?;
    metric.encode_info(&[("version", env!("CARGO_PKG_VERSION"))])
}

fn start_times(out: &mut DescriptorEncoder<'_>, snapshot: &ScoreboardSnapshot) -> fmt::Result {
    let help = "When the fleet started, Unix time";
    let mut metric = out.encode_descriptor("start_time", help, Some(&Unit::Seconds), MetricType::Gauge)?;
    metric.encode_gauge(&millis_to_seconds(snapshot.started_ms))?;
    let help = "When the slot's worker was started, Unix time; 0 if it has none";
    let mut family =
        out.encode_descriptor("worker_start_time", help, Some(&Unit::Seconds), MetricType::Gauge)?;
    for slot in &snapshot.slots {
        let started = millis_to_seconds(slot.active_worker.as_ref().map_or(0, |worker| worker.started_ms));
        family.encode_family(&[("slot", slot.slot.to_string())])?.encode_gauge(&started)?;
    }
    Ok(())
}

fn sizes(out: &mut DescriptorEncoder<'_>, snapshot: &ScoreboardSnapshot) -> fmt::Result {
    let help = "Bytes of response bodies whose length was known";
    let mut family = out.encode_descriptor("response", help, Some(&Unit::Bytes), MetricType::Counter)?;
    for slot in &snapshot.slots {
        add_counter(&mut family, &[("slot", slot.slot.to_string())], slot.bytes)?;
    }
    let help = "Memory of the slot's workers that no file backs";
    let mut family =
        out.encode_descriptor("worker_private_memory", help, Some(&Unit::Bytes), MetricType::Gauge)?;
    for slot in &snapshot.slots {
        let bytes = slot.sum(|worker| worker.memory_bytes);
        family.encode_family(&[("slot", slot.slot.to_string())])?.encode_gauge(&bytes)?;
    }
    Ok(())
}

fn log_lines(out: &mut DescriptorEncoder<'_>, snapshot: &ScoreboardSnapshot) -> fmt::Result {
    let help = "Log lines dropped because nothing read them; alert on any";
    let mut family = out.encode_descriptor("log_lines_dropped", help, None, MetricType::Counter)?;
    add_counter(&mut family, &[("process", "supervisor")], snapshot.log_lines_dropped)?;
    for slot in &snapshot.slots {
        let labels = [("process", "worker".to_owned()), ("slot", slot.slot.to_string())];
        add_counter(&mut family, &labels, slot.log_lines_dropped)?;
    }
    Ok(())
}

fn responses(out: &mut DescriptorEncoder<'_>, snapshot: &ScoreboardSnapshot) -> fmt::Result {
    let mut family = out.encode_descriptor("requests", "Requests answered", None, MetricType::Counter)?;
    for slot in &snapshot.slots {
        for (class, count) in CLASSES.iter().zip(slot.responses) {
            add_counter(
                &mut family,
                &[("slot", slot.slot.to_string()), ("status_class", (*class).to_owned())],
                count,
            )?;
        }
    }
    Ok(())
}

fn durations(out: &mut DescriptorEncoder<'_>, snapshot: &ScoreboardSnapshot) -> fmt::Result {
    let counts = snapshot.latency();
    // The first bucket ends at the first doubling; then four buckets are one doubling.
    let mut buckets: Vec<(f64, u64)> = vec![(bucket_bound(latency::upper_us(0)), counts[0])];
    for four in (1..counts.len()).step_by(BUCKETS_PER_DOUBLING) {
        let last = (four + BUCKETS_PER_DOUBLING).min(counts.len());
        buckets.push((bucket_bound(latency::upper_us(last - 1)), counts[four..last].iter().sum()));
    }
    let count = counts.iter().sum();
    let sum = micros_to_seconds(snapshot.total(|slot| slot.latency_sum_us));
    let help = "Time from a request's header to its response's, of all slots";
    let mut metric =
        out.encode_descriptor("request_duration", help, Some(&Unit::Seconds), MetricType::Histogram)?;
    metric.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
}

fn bucket_bound(upper_us: Option<u64>) -> f64 {
    upper_us.map_or(f64::INFINITY, micros_to_seconds)
}

fn rejections(out: &mut DescriptorEncoder<'_>, snapshot: &ScoreboardSnapshot) -> fmt::Result {
    let label =
        |slot: &SlotSnapshot, reason: &str| [("slot", slot.slot.to_string()), ("reason", reason.to_owned())];
    let help = "Requests refused before they reached the application, by reason; they are not in requests";
    let mut family = out.encode_descriptor("requests_refused", help, None, MetricType::Counter)?;
    for slot in &snapshot.slots {
        for (reason, count) in RefusalReason::ALL.iter().zip(slot.refused) {
            add_counter(&mut family, &label(slot, reason.name()), count)?;
        }
    }
    let help = "Connections closed by the worker before their clients wanted that, by reason";
    let mut family = out.encode_descriptor("connections_closed", help, None, MetricType::Counter)?;
    for slot in &snapshot.slots {
        for (reason, count) in ConnectionCloseReason::ALL.iter().zip(slot.closed) {
            add_counter(&mut family, &label(slot, reason.name()), count)?;
        }
    }
    Ok(())
}

fn loop_turns(out: &mut DescriptorEncoder<'_>, snapshot: &ScoreboardSnapshot) -> fmt::Result {
    let help = "Lag of the event loop: duration of its last turn that started a request";
    let mut family = out.encode_descriptor("worker_turn", help, Some(&Unit::Seconds), MetricType::Gauge)?;
    for slot in &snapshot.slots {
        let length = micros_to_seconds(slot.active_worker.as_ref().map_or(0, |worker| worker.turn_us));
        family.encode_family(&[("slot", slot.slot.to_string())])?.encode_gauge(&length)?;
    }
    Ok(())
}

fn breakers(out: &mut DescriptorEncoder<'_>, snapshot: &ScoreboardSnapshot) -> fmt::Result {
    let label = |slot: &SlotSnapshot, breaker: &str| {
        [("slot", slot.slot.to_string()), ("breaker", breaker.to_owned())]
    };
    let help = "State of the breaker of the slot's worker: 0 closed, 1 half-open, 2 open";
    let mut family = out.encode_descriptor("redis_breaker_state", help, None, MetricType::Gauge)?;
    for slot in &snapshot.slots {
        let states = slot.active_worker.as_ref().map(|worker| worker.breakers).unwrap_or_default();
        for (breaker, state) in BREAKERS.iter().zip(states) {
            family.encode_family(&label(slot, breaker))?.encode_gauge(&(state as u64))?;
        }
    }
    let help = "Times the breaker has opened";
    let mut family = out.encode_descriptor("redis_breaker_opens", help, None, MetricType::Counter)?;
    for slot in &snapshot.slots {
        for (breaker, opened) in BREAKERS.iter().zip(slot.breaker_opens) {
            add_counter(&mut family, &label(slot, breaker), opened)?;
        }
    }
    Ok(())
}

/// A worker without a heartbeat has no age: computed, it would be the uptime of the host.
fn heartbeats(out: &mut DescriptorEncoder<'_>, snapshot: &ScoreboardSnapshot, now_ms: u64) -> fmt::Result {
    let help = "Time since the last heartbeat of the slot's worker; above a second it begins to be suspect";
    let name = "worker_heartbeat_age";
    let mut family = out.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Gauge)?;
    for slot in &snapshot.slots {
        let heartbeat = slot.active_worker.as_ref().map(|worker| worker.heartbeat_ms).filter(|at| *at > 0);
        if let Some(at_ms) = heartbeat {
            let age = millis_to_seconds(now_ms.saturating_sub(at_ms));
            family.encode_family(&[("slot", slot.slot.to_string())])?.encode_gauge(&age)?;
        }
    }
    Ok(())
}

fn pending_increments(
    out: &mut DescriptorEncoder<'_>,
    snapshot: &ScoreboardSnapshot,
    now_ms: u64,
) -> fmt::Result {
    let help =
        "Time that the oldest increment of a batched counter has waited to be sent to Redis; 0 if none waits";
    let name = "counter_oldest_pending";
    let mut family = out.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Gauge)?;
    for slot in &snapshot.slots {
        let age_ms = slot.pending_since_ms.map_or(0, |since_ms| now_ms.saturating_sub(since_ms));
        let labels = [("slot", slot.slot.to_string())];
        family.encode_family(&labels)?.encode_gauge(&millis_to_seconds(age_ms))?;
    }
    Ok(())
}

fn workers(out: &mut DescriptorEncoder<'_>, snapshot: &ScoreboardSnapshot) -> fmt::Result {
    let mut family = out.encode_descriptor(
        "workers",
        "Workers by state; hung: a spare serves beside it",
        None,
        MetricType::Gauge,
    )?;
    for slot in &snapshot.slots {
        for state in WORKER_STATES {
            let count = slot.workers.iter().filter(|worker| worker.state == state).count();
            let labels = [("slot", slot.slot.to_string()), ("state", state.name().to_owned())];
            family.encode_family(&labels)?.encode_gauge(&(count as u64))?;
        }
    }
    Ok(())
}

fn exits(out: &mut DescriptorEncoder<'_>, snapshot: &ScoreboardSnapshot) -> fmt::Result {
    let help = "Workers that exited, by reason";
    let mut family = out.encode_descriptor("worker_exits", help, None, MetricType::Counter)?;
    for slot in &snapshot.slots {
        for (reason, count) in ExitReason::ALL.iter().zip(slot.exits) {
            add_counter(
                &mut family,
                &[("slot", slot.slot.to_string()), ("reason", reason.name().to_owned())],
                count,
            )?;
        }
    }
    Ok(())
}

fn slot_states(out: &mut DescriptorEncoder<'_>, snapshot: &ScoreboardSnapshot) -> fmt::Result {
    let help = "1 for the state the slot is in";
    let mut family = out.encode_descriptor("slot_state", help, None, MetricType::Gauge)?;
    for slot in &snapshot.slots {
        let labels = [("slot", slot.slot.to_string()), ("state", slot.state.name().to_owned())];
        family.encode_family(&labels)?.encode_gauge(&1_u64)?;
    }
    Ok(())
}
