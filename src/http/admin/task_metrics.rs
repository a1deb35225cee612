//! The task queue in `/metrics`: one queue, so every instance of the fleet has the same series.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use crate::http::admin::metric_encoding::{add_counter, gauge, millis_to_seconds};
use crate::tasks::TaskQueueStats;

/// The queue at the moment of a scrape.
#[derive(Debug)]
pub(super) struct TaskQueueMetrics(pub(super) TaskQueueStats);

impl Collector for TaskQueueMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (out, stats) = (&mut encoder, &self.0);
        gauge(out, "tasks_queued", "Tasks that wait, on all instances", stats.waiting)?;
        gauge(out, "tasks_running", "Tasks that run, on all instances", stats.running.len() as u64)?;
        gauge(out, "tasks_dead", "Dead tasks that are listed", stats.dead.len() as u64)?;
        let help = "Time that the oldest queued task has waited";
        let mut latency =
            out.encode_descriptor("task_queue_latency", help, Some(&Unit::Seconds), MetricType::Gauge)?;
        latency.encode_gauge(&millis_to_seconds(stats.oldest_ms))?;
        let totals = &stats.totals;
        let finished = [
            ("done", totals.done),
            ("failed", totals.failed),
            ("dead", totals.dead),
            ("cancelled", totals.cancelled),
        ];
        let mut family = out.encode_descriptor(
            "tasks_finished",
            "Tasks that finished, by state",
            None,
            MetricType::Counter,
        )?;
        for (state, count) in finished {
            add_counter(&mut family, &[("state", state.to_owned())], count)?;
        }
        let counts = [
            ("tasks_retried", "Attempts that failed and were followed by another one", totals.retried),
            ("tasks_reclaimed", "Tasks reclaimed from a lost worker", totals.reclaimed),
            ("tasks_released", "Tasks released by a draining worker", totals.released),
        ];
        for (name, help, count) in counts {
            let mut metric = out.encode_descriptor(name, help, None, MetricType::Counter)?;
            metric.encode_counter::<NoLabelSet, u64, u64>(&count, None)?;
        }
        Ok(())
    }
}
