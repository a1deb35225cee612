//! A supervisor written down, and one that goes on from it in another program.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::config;
use crate::config::schema::RedisUrl;
use crate::control::rates::Window;
use crate::control::server::Server;
use crate::listener::Addresses;
use crate::listener::Listener;
use crate::listener::SlotListeners;
use crate::listener::shared::SharedQueue;
use crate::scoreboard;
use crate::scoreboard::Scoreboard;
use crate::supervisor::Host;
use crate::supervisor::Program;
use crate::supervisor::Reloaded;
use crate::supervisor::SAMPLED;
use crate::supervisor::Settings;
use crate::supervisor::Supervisor;
use crate::supervisor::handoff::Descriptors;
use crate::supervisor::handoff::Handoff;
use crate::supervisor::handoff::Redis;
use crate::supervisor::handoff::Said;
use crate::supervisor::history::happened;
use crate::supervisor::keeper::Keeper;
use crate::supervisor::leftovers::Leftovers;
use crate::supervisor::plan::Target;
use crate::supervisor::private::Private;
use crate::supervisor::reap::Report;
use crate::supervisor::redis_server::RedisServer;
use crate::supervisor::rollout::Course;
use crate::supervisor::rollout::Kind;
use crate::supervisor::rollout::Rollout;
use crate::supervisor::run_dir::RunDir;
use crate::supervisor::senses::Senses;
use crate::supervisor::service;
use crate::supervisor::signals;
use crate::supervisor::sockets::Socket;
use crate::supervisor::sockets::Sockets;
use crate::supervisor::stats::Stats;
use crate::supervisor::ticket::Ticket;
use crate::supervisor::ticket::Way;
use crate::supervisor::upgrade::Old;
use crate::supervisor::upgrade::Upgrade;
use crate::sys::exec;
use crate::sys::path;
use crate::sys::proc::Pid;
use crate::sys::signal::Signals;
use crate::sys::start::has_terminal;
use crate::sys::time;

/// Copies of what the program before has left open; the originals stay until [`settle`].
#[derive(Debug)]
pub struct Taken {
    lifeline: OwnedFd,
    held: OwnedFd,
    shared: Option<SharedQueue>,
    sockets: Vec<Option<SlotListeners>>,
    reports: BTreeMap<Pid, Report>,
    redis: Option<Private>,
}

impl Taken {
    /// Copies all of them.
    ///
    /// # Errors
    /// When one was not handed over, or no descriptor is left.
    pub fn copy(state: &Handoff) -> io::Result<Self> {
        let listener = |given: &Socket| -> io::Result<Listener> {
            Ok(Listener { socket: exec::copy(given.fd)?.into(), owner: given.owner })
        };
        let slot = |numbers: &Sockets| -> io::Result<SlotListeners> {
            let all = |given: &[Socket]| given.iter().map(listener).collect::<Result<_, _>>();
            Ok(SlotListeners { public: all(&numbers.public)?, admin: all(&numbers.admin)? })
        };
        let sockets = state.sockets.iter().map(|slot_sockets| slot_sockets.as_ref().map(slot).transpose());
        let report = |(pid, said): (&i32, &Said)| -> io::Result<(Pid, Report)> {
            let pipe = said.pipe.map(|fd| exec::copy(fd).map(File::from)).transpose()?;
            Ok((Pid::from_raw(*pid), Report { pipe, text: said.text.clone(), frames: String::new() }))
        };
        let redis = state.redis.as_ref().map(|redis| -> io::Result<Private> {
            let lock = exec::copy(redis.lock)?.into();
            let server = RedisServer::resume(redis.program.clone(), redis.folder.clone(), lock);
            let times = (redis.started, redis.restart_at);
            Ok(Private::resume(server, redis.pid.map(Pid::from_raw), times, redis.backoff))
        });
        let shared = state.descriptors.shared.map(|[entrance, exit]| -> io::Result<SharedQueue> {
            let bells = state.descriptors.bells.map(|bells| bells.map(exec::copy));
            SharedQueue::from_parts([exec::copy(entrance)?, exec::copy(exit)?], bells)
        });
        Ok(Self {
            shared: shared.transpose()?,
            lifeline: exec::copy(state.descriptors.lifeline)?,
            held: exec::copy(state.descriptors.held)?,
            sockets: sockets.collect::<Result<_, _>>()?,
            reports: state.reports.iter().map(report).collect::<Result<_, _>>()?,
            redis: redis.transpose()?,
        })
    }

