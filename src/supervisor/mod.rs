//! The supervisor: one loop that waits, reaps, plans and acts.
//!
//! It owns the slots, and the slots own the listening sockets: no listener closes while its slot exists, and no worker
//! is replaced before its successor serves. It is one thread and must not know tokio, HTTP or the Redis protocol: a
//! process that has used tokio must not fork workers that use it.

pub mod deployment;
mod driver;
mod effects;
mod lifecycle;
mod log_output;
pub mod monitor;
pub mod operators;
pub mod orphans;
pub mod private_redis;
mod reporting;
pub mod run_dir;
mod run_dir_check;
mod service_manager;
mod settings;
mod signals;
pub mod slots;
pub mod sockets;

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use lifecycle::Lifecycle;
use monitor::HealthMonitor;
use operators::Operators;
use orphans::OrphanedWorkers;
use private_redis::PrivateRedis;
use reporting::Reporting;
use run_dir::RunDir;
use run_dir_check::RunDirCheck;
pub use settings::{
    ReloadError, ReloadedConfig, SupervisorSettings, UnchangedSetting, WantedAddresses, WorkerHost,
    WorkerSpec,
};
use signals::HangUp;
pub use signals::{SIGNALS, block_signals};

use crate::config::settings::ListenAddress;
use crate::control::event_kind::EventKind;
use crate::control::protocol::{CommandResult, ControlReply, ControlRequest};
use crate::control::server::{ClientId, ControlServer};
use crate::listener::{ListenAddresses, SlotListeners};
use crate::logging;
use crate::scoreboard::{ExitReason, Scoreboard};
use crate::status::document::InstanceStatus;
pub use crate::supervisor::deployment::inherited::{
    InheritedResources, RestoreOptions, Takeover, close_originals,
};
pub use crate::supervisor::deployment::program::{PreviousProgram, ProbeWords, ProgramSpec};
use crate::supervisor::deployment::state::Deployments;
use crate::supervisor::effects::{Effect, event_now};
use crate::supervisor::operators::CommandGoal;
use crate::supervisor::operators::fleet_view::FleetView;
use crate::supervisor::private_redis::server::PrivateRedisServer;
use crate::supervisor::reporting::status::StatusSources;
use crate::supervisor::slots::backoff::RestartBackoff;
use crate::supervisor::slots::plan::{DesiredState, Plan, PlanInput};
use crate::supervisor::slots::slot::{Slot, SlotListening};
use crate::supervisor::slots::table::{Resize, SlotTable, Steering};
use crate::sys::fd::Interest;
use crate::sys::process::{ExitStatus, Pid};
use crate::sys::signal::{ReceivedSignal, Signal, SignalReader};
use crate::sys::{clock, fd, process, signal, startup};

/// How a fleet ended.
#[derive(Debug, PartialEq, Eq)]
pub enum SupervisorExit {
    /// As wanted; this many workers had to be killed.
    Stopped {
        /// Workers that did not leave in time.
        killed: usize,
    },
    /// No worker became READY.
    BootFailed {
        /// Why the last one failed.
        reason: String,
    },
}

/// How long the private Redis may take to load its data before workers start without it.
const REDIS_BOOT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long it may take to save and leave.
const REDIS_STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Interval in which the two waits above check again; nothing else runs in this process meanwhile.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Early deaths of a slot after which the fleet is announced without it.
const EARLY_DEATHS_BEFORE_ANNOUNCE: u32 = 2;

/// What a new fleet is made of.
#[derive(Debug)]
pub struct SupervisorOptions<'a> {
    /// Timeouts and limits of the supervisor.
    pub settings: SupervisorSettings,
    /// The signals it takes, from [`block_signals`].
    pub signals: SignalReader,
    /// From which more slots can be opened.
    pub addresses: ListenAddresses,
    /// The listeners of each slot.
    pub listeners: Vec<SlotListeners>,
    /// The private Redis, if the fleet has one.
    pub redis: Option<PrivateRedisServer>,
    /// Where operators ask.
    pub control: ControlServer,
    /// The program this process runs.
    pub program: ProgramSpec,
    /// The run folder, which an upgrade hands over.
    pub run_dir: &'a RunDir,
    /// Workers of the fleet before this one.
    pub orphans: OrphanedWorkers,
}

