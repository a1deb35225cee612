//! The whole machine's heartbeat in Redis, written by the READY worker of the lowest slot.
//!
//! The supervisor never talks to Redis, so one of its workers speaks for it: whoever finds itself in that seat. For a
//! moment two may do so, or nobody; what they say is the same, and it holds for several beats.

use std::net::IpAddr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio::time::timeout;

use crate::config::schema::Advertised;
use crate::config::schema::Config;
use crate::control::rates::Window;
use crate::http;
use crate::http::Site;
use crate::listener::Listener;
use crate::redis::Error;
use crate::redis::Redis;
use crate::redis::fleet;
use crate::redis::fleet::BEATS;
use crate::redis::fleet::Machine;
use crate::scoreboard::Scoreboard;
use crate::scoreboard::row::SlotState;
use crate::sys::bpf::Family;
use crate::sys::build;
use crate::sys::cpu;
use crate::sys::interface;
use crate::sys::proc;
use crate::sys::time;
use crate::worker::Start;
use crate::worker::ticks;

/// How often a worker looks whether it has to speak, and whether there is news.
const LOOK: Duration = time::TICK.saturating_mul(10);
/// Time over which a machine's rates are measured.
const FIGURES: Duration = Duration::from_secs(2);
/// Longest time for saying goodbye; whoever cannot say it is dead after the last heartbeat's lifetime.
const GOODBYE: Duration = Duration::from_millis(500);
/// How often it is said when nobody answers.
const GOODBYES: usize = 3;

/// A machine's heartbeat, as one of its workers has it; clones are the same one.
#[derive(Debug, Clone)]
pub(super) struct Beacon {
    every: Option<Duration>,
    site: Arc<Site>,
    scoreboard: Arc<Scoreboard>,
    redis: Redis,
}

impl Beacon {
    pub(super) fn new(config: &Config, site: &Arc<Site>, scoreboard: &Arc<Scoreboard>, redis: Redis) -> Self {
        let (site, scoreboard) = (Arc::clone(site), Arc::clone(scoreboard));
        Self { every: config.heartbeat, site, scoreboard, redis }
    }

    /// Speaks for the machine whenever this worker is the one to do so; returns only where nobody is to speak.
    pub(super) async fn speak(self) {
        let Some(every) = self.every else { return };
        let own = proc::pid().as_raw().unsigned_abs();
        let mut ticks = ticks::every(LOOK.min(every));
        let mut said: Option<(Instant, Machine)> = None;
        let mut window = Window::new(FIGURES);
        loop {
            ticks.tick().await;
            if speaker(&self.scoreboard) != Some(own) {
                said = None;
                window = Window::new(FIGURES);
                continue;
            }
            let machine = self.site.machine(&self.scoreboard);
            let (now, snapshot) = (time::monotonic(), self.scoreboard.snapshot());
            let rates = window.rates(now, &snapshot);
            window.note(now, &snapshot);
            if said.as_ref().is_some_and(|(at, last)| *last == machine && at.elapsed() < every) {
                continue;
            }
            // How it fares is told with it, and no reason to speak: it changes all the time.
            let told = http::measured(machine.clone(), &snapshot, &rates);
            match self.redis.beat(&told, BEATS * every).await {
                Ok(alive) => {
                    tracing::trace!(alive, "heartbeat");
                    self.scoreboard.set_machines(alive);
                    said = Some((Instant::now(), machine));
                }
                // Said again at the next look: its loss is no event, and Redis away is told elsewhere.
                Err(error) => tracing::debug!(%error, "no heartbeat: {error}"),
            }
        }
    }

    /// Waits until this worker has `departed`, and takes the machine out of the fleet if that ends with it.
    ///
    /// Every worker that ends with the fleet says so: one that was about to speak when the first one said goodbye would
    /// have brought the machine back. Otherwise the machine goes on without this worker, unless it is `orphaned`
    /// meanwhile.
    pub(super) async fn see_off(
        &self,
        speaking: &AbortHandle,
        fleet_ends: bool,
        orphaned: impl Future<Output = ()>,
        departed: impl Future<Output = ()>,
    ) {
        let goodbye = async {
            speaking.abort();
            self.leave().await;
        };
        if fleet_ends {
            tokio::join!(departed, goodbye);
            return;
        }
        let abandoned = async {
            orphaned.await;
            goodbye.await;
            std::future::pending().await
        };
        tokio::select! {
            () = departed => {}
            () = abandoned => {}
        }
    }

    async fn leave(&self) {
        if self.every.is_none() {
            return;
        }
        let id = self.site.id(&self.scoreboard);
        let told = async {
            let mut outcome = self.redis.leave(&id).await;
            for _ in 1..GOODBYES {
                // What a call did that was not answered is unknown, and doing it again does no harm.
                if outcome != Err(Error::Timeout) {
                    break;
                }
                outcome = self.redis.leave(&id).await;
            }
            outcome
        };
        match timeout(GOODBYE, told).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "could not leave the fleet: {error}"),
            Err(_) => tracing::debug!("could not leave the fleet in time"),
        }
    }
}

