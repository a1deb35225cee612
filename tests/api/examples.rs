//! Each public name is shown in code that is compiled: in the example of its own documentation, for a method in any
//! example that names its type, or in a program of `examples/`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::names::{Export, exports, public_names};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// What stands in front of a name where it is defined.
const KINDS: &[&str] = &["struct", "enum", "trait", "fn", "type", "const"];

/// Every file of the library, by its path below `src`.
fn sources() -> BTreeMap<String, String> {
    fn read(folder: &Path, root: &Path, found: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                read(&path, root, found);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.insert(name, fs::read_to_string(&path).unwrap());
            }
        }
    }
    let root = Path::new(ROOT).join("src");
    let mut found = BTreeMap::new();
    read(&root, &root, &mut found);
    found
}

/// Whether a character may stand in a name.
fn is_in_name(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// Whether a text has this name, and not as a part of a longer one.
fn names(text: &str, name: &str) -> bool {
    text.match_indices(name)
        .any(|(at, _)| !text[..at].ends_with(is_in_name) && !text[at + name.len()..].starts_with(is_in_name))
}

/// Whether code calls a function of this name: `.name(`, `::name(` or `name::<T>(`.
fn calls(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| {
        let (before, after) = (&code[..at], &code[at + name.len()..]);
        (before.ends_with('.') || before.ends_with("::")) && after.starts_with(['(', ':', ')', ','])
    })
}

/// The code blocks of comments that `cargo test --doc` compiles.
fn compiled_blocks<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<String> {
    let (mut blocks, mut open): (Vec<String>, Option<(bool, String)>) = (Vec::new(), None);
    for line in lines {
        let line = line.trim();
        let Some(text) = line.strip_prefix("///").or_else(|| line.strip_prefix("//!")) else { continue };
        match (text.trim().strip_prefix("```"), open.take()) {
            (Some(language), None) => {
                let is_compiled = ["", "no_run", "rust", "should_panic"].contains(&language);
                open = Some((is_compiled, String::new()));
            }
            (Some(_), Some((is_compiled, code))) => blocks.extend(is_compiled.then_some(code)),
            (None, Some((is_compiled, code))) => open = Some((is_compiled, code + text + "\n")),
            (None, None) => {}
        }
    }
    blocks
}

/// Comment and attributes in front of what begins at this place.
fn head(text: &str, at: usize) -> Vec<&str> {
    let before = &text[..at];
    // Code in a comment may be anything.
    let belongs = |line: &&str| {
        let line = line.trim();
        line.starts_with("//") || !(line.is_empty() || line.starts_with('}') || line.ends_with('{'))
    };
    let mut lines: Vec<_> = before.lines().rev().take_while(belongs).collect();
    lines.reverse();
    lines
}

/// Where a file defines this name.
fn definition(text: &str, name: &str) -> Option<usize> {
    KINDS.iter().find_map(|kind| {
        let line = format!("\npub {kind} {name}");
        let found =
            text.match_indices(&line).find(|(at, _)| !text[at + line.len()..].starts_with(is_in_name));
        found.map(|(at, _)| at + 1)
    })
}

/// The file that defines what a module exports under this name, and the name there; `None`: another crate's.
fn origin(sources: &BTreeMap<String, String>, module: &[String], name: &str) -> Option<(String, String)> {
    let base = module.join("/");
    let files = match base.is_empty() {
        true => vec!["lib.rs".to_owned()],
        false => vec![format!("{base}.rs"), format!("{base}/mod.rs")],
    };
    let (file, text) = files.into_iter().find_map(|file| Some((file.clone(), sources.get(&file)?)))?;
    if definition(text, name).is_some() {
        return Some((file, name.to_owned()));
    }
    exports(text).into_iter().filter(|(export, _)| export.name == name).find_map(|(export, _)| {
        let Export { path, .. } = export;
        let mut parts: Vec<String> = path.split("::").map(str::to_owned).collect();
        let original = parts.pop().unwrap();
        let from = match parts.first().map(String::as_str) {
            Some("crate") => parts[1..].to_vec(),
            Some("self") => [module, &parts[1..]].concat(),
            _ => [module, &parts].concat(),
        };
        origin(sources, &from, &original)
    })
}

/// The public methods of a type in a file, each with its comment and attributes.
fn methods<'a>(text: &'a str, name: &str) -> Vec<(&'a str, Vec<&'a str>)> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("\nimpl") {
        let Some((first, body)) = text[at + 1..].split_once("{\n") else { continue };
        let is_inherent = !first.contains(" for ") && names(first.split(" where").next().unwrap(), name);
        if !is_inherent || first.contains('\n') && first.contains("///") {
            continue;
        }
        let body = body.split("\n}\n").next().unwrap();
        let start = body.as_ptr() as usize - text.as_ptr() as usize;
        for (line_at, _) in body.match_indices("    pub ") {
            let line = body[line_at..].lines().next().unwrap();
            let starts_line = body[..line_at].is_empty() || body[..line_at].ends_with('\n');
            let words = line.trim().strip_prefix("pub ").unwrap();
            let words = words.trim_start_matches("const ").trim_start_matches("async ");
            if let Some(rest) = words.strip_prefix("fn ").filter(|_| starts_line) {
                found.push((
                    rest.split(|c: char| !is_in_name(c)).next().unwrap(),
                    head(text, start + line_at),
                ));
            }
        }
    }
    found
}