/// One fleet's supervisor: state machines that do not know each other, and the loop that drives them.
pub struct Supervisor<'a> {
    /// Forks run its closure, and it reads configurations.
    host: &'a mut dyn WorkerHost,
    scoreboard: &'a Scoreboard,
    settings: SupervisorSettings,
    slots: SlotTable,
    deployment: Deployments,
    monitor: HealthMonitor,
    operators: Operators,
    private_redis: Option<PrivateRedis>,
    lifecycle: Lifecycle,
    reporting: Reporting,
    run_dir: RunDirCheck<'a>,
    orphans: OrphanedWorkers,
}

impl std::fmt::Debug for Supervisor<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Supervisor")
            .field("target", &self.lifecycle.desired_state)
            .field("deployment", &self.deployment)
            .field("slots", &self.slots.entries)
            .finish_non_exhaustive()
    }
}

impl<'a> Supervisor<'a> {
    /// A supervisor over these listeners, one slot each.
    ///
    /// # Errors
    /// When the kernel refuses the life-line.
    pub fn new(
        start: SupervisorOptions<'a>,
        scoreboard: &'a Scoreboard,
        host: &'a mut dyn WorkerHost,
    ) -> io::Result<Self> {
        signals::adopt_orphans();
        let slot_count = start.listeners.len();
        scoreboard.set_slots(slot_count);
        let generation = scoreboard.generation();
        Ok(Self {
            settings: start.settings,
            scoreboard,
            slots: SlotTable::new(start.addresses, start.listeners, generation, start.settings.steering),
            deployment: Deployments::new(generation, start.program),
            monitor: HealthMonitor::new(),
            operators: Operators::new(start.control),
            private_redis: start.redis.map(PrivateRedis::new),
            lifecycle: Lifecycle::new(start.signals, fd::pipe()?),
            reporting: Reporting::new(start.settings.stats_interval, scoreboard, &*host),
            run_dir: RunDirCheck::new(start.run_dir),
            orphans: start.orphans,
            host,
        })
    }

    /// Runs the fleet until it has stopped.
    ///
    /// # Errors
    /// When the operating system refuses what a supervisor cannot live without.
    pub fn run(mut self) -> io::Result<SupervisorExit> {
        self.start_private_redis();
        self.await_private_redis();
        self.run_loop()
    }

    /// Runs a fleet that is there already until it has stopped.
    ///
    /// # Errors
    /// As [`Supervisor::run`].
    pub fn run_loop(mut self) -> io::Result<SupervisorExit> {
        loop {
            self.reap()?;
            // READY may have come while this process was suspended: it counts before any deadline does.
            self.read_status_pipes(clock::monotonic());
            let now = clock::monotonic();
            let canary_held_until = self.judge_checks(now);
            // A rollout that fails with its program is the old program's to end.
            self.exec_previous_program();
            let followed = [
                self.advance_rollout(now),
                self.advance_upgrade(now),
                self.orphans.kill_overdue(self.settings.drain_timeout, now),
                self.slots.addresses_change.poll(now),
            ];
            let followed = followed.into_iter().flatten().min();
            self.start_reload(now);
            self.report_progress(now);
            let monitor_at = self.monitor_workers(now);
            let resized = self.resize();
            let plan = self.make_plan(canary_held_until, now);
            let acted = resized || !plan.actions.is_empty();
            for action in plan.actions {
                if let Some(outcome) = self.apply_action(action, now) {
                    self.slots.close_shared();
                    self.stop_private_redis();
                    self.operators.finish(&final_result(&outcome));
                    return Ok(outcome);
                }
            }
            if !acted {
                self.restart_private_redis(now);
                self.restore_run_dir(now);
                // Steering comes before the announcement: after it every slot may be connected to.
                self.steer();
                self.announce_serving();
                let sampled = self.reporting.sample_rates(self.scoreboard, now);
                let logged = self.log_stats(now);
                self.reporting.service_notifier.send_watchdog(now);
                let wakes = [
                    plan.wake_at,
                    followed,
                    monitor_at,
                    sampled,
                    logged,
                    self.reporting.service_notifier.next_watchdog(),
                ];
                self.wait(wakes.into_iter().flatten().min(), now)?;
                self.handle_signals()?;
                self.handle_commands();
            }
        }
    }

