//! `docs/BENCHMARKS.md`, of which each benchmark writes its own part and leaves the other's.

use std::fs;
use std::io;
use std::path::Path;

/// Where the page is.
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/BENCHMARKS.md");

/// Between the two parts.
const BORDER: &str = "\n<!-- Above: cargo bench --bench http. Below: cargo bench --bench live. -->\n";

/// Whose part it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "each benchmark has its own")]
pub(crate) enum Part {
    /// Requests.
    Http,
    /// Streams, tasks and pages.
    Live,
}

/// Writes one part.
pub(crate) fn write(part: Part, text: &str) -> io::Result<()> {
    let old = fs::read_to_string(PAGE).unwrap_or_default();
    let (http, live) = old.split_once(BORDER).unwrap_or((&old, ""));
    let page = match part {
        Part::Http if live.is_empty() => text.to_owned(),
        Part::Http => format!("{text}{BORDER}{live}"),
        Part::Live => format!("{http}{BORDER}{text}"),
    };
    if let Some(folder) = Path::new(PAGE).parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(PAGE, page)
}
