//! Collects the fleet's facts from the supervisor, Redis and the scoreboard at once, and retains their history.

use std::path::Path;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::control::client::ControlError;
use crate::control::events::FleetEvent;
use crate::http::dashboard::metric_history::{MetricHistory, MetricSample};
use crate::http::dashboard::presenter::{DashboardFacts, FleetTotals};
use crate::http::dashboard::queue_view::QueueFacts;
use crate::http::dashboard::sources::DashboardSources;
use crate::http::dashboard::supervisor_client::SupervisorReply;
use crate::http::dashboard::view_model::DashboardView;
use crate::http::dashboard::{presenter, supervisor_client};
use crate::redis::ServerWarnings;
use crate::redis::registry::ListedInstance;
use crate::scoreboard::snapshot::ScoreboardSnapshot;
use crate::status::document::{InstanceStatus, StatusRates};
use crate::status::rates::{InstanceRates, RateWindow, SlotRates};
use crate::sys::clock;

/// Time over which rates are measured.
const RATE_SPAN: Duration = Duration::from_millis(1900);

/// After a longer pause old samples are discarded.
const MAX_SAMPLE_GAP: Duration = Duration::from_secs(5);

/// What one collection passes to the next.
#[derive(Debug)]
pub(super) struct FleetCollector {
    rate_window: RateWindow,
    last_sample_at: Option<Duration>,
    history: MetricHistory,
    events: Vec<FleetEvent>,
    status: Result<InstanceStatus, String>,
    pending_poll: Option<JoinHandle<Result<SupervisorReply, ControlError>>>,
}

impl Default for FleetCollector {
    fn default() -> Self {
        Self {
            rate_window: RateWindow::new(RATE_SPAN),
            last_sample_at: None,
            history: MetricHistory::default(),
            events: Vec::new(),
            status: Err("it has not been polled yet".to_owned()),
            pending_poll: None,
        }
    }
}

impl FleetCollector {
    /// Collects the view of this moment.
    pub(super) async fn collect(&mut self, sources: &DashboardSources) -> DashboardView {
        let listed = async {
            match sources.heartbeat_interval {
                Some(_) => Some(sources.admin.fleet_cache.get(&sources.admin.redis).await),
                None => None,
            }
        };
        let (listed, views, sessions, queue, ()) = tokio::join!(
            listed,
            total_views(sources),
            sources.session_activity.count(&sources.admin.redis, clock::wall_clock()),
            queue_facts(sources),
            self.poll_supervisor(&sources.run_dir),
        );
        let (now, snapshot) = (clock::monotonic(), sources.admin.scoreboard.snapshot());
        let rates = self.rates(now, &snapshot);
        let scoreboard = &sources.admin.scoreboard;
        let status = sources.admin.instance.status(scoreboard, &snapshot, rates.clone());
        let instance = sources.admin.instance.record(scoreboard, &status);
        let facts = DashboardFacts {
            unix_ms: u64::try_from(clock::wall_clock().as_millis()).unwrap_or(u64::MAX),
            own: ListedInstance { age_ms: 0, instance },
            snapshot: &snapshot,
            listed,
            supervisor: self.status.as_ref().map_err(String::as_str),
            events: &self.events,
            redis: sources.admin.redis.status(),
            breakers: sources.admin.redis.breaker_states(),
            server_warnings: ServerWarnings::from_bits(sources.admin.scoreboard.redis_findings()),
            views,
            sessions,
            queue,
        };
        self.history.record(now, &metric_sample(&FleetTotals::from_instances(&facts.instances()), &rates));
        presenter::present(&facts, &self.history)
    }

    /// Polls the supervisor, one poll at a time: a stuck supervisor must not gather blocked threads.
    async fn poll_supervisor(&mut self, run_dir: &Path) {
        let after = self.events.last().map(|event| event.sequence);
        // A caller may be dropped while it waits; the poll stays here, and the next caller waits for it.
        let pending_poll = self.pending_poll.get_or_insert_with(|| {
            let run_dir = run_dir.to_owned();
            tokio::task::spawn_blocking(move || supervisor_client::poll(&run_dir, after))
        });
        let Ok(reply) = timeout(supervisor_client::POLL_TIMEOUT, pending_poll).await else {
            self.status = Err("it does not answer".to_owned());
            return;
        };
        self.pending_poll = None;
        match reply {
            Ok(Ok(reply)) => {
                self.status = Ok(reply.status);
                self.append_events(reply.events);
            }
            Ok(Err(error)) => self.status = Err(error.to_string()),
            Err(_) => self.status = Err("polling it failed".to_owned()),
        }
    }

    fn append_events(&mut self, events: Vec<FleetEvent>) {
        // Sequence numbers that start again are those of another run, whose events replace the old ones.
        if events
            .first()
            .is_some_and(|first| self.events.last().is_some_and(|last| first.sequence <= last.sequence))
        {
            self.events.clear();
        }
        self.events.extend(events);
        let surplus = self.events.len().saturating_sub(supervisor_client::EVENTS_SHOWN);
        self.events.drain(..surplus);
    }

    /// Rates of the last seconds; after a pause, those that the supervisor has measured.
    fn rates(&mut self, now: Duration, snapshot: &ScoreboardSnapshot) -> InstanceRates {
        if self
            .last_sample_at
            .is_none_or(|last_sample_at| now.saturating_sub(last_sample_at) > MAX_SAMPLE_GAP)
        {
            self.rate_window = RateWindow::new(RATE_SPAN);
        }
        let rates = self.rate_window.rates(now, snapshot);
        self.rate_window.record(now, snapshot);
        self.last_sample_at = Some(now);
        match &self.status {
            Ok(status) if rates.window.is_zero() => rates_from_supervisor(status),
            _ => rates,
        }
    }
}

fn rates_from_supervisor(status: &InstanceStatus) -> InstanceRates {
    let rate = |rates: &StatusRates| SlotRates {
        requests_per_s: rates.requests_per_s,
        latency_p50_us: rates.latency_p50_us,
        latency_p99_us: rates.latency_p99_us,
    };
    let workers = status.slots.iter().filter_map(|slot| slot.worker.as_ref());
    InstanceRates {
        window: Duration::from_secs_f64(status.window_s.clamp(0.0, 1e6)),
        instance: rate(&status.rates),
        slots: status.slots.iter().map(|slot| rate(&slot.rates)).collect(),
        busy_percent: workers.filter_map(|worker| Some((worker.pid, worker.busy_percent?))).collect(),
    }
}

#[allow(clippy::cast_precision_loss, reason = "a height in a sparkline")]
fn metric_sample(totals: &FleetTotals, rates: &InstanceRates) -> MetricSample {
    MetricSample {
        rate: totals.requests_per_s,
        p99: totals.latency_p99_us.map(|us| us as f64),
        busy: totals.busy_percent,
        slots: rates.slots.iter().map(|slot| slot.requests_per_s).collect(),
    }
}

/// All views ever counted, on all instances.
async fn total_views(sources: &DashboardSources) -> Option<i64> {
    sources.admin.redis.increment(&sources.total_views_key, 0).await.ok()
}

async fn queue_facts(sources: &DashboardSources) -> QueueFacts {
    sources.admin.tasks.stats().await.map_err(|error| error.to_string())
}
