//! Asks everybody who knows something of the fleet, all at once, and remembers what lines are drawn of.

use std::path::Path;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::control::client::Error;
use crate::control::events::Event;
use crate::control::rates::Rate;
use crate::control::rates::Rates;
use crate::control::rates::Window;
use crate::control::status::RatesOf;
use crate::control::status::Status;
use crate::http::dashboard::draw;
use crate::http::dashboard::draw::Known;
use crate::http::dashboard::draw::Sums;
use crate::http::dashboard::history::History;
use crate::http::dashboard::history::Moment;
use crate::http::dashboard::supervisor;
use crate::http::dashboard::supervisor::Told;
use crate::http::dashboard::view::View;
use crate::http::dashboard::work::Work;
use crate::http::exchange::TOTAL;
use crate::http::site;
use crate::http::state::Core;
use crate::redis::Findings;
use crate::redis::fleet::Seen;
use crate::redis::keys;
use crate::scoreboard::snapshot::Snapshot;
use crate::sys::time;

/// Time over which rates are measured.
const SPAN: Duration = Duration::from_millis(1900);

/// After a pause this long the old samples say nothing of now.
const PAUSE: Duration = Duration::from_secs(5);

/// What is remembered from one second to the next.
#[derive(Debug)]
pub(super) struct Engine {
    window: Window,
    noted: Option<Duration>,
    history: History,
    events: Vec<Event>,
    status: Result<Status, String>,
    asking: Option<JoinHandle<Result<Told, Error>>>,
}

impl Default for Engine {
    fn default() -> Self {
        Self {
            window: Window::new(SPAN),
            noted: None,
            history: History::default(),
            events: Vec::new(),
            status: Err("it was not asked yet".to_owned()),
            asking: None,
        }
    }
}

impl Engine {
    /// How things are now.
    pub(super) async fn compute(&mut self, core: &Core) -> View {
        let told = async {
            match core.config.heartbeat {
                Some(_) => Some(core.machines.ask(&core.redis).await),
                None => None,
            }
        };
        let (told, views, sessions, work, ()) = tokio::join!(
            told,
            views(core),
            core.seen.count(&core.redis, time::unix()),
            survey(core),
            self.ask(&core.config.run_dir),
        );
        let (now, snapshot) = (time::monotonic(), core.scoreboard.snapshot());
        let rates = self.rates(now, &snapshot);
        let machine = site::measured(core.site.machine(&core.scoreboard), &snapshot, &rates);
        let known = Known {
            unix_ms: u64::try_from(time::unix().as_millis()).unwrap_or(u64::MAX),
            own: Seen { age_ms: 0, machine },
            snapshot: &snapshot,
            told,
            supervisor: self.status.as_ref().map_err(String::as_str),
            events: &self.events,
            redis: core.redis.health(),
            lanes: core.redis.lanes(),
            findings: Findings::from_bits(core.scoreboard.redis_findings()),
            views,
            sessions,
            work,
        };
        self.history.note(now, &moment(&Sums::of(&known.machines()), &rates));
        draw::draw(&known, &self.history)
    }

    /// Asks the supervisor, one question at a time: one that is stuck must not gather threads.
    async fn ask(&mut self, run_dir: &Path) {
        let after = self.events.last().map(|event| event.seq);
        // It stays here while it is waited for: whoever waits may leave, and the next one waits for the same answer.
        let asking = self.asking.get_or_insert_with(|| {
            let run_dir = run_dir.to_owned();
            tokio::task::spawn_blocking(move || supervisor::look(&run_dir, after))
        });
        let Ok(told) = timeout(supervisor::LOOK, asking).await else {
            self.status = Err("it does not answer".to_owned());
            return;
        };
        self.asking = None;
        match told {
            Ok(Ok(told)) => {
                self.status = Ok(told.status);
                self.remember(told.events);
            }
            Ok(Err(error)) => self.status = Err(error.to_string()),
            Err(_) => self.status = Err("it could not be asked".to_owned()),
        }
    }

    fn remember(&mut self, events: Vec<Event>) {
        // Numbers that began anew are another fleet's, and the old events with them.
        if events.first().is_some_and(|first| self.events.last().is_some_and(|last| first.seq <= last.seq)) {
            self.events.clear();
        }
        self.events.extend(events);
        let surplus = self.events.len().saturating_sub(supervisor::SHOWN);
        self.events.drain(..surplus);
    }

    /// Rates of the last seconds; where nobody watched, those that the supervisor has measured.
    fn rates(&mut self, now: Duration, snapshot: &Snapshot) -> Rates {
        if self.noted.is_none_or(|noted| now.saturating_sub(noted) > PAUSE) {
            self.window = Window::new(SPAN);
        }
        let rates = self.window.rates(now, snapshot);
        self.window.note(now, snapshot);
        self.noted = Some(now);
        match &self.status {
            Ok(status) if rates.window.is_zero() => measured_by_supervisor(status),
            _ => rates,
        }
    }
}

fn measured_by_supervisor(status: &Status) -> Rates {
    let rate = |rates: &RatesOf| Rate {
        requests_per_s: rates.requests_per_s,
        latency_p50_us: rates.latency_p50_us,
        latency_p99_us: rates.latency_p99_us,
    };
    let workers = status.slots.iter().filter_map(|slot| slot.worker.as_ref());
    Rates {
        window: Duration::from_secs_f64(status.window_s.clamp(0.0, 1e6)),
        fleet: rate(&status.rates),
        slots: status.slots.iter().map(|slot| rate(&slot.rates)).collect(),
        busy_percent: workers.filter_map(|worker| Some((worker.pid, worker.busy_percent?))).collect(),
    }
}

#[allow(clippy::cast_precision_loss, reason = "a height in a picture")]
fn moment(sums: &Sums, rates: &Rates) -> Moment {
    Moment {
        rate: sums.requests_per_s,
        p99: sums.latency_p99_us.map(|us| us as f64),
        busy: sums.busy_percent,
        slots: rates.slots.iter().map(|slot| slot.requests_per_s).collect(),
    }
}

/// All views ever counted, by every machine.
async fn views(core: &Core) -> Option<i64> {
    core.redis.count(&keys::counter(&core.prefix, TOTAL), 0).await.ok()
}

async fn survey(core: &Core) -> Work {
    core.tasks.survey().await.map_err(|error| error.to_string())
}