    fn make_plan(&self, canary_held_until: Option<Duration>, now: Duration) -> Plan {
        let view = PlanInput {
            desired_state: self.lifecycle.desired_state,
            slots: &self.slots.entries,
            generation: self.deployment.generation(),
            oldest_generation: self.deployment.oldest_generation(),
            replace_reason: self.deployment.replace_reason(),
            canary_slot: self.deployment.canary_slot(&self.slots.entries),
            ever_ready: self.slots.ever_ready,
            canary_period: self.settings.canary_period,
            canary_held_until,
            drain_timeout: self.settings.drain_timeout,
            max_draining_workers: self.settings.max_draining_workers,
        };
        slots::plan::plan(&view, now)
    }

    /// Sleeps until a signal, a report or the next deadline.
    fn wait(&self, wake_at: Option<Duration>, now: Duration) -> io::Result<()> {
        let restart = self
            .private_redis
            .as_ref()
            .filter(|private| private.pid.is_none())
            .map(|private| private.restart_at);
        let wake_at = wake_at.into_iter().chain(restart).min();
        let reports =
            self.slots.status_pipes.values().filter_map(|report| Some(report.pipe.as_ref()?.as_fd()));
        let own =
            std::iter::once(self.lifecycle.signals.as_fd()).chain(reports).chain(self.preflight_pipes());
        let own = own.map(|fd| (fd, Interest::Read));
        let fds = own.chain(self.operators.control.poll_fds());
        log_output::wait_for_fds(fds, wake_at, now)
    }

    /// Announces once that the fleet serves: every slot does, or has failed repeatedly while others do.
    fn announce_serving(&mut self) {
        let tried =
            |slot: &Slot| slot.is_serving() || slot.backoff.early_deaths() >= EARLY_DEATHS_BEFORE_ANNOUNCE;
        if self.lifecycle.announced
            || self.lifecycle.desired_state != DesiredState::Running
            || !self.slots.ever_ready
            || !self.slots.entries.iter().all(tried)
        {
            return;
        }
        let serving = self.slots.entries.iter().filter(|slot| slot.is_serving()).count();
        if serving == 0 {
            return;
        }
        self.lifecycle.announced = true;
        let list = |all: &[ListenAddress]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let public = self.slots.addresses.public();
        let url = public.first().map(display_url).unwrap_or_default();
        let (listen, admin) = (list(&public), list(&self.slots.addresses.admin()));
        tracing::info!(listen, admin, workers = serving, "serving on {url}");
        let message = match self.slots.entries.len() {
            slots if slots == serving => format!("{serving} workers serve on {url}"),
            slots => format!("{serving} of {slots} workers serve on {url}, the others are tried again"),
        };
        let event = event_now(EventKind::FleetServing, message.clone());
        self.execute([Effect::NotifyReady(message), Effect::Record(event)]);
    }

    /// When a terminal closes, the kernel signals its foreground and an interactive shell the rest of its jobs.
    fn on_hang_up(&mut self, sender: Option<Pid>) {
        let from_terminal = match sender {
            None => true,
            Some(pid) => {
                self.lifecycle.had_terminal && startup::is_session_leader(pid) && !startup::has_terminal()
            }
        };
        match HangUp::from_origin(from_terminal, signal::ignores_hangup()) {
            HangUp::Reload => self.deployment.request_reload(),
            HangUp::Stop => self.set_desired_state(DesiredState::Stopping, "SIGHUP: the terminal was closed"),
            HangUp::Ignore => {
                tracing::info!("terminal closed; ignored: the fleet was started to outlive it (nohup)")
            }
        }
    }

