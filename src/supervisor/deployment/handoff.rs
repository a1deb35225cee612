//! What a supervisor leaves to the program it becomes: plain data, and the numbers of the descriptors that stay open.
//!
//! It travels in a sealed memfd, whose number is in the environment (`takeover_env`). The new program reads it with the
//! code of its preflight; the old one reads it again after a rollback.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::ConfigInputs;
use crate::control::server::ControlServerState;
use crate::listener::shared_queue::WAKE_FDS;
use crate::scoreboard;
use crate::status::document::{FinishedRollout, RolloutKind, RolloutOutcome};
use crate::supervisor::deployment::rollout::SavedRollout;
use crate::supervisor::operators::PendingCommand;
use crate::supervisor::slots::backoff::RestartBackoff;
use crate::supervisor::slots::slot::Slot;
use crate::supervisor::sockets::SlotFds;
use crate::sys::{exec, fork, path};

/// Version of the state. Two programs that know different ones cannot take over from each other, in neither
/// direction: a field that a reader may do without (`serde(default)`) needs no other version.
pub const VERSION: u32 = 2;

/// What every state begins with, before its version and length.
const MAGIC: &str = "regatta-handoff";

/// Why a state cannot be taken over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandoffError {
    /// The descriptor cannot be read.
    #[error("the state cannot be read from descriptor {fd}")]
    Unreadable {
        /// Its number.
        fd: RawFd,
        /// Why.
        source: io::Error,
    },
    /// It is something else.
    #[error("that is no state of a fleet")]
    NotAHandoff,
    /// It was written by a program with another version.
    #[error(
        "the state has version {theirs}, this program knows {VERSION}: the two cannot follow each other, \
         stop the fleet and start the new program"
    )]
    Version {
        /// The writer's version.
        theirs: u32,
    },
    /// It ends too early.
    #[error("the state is cut off: {left} of {len} bytes")]
    Truncated {
        /// What there is.
        left: usize,
        /// What there was.
        len: usize,
    },
    /// It does not have the form of its version.
    #[error("the state is damaged")]
    Damaged(#[source] serde_json::Error),
    /// The table in shared memory has another layout.
    #[error(
        "the scoreboard has layout {theirs}, this program knows {}: stop the fleet and start the new program",
        scoreboard::LAYOUT_VERSION
    )]
    Layout {
        /// The writer's layout.
        theirs: u64,
    },
    /// The program has started a thread, so that it could never fork a worker.
    #[error("this program has {threads} threads before its fleet begins; a program that forks must have one")]
    Threads {
        /// How many.
        threads: usize,
    },
}

/// A fleet at the moment in which its supervisor becomes another program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handoff {
    /// Build that wrote it.
    pub build: String,
    /// How the writer was started, its own path first; to become it again.
    pub arguments: Vec<OsString>,
    /// The writer's environment: a script that starts the next program may change it.
    pub environment: Vec<(OsString, OsString)>,
    /// What the configuration of the generation that serves was read from.
    pub inputs: ConfigInputs,
    /// Layout of the scoreboard.
    pub layout: u64,
    /// What stays open.
    pub descriptors: HandoffFds,
    /// Every slot, with its workers.
    pub slots: Vec<Slot>,
    /// The listeners of each slot; none once it has retired.
    pub sockets: Vec<Option<SlotFds>>,
    /// What the workers have reported, by process.
    #[serde(rename = "reports")]
    pub status_pipes: BTreeMap<i32, StatusPipeState>,
    /// The private Redis, if the fleet has one.
    pub redis: Option<PrivateRedisState>,
    /// How many slots are to serve.
    #[serde(rename = "wanted")]
    pub desired_slots: usize,
    /// The generation every slot is to have.
    pub generation: u64,
    /// The number of the next one.
    pub next_generation: u64,
    /// The rollout that is to be taken back, if this goes back.
    pub rollout: Option<SavedRollout>,
    /// Whether a reload is queued.
    #[serde(rename = "reload_waits")]
    pub reload_queued: bool,
    /// Whether any worker was ever READY.
    pub ever_ready: bool,
    /// Whether the fleet has announced that it serves.
    pub announced: bool,
    /// Workers that had to be killed.
    pub killed: usize,
    /// The control socket, its clients, and what happened.
    pub control: ControlServerState,
    /// Commands whose result is not known yet.
    #[serde(rename = "waiters")]
    pub pending_commands: Vec<PendingCommand>,
    /// How the last rollout ended.
    pub last_rollout: Option<SavedFinishedRollout>,
    /// What workers of older generations run.
    pub builds: BTreeMap<u64, String>,
    /// Workers as the configuration names them.
    #[serde(rename = "configured")]
    pub configured_workers: usize,
    /// Instances that share the fleet's limits; 0 from programs in whose scoreboard the number's word counts transferred
    /// connections, too.
    #[serde(default)]
    pub instances: u64,
    /// The process that watches files for `serve --watch`; none from older programs.
    #[serde(default)]
    pub companion: Option<i32>,
}

