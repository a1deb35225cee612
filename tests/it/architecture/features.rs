//! What a feature leaves out, where that is said, and that each is linted alone.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::layers::{code_only, walk};
use crate::support::repository::root;

/// Crates that only a feature brings.
const OPTIONAL: [(&str, &str); 9] = [
    ("askama", "dashboard"),
    ("clap", "cli"),
    ("indicatif", "cli"),
    ("nix", "fleet"),
    ("prometheus-client", "fleet"),
    ("ratatui", "top"),
    ("rustls", "tls"),
    ("rustls-native-certs", "tls"),
    ("tracing-subscriber", "fleet"),
];

/// Every crate that is compiled into a program with these features alone, and those that are compiled for it.
fn crates(features: &str) -> BTreeSet<String> {
    let mut command = Command::new("cargo");
    command.args([
        "tree",
        "--locked",
        "--offline",
        "--edges",
        "no-dev",
        "--prefix",
        "none",
        "--format",
        "{p}",
    ]);
    command.args(["--no-default-features", "--features", features]);
    let output = command.current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{features}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

/// Names of the features, but for what is not for programs.
fn features() -> Vec<String> {
    let mut command = Command::new("cargo");
    command.args(["metadata", "--no-deps", "--offline", "--format-version", "1"]);
    let output = command.current_dir(root()).output().unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let names = metadata["packages"][0]["features"].as_object().unwrap().keys();
    names.filter(|name| !["default", "demo", "__internals"].contains(&name.as_str())).cloned().collect()
}

#[test]
fn no_crate_of_a_feature_is_compiled_without_it() {
    let none = crates("");
    for (name, _) in OPTIONAL {
        assert!(!none.contains(name), "{name} is compiled without any feature");
    }
    for (feature, absent) in [
        ("fleet", &["askama", "clap", "indicatif", "ratatui", "rustls"][..]),
        ("tls", &["askama", "clap", "indicatif", "nix", "ratatui"]),
        ("cli", &["askama", "ratatui", "rustls"]),
        ("dashboard", &["clap", "ratatui", "rustls"]),
        ("top", &["askama", "rustls"]),
    ] {
        let with = crates(feature);
        let there: Vec<_> = absent.iter().filter(|name| with.contains(**name)).collect();
        assert!(there.is_empty(), "{feature} brings {there:?}");
        for (name, of) in OPTIONAL {
            assert!(
                of != feature || with.contains(name),
                "{feature} does not bring {name}: is it still its crate?"
            );
        }
    }
}

#[test]
fn every_feature_is_linted_alone() {
    let output = Command::new(root().join(".ci/features")).arg("list").output().unwrap();
    let linted = String::from_utf8(output.stdout).unwrap();
    let linted: Vec<&str> = linted.lines().collect();
    assert!(linted.contains(&"default"), "{linted:?}");
    for feature in features() {
        assert!(linted.contains(&feature.as_str()), "{feature} is not linted alone: {linted:?}");
    }
}

/// Lines outside of `lib.rs`, the facade and every `mod.rs` that ask for a feature.
fn scattered(path: &str, text: &str) -> Vec<String> {
    if path == "lib.rs"
        || path.starts_with("facade/")
        || path.ends_with("/mod.rs")
        || path.starts_with("bin/")
    {
        return Vec::new();
    }
    let asks = |line: &&str| line.contains("feature =") && line.contains("cfg");
    code_only(text).lines().filter(asks).map(|line| format!("{path}: {}", line.trim())).collect()
}

#[test]
fn features_are_asked_for_where_a_whole_file_is_left_out() {
    let source = root().join("src");
    let mut found = Vec::new();
    walk(&source, &mut |path: &Path| {
        let below = path.strip_prefix(&source).unwrap().to_str().unwrap();
        found.extend(scattered(below, &fs::read_to_string(path).unwrap()));
    });
    assert!(
        found.is_empty(),
        "move these into a file of their own, and leave that out:\n{}",
        found.join("\n")
    );
}

#[test]
fn a_scattered_feature_is_found() {
    for line in
        ["#[cfg(feature = \"fleet\")]", "#![cfg(not(feature = \"x\"))]", "if cfg!(feature = \"x\") {}"]
    {
        assert_eq!(scattered("redis/client.rs", line).len(), 1, "{line}");
        for place in ["lib.rs", "facade/error.rs", "sys/path/mod.rs"] {
            assert_eq!(scattered(place, line), [""; 0], "{place}: {line}");
        }
    }
    assert_eq!(scattered("redis/client.rs", "// cfg(feature = x)\n#[cfg(test)]\n"), [""; 0]);
}
