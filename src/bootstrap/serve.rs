//! Runs a fleet: configuration → listeners → private Redis → scoreboard → supervisor, given the worker's life.

use std::ffi::OsString;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::bootstrap::app_definition::AppDefinition;
use crate::bootstrap::exit_code::CommandFailure;
use crate::bootstrap::slot_count::initial_slots;
use crate::bootstrap::worker_host::ConfigHost;
use crate::bootstrap::{exit_code, worker_host};
use crate::config::ConfigInputs;
use crate::config::settings::{Config, ListenAddress, LogConfig, RedisUrl, SteeringMode};
use crate::control::server::ControlServer;
use crate::listener::systemd::ActivatedSockets;
use crate::listener::{ListenAddresses, ListenError, ListenRequest, SlotListeners};
use crate::scoreboard::Scoreboard;
use crate::supervisor::orphans::OrphanedWorkers;
use crate::supervisor::private_redis::server;
use crate::supervisor::private_redis::server::PrivateRedisServer;
use crate::supervisor::run_dir::RunDir;
use crate::supervisor::{ProbeWords, ProgramSpec, Supervisor, SupervisorExit, run_dir};
use crate::sys::process_identity::ProcessHandle;
use crate::sys::unix_listener::UnixListenError;
use crate::sys::{application_fds, clock, fd, path, process, random, startup};
use crate::{config, control, listener, logging, supervisor};

/// How long a killed fleet's private Redis may take to finish before the next fleet gives up on its folder.
const REDIS_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a killed fleet's workers may take to leave the port. One that is not stuck needs a quarter of a second.
const PORT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long the port may take to be free once they were killed.
const PORT_FREED: Duration = Duration::from_secs(2);

/// Rows of the scoreboard beyond the slots in use, for a fleet that grows.
const SPARE_ROWS: usize = 64;