    /// Takes the signals that have come.
    fn handle_signals(&mut self) -> io::Result<()> {
        while let Some(ReceivedSignal { signal, sender }) = self.lifecycle.signals.next()? {
            match (signal, self.lifecycle.desired_state) {
                (Signal::SIGTERM | Signal::SIGINT, DesiredState::Running) => {
                    self.set_desired_state(DesiredState::Stopping, signal.as_str())
                }
                (Signal::SIGINT, DesiredState::Stopping) => {
                    self.set_desired_state(DesiredState::Killing, signal.as_str())
                }
                (Signal::SIGQUIT, DesiredState::Running | DesiredState::Stopping) => {
                    self.set_desired_state(DesiredState::Killing, signal.as_str())
                }
                (Signal::SIGHUP, DesiredState::Running) => self.on_hang_up(sender),
                (Signal::SIGUSR2, DesiredState::Running) => {
                    if let Err(reason) = self.deployment.request_upgrade(None) {
                        tracing::warn!(reason, "not upgraded: {reason}");
                    }
                }
                (Signal::SIGTTIN, DesiredState::Running) => self.scale_by_signal(self.slots.desired + 1),
                (Signal::SIGTTOU, DesiredState::Running) => self.scale_by_signal(self.slots.desired - 1),
                (Signal::SIGUSR1, _) => self.reopen_logs(),
                (Signal::SIGCHLD | Signal::SIGPIPE, _) => {}
                (other, _) => tracing::debug!(signal = %other, "signal ignored"),
            }
        }
        Ok(())
    }

    /// Sets the desired number of slots.
    ///
    /// # Errors
    /// Why that cannot be.
    fn scale_to(&mut self, slots: usize) -> Result<(), String> {
        if let Some(event) = self.slots.set_desired(slots, self.scoreboard)? {
            self.execute([Effect::Record(event)]);
        }
        Ok(())
    }

    /// Brings the number of slots to what is desired; true when it changed something.
    fn resize(&mut self) -> bool {
        if self.lifecycle.desired_state != DesiredState::Running {
            return false;
        }
        let (mode, scoreboard) = (self.settings.steering, self.scoreboard);
        let steering = Steering { mode, monitor: &self.monitor, scoreboard };
        let resized = self.slots.resize(self.deployment.base_generation(), &steering);
        if resized == Resize::Failed {
            self.monitor.reset_autoscaler();
        }
        resized == Resize::Changed
    }

    /// Has new connections go to slots that serve them.
    fn steer(&mut self) {
        if self.lifecycle.desired_state == DesiredState::Running {
            let (mode, scoreboard) = (self.settings.steering, self.scoreboard);
            self.slots.steer(&Steering { mode, monitor: &self.monitor, scoreboard });
        }
    }

    fn scale_by_signal(&mut self, slots: usize) {
        if let Err(reason) = self.scale_to(slots) {
            tracing::warn!(%reason, "not scaled: {reason}");
        }
    }

    /// Takes the requests of operators.
    fn handle_commands(&mut self) {
        for (client, request) in self.operators.control.poll() {
            tracing::debug!(command = request.command(), "operator command");
            self.handle_command(client, request);
        }
    }

    fn handle_command(&mut self, client: ClientId, request: ControlRequest) {
        let stopping = self.lifecycle.desired_state != DesiredState::Running;
        match request {
            ControlRequest::Status => self.send_status(client),
            ControlRequest::Events { after, follow } => {
                self.operators.control.start_events(client, after, follow)
            }
            ControlRequest::Stop { now, wait } => self.handle_stop(client, now, wait),
            _ if stopping => {
                self.operators.send_result(client, CommandResult::failed("the fleet is stopping"))
            }
            ControlRequest::Reload { wait } => {
                self.deployment.request_reload();
                self.operators.accept(client, wait, CommandGoal::NextReload, "the reload is under way");
            }
            ControlRequest::Upgrade { binary, wait } => match self.deployment.request_upgrade(binary) {
                Err(reason) => self.operators.send_result(client, CommandResult::failed(reason)),
                Ok(()) => {
                    self.operators.accept(client, wait, CommandGoal::NextUpgrade, "the upgrade is under way")
                }
            },
            ControlRequest::Scale { workers, wait } => match self.scale_to(workers) {
                Err(reason) => self.operators.send_result(client, CommandResult::rejected(reason)),
                Ok(()) => {
                    let accepted = format!("scaling to {workers} workers");
                    self.operators.accept(client, wait, CommandGoal::Workers(workers), &accepted);
                }
            },
            ControlRequest::Restart { slot, wait } => self.handle_restart(client, slot, wait),
        }
    }

