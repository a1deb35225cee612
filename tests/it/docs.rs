//! The documents: their links and anchors resolve, each page can be reached, and they use plain words.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Most words of the page that is read before a first change.
const ARCHITECTURE_WORDS: usize = 3000;

/// Most lines of a page, and those that are longer: tables that tests or benchmarks write or compare.
const PAGE_LINES: usize = 300;
const LONG_PAGES: &[&str] = &["CHANGELOG.md", "docs/BENCHMARKS.md", "docs/CONFIGURATION.md"];

/// Most lines of the first page.
const README_LINES: usize = 200;

/// Words without which every sentence says who does what.
const BANNED: &[&str] = &["whoever", "nobody", "somebody", "everybody", "anybody", "he", "him", "his"];

/// Pages whose words are history.
const HISTORY: &[&str] = &["CHANGELOG.md"];

/// Every Markdown file of the repository: its path below the root, and its text.
fn pages() -> BTreeMap<String, String> {
    let mut pages = BTreeMap::new();
    let mut folders = vec![PathBuf::from(ROOT)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
            if path.is_dir() {
                let is_ours = !name.starts_with('.') && !["target", "node_modules"].contains(&name.as_str());
                folders.extend(is_ours.then_some(path));
            } else if name.ends_with(".md") {
                let below = path.strip_prefix(ROOT).unwrap().to_str().unwrap().to_owned();
                pages.insert(below, fs::read_to_string(&path).unwrap());
            }
        }
    }
    pages
}

/// The lines outside code blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut in_code = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        !in_code && !is_fence
    })
}

/// A line without its inline code.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join(" ")
}

/// Where the links of a page lead, in other places of the repository.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in prose(text).map(without_code) {
        for part in line.split("](").skip(1) {
            let target = part.split([')', ' ']).next().unwrap_or_default();
            if !["http://", "https://", "mailto:"].iter().any(|scheme| target.starts_with(scheme)) {
                found.push(target.to_owned());
            }
        }
    }
    found
}

/// The text of a heading as a reader sees it.
fn visible(heading: &str) -> String {
    let mut text = String::new();
    let mut rest = heading;
    while let Some((before, link)) = rest.split_once('[') {
        let (label, after) = link.split_once(']').unwrap_or((link, ""));
        text.extend([before, label]);
        rest = match after.strip_prefix('(') {
            Some(target) => target.split_once(')').map_or("", |(_, after)| after),
            None => after,
        };
    }
    text + rest
}

/// The anchors of a page: of its headings, as GitHub makes them, and those written out.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    for line in prose(text) {
        if let Some(heading) = line.starts_with('#').then(|| line.trim_start_matches('#').trim()) {
            let kept = visible(heading).to_lowercase();
            let kept = kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            let slug: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
            let numbered = (1..).map(|number| format!("{slug}-{number}"));
            let free = std::iter::once(slug.clone()).chain(numbered).find(|slug| !anchors.contains(slug));
            anchors.extend(free);
        }
        let written = line.split("<a id=\"").skip(1).filter_map(|part| part.split('"').next());
        anchors.extend(written.map(str::to_owned));
    }
    anchors
}

/// The place that `target` names in the page at `from`, below the root, and its anchor.
fn resolve(from: &str, target: &str) -> (String, Option<String>) {
    let (path, anchor) = match target.split_once('#') {
        Some((path, anchor)) => (path, Some(anchor.to_owned())),
        None => (target, None),
    };
    if path.is_empty() {
        return (from.to_owned(), anchor);
    }
    let mut place = PathBuf::new();
    for part in Path::new(from).parent().unwrap().join(path).components() {
        match part {
            Component::ParentDir => assert!(place.pop(), "{from} links to {target}, outside the repository"),
            Component::Normal(name) => place.push(name),
            _ => {}
        }
    }
    (place.to_str().unwrap().to_owned(), anchor)
}

#[test]
fn every_link_and_anchor_resolves() {
    let pages = pages();
    let mut broken = Vec::new();
    for (from, text) in &pages {
        for target in links(text) {
            let (place, anchor) = resolve(from, &target);
            let exists = Path::new(ROOT).join(&place).exists();
            let anchor_exists = match (&anchor, pages.get(&place)) {
                (Some(anchor), Some(page)) => anchors(page).contains(anchor),
                _ => true,
            };
            if !exists || !anchor_exists {
                broken.push(format!("{from}: {target}"));
            }
        }
    }
    assert!(broken.is_empty(), "links that lead nowhere:\n{}", broken.join("\n"));
}

