//! No files of `src` name each other in a circle, neither between rooms nor inside one: what is below can be read, tested
//! and changed without what is above. Tests may name anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::layers::{code_only, walk};

/// A path as written: `crate::redis::keys` is three words.
type Words = Vec<String>;

/// What a file defines and names.
#[derive(Default)]
struct SourceFile {
    items: BTreeSet<String>,
    /// What `use` brings in, by the name it has here.
    imports: BTreeMap<String, Words>,
    globs: Vec<Words>,
    /// Paths in expressions and types.
    paths: BTreeSet<Words>,
}

/// All files by their module's path.
struct Sources(BTreeMap<Words, SourceFile>);

const ITEMS: [&str; 8] = ["struct", "enum", "trait", "fn", "const", "static", "type", "union"];

/// Identifiers, `::`, and single characters.
fn tokens(code: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = code.trim_start();
    while let Some(first) = rest.chars().next() {
        let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        let length = match word {
            0 if rest.starts_with("::") => 2,
            0 => first.len_utf8(),
            _ => word,
        };
        found.push(&rest[..length]);
        rest = rest[length..].trim_start();
    }
    found
}

/// Index behind the item that begins at `at`: its `;`, or the end of its braces.
fn item_end(tokens: &[&str], at: usize) -> usize {
    let is_use = tokens[at..].iter().take(6).any(|token| *token == "use");
    let mut depth = 0;
    for (index, token) in tokens.iter().enumerate().skip(at) {
        match *token {
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                if depth == 0 && !is_use {
                    return index + 1;
                }
            }
            ";" if depth == 0 => return index + 1,
            _ => {}
        }
    }
    tokens.len()
}

impl SourceFile {
    fn parse(code: &str) -> Self {
        let tokens = tokens(code);
        let mut file = Self::default();
        let (mut at, mut depth) = (0, 0);
        while at < tokens.len() {
            match tokens[at] {
                "#" if tokens[at..].starts_with(&["#", "[", "cfg", "(", "test", ")", "]"]) => {
                    at += 7;
                    while tokens.get(at) == Some(&"#") {
                        at += tokens[at..].iter().position(|token| *token == "]").map_or(1, |end| end + 1);
                    }
                    at = item_end(&tokens, at);
                    continue;
                }
                "{" => depth += 1,
                "}" => depth -= 1,
                "use" => {
                    let end = item_end(&tokens, at);
                    file.parse_use(&tokens[at + 1..end - 1], &[]);
                    at = end;
                    continue;
                }
                "macro_rules" => {
                    file.items.insert(tokens[at + 2].to_owned());
                }
                keyword if depth == 0 && ITEMS.contains(&keyword) => {
                    if let Some(name) = tokens.get(at + 1).filter(|name| !ITEMS.contains(name)) {
                        file.items.insert((*name).to_owned());
                    }
                }
                word if tokens.get(at + 1) == Some(&"::") && word != "::" => {
                    let mut path = vec![word.to_owned()];
                    while tokens.get(at + 1) == Some(&"::")
                        && tokens.get(at + 2).is_some_and(|next| is_word(next))
                    {
                        path.push(tokens[at + 2].to_owned());
                        at += 2;
                    }
                    file.paths.insert(path);
                }
                _ => {}
            }
            at += 1;
        }
        file
    }

    /// A tree behind `use`, below `prefix`.
    fn parse_use(&mut self, tree: &[&str], prefix: &[String]) {
        let mut path = prefix.to_vec();
        let mut at = 0;
        while at < tree.len() {
            match tree[at] {
                "::" => {}
                "*" => return self.globs.push(path),
                "{" => {
                    for branch in branches(&tree[at + 1..tree.len() - 1]) {
                        self.parse_use(branch, &path);
                    }
                    return;
                }
                "as" => {
                    let name = tree[at + 1].to_owned();
                    self.imports.insert(name, path);
                    return;
                }
                "self" if !path.is_empty() => {}
                word => path.push(word.to_owned()),
            }
            at += 1;
        }
        if let Some(last) = path.last() {
            self.imports.insert(last.clone(), path);
        }
    }
}

fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// What commas part, outside of inner braces.
fn branches<'a, 'b>(list: &'a [&'b str]) -> Vec<&'a [&'b str]> {
    let mut depth = 0;
    let parts = list.split(|token| {
        depth += i32::from(*token == "{") - i32::from(*token == "}");
        *token == "," && depth == 0
    });
    parts.filter(|part| !part.is_empty()).collect()
}

impl Sources {
    fn read(source: &Path) -> Self {
        let mut files = BTreeMap::new();
        walk(source, &mut |path| {
            let below = path.strip_prefix(source).unwrap().to_str().unwrap();
            let mut module: Words = below.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
            if module.last().is_some_and(|last| last == "mod") || module == ["lib"] {
                module.pop();
            }
            if module.first().is_some_and(|first| first == "bin")
                || module.last().is_some_and(|last| last == "tests")
            {
                return;
            }
            files.insert(module, SourceFile::parse(&code_only(&fs::read_to_string(path).unwrap())));
        });
        Self(files)
    }

