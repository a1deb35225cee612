//! `docs/BENCHMARKS.md`, of which each benchmark writes its own part and leaves the others'.

use std::path::Path;
use std::{fs, io};

/// Where the page is.
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/BENCHMARKS.md");

/// What ends each part but the last.
const BORDERS: [&str; 2] = [
    "\n<!-- Above: cargo bench --bench http. Below: cargo bench --bench live. -->\n",
    "\n<!-- Above: cargo bench --bench live. Below: cargo bench --bench overload. -->\n",
];

/// Whose part it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "each benchmark has its own")]
pub(crate) enum Part {
    /// Requests.
    Http = 0,
    /// Streams, tasks and pages.
    Live = 1,
    /// Beyond saturation.
    Overload = 2,
}

/// Writes one part.
pub(crate) fn write(part: Part, text: &str) -> io::Result<()> {
    let old = fs::read_to_string(PAGE).unwrap_or_default();
    let (http, rest) = old.split_once(BORDERS[0]).unwrap_or((&old, ""));
    let (live, overload) = rest.split_once(BORDERS[1]).unwrap_or((rest, ""));
    let mut parts = [http, live, overload];
    parts[part as usize] = text;
    let page = format!("{}{}{}{}{}", parts[0], BORDERS[0], parts[1], BORDERS[1], parts[2]);
    if let Some(folder) = Path::new(PAGE).parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(PAGE, page)
}
