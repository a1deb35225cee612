//! A fleet that another program has left to this one, in the same process; and the proof that this one could take it.
//!
//! Nothing is taken before everything is there: until then the old program can have it back as it was.

use std::ffi::OsString;
use std::os::fd::{OwnedFd, RawFd};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use crate::bootstrap::app_definition::AppDefinition;
use crate::bootstrap::exit_code::{CommandFailure, print_line};
use crate::bootstrap::worker_host::{ConfigHost, HostResources};
use crate::bootstrap::{exit_code, serve, worker_host};
use crate::config::ConfigInputs;
use crate::config::diff::Reloadability;
use crate::config::settings::Config;
use crate::scoreboard::Scoreboard;
use crate::supervisor::deployment::handoff;
use crate::supervisor::deployment::handoff::{Handoff, HandoffFds, PreflightReport};
use crate::supervisor::deployment::takeover_env::{PREFLIGHT, TakeoverDirection, TakeoverEnv};
use crate::supervisor::run_dir::RunDir;
use crate::supervisor::{
    InheritedResources, PreviousProgram, ProgramSpec, RestoreOptions, Supervisor, SupervisorSettings,
    Takeover,
};
use crate::sys::signal::SignalReader;
use crate::sys::{exec, executable, path, process, startup};
use crate::{config, logging, supervisor};

/// The state that this program is asked whether it could go on from, by a descriptor; by the command line, too.
pub fn preflight_fd() -> Option<RawFd> {
    config::process_handoff()?.strip_prefix(PREFLIGHT)?.trim().parse().ok()
}

/// Whether this process has a fleet already, from the program it was before.
pub fn takeover_env() -> Option<TakeoverEnv> {
    TakeoverEnv::parse(&config::process_handoff()?, process::pid().as_raw().unsigned_abs())
}

/// Says whether this program could take over the fleet whose state is behind this descriptor.
pub fn run_preflight(state: RawFd, app_definition: AppDefinition<'_>) -> Result<u8, CommandFailure> {
    let failed = |message| CommandFailure { code: exit_code::FAILED, message };
    let memory = exec::adopt_fd(state).map_err(|error| failed(error.to_string()))?;
    let state = read_handoff(&memory).map_err(failed)?;
    load_config(&state.arguments, &state.inputs, app_definition).map_err(failed)?;
    let proof = PreflightReport { handoff: handoff::VERSION, build: executable::build_version() };
    print_line(serde_json::to_string(&proof).map_err(|error| failed(error.to_string()))?);
    Ok(exit_code::OK)
}

/// Reads a state that this program can go on from.
fn read_handoff(memory: &OwnedFd) -> Result<Handoff, String> {
    let state =
        Handoff::read(memory).map_err(|error| CommandFailure::new(exit_code::FAILED, &error).message)?;
    state.check().map_err(|error| error.to_string())?;
    Ok(state)
}

/// What this program makes of the words the fleet was started with, and of its configuration as it is now.
///
/// Paths begin where they began before: the folder has the name by which the operator started the fleet in it, wherever
/// that leads now.
fn load_config(
    arguments: &[OsString],
    before: &ConfigInputs,
    app_definition: AppDefinition<'_>,
) -> Result<(Config, ConfigInputs), String> {
    let AppDefinition { app, config, parse, .. } = app_definition;
    let inputs = ConfigInputs { folder: before.folder.clone(), ..config.apply(parse(arguments)?) };
    let inputs = inputs.recapture_file(before).map_err(|error| error.to_string())?;
    let config = config::load(&inputs).map_err(|error| error.to_string())?;
    config::check_readable(&config).map_err(|error| error.to_string())?;
    app.check_settings(&config.app).map_err(|error| error.to_string())?;
    logging::check(&config.log).map_err(|error| error.to_string())?;
    Ok((config, inputs))
}

/// Everything that is needed to go on, none of it taken from the old program yet.
struct PreparedTakeover {
    state: Handoff,
    settings: SupervisorSettings,
    host: ConfigHost,
    signals: SignalReader,
    scoreboard: Arc<Scoreboard>,
    run_dir: RunDir,
    inherited: InheritedResources,
    program: ProgramSpec,
    takeover: Takeover,
}

fn prepare(
    env: &TakeoverEnv,
    arguments: &[OsString],
    app_definition: AppDefinition<'_>,
) -> Result<PreparedTakeover, String> {
    let app = app_definition.app;
    let to_text = |error: std::io::Error| error.to_string();
    let state = read_handoff(&exec::duplicate_inherited(env.state).map_err(to_text)?)?;
    let (generation, arguments, (config, inputs)) = match env.direction {
        TakeoverDirection::Forward { .. } => {
            (state.next_generation, arguments, load_config(arguments, &state.inputs, app_definition)?)
        }
        // The old program goes on with what it had, whatever the file says by now.
        TakeoverDirection::Back { .. } => {
            let config = config::load(&state.inputs).map_err(|error| error.to_string())?;
            (state.generation, state.arguments.as_slice(), (config, state.inputs.clone()))
        }
    };
    startup::prepare_fleet().map_err(to_text)?;
    serve::install_subscriber(&config.log, app_definition).map_err(|error| error.to_string())?;
    let signals = supervisor::block_signals().map_err(to_text)?;
    serve::raise_open_files();
    let table = exec::duplicate_inherited(state.descriptors.scoreboard).and_then(Scoreboard::adopt);
    let scoreboard = Arc::new(table.map_err(to_text)?);
    logging::count_dropped_in(&scoreboard);
    let inherited = InheritedResources::duplicate(&state).map_err(to_text)?;
    let settings = worker_host::supervisor_settings(&config);
    let places = HostResources {
        run_dir: state.control.folder().into(),
        private_redis: inherited.private_redis_url(),
    };
    let host = ConfigHost::for_generation(generation, &inputs, config, app, &scoreboard, places);
    let host = host.map_err(|error| error.to_string())?;
    let takeover = takeover(env, (&state, &inherited), &host, generation)?;
    let HandoffFds { lock, folder, .. } = state.descriptors;
    let run_dir = RunDir::restore(state.control.folder(), lock, folder).map_err(to_text)?;
    let program = serve::program(arguments, &inputs, app_definition.probe_words);
    Ok(PreparedTakeover { state, settings, host, signals, scoreboard, run_dir, inherited, program, takeover })
}