#[test]
fn every_page_is_reached_from_the_map() {
    let pages = pages();
    let mut reached = BTreeSet::from(["docs/README.md".to_owned()]);
    let mut ahead = vec!["docs/README.md".to_owned()];
    while let Some(from) = ahead.pop() {
        for target in links(&pages[&from]) {
            let (mut place, _) = resolve(&from, &target);
            if Path::new(ROOT).join(&place).is_dir() {
                place.push_str("/README.md");
            }
            if pages.contains_key(&place) && reached.insert(place.clone()) {
                ahead.push(place);
            }
        }
    }
    let missed: Vec<_> = pages.keys().filter(|page| !reached.contains(*page)).collect();
    assert!(missed.is_empty(), "no way leads from docs/README.md to {missed:?}");
}

#[test]
fn pages_are_short() {
    let mut long = Vec::new();
    for (page, text) in pages() {
        let most = if page == "README.md" { README_LINES } else { PAGE_LINES };
        let lines = text.lines().count();
        if lines > most && !LONG_PAGES.contains(&page.as_str()) {
            long.push(format!("{page} has {lines} lines, at most {most}"));
        }
        let words = text.split_whitespace().count();
        if page == "docs/ARCHITECTURE.md" && words > ARCHITECTURE_WORDS {
            long.push(format!("{page} has {words} words, at most {ARCHITECTURE_WORDS}"));
        }
    }
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn pages_say_who_does_what() {
    let mut found = Vec::new();
    for (page, text) in pages().into_iter().filter(|(page, _)| !HISTORY.contains(&page.as_str())) {
        for line in prose(&text).map(without_code) {
            let lower = line.to_lowercase();
            let mut words = lower.split(|c: char| !c.is_alphanumeric() && c != '-');
            if let Some(word) = words.find(|word| BANNED.contains(word)) {
                found.push(format!("{page}: \"{word}\" in: {line}"));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Pages whose Rust is part of an example, which is compiled and tested; elsewhere a block may be.
const COMPILED_PAGES: &[&str] = &["docs/tutorial.md", "docs/guide/application.md"];

/// A block of code that begins with `// examples/…` is a part of that file.
#[test]
fn pages_show_what_the_examples_say() {
    let mut pages_with_code = BTreeSet::new();
    for (page, text) in pages() {
        for block in text.split("```rust").skip(1) {
            let code = block.split("```").next().unwrap().split_once('\n').unwrap().1;
            let (first, code) = code.split_once('\n').unwrap();
            let Some(path) = first.strip_prefix("// ").filter(|path| path.starts_with("examples/")) else {
                assert!(
                    !COMPILED_PAGES.contains(&page.as_str()),
                    "{page} names no example in front of\n{code}"
                );
                continue;
            };
            let file = fs::read_to_string(Path::new(ROOT).join(path)).unwrap();
            assert!(file.contains(code.trim()), "{page}: {path} does not say\n{code}");
            pages_with_code.insert(page.clone());
        }
    }
    assert!(COMPILED_PAGES.iter().all(|page| pages_with_code.contains(*page)), "{pages_with_code:?}");
}

#[test]
fn links_and_anchors_are_found() {
    let text = "# A `b` [c](d.md): e — f\n## A\n## A\n<a id=\"x\"></a>[one](a.md#b), `[no](no)`, [two](https://c.test)\n```\n[no](no)\n```\n";
    assert_eq!(links(text), ["d.md", "a.md#b"]);
    let expected = ["a", "a-1", "a-b-c-e--f", "x"].map(str::to_owned);
    assert_eq!(anchors(text), BTreeSet::from(expected));
    assert_eq!(resolve("docs/guide/a.md", "../b.md#c"), ("docs/b.md".to_owned(), Some("c".to_owned())));
    assert_eq!(resolve("docs/a.md", "#c"), ("docs/a.md".to_owned(), Some("c".to_owned())));
}