/// What no example shows: types by their path, methods as `path::method`.
fn unshown(sources: &BTreeMap<String, String>, listed: &[String]) -> Vec<String> {
    let programs = fs::read_dir(Path::new(ROOT).join("examples")).unwrap();
    let programs = programs.map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap());
    let documented = sources.values().flat_map(|text| compiled_blocks(text.lines()));
    let everything: Vec<String> = documented.chain(programs).collect();
    let mut found = Vec::new();
    for path in listed {
        let mut module: Vec<String> = path.split("::").map(str::to_owned).collect();
        let name = module.pop().unwrap();
        if module.first().is_some_and(|first| !["cli", "test"].contains(&first.as_str())) {
            module.insert(0, "facade".to_owned());
        }
        let Some((file, original)) = origin(sources, &module, &name) else { continue };
        let text = &sources[&file];
        let about = head(text, definition(text, &original).unwrap());
        let own = compiled_blocks(about.iter().copied());
        // A layer's service is made by its layer alone, whose example it shares.
        let is_shared = about.iter().any(|line| line.contains(", see [`"));
        let about_module = sources.get(&format!("{}/mod.rs", module.join("/")));
        let about_module = compiled_blocks(
            about_module.map_or("", String::as_str).lines().take_while(|line| line.starts_with("//!")),
        );
        let is_in_module = about_module.iter().any(|code| names(code, &name));
        if own.is_empty() && !is_shared && !is_in_module {
            found.push(path.clone());
        }
        let elsewhere = sources.iter().filter(|(other, text)| {
            other.starts_with("facade/")
                && **other != file
                && definition(text, &original).is_none()
                && text.lines().any(|line| line.starts_with("use crate::") && names(line, &original))
        });
        for (file, text) in elsewhere.chain([(&file, text)]) {
            let siblings = compiled_blocks(text.lines());
            for (method, about) in methods(text, &original) {
                let is_hidden = about.iter().any(|line| line.contains("doc(hidden)"));
                let is_shown = compiled_blocks(about.iter().copied()).iter().any(|code| calls(code, method))
                    || own.iter().chain(&siblings).any(|code| calls(code, method))
                    || everything.iter().any(|code| names(code, &name) && calls(code, method));
                if !is_hidden && !is_shown {
                    found.push(format!("{path}::{method} (src/{file})"));
                }
            }
        }
    }
    found
}

#[test]
fn every_public_name_is_shown_in_code_that_is_compiled() {
    let listed = public_names(Path::new(ROOT)).into_iter();
    let listed: Vec<String> = listed.map(|name| name.split(' ').next().unwrap().to_owned()).collect();
    let found = unshown(&sources(), &listed);
    assert!(
        found.is_empty(),
        "no example shows these; add a code block to their documentation:\n{}",
        found.join("\n")
    );
}

#[test]
fn a_name_without_an_example_is_found() {
    let text = "//! A room.\n\n/// Shown.\n///\n/// ```\n/// fn a() {\n///     let a = A::new();\n/// }\n/// ```\n#[derive(Debug)]\npub struct A;\n\n\
        /// Only told.\npub struct B;\n\n/// ```text\n/// C\n/// ```\npub enum C {}\n\n/// A service, see [`A`].\npub struct D;\n\n\
        impl A {\n    /// Makes it.\n    pub fn new() -> Self {\n        A\n    }\n\n    /// Not shown.\n    pub async fn hid(&self) {}\n\n    \
        /// Inner.\n    #[doc(hidden)]\n    pub fn inner(&self) {}\n\n    fn private(&self) {}\n}\n\nimpl From<B> for A {\n}\n";
    let lib = "pub use facade::room;\n";
    let sources = BTreeMap::from([
        ("lib.rs".to_owned(), lib.to_owned()),
        (
            "facade/room.rs".to_owned(),
            "pub use crate::deep::{A, B as Bee, C, D};\npub use other::E;\n".to_owned(),
        ),
        ("deep/mod.rs".to_owned(), text.to_owned()),
    ]);
    let listed = ["A", "Bee", "C", "D", "E"].map(|name| format!("room::{name}"));
    let found = unshown(&sources, &listed);
    assert_eq!(found, ["room::A::hid (src/deep/mod.rs)", "room::Bee", "room::C"]);
}
