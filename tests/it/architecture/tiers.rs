//! A tier builds on `support` alone: no test needs a test of another folder, and what they share asserts for all.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::repository::root;

/// Folders whose tests are no helpers of any other folder's.
const TIERS: [&str; 4] = ["architecture", "fast", "process", "soak"];

/// Every source file below a folder.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => sources(&path, found),
            false if path.extension().is_some_and(|kind| kind == "rs") => found.push(path),
            false => {}
        }
    }
}

/// Lines of a text that name something of a tier, but in the same subject: `crate::TIER::ROOM::SUBJECT::…`.
fn foreign(text: &str, own: &str) -> Vec<String> {
    let names = |line: &&str| {
        let tier = TIERS.iter().find(|tier| line.contains(&format!("crate::{tier}::")));
        tier.is_some_and(|_| own.is_empty() || !line.contains(&format!("crate::{own}")))
    };
    text.lines().filter(names).map(str::to_owned).collect()
}

#[test]
fn tests_share_helpers_through_support_alone() {
    let it = root().join("tests/it");
    let mut files = Vec::new();
    sources(&it, &mut files);
    assert!(files.len() > 150, "{} files", files.len());
    let mut found = Vec::new();
    for path in files {
        let name = path.strip_prefix(&it).unwrap().with_extension("").display().to_string();
        // A folder of a subject (`soak/zero_loss/`) shares what its `mod.rs` has.
        let parts: Vec<_> = name.trim_end_matches("/mod").split('/').collect();
        let own =
            if TIERS.contains(&parts[0]) { parts[..parts.len().min(3)].join("::") } else { String::new() };
        let text = fs::read_to_string(&path).unwrap();
        found.extend(foreign(&text, &own).into_iter().map(|line| format!("{name}: {}", line.trim())));
    }
    found.retain(|line| !line.starts_with("architecture/tiers"));
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn a_test_that_uses_another_test_is_found() {
    let text = "use crate::process::redis::cluster::connect;\nuse crate::support::redis::TestRedis;\n";
    assert_eq!(foreign(text, "fast::broadcasts::cluster").len(), 1);
    assert_eq!(foreign(text, "process::redis::cluster").len(), 0);
    assert_eq!(foreign(text, "").len(), 1);
}
