//! A fleet that another program has left to this one, in the same process; and the proof that this one could take it.
//!
//! Nothing is taken before everything is there: until then the old program can have it back as it was.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use crate::cli::args;
use crate::cli::exit;
use crate::cli::exit::Failure;
use crate::cli::exit::say;
use crate::cli::host;
use crate::cli::host::Host;
use crate::cli::host::Places;
use crate::cli::serve;
use crate::config;
use crate::config::Inputs;
use crate::config::diff::Applies;
use crate::config::schema::Config;
use crate::http::App;
use crate::scoreboard::Scoreboard;
use crate::supervisor;
use crate::supervisor::Coming;
use crate::supervisor::Old;
use crate::supervisor::Program;
use crate::supervisor::Resumption;
use crate::supervisor::Settings;
use crate::supervisor::Supervisor;
use crate::supervisor::Taken;
use crate::supervisor::Watched;
use crate::supervisor::handoff;
use crate::supervisor::handoff::Descriptors;
use crate::supervisor::handoff::Handoff;
use crate::supervisor::handoff::Proof;
use crate::supervisor::run_dir::RunDir;
use crate::supervisor::ticket::Ticket;
use crate::supervisor::ticket::Way;
use crate::sys::build;
use crate::sys::exec;
use crate::sys::path;
use crate::sys::proc;
use crate::sys::signal::Signals;
use crate::sys::start;
use crate::telemetry;

/// What a program brings along.
#[derive(Clone, Copy)]
pub(super) struct Brought<'a> {
    /// Its application.
    pub(super) app: &'a App,
    /// The application's own settings.
    pub(super) defaults: &'a str,
}

/// Whether this process has a fleet already, from the program it was before.
pub(super) fn ticket() -> Option<Ticket> {
    Ticket::parse(&config::handoff_of_process()?, proc::pid().as_raw().unsigned_abs())
}

/// Says whether this program could take over the fleet whose state is behind this descriptor.
pub(super) fn prove(state: RawFd, defaults: &str) -> Result<u8, Failure> {
    let failed = |sentence| Failure { code: exit::FAILED, sentence };
    let memory = exec::inherit(state).map_err(|error| failed(error.to_string()))?;
    let state = understand(&memory).map_err(failed)?;
    configure(&state.arguments, &state.inputs, defaults).map_err(failed)?;
    let proof = Proof { handoff: handoff::VERSION, build: build::own() };
    say(serde_json::to_string(&proof).map_err(|error| failed(error.to_string()))?);
    Ok(exit::OK)
}

/// Reads a state that this program can go on from.
fn understand(memory: &OwnedFd) -> Result<Handoff, String> {
    let state = Handoff::read(memory).map_err(|error| Failure::new(exit::FAILED, &error).sentence)?;
    state.check().map_err(|error| error.to_string())?;
    Ok(state)
}

/// What this program makes of the words the fleet was started with, and of its configuration as it is now.
///
/// Paths begin where they began before: the folder has the name by which the operator started the fleet in it, wherever
/// that leads now.
fn configure(arguments: &[OsString], before: &Inputs, defaults: &str) -> Result<(Config, Inputs), String> {
    let inputs = Inputs {
        folder: before.folder.clone(),
        application: defaults.to_owned(),
        ..args::parse_serve(arguments)?
    };
    let inputs = inputs.anew(before).map_err(|error| error.to_string())?;
    let config = config::load(&inputs).map_err(|error| error.to_string())?;
    config::path::readable(&config).map_err(|error| error.to_string())?;
    telemetry::check(&config.log).map_err(|error| error.to_string())?;
    Ok((config, inputs))
}

/// Everything that is needed to go on, none of it taken from the old program yet.
struct Ready {
    state: Handoff,
    settings: Settings,
    host: Host,
    signals: Signals,
    scoreboard: Arc<Scoreboard>,
    run_dir: RunDir,
    taken: Taken,
    program: Program,
    watched: Option<Watched>,
    coming: Coming,
}

