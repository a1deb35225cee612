//! The instance's heartbeat in Redis, written by the READY worker of the lowest slot.
//!
//! The supervisor never talks to Redis, so one of its workers registers the instance. For a moment two workers may do
//! so, or none; their records are the same, and a record holds for several heartbeats.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

use crate::config::settings::{AdvertisedAddress, Config, ListenAddress, UnixSocketName};
use crate::http::InstanceIdentity;
use crate::listener::Listener;
use crate::redis::{RedisClient, RedisError};
use crate::registry::{self, InstanceRecord, MISSED_HEARTBEATS_MAX};
use crate::scoreboard::Scoreboard;
use crate::scoreboard::row::SlotState;
use crate::status::rates::RateWindow;
use crate::sys::bpf::IpFamily;
use crate::sys::{clock, cpu, executable, network, process};
use crate::worker::interval;
use crate::worker::options::WorkerOptions;

/// How often a worker checks whether it is the one that registers, and whether the record has changed.
const CHECK_INTERVAL: Duration = clock::TICK.saturating_mul(10);
/// Time over which an instance's rates are measured.
const RATE_WINDOW: Duration = Duration::from_secs(2);
/// Longest time for deregistering; an instance that cannot counts as dead once its last heartbeat has expired.
const DEREGISTER_TIMEOUT: Duration = Duration::from_millis(500);
/// How often it is tried when Redis does not answer.
const DEREGISTER_ATTEMPTS: usize = 3;

/// The instance's heartbeat; clones are the same one.
#[derive(Debug, Clone)]
pub(in crate::worker) struct InstanceRegistrar {
    interval: Option<Duration>,
    instance_info: Arc<InstanceIdentity>,
    scoreboard: Arc<Scoreboard>,
    redis: RedisClient,
}

impl InstanceRegistrar {
    pub(in crate::worker) fn new(
        config: &Config,
        instance_info: &Arc<InstanceIdentity>,
        scoreboard: &Arc<Scoreboard>,
        redis: RedisClient,
    ) -> Self {
        let (instance_info, scoreboard) = (Arc::clone(instance_info), Arc::clone(scoreboard));
        Self { interval: config.heartbeat_interval, instance_info, scoreboard, redis }
    }

    /// Registers the instance while this worker is the one to do so; returns only where heartbeats are switched off.
    pub(in crate::worker) async fn run(self) {
        let Some(interval) = self.interval else { return };
        let own = process::pid().as_raw().unsigned_abs();
        let mut ticks = interval::aligned_interval(CHECK_INTERVAL.min(interval));
        let mut reported: Option<(Instant, InstanceRecord)> = None;
        let mut window = RateWindow::new(RATE_WINDOW);
        loop {
            ticks.tick().await;
            if registrar_pid(&self.scoreboard) != Some(own) {
                reported = None;
                window = RateWindow::new(RATE_WINDOW);
                continue;
            }
            let (now, snapshot) = (clock::monotonic(), self.scoreboard.snapshot());
            let rates = window.rates(now, &snapshot);
            window.record(now, &snapshot);
            let status = self.instance_info.status(&self.scoreboard, &snapshot, rates);
            let record = self.instance_info.record(&self.scoreboard, &status);
            // Rates go with the record, and are no reason to send it: they change all the time.
            let is_known = |(at, last): &(Instant, InstanceRecord)| {
                at.elapsed() < interval && !record.differs_beyond_figures(last)
            };
            if reported.as_ref().is_some_and(is_known) {
                continue;
            }
            match self.redis.heartbeat(&record, MISSED_HEARTBEATS_MAX * interval).await {
                Ok(alive) => {
                    tracing::trace!(alive, "heartbeat");
                    self.scoreboard.set_instance_count(alive);
                    reported = Some((Instant::now(), record));
                }
                // It is sent again at the next tick, and that Redis is away is logged by its client.
                Err(error) => tracing::debug!(%error, "instance heartbeat failed: {error}"),
            }
        }
    }

    /// Waits until this worker has `drained`, and removes the instance's record if the instance ends with it.
    ///
    /// Every worker of an instance that ends does so: a heartbeat that was on its way when the first one deregistered
    /// would otherwise bring the record back. Else the instance goes on without this worker, unless it is `orphaned`
    /// meanwhile.
    pub(in crate::worker) async fn deregister_after(
        &self,
        registration: &AbortHandle,
        fleet_ends: bool,
        orphaned: impl Future<Output = ()>,
        drained: impl Future<Output = ()>,
    ) {
        let deregister = async {
            registration.abort();
            self.deregister().await;
        };
        if fleet_ends {
            tokio::join!(drained, deregister);
            return;
        }
        let abandoned = async {
            orphaned.await;
            deregister.await;
            std::future::pending().await
        };
        tokio::select! {
            () = drained => {}
            () = abandoned => {}
        }
    }

    async fn deregister(&self) {
        if self.interval.is_none() {
            return;
        }
        let id = self.instance_info.instance_id(&self.scoreboard);
        let attempts = async {
            let mut outcome = self.redis.deregister_instance(&id).await;
            for _ in 1..DEREGISTER_ATTEMPTS {
                // What a call did that was not answered is unknown, and doing it again does no harm.
                if outcome != Err(RedisError::Timeout) {
                    break;
                }
                outcome = self.redis.deregister_instance(&id).await;
            }
            outcome
        };
        match timeout(DEREGISTER_TIMEOUT, attempts).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "deregistration failed: {error}"),
            Err(_) => tracing::debug!("deregistration failed: Redis did not answer in time"),
        }
    }
}

