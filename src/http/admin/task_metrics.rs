//! The tasks of all machines in `/metrics`: one queue, of which every fleet that shares it tells the same.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use crate::http::admin::metrics::{add_counter, gauge};
use crate::redis::task::TaskQueueStats;

/// The queue at the moment of a scrape.
#[derive(Debug)]
pub(super) struct TaskQueueMetrics(pub(super) TaskQueueStats);

impl Collector for TaskQueueMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (out, survey) = (&mut encoder, &self.0);
        gauge(out, "tasks_waiting", "Tasks that wait, on all machines", survey.waiting)?;
        gauge(out, "tasks_running", "Tasks that run, on all machines", survey.running.len() as u64)?;
        gauge(out, "tasks_dead_listed", "Dead tasks that are listed", survey.dead.len() as u64)?;
        let help = "Time that the oldest task has waited";
        let mut age =
            out.encode_descriptor("tasks_oldest_age", help, Some(&Unit::Seconds), MetricType::Gauge)?;
        age.encode_gauge(&millis_to_seconds(survey.oldest_ms))?;
        let totals = &survey.totals;
        let ends = [
            ("done", totals.done),
            ("failed", totals.failed),
            ("dead", totals.dead),
            ("cancelled", totals.cancelled),
        ];
        let mut family =
            out.encode_descriptor("tasks_ended", "Tasks that ended, by state", None, MetricType::Counter)?;
        for (state, count) in ends {
            add_counter(&mut family, &[("state", state.to_owned())], count)?;
        }
        let counts = [
            ("tasks_retried", "Attempts that failed and were followed by another one", totals.retried),
            ("tasks_taken_over", "Tasks taken over from a worker that was lost", totals.reclaimed),
            ("tasks_given_back", "Tasks given back by a worker that left", totals.released),
        ];
        for (name, help, count) in counts {
            let mut metric = out.encode_descriptor(name, help, None, MetricType::Counter)?;
            metric.encode_counter::<NoLabelSet, u64, u64>(&count, None)?;
        }
        Ok(())
    }
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^52 milliseconds")]
fn millis_to_seconds(ms: u64) -> f64 {
    ms as f64 / 1e3
}