    fn send_status(&mut self, client: ClientId) {
        let status = serde_json::to_value(self.status()).unwrap_or_default();
        self.operators.control.reply(client, &ControlReply::Status(status));
    }

    fn handle_stop(&mut self, client: ClientId, now: bool, wait: bool) {
        match (now, self.lifecycle.desired_state) {
            (true, DesiredState::Running | DesiredState::Stopping) => {
                self.set_desired_state(DesiredState::Killing, "an operator")
            }
            (false, DesiredState::Running) => self.set_desired_state(DesiredState::Stopping, "an operator"),
            _ => {}
        }
        self.operators.accept(client, wait, CommandGoal::Stop, "the fleet is stopping");
    }

    fn handle_restart(&mut self, client: ClientId, index: usize, wait: bool) {
        let open = self.slots.entries.get(index).is_some_and(|slot| slot.listening == SlotListening::Open);
        if !open {
            let last = self.slots.desired.saturating_sub(1);
            let message = format!("there is no slot {index}: this fleet has slots 0 to {last}");
            return self.operators.send_result(client, CommandResult::rejected(message));
        }
        let slot = &mut self.slots.entries[index];
        let before = slot.workers.iter().map(|worker| worker.pid.as_raw()).collect();
        for worker in slot.workers.iter_mut().filter(|worker| worker.is_ready() || worker.is_booting()) {
            worker.replace_reason = Some(ExitReason::Operator);
        }
        // One that waits for its delay is started now.
        (slot.backoff, slot.backoff_until) = (RestartBackoff::default(), None);
        let accepted = format!("slot {index} gets a new worker");
        self.operators.accept(client, wait, CommandGoal::Replacement { slot: index, before }, &accepted);
    }

    /// Sends the results of commands that are known, and the progress of the others.
    fn report_progress(&mut self, now: Duration) {
        let fleet = FleetView {
            desired_state: self.lifecycle.desired_state,
            slots: &self.slots,
            deployment: &self.deployment,
            canary_period: self.settings.canary_period,
            last_failure: &self.slots.last_failure,
        };
        self.operators.report_progress(&fleet, now);
    }

    /// The fleet as it is now.
    fn status(&self) -> InstanceStatus {
        let sources = StatusSources {
            host: &*self.host,
            scoreboard: self.scoreboard,
            settings: &self.settings,
            slots: &self.slots,
            deployment: &self.deployment,
            monitor: &self.monitor,
            lifecycle: &self.lifecycle,
            private_redis: self.private_redis.as_ref(),
            rate_window: &self.reporting.rate_window,
        };
        sources.status()
    }

    /// Starts the end of the fleet.
    fn set_desired_state(&mut self, target: DesiredState, by: &str) {
        let what =
            if target == DesiredState::Killing { "stopping at once" } else { "stopping: workers drain" };
        tracing::info!(by, "{what}");
        service_manager::notify_stopping(&self.reporting.service_notifier, self.settings.drain_timeout);
        let event = event_now(EventKind::FleetStopping, format!("{what} ({by})"));
        self.execute([Effect::Record(event)]);
        self.lifecycle.desired_state = target;
        let effects = self.slots.close_empty_slots();
        self.execute(effects);
    }

    /// Stores which workers there are, those of the previous fleet included.
    fn save_worker_list(&self) {
        let own = self.slots.entries.iter().flat_map(|slot| slot.workers.iter().map(|worker| worker.pid));
        self.orphans.save_list(self.operators.control.folder(), own);
    }

    /// Logs the figures if they are due; when the next ones are.
    fn log_stats(&mut self, now: Duration) -> Option<Duration> {
        self.reporting.log_stats(self.settings.stats_interval, self.scoreboard, now)
    }

    /// After a rotation: this process first, so that its workers find the new file.
    fn reopen_logs(&self) {
        logging::reopen();
        for worker in self.slots.entries.iter().flat_map(|slot| &slot.workers) {
            slots::send_signal(worker.pid, Signal::SIGUSR1);
        }
    }