/// Numbers of the descriptors that belong to no slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandoffFds {
    /// The shared table.
    pub scoreboard: RawFd,
    /// The locked file in the run folder.
    pub lock: RawFd,
    /// The run folder, locked as well; none from older programs.
    #[serde(default)]
    pub folder: Option<RawFd>,
    /// The working folder; none from older programs.
    #[serde(default)]
    #[serde(rename = "home")]
    pub working_dir: Option<RawFd>,
    /// Read end of the life-line.
    pub lifeline: RawFd,
    /// Its write end.
    #[serde(rename = "held")]
    pub lifeline_write: RawFd,
    /// Both ends of the shared queue; none from older programs.
    #[serde(default)]
    pub shared: Option<[RawFd; 2]>,
    /// Its bells; none from older programs.
    #[serde(default)]
    pub bells: Option<[RawFd; WAKE_FDS]>,
}

/// How a rollout ended: the document of the status has other names and units.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedFinishedRollout {
    kind: RolloutKind,
    generation: u64,
    outcome: RolloutOutcome,
    reason: Option<String>,
    ended_ms: u64,
}

impl From<FinishedRollout> for SavedFinishedRollout {
    fn from(finished: FinishedRollout) -> Self {
        let FinishedRollout { kind, generation, outcome, reason, finished_ms } = finished;
        Self { kind, generation, outcome, reason, ended_ms: finished_ms }
    }
}

impl From<SavedFinishedRollout> for FinishedRollout {
    fn from(saved: SavedFinishedRollout) -> Self {
        let SavedFinishedRollout { kind, generation, outcome, reason, ended_ms } = saved;
        Self { kind, generation, outcome, reason, finished_ms: ended_ms }
    }
}

/// What a worker has reported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusPipeState {
    /// Read end of its report; none when it has closed its own.
    pub pipe: Option<RawFd>,
    /// What came and was not taken yet.
    pub text: String,
}

/// The private Redis.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrivateRedisState {
    /// Its program.
    #[serde(with = "path::path_serde")]
    pub program: PathBuf,
    /// Its folder.
    #[serde(with = "path::path_serde")]
    pub folder: PathBuf,
    /// The locked file in it.
    pub lock: RawFd,
    /// Its process, if it runs.
    pub pid: Option<i32>,
    /// When it was started.
    pub started: Duration,
    /// When it is to be started again.
    pub restart_at: Duration,
    /// Early deaths in a row.
    pub backoff: RestartBackoff,
}

impl Handoff {
    /// Puts it into sealed memory.
    ///
    /// # Errors
    /// When a path is no Unicode, or the kernel refuses the memory.
    pub fn write(&self) -> io::Result<OwnedFd> {
        exec::sealed_memfd(c"regatta-handoff", &self.encode()?)
    }

    /// Reads it back from a descriptor with this number.
    ///
    /// # Errors
    /// See `Error`.
    pub fn read(state: &impl AsFd) -> Result<Self, HandoffError> {
        use std::os::fd::AsRawFd;
        let fd = state.as_fd().as_raw_fd();
        let bytes = exec::read_memfd(state).map_err(|source| HandoffError::Unreadable { fd, source })?;
        Self::decode(&bytes)
    }

