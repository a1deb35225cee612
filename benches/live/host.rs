//! Hosts: fleets of the shipped program on one Redis.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::events::delivery_audit::DeliveryReport;
use crate::events::publisher::{PublishPlan, PublishedMessage, Publisher};
use crate::events::{Clock, SubscribePlan, SubscriberGroup, delivery_audit};
use crate::options::Options;
use crate::process::Running;
use crate::redis::Server;
use crate::{Outcome, process, web};

/// The program under test, built by cargo.
const REGATTA: &str = env!("CARGO_BIN_EXE_regatta");

/// Limits on, but never reached.
const LIMIT: (&str, &str) = ("1000000/s", "1000000");

/// One fleet.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    running: Running,
}

impl Host {
    fn start(folder: &Path, redis: &Server, options: &Options) -> Outcome<Self> {
        fs::create_dir_all(folder)?;
        let (address, admin) = (free_address()?, free_address()?);
        let mut command = Command::new(REGATTA);
        // A setting of the shell that runs the benchmark must not change what is measured.
        command.env_clear().current_dir(folder);
        command.env("REGATTA_LISTEN", address.to_string());
        command.env("REGATTA_ADMIN__LISTEN", admin.to_string());
        command.env("REGATTA_WORKERS__COUNT", options.workers.to_string());
        command.env("REGATTA_REDIS__URL", redis.url());
        command.env("REGATTA_LIMITS__DEFAULT__RATE", LIMIT.0);
        command.env("REGATTA_LIMITS__DEFAULT__BURST", LIMIT.1);
        command.env("REGATTA_LIMITS__DEFAULT__ROUTES", "state");
        // Its clients are many and have one address.
        for name in ["MESSAGES", "TASKS", "ALLTASKS"] {
            command.env(format!("REGATTA_LIMITS__{name}__ENABLED"), "false");
        }
        command.env("REGATTA_RUN_DIR", folder.join("run"));
        command.env("REGATTA_DATA_DIR", folder.join("data"));
        let log = folder.join("log");
        let host = Self { address, admin, running: Running::start(command, &log)? };
        let waited = process::wait_until("it answers", || {
            host.workers().len() == options.workers && web::page(address, "/").is_ok()
        });
        waited.map_err(|error| format!("{error}; {}", fs::read_to_string(&log).unwrap_or_default()))?;
        Ok(host)
    }

    pub(crate) fn workers(&self) -> Vec<u32> {
        process::descendants(self.running.pid())
    }

    pub(crate) fn supervisor(&self) -> u32 {
        self.running.pid()
    }
}

/// So many hosts and their Redis, reached over TCP.
#[derive(Debug)]
pub(crate) struct Site {
    // In the order in which they leave: Redis last.
    pub(crate) hosts: Vec<Host>,
    redis: Server,
    _folder: TempDir,
}

impl Site {
    pub(crate) fn start(hosts: usize, options: &Options) -> Outcome<Self> {
        let folder = tempfile::Builder::new().prefix("regatta-live").tempdir()?;
        let redis = Server::start(
            Path::new("redis-server"),
            &folder.path().join("redis"),
            false,
            Some(free_address()?),
        )?;
        let host = |number: usize| Host::start(&folder.path().join(number.to_string()), &redis, options);
        let hosts = (0..hosts).map(host).collect::<Outcome<_>>()?;
        Ok(Self { hosts, redis, _folder: folder })
    }

    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.hosts.iter().map(|host| host.address).collect()
    }

    pub(crate) fn workers(&self) -> Vec<u32> {
        self.hosts.iter().flat_map(Host::workers).collect()
    }

    /// Processor time of workers, supervisors, Redis and this program so far, microseconds.
    pub(crate) fn cpu(&self) -> Outcome<Cpu> {
        let supervisors: Vec<_> = self.hosts.iter().map(Host::supervisor).collect();
        Ok(Cpu {
            at: Instant::now(),
            workers: process::cpu_us(&self.workers())?,
            supervisors: process::cpu_us(&supervisors)?,
            redis: process::cpu_us(&[self.redis.pid()])?,
            own: process::cpu_us(&[std::process::id()])?,
        })
    }

    /// Private memory of all workers, KiB.
    pub(crate) fn memory(&self) -> Outcome<u64> {
        self.workers().into_iter().map(process::private_kib).sum()
    }

    /// Clients of one topic on all hosts, all of which listen.
    pub(crate) fn crowd(&self, clock: Clock, topic: &str, clients: usize) -> Outcome<SubscriberGroup> {
        let crowd = SubscriberGroup::start(
            clock,
            &SubscribePlan::spread(&self.addresses(), &[topic.to_owned()], clients),
        );
        process::wait_until("all listen", || crowd.listens())
            .map_err(|error| format!("{error}: {}", crowd.summary()))?;
        Ok(crowd)
    }

    /// Publishes so many messages to a topic, at this pace.
    pub(crate) fn publish(
        &self,
        clock: Clock,
        topic: &str,
        pace: Duration,
        count: usize,
    ) -> Vec<PublishedMessage> {
        let (addresses, topics) = (self.addresses(), vec![topic.to_owned()]);
        Publisher::start(clock, 0, PublishPlan { addresses, topics, pace, size: 100, count: Some(count) })
            .wait()
    }
}

/// Processor time at a moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cpu {
    at: Instant,
    pub(crate) workers: f64,
    pub(crate) supervisors: f64,
    pub(crate) redis: f64,
    pub(crate) own: f64,
}

impl Cpu {
    /// What was used since an earlier look.
    pub(crate) fn since(&self, before: &Self) -> Used {
        Used {
            seconds: self.at.duration_since(before.at).as_secs_f64(),
            workers: self.workers - before.workers,
            supervisors: self.supervisors - before.supervisors,
            redis: self.redis - before.redis,
            own: self.own - before.own,
        }
    }
}

/// Processor time of a while, microseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Used {
    pub(crate) seconds: f64,
    pub(crate) workers: f64,
    pub(crate) supervisors: f64,
    pub(crate) redis: f64,
    pub(crate) own: f64,
}

/// Per cent of one core.
pub(crate) fn percent(us: f64, seconds: f64) -> String {
    format!("{:.2} %", us / seconds / 10_000.0)
}

/// Waits until all have the last message, ends all clients, and compares what was sent with what arrived.
pub(crate) fn settle(crowd: SubscriberGroup, printed: &[PublishedMessage]) -> Outcome<DeliveryReport> {
    let last = printed.iter().filter_map(|printed| printed.answer.clone().ok()).max();
    let last = last.ok_or("nothing was published")?;
    process::wait_until("all have the last message", || crowd.all(|record| record.has(last)))
        .map_err(|error| format!("{error}: {}", crowd.summary()))?;
    Ok(delivery_audit::audit(&crowd.stop(), printed)?)
}

/// An address no one listens on: taken from the kernel and given back.
fn free_address() -> Outcome<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