/// The process that speaks for the machine.
fn speaker(scoreboard: &Scoreboard) -> Option<u32> {
    let mut slots = (0..scoreboard.slots()).map(|slot| scoreboard.row(slot).snapshot(slot));
    slots.find(|slot| slot.state == SlotState::Ready).map(|slot| slot.pid())
}

/// What this worker knows of its machine.
pub(super) fn site(start: &Start) -> Site {
    let scaling = start.config.workers.scaling;
    let most = scaling.max.filter(|max| scaling.min.is_none_or(|min| min < *max));
    let listen = bound(&start.listeners.public);
    let admin = bound(&start.listeners.admin).into_iter().map(|(address, _)| address.to_string());
    Site {
        host: proc::hostname(),
        build: build::own(),
        libraries: fleet::libraries(),
        cores: cpu::allowed(),
        most,
        addresses: addresses(&start.config.advertise, &listen, interface::outward),
        admin: admin.collect::<Vec<_>>().join(","),
    }
}

/// Where listeners listen, and whether each serves both families.
fn bound(listeners: &[Listener]) -> Vec<(SocketAddr, bool)> {
    listeners.iter().filter_map(|one| Some((one.local_addr().ok()?, one.is_dual_stack()))).collect()
}

/// Where others reach what listens at `listen`; `outward` is an address of this machine in its network.
///
/// Who listens on every address of both families is told once, at its IPv4 address if it has one: named twice it would
/// get twice its share.
fn addresses(
    advertised: &[Advertised],
    listen: &[(SocketAddr, bool)],
    outward: impl Fn(Family) -> Option<IpAddr>,
) -> Vec<String> {
    let Some((first, _)) = listen.first() else { return Vec::new() };
    if !advertised.is_empty() {
        let shown = |one: &Advertised| format!("{}:{}", one.host, one.port.unwrap_or(first.port()));
        return advertised.iter().map(shown).collect();
    }
    let reachable = |(address, dual): &(SocketAddr, bool)| {
        let family = if address.is_ipv6() { Family::V6 } else { Family::V4 };
        let four = || if *dual { outward(Family::V4) } else { None };
        let ip =
            Some(address.ip()).filter(|ip| !ip.is_unspecified()).or_else(four).or_else(|| outward(family));
        // A family in which nobody reaches this machine is no address.
        Some(SocketAddr::new(ip?, address.port()).to_string())
    };
    listen.iter().filter_map(reachable).collect()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;

    #[test]
    fn others_are_told_what_they_can_reach() {
        let outward = |family| (family == Family::V4).then(|| "10.0.0.5".parse().unwrap());
        let listen =
            |texts: &[&str]| texts.iter().map(|text| (text.parse().unwrap(), false)).collect::<Vec<_>>();
        let told = |texts: &[&str]| addresses(&[], &listen(texts), outward);
        assert_eq!(told(&["0.0.0.0:3000", "[::]:3000"]), ["10.0.0.5:3000"]);
        assert_eq!(told(&["127.0.0.1:80", "[2001:db8::1]:81"]), ["127.0.0.1:80", "[2001:db8::1]:81"]);
        let dual = [("[::]:3000".parse().unwrap(), true)];
        assert_eq!(addresses(&[], &dual, outward), ["10.0.0.5:3000"]);
        let six = |family| (family == Family::V6).then(|| "fd00::5".parse().unwrap());
        assert_eq!(addresses(&[], &dual, six), ["[fd00::5]:3000"]);
        let named = [
            Advertised { host: "web-1".into(), port: None },
            Advertised { host: "[2001:db8::1]".into(), port: Some(9) },
        ];
        assert_eq!(addresses(&named, &listen(&["0.0.0.0:3000"]), outward), ["web-1:3000", "[2001:db8::1]:9"]);
    }

    #[test]
    fn the_ready_worker_of_the_lowest_slot_speaks() {
        let table = Scoreboard::create(NonZeroUsize::new(4).unwrap(), 1, 0).unwrap();
        table.set_slots(3);
        assert_eq!(speaker(&table), None);
        for (slot, pid) in [(0, 10), (1, 11), (2, 12)] {
            table.cell(slot, 0).prepare(1, 0);
            table.cell(slot, 0).seated(pid);
            table.row(slot).set_state(SlotState::Ready, Some(0));
        }
        assert_eq!(speaker(&table), Some(10));
        table.row(0).set_state(SlotState::BackedOff, Some(0));
        assert_eq!(speaker(&table), Some(11));
        table.row(1).set_state(SlotState::Draining, Some(0));
        assert_eq!(speaker(&table), Some(12));
    }
}
