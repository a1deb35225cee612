//! `benches/baseline.toml`, and beside it the functions that made the figures.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use config::{Config, File, FileFormat};
use serde::Deserialize;

use crate::Outcome;
use crate::figures::Figures;
use crate::verdict::Values;

/// Functions that are kept of each process and scenario: what is below them is noise.
const FUNCTIONS: usize = 100;

/// Before the figures.
const HEAD: &str = "\
# What a request costs. Written by `make gate BASELINE=write`; the commit that changes it says why.
# Instructions are counted by callgrind, and compared only where all of these are the same.
";

/// Before the tolerances.
const TOLERANCE: &str = "
# Figures that two runs of one build do not repeat well enough, and the per cent that each may move instead of what
# benches/gate/verdict.rs allows: a task runs on a thread of its own, and what it sends meets what its worker sends, or
# does not. Written by hand and kept.
";

/// What was counted once.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Baseline {
    pub(crate) versions: BTreeMap<String, String>,
    pub(crate) tolerance: BTreeMap<String, Values>,
    pub(crate) figures: BTreeMap<String, Values>,
}

/// Functions by scenario and process.
pub(crate) type Functions = BTreeMap<(String, String), Values>;

impl Baseline {
    /// The one in the repository; an empty one if there is none.
    pub(crate) fn read() -> Outcome<Self> {
        match fs::read_to_string(place("baseline.toml")) {
            Ok(text) => Self::parse(&text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error.into()),
        }
    }

    fn parse(text: &str) -> Outcome<Self> {
        Ok(Config::builder().add_source(File::from_str(text, FileFormat::Toml)).build()?.try_deserialize()?)
    }

    /// Writes these figures down; tolerances stay.
    pub(crate) fn write(
        &self,
        versions: &BTreeMap<String, String>,
        counted: &BTreeMap<String, Figures>,
    ) -> Outcome<()> {
        let mut text = HEAD.to_owned();
        text.push_str("[versions]\n");
        for (name, version) in versions {
            writeln!(text, "{name} = {version:?}")?;
        }
        text.push_str(TOLERANCE);
        for (scenario, values) in &self.tolerance {
            table(&mut text, "tolerance", scenario, values)?;
        }
        for (scenario, figures) in counted {
            table(&mut text, "figures", scenario, &figures.values)?;
        }
        if Self::parse(&text)?.figures.len() != counted.len() {
            return Err("what was to be written cannot be read".into());
        }
        fs::write(place("baseline.toml"), text)?;
        Ok(fs::write(place("baseline-functions.txt"), functions(counted)?)?)
    }
}

fn table(text: &mut String, kind: &str, scenario: &str, values: &Values) -> Outcome<()> {
    writeln!(text, "\n[{kind}.{scenario}]")?;
    for (name, value) in values {
        writeln!(text, "{name} = {:.2}", value)?;
    }
    Ok(())
}

/// The functions of the figures: scenario, process, instructions a request, name.
fn functions(counted: &BTreeMap<String, Figures>) -> Outcome<String> {
    let mut text = String::new();
    for (scenario, figures) in counted {
        for (process, values) in [("worker", &figures.worker), ("redis", &figures.redis)] {
            let mut values: Vec<_> = values.iter().filter(|(_, value)| **value >= 1.0).collect();
            values.sort_by(|one, other| other.1.total_cmp(one.1).then(one.0.cmp(other.0)));
            for (name, value) in values.into_iter().take(FUNCTIONS) {
                writeln!(text, "{scenario}\t{process}\t{value:.0}\t{name}")?;
            }
        }
    }
    Ok(text)
}

/// Those of the baseline; none if there are none.
pub(crate) fn read_functions() -> Functions {
    let text = fs::read_to_string(place("baseline-functions.txt")).unwrap_or_default();
    let mut functions = Functions::new();
    for line in text.lines() {
        let mut parts = line.splitn(4, '\t');
        let (Some(scenario), Some(process), Some(count), Some(name)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let values = functions.entry((scenario.to_owned(), process.to_owned())).or_default();
        values.insert(name.to_owned(), count.parse().unwrap_or_default());
    }
    functions
}

fn place(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches").join(name)
}
