//! `/metrics`: the scoreboard in the `OpenMetrics` text format, the same totals whichever worker answers.
//!
//! Totals belong to slots and outlive workers, so no counter goes back over a crash or a reload.

use std::fmt;

use axum::extract::State as Shared;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use crate::http::admin::task_metrics::TaskQueueMetrics;
use crate::http::service::context::FleetHandle;
use crate::scoreboard::cell::CellState;
use crate::scoreboard::refusal_reason::{ConnectionCloseReason, RefusalReason};
use crate::scoreboard::row::SlotState;
use crate::scoreboard::snapshot::{ScoreboardSnapshot, SlotSnapshot};
use crate::scoreboard::{ExitReason, latency};
use crate::sys::clock;

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Bounds of the exported histogram are a doubling apart, not a quarter of one: four times fewer series.
const BUCKETS_PER_DOUBLING: usize = 4;

/// Names of the status classes, as [`SlotSnapshot::responses`] orders them.
const CLASSES: [&str; 6] = ["other", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// Names of the breakers, as [`SlotSnapshot::redis_opened`] orders them.
const BREAKERS: [&str; 2] = ["reads", "writes"];

pub(in crate::http) async fn metrics(Shared(state): Shared<FleetHandle>) -> Response {
    let mut registry = Registry::with_prefix("regatta");
    let now_ms = u64::try_from(clock::monotonic().as_millis()).unwrap_or(u64::MAX);
    registry.register_collector(Box::new(Scrape { snapshot: state.snapshot(), now_ms }));
    // What Redis does not tell is missing, as it is where no kind of tasks is known.
    if state.0.tasks.is_used()
        && let Ok(survey) = state.0.tasks.stats().await
    {
        registry.register_collector(Box::new(TaskQueueMetrics(survey)));
    }
    let mut text = String::with_capacity(16 * 1024);
    match text::encode(&mut text, &registry) {
        Ok(()) => ([(header::CONTENT_TYPE, CONTENT_TYPE), (header::CACHE_CONTROL, "no-store")], text)
            .into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// One scrape: the snapshot, and when it was taken, in milliseconds of the clock of heartbeats.
#[derive(Debug)]
struct Scrape {
    snapshot: ScoreboardSnapshot,
    now_ms: u64,
}

/// A number of each slot: name, help, what it is.
type SlotMetric = (&'static str, &'static str, fn(&SlotSnapshot) -> u64);

const COUNTERS: [SlotMetric; 25] = [
    ("connections_accepted", "Connections accepted", |slot| slot.accepted),
    ("connections_passed", "Of these, taken over from workers of other slots", |slot| slot.transferred),
    ("connections_cut", "Connections cut at the end of a drain", |slot| slot.aborted_connections),
    ("response_bytes", "Bytes of response bodies whose length was known", |slot| slot.bytes),
    ("views", "Page views counted in sessions", |slot| slot.views),
    ("requests_limited", "Requests denied by a rate limit", |slot| slot.rate_limited),
    ("requests_denied_here", "Of these, denied without asking Redis", |slot| slot.denied_from_cache),
    ("limits_shadowed", "Times a limit in shadow would have denied a request", |slot| slot.shadow_denials),
    ("requests_insured", "Requests whose limits were decided without Redis", |slot| slot.local_decisions),
    ("requests_unavailable", "Requests refused because Redis was away", |slot| slot.unavailable),
    ("requests_stale", "Requests shown a session as last known, Redis being away", |slot| slot.stale),
    ("redis_silences", "Times calls waited on a connection to Redis and nothing was answered", |slot| {
        slot.redis_absences[0]
    }),
    ("redis_calls_held", "Calls that waited for a connection to Redis", |slot| slot.redis_absences[1]),
    ("session_corrupt", "Session keys under which something else lay, put aside", |slot| {
        slot.corrupt_sessions
    }),
    ("session_commit_failed", "Responses sent although their session changes were not stored", |slot| {
        slot.failed_commits
    }),
    ("counter_flushes", "Batches of additions to counters sent on", |slot| slot.counter_batches),
    ("counter_additions_dropped", "Additions to counters that Redis refused for good", |slot| {
        slot.dropped_increments
    }),
    ("broadcasts_published", "Messages published", |slot| slot.broadcast_totals[0]),
    ("broadcasts_delivered", "Messages passed on, once for each client", |slot| slot.broadcast_totals[1]),
    ("broadcast_gaps", "Clients told that messages may be missing", |slot| slot.broadcast_totals[2]),
    ("broadcast_reads", "Times that messages were read which had not been heard", |slot| {
        slot.broadcast_totals[3]
    }),
    ("broadcast_clients_dropped", "Clients dropped for being slow", |slot| slot.broadcast_totals[4]),
    ("worker_starts", "Workers started in the slot", |slot| slot.starts),
    ("worker_crashes", "Workers that ended without being asked to", |slot| slot.crashes),
    ("worker_restarts", "Workers that replaced another one in the slot", |slot| {
        slot.starts.saturating_sub(1)
    }),
];

/// Times in microseconds, exported in seconds.
const DURATIONS: [SlotMetric; 2] = [
    ("worker_busy", "Time that event loops were at work", |slot| slot.busy_us),
    ("worker_cpu", "CPU time of the slot's workers", |slot| slot.cpu_us),
];

/// States a worker can be in, as a label has them.
const WORKER_STATES: [CellState; 5] =
    [CellState::Booting, CellState::Ready, CellState::Draining, CellState::Hung, CellState::Killed];

const GAUGES: [SlotMetric; 11] = [
    ("connections", "Open connections", |slot| slot.sum(|worker| worker.connections)),
    ("broadcast_subscribers", "Clients subscribed to broadcasts", |slot| {
        slot.sum(|worker| worker.subscribers)
    }),
    ("requests_in_flight", "Requests being answered", |slot| slot.sum(|worker| worker.in_flight)),
    ("requests_waiting", "Requests that wait for their turn", |slot| slot.sum(|worker| worker.waiting)),
    ("worker_shedding", "Workers of the slot that are overloaded and refuse requests", |slot| {
        slot.sum(|worker| u64::from(worker.shedding))
    }),
    ("worker_up", "1 if the slot's worker serves", |slot| u64::from(slot.state == SlotState::Ready)),
    ("worker_generation", "Generation of the slot's worker", |slot| slot.generation()),
    ("worker_start_time_milliseconds", "When the slot's worker was forked, Unix time", |slot| {
        slot.active_worker.as_ref().map_or(0, |worker| worker.started_ms)
    }),
    ("worker_memory_bytes", "Memory of the slot's workers that no file backs", |slot| {
        slot.sum(|worker| worker.memory_bytes)
    }),
    ("counter_additions_pending", "Additions to counters not sent on yet", |slot| slot.pending_increments),
    ("redis_up", "1 if the slot's worker has Redis", |slot| u64::from(slot.redis_up())),
];

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let out = &mut encoder;
        let snapshot = &self.snapshot;
        info(out)?;
        gauge(out, "start_time_milliseconds", "When the fleet started, Unix time", snapshot.started_ms)?;
        gauge(out, "generation", "Number of the configuration and binary in use", snapshot.generation)?;
        gauge(out, "workers_ready", "Slots whose worker serves", snapshot.ready() as u64)?;
        gauge(
            out,
            "redis_reached",
            "1 once any worker has reached Redis",
            u64::from(snapshot.redis_ever_connected),
        )?;
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
    let mut metric = out.encode_descriptor("build", "What this is", None, MetricType::Info)?;
    metric.encode_info(&[("version", env!("CARGO_PKG_VERSION"))])
}

pub(super) fn gauge(out: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    out.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
}

pub(super) fn add_counter(
    family: &mut MetricEncoder<'_>,
    labels: &impl EncodeLabelSet,
    value: u64,
) -> fmt::Result {
    family.encode_family(labels)?.encode_counter::<NoLabelSet, u64, u64>(&value, None)
}

/// The supervisor's and each slot's, because any process may be cut off from the log while the others are not.
fn log_lines(out: &mut DescriptorEncoder<'_>, snapshot: &ScoreboardSnapshot) -> fmt::Result {
    let help = "Lines of the log dropped because nothing took them";
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
                &[("slot", slot.slot.to_string()), ("class", (*class).to_owned())],
                count,
            )?;
        }
    }
    Ok(())
}