    /// Puts back what is missing of the run folder, if it is time.
    fn restore_run_dir(&mut self, now: Duration) {
        if self.lifecycle.desired_state != DesiredState::Running || !self.run_dir.is_due(now) {
            return;
        }
        let (is_whole, event) = self.run_dir.restore(&mut self.operators.control, now);
        self.execute(event.map(Effect::Record));
        if is_whole && !OrphanedWorkers::has_list(self.operators.control.folder()) {
            self.save_worker_list();
        }
        let event = self.private_redis.as_mut().and_then(|private| private.restore_socket(now));
        self.execute(event.map(Effect::Record));
    }

    /// Starts the private Redis, if the fleet has one.
    fn start_private_redis(&mut self) {
        let memory = self.settings.redis_memory;
        let event = self.private_redis.as_mut().and_then(|private| private.start(memory));
        self.execute(event.map(Effect::Record));
    }

    /// Starts it again when its delay has passed.
    fn restart_private_redis(&mut self, now: Duration) {
        if self.private_redis.as_ref().is_some_and(|private| private.is_due(now)) {
            self.start_private_redis();
        }
    }

    /// Gives the private Redis a moment, so that the first request already finds it.
    fn await_private_redis(&mut self) {
        let until = clock::monotonic() + REDIS_BOOT_TIMEOUT;
        while clock::monotonic() < until && self.private_redis.as_ref().is_some_and(PrivateRedis::is_loading)
        {
            if self.reap().and_then(|()| self.handle_signals()).is_err()
                || self.lifecycle.desired_state != DesiredState::Running
            {
                return;
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    fn on_private_redis_exit(&mut self, pid: Pid, exit: ExitStatus, now: Duration) {
        let Some(private) = &mut self.private_redis else { return };
        if !private.is_restarting && exit == ExitStatus::Signal(Signal::SIGKILL) {
            // If the kernel has counted a kill, it was this one: it explains no worker's death.
            self.monitor.account_memory_kill();
        }
        if let Some(event) = private.on_exit(pid, exit, now) {
            self.execute([Effect::Record(event)]);
        }
    }

    /// Lets the private Redis save and leave; the workers that need it are gone by now.
    fn stop_private_redis(&mut self) {
        let Some(PrivateRedis { pid: Some(pid), .. }) = self.private_redis else { return };
        slots::send_signal(pid, Signal::SIGTERM);
        if self.await_exit(pid, REDIS_STOP_TIMEOUT) {
            return;
        }
        tracing::warn!(pid = pid.as_raw(), "private Redis killed: it did not exit in time");
        slots::send_signal(pid, Signal::SIGKILL);
        self.await_exit(pid, REDIS_STOP_TIMEOUT);
    }

    /// Waits until this child has ended; an order to stop at once ends the wait.
    fn await_exit(&mut self, pid: Pid, patience: Duration) -> bool {
        let hurried = self.lifecycle.desired_state == DesiredState::Killing;
        let until = clock::monotonic() + patience;
        while clock::monotonic() < until {
            match process::reap_next() {
                Ok(Some((reaped, exit))) if reaped == pid => {
                    tracing::info!(pid = pid.as_raw(), cause = %exit, "private Redis stopped");
                    return true;
                }
                Ok(Some(_)) => {}
                Ok(None) => std::thread::sleep(POLL_INTERVAL),
                Err(_) => return false,
            }
            if self.handle_signals().is_err()
                || (self.lifecycle.desired_state == DesiredState::Killing && !hurried)
            {
                return false;
            }
        }
        false
    }
}

/// What those learn who wait for the end of the fleet.
fn final_result(outcome: &SupervisorExit) -> CommandResult {
    match outcome {
        SupervisorExit::Stopped { killed: 0 } => CommandResult::ok("the fleet has stopped"),
        SupervisorExit::Stopped { killed } => {
            let text =
                format!("the fleet has stopped; {killed} workers did not exit in time and were killed");
            CommandResult::ok(text).with_detail("killed", *killed)
        }
        SupervisorExit::BootFailed { reason } => {
            CommandResult::failed(format!("the fleet has ended: no worker became ready: {reason}"))
        }
    }
}

/// The address as a browser takes it.
fn display_url(address: &ListenAddress) -> String {
    match address {
        ListenAddress::Internet(address) if address.ip().is_unspecified() => {
            format!("http://localhost:{}", address.port())
        }
        ListenAddress::Internet(address) => format!("http://{address}"),
        ListenAddress::Unix(_) => address.to_string(),
    }
}