    fn encode(&self) -> io::Result<Vec<u8>> {
        let json = serde_json::to_vec(self).map_err(io::Error::other)?;
        let mut bytes = format!("{MAGIC} {VERSION} {}\n", json.len()).into_bytes();
        bytes.extend(json);
        Ok(bytes)
    }

    fn decode(bytes: &[u8]) -> Result<Self, HandoffError> {
        let end = bytes.iter().position(|byte| *byte == b'\n').ok_or(HandoffError::NotAHandoff)?;
        let head = std::str::from_utf8(&bytes[..end]).map_err(|_| HandoffError::NotAHandoff)?;
        let mut words = head.split(' ');
        let (magic, version, len) = (words.next(), words.next(), words.next());
        let version = version.and_then(|word| word.parse().ok());
        let (Some(MAGIC), Some(version)) = (magic, version) else { return Err(HandoffError::NotAHandoff) };
        if version != VERSION {
            return Err(HandoffError::Version { theirs: version });
        }
        let len = len.and_then(|word| word.parse().ok()).ok_or(HandoffError::NotAHandoff)?;
        let json = &bytes[end + 1..];
        if json.len() != len {
            return Err(HandoffError::Truncated { left: json.len(), len });
        }
        serde_json::from_slice(json).map_err(HandoffError::Damaged)
    }