/// Why a fleet could not be run.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("cannot open the control socket in {} (run_dir)", folder.display())]
    Control { folder: PathBuf, source: io::Error },
    #[error("a fleet cannot run here")]
    Unsupported(#[source] io::Error),
    #[error(
        "the limit on open files is {limit} (RLIMIT_NOFILE; ulimit -n, LimitNOFILE= of a unit), and a fleet of {slots} \
         workers needs {needed}"
    )]
    OpenFiles { limit: u64, slots: usize, needed: u64 },
    #[error("the kernel refuses to steer connections (listen.steering)")]
    Steering(#[source] io::Error),
    #[error("cannot make the scoreboard")]
    Scoreboard(#[source] io::Error),
    #[error("the supervisor failed")]
    Supervisor(#[source] io::Error),
    #[error("no worker could be brought up: {reason}")]
    Boot { reason: String },
}

/// Where the workers find Redis: as configured, or the private one.
fn redis_url(config: &Config, private: Option<&PrivateRedisServer>) -> Result<RedisUrl, CommandFailure> {
    match (&config.redis.url, private) {
        (Some(url), _) => Ok(url.clone()),
        (None, Some(server)) => Ok(RedisUrl::from_socket_path(&server.socket_path())),
        (None, None) => {
            Err(CommandFailure::new(exit_code::UNAVAILABLE, &server::PrivateRedisError::NotInstalled))
        }
    }
}

/// Runs the fleet until it has stopped.
///
/// `arguments` are the words it was started with.
pub fn serve(
    config: Config,
    inputs: &ConfigInputs,
    arguments: &[OsString],
    definition: AppDefinition<'_>,
) -> Result<u8, CommandFailure> {
    let app = definition.app;
    app.check_settings(&config.app).map_err(|error| CommandFailure::new(exit_code::USAGE, &error))?;
    startup::prepare_fleet()
        .map_err(ServeError::Unsupported)
        .map_err(|error| CommandFailure::new(exit_code::FAILED, &error))?;
    install_subscriber(&config.log, definition)
        .map_err(|error| CommandFailure::new(exit_code::USAGE, &error))?;
    let signals = supervisor::block_signals().map_err(ServeError::Supervisor);
    let signals = signals.map_err(|error| CommandFailure::new(exit_code::FAILED, &error))?;
    let slots = initial_slots(&config);
    check_open_files(&config, slots).map_err(|error| CommandFailure::new(exit_code::FAILED, &error))?;
    let program = program(arguments, inputs, definition.probe_words);
    let run_dir = RunDir::claim(&config.run_dir).map_err(|error| run_dir_failure(&error))?;
    let mut leftovers = OrphanedWorkers::find(run_dir.path());
    let control = open_control(run_dir.path())?;
    let (addresses, listeners) = open_listeners(&config, inputs, slots, &mut leftovers)?;
    let server = prepare_private_redis(&config, inputs)?;
    let redis_url = redis_url(&config, server.as_ref())?;
    let capacity = NonZeroUsize::new(config.workers.autoscale.slot_bounds(slots).2 + SPARE_ROWS)
        .unwrap_or(NonZeroUsize::MIN);
    let started_ms = u64::try_from(clock::wall_clock().as_millis()).unwrap_or(0);
    let scoreboard = Scoreboard::create(capacity, process::pid().as_raw().unsigned_abs(), started_ms)
        .map_err(|source| CommandFailure::new(exit_code::BOOT, &ServeError::Scoreboard(source)))?;
    // Without random bytes two fleets that start in the same millisecond under one name and pid would be taken for one.
    scoreboard.set_instance_id(random::number().unwrap_or(0));
    let scoreboard = Arc::new(scoreboard);
    logging::count_dropped_in(&scoreboard);
    let list = |all: Vec<ListenAddress>| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let (public, operators) = (list(addresses.public()), list(addresses.admin()));
    let pid = process::pid().as_raw();
    tracing::info!(listen = public, admin = operators, workers = slots, redis = %redis_url, pid, "listening");
    let injected: Vec<_> = config::injected_variables(inputs).collect();
    if !injected.is_empty() {
        let names = injected.join(", ");
        tracing::info!(names, "ignored, because Kubernetes or Docker describes a service by them: {names}");
    }
    let private = server.as_ref().map(|server| RedisUrl::from_socket_path(&server.socket_path()));
    let settings = worker_host::supervisor_settings(&config);
    let places = worker_host::HostResources { run_dir: run_dir.path().into(), private_redis: private };
    let mut host = ConfigHost::new(inputs, config, app, &scoreboard, places)
        .map_err(|error| CommandFailure::new(exit_code::USAGE, &error))?;
    let start = supervisor::SupervisorOptions {
        settings,
        signals,
        addresses,
        listeners,
        redis: server,
        control,
        program,
        run_dir: &run_dir,
        orphans: leftovers,
    };
    let supervisor = Supervisor::new(start, &scoreboard, &mut host);
    let outcome = supervisor.and_then(|supervisor| supervisor.run());
    exit_result(outcome, &run_dir)
}

/// Raises the limit on open files as far as allowed.
pub(super) fn raise_open_files() {
    if let Err(error) = fd::raise_nofile_limit() {
        tracing::warn!(%error, "cannot raise the limit on open files, going on with it as it is: {error}");
    }
}

/// Descriptors a supervisor needs besides two for each worker and one for each listening socket: its log, locks, pipes,
/// operators.
const SUPERVISORS_OWN: usize = 48;

/// Open files with which a worker has hundreds of places.
const COMFORTABLE: u64 = 512;

/// Sees to it that the limit on open files is enough for the supervisor.
fn check_open_files(config: &Config, slots: usize) -> Result<(), ServeError> {
    raise_open_files();
    let sockets = config.listen.len() + config.admin.listen.len();
    let needed = slots * (sockets + 2) + application_fds::application_fds().len() + SUPERVISORS_OWN;
    let (limit, needed) = (fd::nofile_limit().unwrap_or(u64::MAX), needed as u64);
    if limit < needed {
        return Err(ServeError::OpenFiles { limit, slots, needed });
    }
    if limit < COMFORTABLE {
        tracing::warn!(
            limit,
            "the limit on open files is {limit} (RLIMIT_NOFILE): a worker can serve few connections at once"
        );
    }
    Ok(())
}

/// The control socket; the lock of the folder is held.
fn open_control(folder: &Path) -> Result<ControlServer, CommandFailure> {
    let opened = ControlServer::open(&control::socket_path(folder));
    let failed = |source| ServeError::Control { folder: folder.into(), source };
    opened.map_err(failed).map_err(|error| CommandFailure::new(exit_code::TEMPORARY, &error))
}

/// Why the run folder cannot be had: what another user could change will not pass by itself.
fn run_dir_failure(error: &run_dir::RunDirError) -> CommandFailure {
    let code = match error {
        run_dir::RunDirError::Unusable { source, .. } => path_code(source),
        run_dir::RunDirError::Running { .. } => exit_code::TEMPORARY,
    };
    CommandFailure::new(code, error)
}

/// Whether to try again is of use.
fn path_code(error: &path::PathError) -> u8 {
    match error {
        path::PathError::NotPrivate(_) => exit_code::USAGE,
        path::PathError::Io(_) => exit_code::TEMPORARY,
    }
}

/// The exit code that the end of a fleet has.
pub(super) fn exit_result(
    outcome: io::Result<SupervisorExit>,
    run_dir: &RunDir,
) -> Result<u8, CommandFailure> {
    run_dir.clear_pid();
    match outcome
        .map_err(ServeError::Supervisor)
        .map_err(|error| CommandFailure::new(exit_code::FAILED, &error))?
    {
        SupervisorExit::Stopped { killed } => {
            tracing::info!(killed, "stopped");
            Ok(exit_code::OK)
        }
        SupervisorExit::BootFailed { reason } => {
            Err(CommandFailure::new(exit_code::BOOT, &ServeError::Boot { reason }))
        }
    }
}

/// The program of this process, for the next upgrade.
pub fn program(arguments: &[OsString], inputs: &ConfigInputs, probe_words: ProbeWords) -> ProgramSpec {
    ProgramSpec::new(arguments, &inputs.folder, &search_path(inputs), probe_words)
}

/// Begins to log, unless the program does so itself.
pub(super) fn install_subscriber(
    log: &LogConfig,
    definition: AppDefinition<'_>,
) -> Result<(), logging::TelemetryError> {
    if definition.subscriber { logging::install(log) } else { logging::check(log) }
}

/// The private Redis of a fleet that was given none.
fn prepare_private_redis(
    config: &Config,
    inputs: &ConfigInputs,
) -> Result<Option<PrivateRedisServer>, CommandFailure> {
    if config.redis.url.is_some() {
        return Ok(None);
    }
    let prepared = PrivateRedisServer::prepare(&config.data_dir, &search_path(inputs), REDIS_TIMEOUT);
    prepared.map(Some).map_err(|error| match error {
        server::PrivateRedisError::NotInstalled => CommandFailure::new(exit_code::UNAVAILABLE, &error),
        server::PrivateRedisError::PathTooLong { .. } => CommandFailure::new(exit_code::USAGE, &error),
        server::PrivateRedisError::Folder { ref source, .. } => {
            CommandFailure::new(path_code(source), &error)
        }
        server::PrivateRedisError::InUse { .. } => CommandFailure::new(exit_code::TEMPORARY, &error),
    })
}

/// Where programs are looked for: PATH, and the places Debian keeps servers that a user's PATH often lacks.
pub fn search_path(inputs: &ConfigInputs) -> OsString {
    let path = inputs.environment.get("PATH").map_or("", String::as_str);
    OsString::from(format!("{path}:/usr/local/bin:/usr/bin:/usr/sbin"))
}

/// Finds out that the run folder can be used, without claiming it; it is made if need be.
pub fn create_run_dir(config: &Config) -> Result<PathBuf, CommandFailure> {
    path::ensure_private_folder(&config.run_dir).map_err(|source| {
        let folder = config.run_dir.clone();
        run_dir_failure(&run_dir::RunDirError::Unusable { folder, source })
    })
}

/// Opens the listeners; the workers of a killed fleet are given a moment to leave the port, and no more.
fn open_listeners(
    config: &Config,
    inputs: &ConfigInputs,
    slots: usize,
    leftovers: &mut OrphanedWorkers,
) -> Result<(ListenAddresses, Vec<SlotListeners>), CommandFailure> {
    const STEP: Duration = Duration::from_millis(50);
    let usage = |error: &dyn std::error::Error| CommandFailure::new(exit_code::USAGE, error);
    let lent = ActivatedSockets::from_environment(&inputs.environment, process::pid().as_raw())
        .map_err(|error| usage(&error))?;
    lent.check_steering(config.steering).map_err(|error| usage(&error))?;
    let request = listen_request(config);
    let started = clock::monotonic();
    // Without leftovers another program has the port, and to wait for it is the service manager's business.
    let mut wait = if leftovers.has_workers() { PORT_TIMEOUT } else { Duration::ZERO };
    let mut killed = false;
    let (addresses, listeners) = loop {
        let opened = listener::open_listeners(request, &lent, slots);
        if !opened.as_ref().is_err_and(ListenError::is_in_use) {
            break opened.map_err(|error| address_failure(&error))?;
        }
        if clock::monotonic().saturating_sub(started) >= wait {
            // A shared socket is in use only as long as all workers that have it are stuck: any of them ends it.
            let listens = match &opened {
                Err(ListenError::Unix { .. }) => ProcessHandle::has_unix_listener,
                Ok(_) | Err(_) => ProcessHandle::is_listening,
            };
            if killed || !leftovers.kill_listening(listens) {
                break opened.map_err(|error| address_failure(&error))?;
            }
            (killed, wait) = (true, wait + PORT_FREED);
        }
        std::thread::sleep(STEP);
    };
    // Before the first worker accepts: from the first connection on it is as configured. The kernel's own hash needs
    // no program, and a kernel that takes none can have that.
    let first = listeners.first().filter(|_| config.steering != SteeringMode::Kernel);
    let steered = first.map_or(Ok(()), |slot| slot.steer(config.steering, &vec![true; slots]));
    steered.map_err(ServeError::Steering).map_err(|error| CommandFailure::new(exit_code::FAILED, &error))?;
    Ok((addresses, listeners))
}

/// Where a configuration listens.
pub fn listen_request(config: &Config) -> ListenRequest<'_> {
    ListenRequest { public: &config.listen, admin: &config.admin.listen, socket_file: &config.socket_file }
}

/// Why no listener can be opened: an address that is in use, or not there yet, may be had later.
pub fn address_failure(error: &ListenError) -> CommandFailure {
    let code = match error {
        ListenError::BindFailed { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            exit_code::USAGE
        }
        error if error.is_in_use() => exit_code::TEMPORARY,
        ListenError::Unix { source: UnixListenError::Refused(_), .. }
        | ListenError::AddressInUse { .. }
        | ListenError::AddressNotAvailable { .. }
        | ListenError::BindFailed { .. } => exit_code::TEMPORARY,
        ListenError::Activation(_)
        | ListenError::Ipv6Unavailable { .. }
        | ListenError::FamiliesChanged { .. }
        | ListenError::Unix { .. } => exit_code::USAGE,
    };
    CommandFailure::new(code, error)
}
