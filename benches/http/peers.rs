//! The other stacks: small programs in `benches/peers/`, with manifests and lock files of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Outcome;
use crate::contender::Shape;

/// Their sources.
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers");

/// Where they are built: in the folder for build results, so that nothing has to be ignored or cleaned elsewhere.
const BUILT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/peers");

/// The peer that also has a bare session route.
pub(crate) const ACTIX: &str = "actix";

/// axum on current-thread runtimes, as Regatta's workers are; without state only.
pub(crate) const AXUM_CURRENT: &str = "axum-current";

/// Node's cluster.
pub(crate) const NODE: &str = "node";

/// A stack that is ready to be started.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Its name in the tables.
    pub(crate) name: &'static str,
    /// What its processes are to each other.
    pub(crate) shape: Shape,
    /// Starts it; takes the address, Redis's socket or host:port, and the number of workers as further arguments.
    pub(crate) command: Command,
    /// An argument after those, that chooses one of its forms.
    pub(crate) flavour: Option<&'static str>,
}

/// Builds all of them, from their lock files.
pub(crate) fn build() -> Outcome<Vec<Peer>> {
    println!("building the peers");
    let actix = Command::new(cargo("actix", "peer-actix")?);
    let axum = cargo("axum-stock", "peer-axum-stock")?;
    Ok(vec![
        Peer { name: ACTIX, shape: Shape::Threads, command: actix, flavour: None },
        Peer { name: "axum-stock", shape: Shape::Threads, command: Command::new(&axum), flavour: None },
        Peer {
            name: AXUM_CURRENT,
            shape: Shape::Threads,
            command: Command::new(&axum),
            flavour: Some("current"),
        },
        Peer { name: NODE, shape: Shape::Cluster, command: node()?, flavour: None },
    ])
}

fn cargo(folder: &str, binary: &str) -> Outcome<PathBuf> {
    let mut build = Command::new("cargo");
    build.args(["build", "--release", "--locked", "--quiet", "--target-dir", BUILT]);
    finish(build.current_dir(Path::new(SOURCES).join(folder)))?;
    Ok(Path::new(BUILT).join("release").join(binary))
}

fn node() -> Outcome<Command> {
    let (from, to) = (Path::new(SOURCES).join("node"), Path::new(BUILT).join("node"));
    fs::create_dir_all(&to)?;
    for file in ["package.json", "package-lock.json", "server.js"] {
        fs::copy(from.join(file), to.join(file))?;
    }
    finish(Command::new("npm").args(["ci", "--no-audit", "--no-fund", "--silent"]).current_dir(&to))?;
    let mut command = Command::new("node");
    command.arg(to.join("server.js"));
    Ok(command)
}

fn finish(command: &mut Command) -> Outcome<()> {
    let status = command.status().map_err(|error| format!("cannot run {command:?}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{command:?} failed: {status}").into()) }
}