    /// Where the private Redis is reached, if the fleet has one.
    pub fn private_redis(&self) -> Option<RedisUrl> {
        self.redis.as_ref().map(|private| RedisUrl::unix(&private.server.socket()))
    }
}

/// Closes the originals of everything that was copied: from now on this program has the fleet.
pub fn settle(state: &Handoff, ticket: &Ticket) {
    let old = match ticket.way {
        Way::Forward { old } => Some(old),
        Way::Back { .. } => None,
    };
    for fd in state.kept().into_iter().chain([ticket.state]).chain(old) {
        // What was not handed over is not there to be closed.
        drop(exec::inherit(fd));
    }
}

/// Which way the fleet came to this program.
#[derive(Debug)]
pub enum Coming {
    /// This is the new one: it has to prove itself slot by slot.
    Forward {
        /// The one before it.
        old: Box<Old>,
        /// What is different about its configuration.
        reloaded: Box<Reloaded>,
    },
    /// This is the old one, again.
    Back {
        /// Why the new one could not take over; none when its rollout failed.
        reason: Option<String>,
    },
}

/// What a supervisor goes on with, besides the state.
#[derive(Debug)]
pub struct Resumption<'a> {
    /// How patient it is.
    pub settings: Settings,
    /// The signals it takes, from [`crate::supervisor::take_signals`].
    pub signals: Signals,
    /// The program it runs as.
    pub program: Program,
    /// The run folder.
    pub run_dir: &'a RunDir,
    /// What was left open.
    pub taken: Taken,
    /// Which way it came.
    pub coming: Coming,
}

impl<'a> Supervisor<'a> {
    /// Everything another program needs to go on from here.
    ///
    /// # Errors
    /// None today; what cannot be written is found out by writing it.
    pub(super) fn handoff(&self) -> io::Result<Handoff> {
        let number = |fd: &dyn AsRawFd| fd.as_raw_fd();
        let socket = |listener: &Listener| Socket { fd: listener.as_raw_fd(), owner: listener.owner };
        let sockets = |slot: &SlotListeners| Sockets {
            public: slot.public.iter().map(socket).collect(),
            admin: slot.admin.iter().map(socket).collect(),
        };
        let said = |(pid, report): (&Pid, &Report)| {
            let pipe = report.pipe.as_ref().map(|pipe| pipe.as_raw_fd());
            (pid.as_raw(), Said { pipe, text: report.text.clone() })
        };
        let redis = |private: &Private| Redis {
            program: private.server.program().into(),
            folder: private.server.folder().into(),
            lock: private.server.lock().as_raw_fd(),
            pid: private.pid.map(Pid::as_raw),
            started: private.started,
            restart_at: private.restart_at,
            backoff: private.backoff,
        };
        let path = self.program.path.clone().into_os_string();
        let (lock, folder) = self.run_dir.descriptors();
        Ok(Handoff {
            build: self.host.build().to_owned(),
            arguments: std::iter::once(path).chain(self.program.arguments.iter().cloned()).collect(),
            environment: config::environment_of_process(),
            inputs: self.host.inputs(self.scoreboard.generation()),
            layout: scoreboard::LAYOUT,
            descriptors: Descriptors {
                scoreboard: self.scoreboard.as_fd().as_raw_fd(),
                lock,
                folder: Some(folder),
                home: self.home.as_ref().map(AsRawFd::as_raw_fd),
                lifeline: number(&self.lifeline),
                held: number(&self.lifeline_held),
                shared: self.shared.as_ref().map(SharedQueue::ends),
                bells: self.shared.as_ref().map(SharedQueue::bells),
            },
            slots: self.slots.clone(),
            sockets: self.sockets.iter().map(|slot| slot.as_ref().map(sockets)).collect(),
            reports: self.reports.iter().map(said).collect(),
            redis: self.private.as_ref().map(redis),
            wanted: self.wanted,
            generation: self.generation,
            next_generation: self.next_generation,
            rollout: self.rollout.clone(),
            reload_waits: self.reload_waits,
            ever_ready: self.ever_ready,
            announced: self.announced,
            killed: self.killed,
            control: self.control.parts(),
            waiters: self.waiters.clone(),
            last_rollout: self.last_rollout.clone(),
            builds: self.builds.clone(),
            configured: self.configured,
        })
    }

