//! Keeps the file: looks, writes on a change, has nginx read it, and tries again whatever failed.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use crate::cli::args::Upstream;
use crate::cli::exit;
use crate::cli::exit::Failure;
use crate::cli::machines;
use crate::cli::nginx::NAME;
use crate::cli::nginx::PATIENCE;
use crate::cli::nginx::block;
use crate::cli::nginx::file;
use crate::cli::nginx::keeper::Doubt;
use crate::cli::nginx::keeper::Keeper;
use crate::config::schema::Config;
use crate::sys::fd;
use crate::sys::signal::Signal;
use crate::sys::signal::Signals;
use crate::telemetry;

/// Why the watch could not begin or go on.
#[derive(Debug, thiserror::Error)]
#[error("cannot wait for signals")]
struct Deaf(#[source] io::Error);

struct Watch<'a> {
    config: &'a Config,
    wanted: &'a Upstream,
    output: &'a Path,
    keeper: Keeper,
    nginx: Nginx,
}

/// What nginx knows of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nginx {
    /// The one who kept the file before may have ended between writing and reloading.
    Unknown,
    /// Not what stands in it now.
    Stale,
    /// What stands in it now.
    Current,
}

/// Goes on until TERM or INT; what fails is logged once and tried again at every look.
pub(super) fn watch(config: &Config, wanted: &Upstream, output: &Path) -> Result<u8, Failure> {
    telemetry::install(&config.log).map_err(|error| Failure::new(exit::USAGE, &error))?;
    let deaf = |error| Failure::new(exit::FAILED, &Deaf(error));
    let signals = Signals::take(&[Signal::SIGTERM, Signal::SIGINT]).map_err(deaf)?;
    let mut watch = Watch { config, wanted, output, keeper: Keeper::default(), nginx: Nginx::Unknown };
    let mut told: Option<String> = None;
    loop {
        let trouble = watch.look().and(watch.reload()).err();
        match (&trouble, &told) {
            (Some(trouble), told) if told.as_ref() != Some(trouble) => tracing::warn!("{trouble}"),
            (None, Some(_)) => tracing::info!("{} is kept as before", output.display()),
            _ => {}
        }
        told = trouble;
        // One readable descriptor is one signal of the two.
        telemetry::flush();
        let ended = fd::wait_readable(&[signals.as_fd()], Some(wanted.interval)).map_err(deaf)?;
        if ended.contains(&true) && signals.next().map_err(deaf)?.is_some() {
            return Ok(exit::OK);
        }
    }
}

impl Watch<'_> {
    /// Looks once and writes the file if it is another one.
    fn look(&mut self) -> Result<(), String> {
        let path = self.output.display();
        let stays = |why: &dyn std::fmt::Display| format!("{path} stays as it is: {why}");
        let found = machines::ask(self.config, NAME, PATIENCE).map_err(|error| stays(&error))?;
        let present = file::read(self.output).map_err(|error| stays(&error))?;
        let servers = self.keeper.look(block::servers(&found.seen), found.complete, present.is_some());
        let servers = servers.map_err(|doubt| {
            stays(&match doubt {
                Doubt::Nobody => "no host of the fleet serves, as far as Redis knows",
                Doubt::Early => "Redis has heard of this fleet for a moment only",
            })
        })?;
        let text = block::render(&self.wanted.upstream, &self.config.redis.prefix, servers);
        if present.as_ref() == Some(&text) {
            if self.nginx == Nginx::Unknown {
                self.nginx = Nginx::Stale;
            }
            return Ok(());
        }
        let written = file::write(self.output, &text).map_err(|error| stays(&error))?.note();
        let hosts: Vec<&str> = servers.keys().map(String::as_str).collect();
        tracing::info!(hosts = hosts.join(","), "{path} written with {} hosts{written}", hosts.len());
        self.nginx = Nginx::Stale;
        Ok(())
    }

    /// Has nginx read the file if it has not.
    fn reload(&mut self) -> Result<(), String> {
        let (Nginx::Stale, Some(command)) = (self.nginx, &self.wanted.reload) else { return Ok(()) };
        file::run(command)?;
        self.nginx = Nginx::Current;
        tracing::info!("reloaded");
        Ok(())
    }
}