fn prepare(ticket: &Ticket, arguments: &[OsString], brought: Brought<'_>) -> Result<Ready, String> {
    let Brought { app, defaults } = brought;
    let said = |error: std::io::Error| error.to_string();
    let state = understand(&exec::copy(ticket.state).map_err(said)?)?;
    let (generation, arguments, (config, inputs)) = match ticket.way {
        Way::Forward { .. } => {
            (state.next_generation, arguments, configure(arguments, &state.inputs, defaults)?)
        }
        // The old program goes on with what it had, whatever the file says by now.
        Way::Back { .. } => {
            let config = config::load(&state.inputs).map_err(|error| error.to_string())?;
            (state.generation, state.arguments.as_slice(), (config, state.inputs.clone()))
        }
    };
    start::begin_fleet().map_err(said)?;
    telemetry::install(&config.log).map_err(|error| error.to_string())?;
    let signals = supervisor::take_signals().map_err(said)?;
    serve::raise_open_files();
    let table = exec::copy(state.descriptors.scoreboard).and_then(Scoreboard::adopt);
    let scoreboard = Arc::new(table.map_err(said)?);
    telemetry::count_in(&scoreboard);
    let taken = Taken::copy(&state).map_err(said)?;
    let settings = host::settings(&config);
    let places = Places { run_dir: state.control.folder().into(), private: taken.private_redis() };
    let host = Host::of_generation(generation, &inputs, config, app, &scoreboard, places);
    let host = host.map_err(|error| error.to_string())?;
    let coming = coming(ticket, &state, &host, generation)?;
    let Descriptors { lock, folder, .. } = state.descriptors;
    let run_dir = RunDir::resume(state.control.folder(), lock, folder).map_err(said)?;
    let program = serve::program(arguments, &inputs);
    let watched = args::wants_watch(arguments).then(|| serve::watched(&program, &inputs));
    // Not worth giving a fleet back for.
    let watched = watched.and_then(Result::ok).map(|watched| match ticket.way {
        Way::Forward { .. } => watched.catch_up(),
        // What lies there now was no good.
        Way::Back { .. } => watched,
    });
    Ok(Ready { state, settings, host, signals, scoreboard, run_dir, taken, program, watched, coming })
}

fn coming(ticket: &Ticket, state: &Handoff, host: &Host, generation: u64) -> Result<Coming, String> {
    let old = match &ticket.way {
        Way::Forward { old } => *old,
        Way::Back { reason } => return Ok(Coming::Back { reason: reason.clone() }),
    };
    let old = Old {
        program: exec::copy(old).map_err(|error| error.to_string())?,
        arguments: state.arguments.clone(),
        environment: state.environment.clone(),
        inputs: state.inputs.clone(),
        build: state.build.clone(),
        home: state.descriptors.home.and_then(|home| exec::copy(home).ok()),
    };
    // What the old program read may have settings that this one does not know.
    let before = config::diff::values(&state.inputs).ok();
    let before = before.map(|values| host::Before { values, slots: state.configured });
    let reloaded = host.reloaded(generation, before.as_ref(), Applies::AtUpgrade);
    Ok(Coming::Forward {
        old: Box::new(old),
        reloaded: Box::new(reloaded.ok_or("the configuration was lost")?),
    })
}

/// Goes on with the fleet, or gives it back to the program it came from.
pub(super) fn resume(ticket: &Ticket, arguments: &[OsString], brought: Brought<'_>) -> Result<u8, Failure> {
    let prepared = std::panic::catch_unwind(AssertUnwindSafe(|| prepare(ticket, arguments, brought)));
    let prepared = prepared.unwrap_or_else(|_| Err("the new program panicked".to_owned()));
    let ready =
        prepared.map_err(|reason| Failure { code: exit::FAILED, sentence: give_back(ticket, &reason) });
    let Ready { state, settings, mut host, signals, scoreboard, run_dir, taken, program, watched, coming } =
        ready?;
    supervisor::settle(&state, ticket);
    proc::rename(&program.path);
    let with = Resumption { settings, signals, program, run_dir: &run_dir, taken, coming };
    let supervisor = Supervisor::resume(state, with, &scoreboard, &mut host);
    let outcome = supervisor.and_then(|supervisor| supervisor.watching(watched).go_on());
    serve::ended(outcome, &run_dir)
}

/// Becomes the old program again, as if nothing had happened; returns why that could not be.
fn give_back(ticket: &Ticket, reason: &str) -> String {
    let Way::Forward { old } = ticket.way else { return format!("cannot go on with the fleet: {reason}") };
    let attempt = || -> Result<String, String> {
        let said = |error: std::io::Error| error.to_string();
        let program = exec::copy(old).map_err(said)?;
        // It has no use for a descriptor of itself.
        exec::keep(old, false).map_err(said)?;
        let memory = exec::copy(ticket.state).map_err(said)?;
        let state = Handoff::read(&memory);
        // A state no one can read still has to be given back; then the old program is called by its descriptor.
        let (arguments, mut environment, home) = match state {
            Ok(state) => (state.arguments, state.environment, state.descriptors.home),
            Err(_) => {
                let name = OsString::from(format!("/proc/self/fd/{old}"));
                (vec![name], config::environment_of_process(), None)
            }
        };
        telemetry::finish();
        if let Some(home) = home.and_then(|home| exec::copy(home).ok()) {
            // A program that begins elsewhere is still better than none.
            let _ = path::enter_again(&home);
        }
        let back = Ticket { state: ticket.state, way: Way::Back { reason: Some(reason.to_owned()) } };
        environment.push(config::handoff_variable(back.text(proc::pid().as_raw().unsigned_abs())));
        Ok(exec::exec_fd(&program, &arguments, &environment).to_string())
    };
    let error = attempt().unwrap_or_else(|error| error);
    format!("{reason}; and the old program cannot have the fleet back: {error}")
}