    /// Goes on from a state.
    ///
    /// # Errors
    /// When the operating system refuses what a supervisor cannot live without.
    pub fn resume(
        state: Handoff,
        with: Resumption<'a>,
        scoreboard: &'a Scoreboard,
        host: &'a mut dyn Host,
    ) -> io::Result<Self> {
        signals::adopt_orphans();
        let Taken { lifeline, held, shared, sockets, reports, redis } = with.taken;
        let first = sockets.iter().flatten().next();
        let addresses = Addresses::of(first.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?)?;
        let build = state.build;
        let mut supervisor = Self {
            settings: with.settings,
            before: with.settings,
            scoreboard,
            run_dir: with.run_dir,
            keeper: Keeper::default(),
            home: path::working_folder().ok(),
            program: with.program,
            watched: None,
            addresses,
            slots: state.slots,
            sockets,
            reports,
            // They have been told, and what they need of a supervisor is written down.
            leftovers: Leftovers::default(),
            private: redis,
            target: Target::Serve,
            wanted: state.wanted,
            generation: state.generation,
            next_generation: state.next_generation,
            oldest: state.generation,
            rollout: state.rollout,
            upgrade: Upgrade::Idle,
            reload_waits: state.reload_waits,
            workers_wanted: None,
            ever_ready: state.ever_ready,
            announced: state.announced,
            last_failure: String::from("no worker was started"),
            killed: state.killed,
            pinned: Vec::new(),
            control: Server::resume(state.control)?,
            waiters: state.waiters,
            window: Window::new(SAMPLED),
            last_rollout: state.last_rollout,
            builds: state.builds,
            configured: state.configured,
            // Unknown: the next look at the slots sets it anew.
            steered: Vec::new(),
            steered_by: with.settings.steering,
            decided: None,
            senses: Senses::new(),
            stats: Stats::new(with.settings.stats_interval, time::monotonic(), &scoreboard.snapshot()),
            signals: with.signals,
            had_terminal: has_terminal(),
            service: service::manager(&*host),
            host,
            // Workers of a program that had none keep what they accept; those to come share a new one.
            shared: shared.or_else(super::open_shared_queue),
            lifeline,
            lifeline_held: held,
        };
        supervisor.arrive(with.coming, build, time::monotonic());
        Ok(supervisor)
    }

    /// `build` is the one that wrote the state.
    fn arrive(&mut self, coming: Coming, build: String, now: Duration) {
        let at_work: Vec<u64> =
            self.slots.iter().flat_map(|slot| slot.workers.iter().map(|worker| worker.generation)).collect();
        self.builds.retain(|generation, _| at_work.contains(generation));
        match coming {
            Coming::Forward { old, reloaded } => {
                let to = self.next_generation;
                let own = self.host.build().to_owned();
                tracing::info!(
                    generation = to,
                    from = old.build,
                    build = own,
                    "upgrade: build {own} has the fleet"
                );
                self.note(
                    happened("upgrade_started", format!("build {own} has the fleet, after {build}"))
                        .generation(to),
                );
                self.tell_reloading("upgrading", now);
                self.builds.insert(self.generation, build);
                self.upgrade_has_begun(to);
                self.upgrade = Upgrade::OnTrial(old);
                self.apply(*reloaded);
                self.begin_rollout(Kind::Upgrade, to, now);
                self.oldest = to;
            }
            Coming::Back { reason: Some(reason) } => {
                let course = Course::Back { reason };
                let (from, to) = (self.generation, self.next_generation);
                self.rollout = Some(Rollout { kind: Kind::Upgrade, from, to, course, started: now });
                self.next_generation = to + 1;
                self.upgrade_has_begun(to);
            }
            Coming::Back { reason: None } => {
                self.builds.insert(self.next_generation.saturating_sub(1), build);
            }
        }
    }
}