    /// The path from the crate's root, if it is one of this crate.
    fn absolute(&self, module: &[String], path: &[String]) -> Option<Words> {
        let rest = |from: usize| path[from..].iter().cloned();
        match path.first()?.as_str() {
            "crate" => Some(rest(1).collect()),
            "self" => Some(module.iter().cloned().chain(rest(1)).collect()),
            "super" => {
                let up = path.iter().take_while(|word| *word == "super").count();
                let base = module.get(..module.len().checked_sub(up)?)?;
                Some(base.iter().cloned().chain(rest(up)).collect())
            }
            child => {
                let below: Words = module.iter().cloned().chain([child.to_owned()]).collect();
                self.0.contains_key(&below).then(|| module.iter().cloned().chain(rest(0)).collect())
            }
        }
    }

    /// The module whose file defines what an absolute path names; `None` for a module itself and for other crates.
    fn definition(&self, path: &[String], depth: usize) -> Option<Words> {
        let known = (0..=path.len()).rev().find(|length| self.0.contains_key(&path[..*length]))?;
        let (module, rest) = path.split_at(known);
        let name = rest.first().filter(|_| depth < 12)?;
        let file = &self.0[module];
        if file.items.contains(name) {
            return Some(module.to_vec());
        }
        if let Some(import) = file.imports.get(name) {
            let mut target = self.absolute(module, import)?;
            target.extend_from_slice(&rest[1..]);
            return self.definition(&target, depth + 1);
        }
        let through = file.globs.iter().filter_map(|glob| {
            let mut target = self.absolute(module, glob)?;
            target.extend_from_slice(rest);
            self.definition(&target, depth + 1).filter(|found| self.0[found].items.contains(name))
        });
        through.into_iter().next().or_else(|| Some(module.to_vec()))
    }

    /// Modules whose definitions a file names.
    fn named_by(&self, module: &Words) -> BTreeSet<Words> {
        let file = &self.0[module];
        let imported = |path: &Words| -> Option<Words> {
            let import = self.absolute(module, file.imports.get(&path[0])?)?;
            self.0
                .contains_key(&import)
                .then(|| import.into_iter().chain(path[1..].iter().cloned()).collect())
        };
        let in_paths =
            file.paths.iter().filter_map(|path| imported(path).or_else(|| self.absolute(module, path)));
        let in_imports = file.imports.values().filter_map(|path| self.absolute(module, path));
        let named = in_paths.chain(in_imports).filter_map(|path| self.definition(&path, 0));
        named.filter(|found| found != module).collect()
    }

    /// `a names b` for all files that lie on a circle or between two.
    fn circles(&self) -> Vec<String> {
        let mut edges: BTreeMap<&Words, BTreeSet<Words>> =
            self.0.keys().map(|module| (module, self.named_by(module))).collect();
        loop {
            let named: BTreeSet<Words> = edges.values().flatten().cloned().collect();
            let leaves: Vec<&Words> = edges
                .iter()
                .filter(|(module, names)| names.is_empty() || !named.contains(**module))
                .map(|(module, _)| *module)
                .collect();
            if leaves.is_empty() {
                break;
            }
            for leaf in leaves {
                edges.remove(leaf);
                for names in edges.values_mut() {
                    names.remove(leaf);
                }
            }
        }
        let lines = edges.iter().flat_map(|(module, names)| {
            names.iter().map(|name| format!("{} names {}", module.join("::"), name.join("::")))
        });
        lines.collect()
    }
}

#[test]
fn no_files_name_each_other_in_a_circle() {
    let sources = Sources::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let circles = sources.circles();
    assert!(circles.is_empty(), "files name each other in circles:\n{}", circles.join("\n"));
}

#[test]
fn a_circle_is_found_however_it_is_written() {
    let sources = |files: &[(&str, &str)]| {
        let parse = |(path, code): &(&str, &str)| {
            let module = path.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect();
            (module, SourceFile::parse(code))
        };
        Sources(files.iter().map(parse).collect())
    };
    let circles = [
        [("a", "use crate::b::B; struct A;"), ("b", "use crate::a::A; struct B;")],
        [("a", "fn f() { crate::b::g() }"), ("b", "fn g() { super::a::f() }")],
        [("a", "use crate::{b, b::B}; struct A;"), ("b", "use crate::a; struct B(a::A);")],
        [("a", "mod b; use b::B; struct A;"), ("a::b", "use super::A; struct B;")],
        [("a", "mod b; pub use b::*; fn f() {}"), ("a::b", "fn g() { super::f() }")],
    ];
    for circle in &circles[..4] {
        assert_eq!(sources(circle).circles().len(), 2, "{circle:?}");
    }
    assert!(sources(&circles[4]).circles().is_empty(), "a glob alone names no item");
    let fine = [
        [
            ("a", "mod b; pub use b::B;"),
            ("a::b", "struct B; #[cfg(test)] mod tests { use super::super::A; }"),
        ],
        [("a", "mod b; mod c; pub use b::B;"), ("a::b", "struct B;")],
        [("a", "use std::fmt; struct A;"), ("b", "use crate::a::A; fn f(a: A) { a.b::<u8>() }")],
    ];
    for tree in fine {
        assert_eq!(sources(&tree).circles(), [""; 0], "{tree:?}");
    }
}