fn durations(out: &mut DescriptorEncoder<'_>, snapshot: &ScoreboardSnapshot) -> fmt::Result {
    let counts = snapshot.latency();
    // The first bucket reaches up to the first doubling; after it come four to each.
    let mut buckets: Vec<(f64, u64)> = vec![(bucket_bound(latency::upper_us(0)), counts[0])];
    for four in (1..counts.len()).step_by(BUCKETS_PER_DOUBLING) {
        let last = (four + BUCKETS_PER_DOUBLING).min(counts.len());
        buckets.push((bucket_bound(latency::upper_us(last - 1)), counts[four..last].iter().sum()));
    }
    let count = counts.iter().sum();
    let sum = micros_to_seconds(snapshot.total(|slot| slot.latency_sum_us));
    let help = "Time from a request's header to its response's";
    let mut metric =
        out.encode_descriptor("request_duration", help, Some(&Unit::Seconds), MetricType::Histogram)?;
    metric.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
}

fn bucket_bound(upper_us: Option<u64>) -> f64 {
    upper_us.map_or(f64::INFINITY, micros_to_seconds)
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^52 microseconds, which are 142 years")]
fn micros_to_seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

/// What workers refused and closed by themselves, every reason of every slot: an alert must not wait for a series.
fn rejections(out: &mut DescriptorEncoder<'_>, snapshot: &ScoreboardSnapshot) -> fmt::Result {
    let label =
        |slot: &SlotSnapshot, reason: &str| [("slot", slot.slot.to_string()), ("reason", reason.to_owned())];
    let help = "Requests refused before they reached the application, by reason";
    let mut family = out.encode_descriptor("requests_refused", help, None, MetricType::Counter)?;
    for slot in &snapshot.slots {
        for (reason, count) in RefusalReason::ALL.iter().zip(slot.refused) {
            add_counter(&mut family, &label(slot, reason.name()), count)?;
        }
    }
    let help = "Connections closed before their clients wanted that, by reason";
    let mut family = out.encode_descriptor("connections_closed", help, None, MetricType::Counter)?;
    for slot in &snapshot.slots {
        for (reason, count) in ConnectionCloseReason::ALL.iter().zip(slot.closed) {
            add_counter(&mut family, &label(slot, reason.name()), count)?;
        }
    }
    Ok(())
}

/// The event loop's lag.
fn loop_turns(out: &mut DescriptorEncoder<'_>, snapshot: &ScoreboardSnapshot) -> fmt::Result {
    let help = "Length of the last turn of the event loop of the slot's worker that began a request";
    let mut family = out.encode_descriptor("worker_turn", help, Some(&Unit::Seconds), MetricType::Gauge)?;
    for slot in &snapshot.slots {
        let length = micros_to_seconds(slot.active_worker.as_ref().map_or(0, |worker| worker.turn_us));
        family.encode_family(&[("slot", slot.slot.to_string())])?.encode_gauge(&length)?;
    }
    Ok(())
}

/// The breakers before Redis.
fn breakers(out: &mut DescriptorEncoder<'_>, snapshot: &ScoreboardSnapshot) -> fmt::Result {
    let label =
        |slot: &SlotSnapshot, breaker: &str| [("slot", slot.slot.to_string()), ("lane", breaker.to_owned())];
    let help = "Where the breaker of the slot's worker stands: 0 closed, 1 half-open, 2 open";
    let mut family = out.encode_descriptor("redis_breaker_state", help, None, MetricType::Gauge)?;
    for slot in &snapshot.slots {
        let positions = slot.active_worker.as_ref().map(|worker| worker.breakers).unwrap_or_default();
        for (breaker, position) in BREAKERS.iter().zip(positions) {
            family.encode_family(&label(slot, breaker))?.encode_gauge(&(position as u64))?;
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

/// A worker that has not beaten yet has no age: it would be that of the machine.
fn heartbeats(out: &mut DescriptorEncoder<'_>, snapshot: &ScoreboardSnapshot, now_ms: u64) -> fmt::Result {
    let help = "Time since the last sign of life of the slot's worker";
    let name = "worker_heartbeat_age";
    let mut family = out.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Gauge)?;
    for slot in &snapshot.slots {
        let beaten = slot.active_worker.as_ref().map(|worker| worker.heartbeat_ms).filter(|at| *at > 0);
        if let Some(at_ms) = beaten {
            let age = micros_to_seconds(now_ms.saturating_sub(at_ms) * 1000);
            family.encode_family(&[("slot", slot.slot.to_string())])?.encode_gauge(&age)?;
        }
    }
    Ok(())
}

/// How long the oldest addition to a counter has waited; zero when none waits.
fn pending_increments(
    out: &mut DescriptorEncoder<'_>,
    snapshot: &ScoreboardSnapshot,
    now_ms: u64,
) -> fmt::Result {
    let help = "Time that the oldest addition to a counter has waited to be sent on";
    let name = "counter_additions_age";
    let mut family = out.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Gauge)?;
    for slot in &snapshot.slots {
        let age_ms = slot.pending_since_ms.map_or(0, |since_ms| now_ms.saturating_sub(since_ms));
        let labels = [("slot", slot.slot.to_string())];
        family.encode_family(&labels)?.encode_gauge(&micros_to_seconds(age_ms * 1000))?;
    }
    Ok(())
}

/// Every state of every slot, zeros too: an alert must not wait for a series to appear.
fn workers(out: &mut DescriptorEncoder<'_>, snapshot: &ScoreboardSnapshot) -> fmt::Result {
    let mut family = out.encode_descriptor("workers", "Workers by state", None, MetricType::Gauge)?;
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
    let help = "Workers that ended, by reason";
    let mut family = out.encode_descriptor("worker_ends", help, None, MetricType::Counter)?;
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
