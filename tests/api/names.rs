//! The list of all public names, so that a change of the surface is a line in a review.
//!
//! Read from the façade's source: what `src/lib.rs` re-exports, and what the modules that it names re-export.
//! `API_NAMES=write cargo nextest run --test api names` writes `tests/api/names.txt` anew.

use std::collections::BTreeSet;
use std::path::Path;
use std::{env, fs};

const LIST: &str = "tests/api/names.txt";

/// A re-export: the path from the root, and the name under which it is public.
pub(crate) struct Export {
    pub(crate) path: String,
    pub(crate) name: String,
}

/// The `pub use` items of a file, with groups written out and the features that they need.
pub(crate) fn exports(text: &str) -> Vec<(Export, String)> {
    let code: String =
        text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    // What comes afterwards is not API.
    let code = code.split("pub mod __internals").next().unwrap();
    let mut found = Vec::new();
    for (at, _) in code.match_indices("pub use ") {
        let item = &code[at + "pub use ".len()..];
        let item = item.split(';').next().unwrap();
        let item: String = item.split_whitespace().collect::<Vec<_>>().join(" ");
        let before = code[..at].trim_end().lines().last().unwrap_or_default().trim();
        let feature = before.strip_prefix("#[cfg(feature = \"").and_then(|rest| rest.split('"').next());
        let feature = feature.map_or_else(String::new, |feature| format!(" (feature {feature})"));
        expand(&item, "", &mut |path, name| {
            found.push((Export { path: path.to_owned(), name: name.to_owned() }, feature.clone()));
        });
    }
    found
}

/// The `pub mod` items of a file that are files of their own, with the features that they need.
fn public_modules(text: &str) -> Vec<(String, String)> {
    let code = text.split("pub mod __internals").next().unwrap();
    let mut before = "";
    let mut found = Vec::new();
    for line in code.lines() {
        if let Some(name) = line.strip_prefix("pub mod ").and_then(|rest| rest.strip_suffix(';')) {
            let feature = before.strip_prefix("#[cfg(feature = \"").and_then(|rest| rest.split('"').next());
            let feature = feature.map_or_else(String::new, |feature| format!(" (feature {feature})"));
            found.push((name.to_owned(), feature));
        }
        before = line;
    }
    found
}

/// Calls `each` for every name of `a::{b, c as d, e::{f}}`.
fn expand(item: &str, prefix: &str, each: &mut dyn FnMut(&str, &str)) {
    let item = item.trim();
    if let Some((path, group)) = item.split_once('{') {
        let group = group.trim().strip_suffix('}').unwrap();
        let (mut depth, mut start) = (0, 0);
        for (at, c) in group.char_indices() {
            depth += i32::from(c == '{') - i32::from(c == '}');
            if c == ',' && depth == 0 {
                expand(&group[start..at], &format!("{prefix}{path}"), each);
                start = at + 1;
            }
        }
        return expand(&group[start..], &format!("{prefix}{path}"), each);
    }
    if item.is_empty() {
        return;
    }
    let (path, name) = item.split_once(" as ").unwrap_or((item, item.rsplit("::").next().unwrap()));
    each(&format!("{prefix}{path}"), name);
}

/// Every public name with its path from the root.
pub(crate) fn public_names(root: &Path) -> BTreeSet<String> {
    let read = |path: &str| fs::read_to_string(root.join("src").join(path)).unwrap();
    let mut names = BTreeSet::new();
    for (export, feature) in exports(&read("lib.rs")) {
        let module = export.path.rsplit_once("::").map(|(before, _)| before).unwrap_or_default();
        let base = module.replace("::", "/");
        let file = ["/mod.rs", ".rs"].map(|end| format!("{base}/{}{end}", export.name));
        let Some(file) = file.into_iter().find(|file| root.join("src").join(file).is_file()) else {
            names.insert(format!("{}{feature}", export.name));
            continue;
        };
        names.extend(names_within(&read(&file), &export.name, &feature));
    }
    for (module, feature) in public_modules(&read("lib.rs")) {
        names.extend(names_within(&read(&format!("{module}/mod.rs")), &module, &feature));
    }
    names
}

/// The public names of a module's own file.
fn names_within(text: &str, module: &str, feature: &str) -> Vec<String> {
    let exported = exports(text).into_iter();
    let exported = exported.map(|(inner, more)| format!("{module}::{}{feature}{more}", inner.name));
    let own = own_types(text).map(|name| format!("{module}::{name}{feature}"));
    exported.chain(own).collect()
}

/// What a module's own file defines in public.
fn own_types(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let rest = line.strip_prefix("pub ")?;
        let (kind, rest) = rest.split_once(' ')?;
        ["struct", "enum", "trait", "fn", "type", "const"]
            .contains(&kind)
            .then(|| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next())?
    })
}

#[test]
fn every_public_name_is_listed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let names: Vec<String> = public_names(root).into_iter().collect();
    let text = names.join("\n") + "\n";
    if env::var_os("API_NAMES").is_some() {
        fs::write(root.join(LIST), text).unwrap();
        return;
    }
    let listed = fs::read_to_string(root.join(LIST)).unwrap();
    let listed: BTreeSet<&str> = listed.lines().collect();
    let names: BTreeSet<&str> = text.lines().collect();
    let added: Vec<_> = names.difference(&listed).collect();
    let removed: Vec<_> = listed.difference(&names).collect();
    assert!(
        added.is_empty() && removed.is_empty(),
        "the public names differ from {LIST}: added {added:?}, removed {removed:?}"
    );
}

#[test]
fn groups_and_other_names_are_written_out() {
    let text = "//! pub use x::Y;\npub use a::{B, c::{D as E, f}};\n#[cfg(feature = \"cli\")]\npub use g::H;\n\
        pub mod __internals {\n pub use z::Z;\n}\n";
    let found: Vec<String> = exports(text)
        .into_iter()
        .map(|(export, feature)| format!("{} {}{feature}", export.path, export.name))
        .collect();
    assert_eq!(found, ["a::B B", "a::c::D E", "a::c::f f", "g::H H (feature cli)"]);
}

#[test]
fn modules_that_are_public_themselves_are_read_too() {
    let text = "mod a;\n#[cfg(feature = \"cli\")]\npub mod cli;\npub mod test;\npub mod __internals {\n}\n";
    let found = [("cli".to_owned(), " (feature cli)".to_owned()), ("test".to_owned(), String::new())];
    assert_eq!(public_modules(text), found);
    let names = names_within("pub use a::B;\n    pub struct C;\npub struct D;\n", "cli", " (feature cli)");
    assert_eq!(names, ["cli::B (feature cli)", "cli::D (feature cli)"]);
}
