//! Keeps the file: looks, writes on a change, has nginx read it, and tries again whatever failed.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use crate::bootstrap::exit_code;
use crate::bootstrap::exit_code::CommandFailure;
use crate::cli::args::UpstreamOptions;
use crate::cli::nginx::reconciler::{KeepReason, UpstreamReconciler};
use crate::cli::nginx::{atomic_file, instances, upstream};
use crate::config::settings::Config;
use crate::logging;
use crate::sys::signal::{Signal, SignalReader};
use crate::sys::{fd, process};

/// Why the watch could not begin or go on.
#[derive(Debug, thiserror::Error)]
#[error("cannot wait for signals")]
struct SignalError(#[source] io::Error);

struct UpstreamWatch<'a> {
    config: &'a Config,
    options: &'a UpstreamOptions,
    output: &'a Path,
    reconciler: UpstreamReconciler,
    nginx: NginxState,
}

/// What nginx knows of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NginxState {
    /// The process that kept the file before may have ended between writing and reloading.
    Unknown,
    /// Not what stands in it now.
    Stale,
    /// What stands in it now.
    Current,
}

/// Goes on until TERM or INT; what fails is logged once and tried again at every look.
pub(super) fn run(config: &Config, options: &UpstreamOptions, output: &Path) -> Result<u8, CommandFailure> {
    logging::install(&config.log).map_err(|error| CommandFailure::new(exit_code::USAGE, &error))?;
    let deaf = |error| CommandFailure::new(exit_code::FAILED, &SignalError(error));
    let signals = SignalReader::block(&[Signal::SIGTERM, Signal::SIGINT]).map_err(deaf)?;
    let mut watch = UpstreamWatch {
        config,
        options,
        output,
        reconciler: UpstreamReconciler::default(),
        nginx: NginxState::Unknown,
    };
    let mut reported: Option<String> = None;
    loop {
        let trouble = watch.update_file().and(watch.reload()).err();
        match (&trouble, &reported) {
            (Some(trouble), reported) if reported.as_ref() != Some(trouble) => tracing::warn!("{trouble}"),
            (None, Some(_)) => tracing::info!("{} is up to date again", output.display()),
            _ => {}
        }
        reported = trouble;
        // One readable descriptor is one signal of the two.
        logging::flush();
        let readable = fd::wait_readable(&[signals.as_fd()], Some(options.interval)).map_err(deaf)?;
        if readable.contains(&true) && signals.next().map_err(deaf)?.is_some() {
            return Ok(exit_code::OK);
        }
    }
}

impl UpstreamWatch<'_> {
    /// Looks once and writes the file if it is another one.
    fn update_file(&mut self) -> Result<(), String> {
        let path = self.output.display();
        let stays = |why: &dyn std::fmt::Display| format!("{path} unchanged: {why}");
        let found = instances::fetch(self.config).map_err(|error| stays(&error))?;
        let present = atomic_file::read(self.output).map_err(|error| stays(&error))?;
        let servers = self.reconciler.reconcile(
            upstream::upstream_servers(&found.instances, &process::hostname()),
            found.complete,
            present.is_some(),
        );
        let servers = servers.map_err(|doubt| {
            stays(&match doubt {
                KeepReason::NoInstances => "no host of the fleet serves, as far as Redis knows",
                KeepReason::NotYetComplete => "the list of instances is not complete yet",
            })
        })?;
        let text = upstream::render_upstream(&self.options.upstream, &self.config.redis.prefix, servers);
        if present.as_ref() == Some(&text) {
            if self.nginx == NginxState::Unknown {
                self.nginx = NginxState::Stale;
            }
            return Ok(());
        }
        let written = atomic_file::write(self.output, &text).map_err(|error| stays(&error))?.remark();
        let hosts: Vec<&str> = servers.keys().map(String::as_str).collect();
        tracing::info!(hosts = hosts.join(","), "{path} written with {} hosts{written}", hosts.len());
        self.nginx = NginxState::Stale;
        Ok(())
    }

    /// Has nginx read the file if it has not.
    fn reload(&mut self) -> Result<(), String> {
        let (NginxState::Stale, Some(command)) = (self.nginx, &self.options.reload) else { return Ok(()) };
        atomic_file::run_command(command)?;
        self.nginx = NginxState::Current;
        tracing::info!("reloaded");
        Ok(())
    }
}