fn takeover(
    env: &TakeoverEnv,
    (state, inherited): (&Handoff, &InheritedResources),
    host: &ConfigHost,
    generation: u64,
) -> Result<Takeover, String> {
    let old = match &env.direction {
        TakeoverDirection::Forward { old } => *old,
        TakeoverDirection::Back { reason } => return Ok(Takeover::Back { reason: reason.clone() }),
    };
    let old = PreviousProgram {
        program: exec::duplicate_inherited(old).map_err(|error| error.to_string())?,
        arguments: state.arguments.clone(),
        environment: state.environment.clone(),
        inputs: state.inputs.clone(),
        build: state.build.clone(),
        working_dir: state.descriptors.working_dir.and_then(|home| exec::duplicate_inherited(home).ok()),
    };
    // What the previous program read may have settings that this one does not know, or knows by another name.
    let before = config::diff::collect_known_values(&state.inputs).ok();
    let before = before.map(|values| worker_host::PreviousConfig { values, slots: state.configured_workers });
    let reloaded = host.reloaded_config(generation, before.as_ref(), Reloadability::Upgrade);
    let reloaded = reloaded.ok_or("the configuration was lost")?;
    let change = inherited.prepare_addresses(&reloaded)?;
    Ok(Takeover::Forward { old: Box::new(old), reloaded: Box::new(reloaded), change })
}

/// Goes on with the fleet, or gives it back to the program it came from.
pub fn take_over(
    env: &TakeoverEnv,
    arguments: &[OsString],
    app_definition: AppDefinition<'_>,
) -> Result<u8, CommandFailure> {
    let prepared = std::panic::catch_unwind(AssertUnwindSafe(|| prepare(env, arguments, app_definition)));
    let prepared = prepared.unwrap_or_else(|_| Err("the new program panicked".to_owned()));
    let ready = prepared.map_err(|reason| CommandFailure {
        code: exit_code::FAILED,
        message: return_to_previous(env, &reason),
    });
    let PreparedTakeover {
        state,
        settings,
        mut host,
        signals,
        scoreboard,
        run_dir,
        inherited,
        program,
        takeover,
    } = ready?;
    supervisor::close_originals(&state, env);
    process::set_process_name(&program.path);
    let with = RestoreOptions { settings, signals, program, run_dir: &run_dir, inherited, takeover };
    let supervisor = Supervisor::restore(state, with, &scoreboard, &mut host);
    let outcome = supervisor.and_then(|supervisor| supervisor.run_loop());
    serve::exit_result(outcome, &run_dir)
}

/// Becomes the old program again, as if nothing had happened; returns why that could not be.
fn return_to_previous(env: &TakeoverEnv, reason: &str) -> String {
    let TakeoverDirection::Forward { old } = env.direction else {
        return format!("cannot go on with the fleet: {reason}");
    };
    let attempt = || -> Result<String, String> {
        let to_text = |error: std::io::Error| error.to_string();
        let program = exec::duplicate_inherited(old).map_err(to_text)?;
        // It has no use for a descriptor of itself.
        exec::set_inheritable(old, false).map_err(to_text)?;
        let memory = exec::duplicate_inherited(env.state).map_err(to_text)?;
        let state = Handoff::read(&memory);
        // A state that cannot be read still has to be given back; then the old program is called by its descriptor.
        let (arguments, mut environment, home) = match state {
            Ok(state) => (state.arguments, state.environment, state.descriptors.working_dir),
            Err(_) => {
                let name = OsString::from(format!("/proc/self/fd/{old}"));
                (vec![name], config::process_environment(), None)
            }
        };
        logging::finish();
        if let Some(home) = home.and_then(|home| exec::duplicate_inherited(home).ok()) {
            // A program that begins elsewhere is still better than none.
            let _ = path::restore_working_folder(&home);
        }
        let back = TakeoverEnv {
            state: env.state,
            direction: TakeoverDirection::Back { reason: Some(reason.to_owned()) },
        };
        environment.push(config::handoff_variable(back.encode(process::pid().as_raw().unsigned_abs())));
        Ok(exec::exec_fd(&program, &arguments, &environment).to_string())
    };
    let error = attempt().unwrap_or_else(|error| error);
    format!("{reason}; and the old program cannot have the fleet back: {error}")
}