/// The process that registers the instance.
fn registrar_pid(scoreboard: &Scoreboard) -> Option<u32> {
    let mut slots = (0..scoreboard.slots()).map(|slot| scoreboard.row(slot).snapshot(slot));
    slots.find(|slot| slot.state == SlotState::Ready).map(|slot| slot.pid())
}

/// What this worker knows of its instance.
pub(in crate::worker) fn instance_info(options: &WorkerOptions) -> InstanceIdentity {
    let scaling = options.config.workers.autoscale;
    let most = scaling.max.filter(|max| scaling.min.is_none_or(|min| min < *max));
    let listen = bound_addresses(&options.listeners.public);
    let admin = options.listeners.admin.iter().filter_map(|one| Some(one.address().ok()?.to_string()));
    InstanceIdentity {
        host: process::hostname(),
        build: executable::build_version(),
        libraries: registry::libraries(),
        cores: cpu::available_cores(),
        max_workers: most,
        addresses: advertised_addresses(&options.config.advertise, &listen, network::outbound_address)
            .unwrap_or_else(|| socket_paths(&options.listeners.public)),
        admin_addresses: admin.collect::<Vec<_>>().join(","),
    }
}

/// Where listeners listen, and whether each serves both families.
fn bound_addresses(listeners: &[Listener]) -> Vec<(SocketAddr, bool)> {
    listeners.iter().filter_map(|one| Some((one.internet_address()?, one.is_dual_stack()))).collect()
}

/// Where others reach what listens at `listen`; `outward` is an address of this host in its network.
///
/// A dual-stack listener is advertised once, at the host's IPv4 address if it has one: a proxy would give an instance that
/// is named twice its share twice. None: no Internet address is listened on, and none is advertised.
fn advertised_addresses(
    advertised: &[AdvertisedAddress],
    listen: &[(SocketAddr, bool)],
    outward: impl Fn(IpFamily) -> Option<IpAddr>,
) -> Option<Vec<String>> {
    let first = listen.first().map(|(address, _)| address.port());
    if !advertised.is_empty() {
        let shown = |one: &AdvertisedAddress| match one.port.or(first) {
            Some(port) => format!("{}:{port}", one.host),
            None => one.host.clone(),
        };
        return Some(advertised.iter().map(shown).collect());
    }
    first?;
    let reachable = |(address, dual): &(SocketAddr, bool)| {
        let family = if address.is_ipv6() { IpFamily::V6 } else { IpFamily::V4 };
        let four = || if *dual { outward(IpFamily::V4) } else { None };
        let ip =
            Some(address.ip()).filter(|ip| !ip.is_unspecified()).or_else(four).or_else(|| outward(family));
        // A family in which this host has no address is left out.
        Some(SocketAddr::new(ip?, address.port()).to_string())
    };
    Some(listen.iter().filter_map(reachable).collect())
}

/// Files of Unix sockets, by which programs of this host reach it.
fn socket_paths(listeners: &[Listener]) -> Vec<String> {
    let path = |listener: &Listener| match listener.address().ok()? {
        address @ ListenAddress::Unix(UnixSocketName::Path(_)) => Some(address.to_string()),
        ListenAddress::Unix(UnixSocketName::Abstract(_)) | ListenAddress::Internet(_) => None,
    };
    listeners.iter().filter_map(path).collect()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;

    #[test]
    fn others_learn_what_they_can_reach() {
        let outward = |family| (family == IpFamily::V4).then(|| "10.0.0.5".parse().unwrap());
        let listen =
            |texts: &[&str]| texts.iter().map(|text| (text.parse().unwrap(), false)).collect::<Vec<_>>();
        let advertised = |texts: &[&str]| advertised_addresses(&[], &listen(texts), outward).unwrap();
        assert_eq!(advertised(&["0.0.0.0:3000", "[::]:3000"]), ["10.0.0.5:3000"]);
        assert_eq!(advertised(&["127.0.0.1:80", "[2001:db8::1]:81"]), ["127.0.0.1:80", "[2001:db8::1]:81"]);
        let dual = [("[::]:3000".parse().unwrap(), true)];
        assert_eq!(advertised_addresses(&[], &dual, outward).unwrap(), ["10.0.0.5:3000"]);
        let six = |family| (family == IpFamily::V6).then(|| "fd00::5".parse().unwrap());
        assert_eq!(advertised_addresses(&[], &dual, six).unwrap(), ["[fd00::5]:3000"]);
        assert_eq!(advertised_addresses(&[], &[], outward), None);
        let named = [
            AdvertisedAddress { host: "web-1".into(), port: None },
            AdvertisedAddress { host: "[2001:db8::1]".into(), port: Some(9) },
        ];
        assert_eq!(
            advertised_addresses(&named, &listen(&["0.0.0.0:3000"]), outward).unwrap(),
            ["web-1:3000", "[2001:db8::1]:9"]
        );
    }

    #[test]
    fn the_ready_worker_of_the_lowest_slot_registers() {
        let table = Scoreboard::create(NonZeroUsize::new(4).unwrap(), 1, 0).unwrap();
        table.set_slots(3);
        assert_eq!(registrar_pid(&table), None);
        for (slot, pid) in [(0, 10), (1, 11), (2, 12)] {
            table.cell(slot, 0).reset(1, 0);
            table.cell(slot, 0).set_pid(pid);
            table.row(slot).set_state(SlotState::Ready, Some(0));
        }
        assert_eq!(registrar_pid(&table), Some(10));
        table.row(0).set_state(SlotState::BackedOff, Some(0));
        assert_eq!(registrar_pid(&table), Some(11));
        table.row(1).set_state(SlotState::Draining, Some(0));
        assert_eq!(registrar_pid(&table), Some(12));
    }
}
