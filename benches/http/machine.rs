//! What the figures were measured on.

use std::process::Command;
use std::{fs, thread};

use crate::Outcome;

/// The machine and the versions, as rows of a table; fails when a program that is needed is missing.
pub(crate) fn describe(peers: bool) -> Outcome<Vec<(&'static str, String)>> {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
    let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let mut rows = vec![
        ("CPU", format!("{}, {cores} cores usable", model.unwrap_or("unknown"))),
        ("Kernel", fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()),
        (
            "Load before the run",
            load.split(' ').take(2).collect::<Vec<_>>().join(", ") + " (1 and 5 minutes)",
        ),
        ("Load generator", version("wrk", "-v", "wrk")?),
        ("Compiler", version("rustc", "--version", "rustc")?),
    ];
    if peers {
        rows.push(("Node", version("node", "--version", "nodejs")?));
    }
    Ok(rows)
}

/// A program and the version it says it has.
fn version(program: &str, flag: &str, package: &str) -> Outcome<String> {
    let output = Command::new(program).arg(flag).output();
    let output = output.map_err(|error| format!("{program} (Debian: {package}) is needed: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    // The first word with a dot and a digit in it: `v=7.0.15`, `debian/4.1.0-3+b2`, `1.95.0`, `v20.20.2`.
    let numbered = |word: &&str| word.contains('.') && word.contains(|c: char| c.is_ascii_digit());
    let version = text.split_whitespace().find(numbered).unwrap_or("of unknown version");
    Ok(format!("{program} {}", version.trim_start_matches("v=")))
}