    /// Finds out that this program can go on from it.
    ///
    /// # Errors
    /// See `Error`.
    pub fn check(&self) -> Result<(), HandoffError> {
        if self.layout != scoreboard::LAYOUT_VERSION {
            return Err(HandoffError::Layout { theirs: self.layout });
        }
        match fork::thread_count() {
            Ok(threads) if threads > 1 => Err(HandoffError::Threads { threads }),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Every descriptor that is to stay open, but those of the control socket, which knows its own.
    pub fn inherited_fds(&self) -> Vec<RawFd> {
        let HandoffFds {
            scoreboard,
            lock,
            folder,
            working_dir: home,
            lifeline,
            lifeline_write: held,
            shared,
            bells,
        } = self.descriptors;
        let sockets = self.sockets.iter().flatten();
        let sockets = sockets.flat_map(|slot| slot.public.iter().chain(&slot.admin).map(|socket| socket.fd));
        let reports = self.status_pipes.values().filter_map(|state| state.pipe);
        let redis = self.redis.iter().map(|redis| redis.lock);
        let folders = folder
            .into_iter()
            .chain(home)
            .chain(shared.into_iter().flatten())
            .chain(bells.into_iter().flatten());
        let own = [scoreboard, lock, lifeline, held].into_iter().chain(folders);
        own.chain(sockets).chain(reports).chain(redis).collect()
    }
}

/// What a program answers that can take over, as one line of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreflightReport {
    /// Version of the state it reads and writes.
    pub handoff: u32,
    /// Which build it is.
    pub build: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listener::SocketOwner;
    use crate::scoreboard::ExitReason;
    use crate::scoreboard::cell::DrainOrder;
    use crate::supervisor::deployment::rollout::{DeploymentKind, Rollout};
    use crate::supervisor::slots::slot::{WorkerHandle, WorkerPhase};
    use crate::supervisor::sockets::ListenerFd;
    use crate::sys::process::Pid;

    fn socket(fd: RawFd) -> ListenerFd {
        ListenerFd { fd, owner: SocketOwner::Slot }
    }

    fn state() -> Handoff {
        let worker = |cell: usize, stage| WorkerHandle {
            pid: Pid::from_raw(100 + cell as i32),
            generation: 2,
            cell,
            phase: stage,
            started: Duration::from_micros(1_234_567),
            replace_reason: Some(ExitReason::Memory),
        };
        let at = Duration::from_nanos(987_654_321_012);
        let (reason, order) = (ExitReason::Reload, DrainOrder::Retire);
        let drains = WorkerPhase::Draining { kill_at: at, reason, order, aborted: true };
        let control = r#"{"listener":11,"path":"/run/x","file":[1,2],"turn":3,"next":4,"clients":[]}"#;
        let mut slot = Slot::new(2);
        slot.workers = vec![worker(0, drains), worker(1, WorkerPhase::Ready { since: at })];
        Handoff {
            build: "0.1.0 abc".into(),
            arguments: vec!["/bin/regatta".into(), "serve".into()],
            environment: vec![("PATH".into(), "/bin".into())],
            inputs: ConfigInputs { folder: "/srv".into(), ..ConfigInputs::default() },
            layout: scoreboard::LAYOUT_VERSION,
            descriptors: serde_json::from_str(
                r#"{"scoreboard":3,"lock":4,"folder":12,"lifeline":5,"held":6,"shared":[13,14],"bells":[15,16,17,18,19,20,21,22]}"#,
            )
            .unwrap(),
            slots: vec![slot],
            sockets: vec![Some(SlotFds { public: vec![socket(7)], admin: vec![socket(8)] }), None],
            status_pipes: BTreeMap::from([(101, StatusPipeState { pipe: Some(9), text: "rea".into() })]),
            redis: Some(PrivateRedisState {
                program: "/usr/bin/redis-server".into(),
                folder: "/var/lib".into(),
                lock: 10,
                pid: Some(77),
                started: at,
                restart_at: Duration::ZERO,
                backoff: RestartBackoff::default(),
            }),
            desired_slots: 1,
            generation: 2,
            next_generation: 3,
            rollout: Some(SavedRollout::new(
                Rollout { kind: DeploymentKind::Upgrade, from: 2, to: 3, started: at },
                Some("it died".into()),
            )),
            reload_queued: true,
            ever_ready: true,
            announced: true,
            killed: 1,
            control: serde_json::from_str(control).unwrap(),
            pending_commands: Vec::new(),
            last_rollout: None,
            builds: BTreeMap::from([(1, "0.0.9 xyz".into())]),
            configured_workers: 2,
            instances: 3,
            companion: Some(78),
        }
    }

    #[test]
    fn a_state_reads_back_as_it_was_written() {
        let state = state();
        let memory = state.write().unwrap();
        let read = Handoff::read(&memory).unwrap();
        assert_eq!(format!("{read:?}"), format!("{state:?}"));
        assert_eq!(read, state);
        assert!(read.check().is_ok() || fork::thread_count().unwrap() > 1);
        assert_eq!(
            read.inherited_fds(),
            [3, 4, 5, 6, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 7, 8, 9, 10]
        );
    }

    #[test]
    fn a_state_of_a_program_that_knew_fewer_fields_is_read() {
        let mut json = serde_json::to_value(state()).unwrap();
        for later in ["instances", "companion"] {
            assert!(json.as_object_mut().unwrap().remove(later).is_some());
        }
        let expected = Handoff { instances: 0, companion: None, ..state() };
        assert_eq!(serde_json::from_value::<Handoff>(json).unwrap(), expected);
    }

    #[test]
    fn another_version_is_refused_before_anything_else_of_it_is_read() {
        let newer = format!("{MAGIC} {} 0\n", VERSION + 1);
        let message = Handoff::decode(newer.as_bytes()).unwrap_err().to_string();
        assert!(message.contains("version 3, this program knows 2"), "{message}");
        let mut other = state();
        other.layout += 1;
        assert!(matches!(other.check(), Err(HandoffError::Layout { .. })));
    }

    #[test]
    fn a_state_that_is_cut_or_damaged_or_foreign_is_refused() {
        let whole = state().encode().unwrap();
        for len in 0..whole.len() {
            assert!(Handoff::decode(&whole[..len]).is_err(), "{len} bytes");
        }
        let mut damaged = whole.clone();
        let last = damaged.len() - 1;
        damaged[last] = b'!';
        assert!(matches!(Handoff::decode(&damaged), Err(HandoffError::Damaged(_))));
        assert!(matches!(Handoff::decode(b"{\"version\":1}\n"), Err(HandoffError::NotAHandoff)));
        assert!(matches!(Handoff::decode(&[0xff; 64]), Err(HandoffError::NotAHandoff)));
    }
}
