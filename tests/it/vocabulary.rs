//! The words of `docs/GLOSSARY.md`, held by a test: one meaning a word, and no word that the glossary replaced.
//!
//! What does not keep to a rule yet is listed in `tests/it/vocabulary.txt`, a line for each rule and file with the number
//! of places. The list may only shrink: a file with more places fails, and one with fewer fails until its number is
//! lowered. `VOCABULARY_LOWER=1` rewrites the list with the lower numbers; it never raises one.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// Words that the glossary replaced: no identifier in `src/` has one of them, in the singular, the plural or the past.
const BANNED_WORDS: &[&str] = &[
    "asked", "beacon", "care", "course", "desk", "door", "dress", "errand", "face", "farewell", "goodbye",
    "hall", "heard", "keeper", "machine", "manner", "mood", "news", "peek", "purse", "seat", "senses",
    "sentence", "settle", "site", "standing", "ticket", "told", "verdict", "vigil", "visit", "wish",
];

/// Identifiers that others chose, with where they come from.
const FOREIGN_IDENTIFIERS: &[(&str, &str)] = &[
    ("MSG_PEEK", "recv(2)"),
    ("Visit", "the trait of tracing"),
    ("peek", "std's Peekable and the lru crate"),
    ("peek_mut", "the lru crate"),
    ("poll_peek", "tokio's sockets"),
    ("SEC_FETCH_SITE", "the request header Sec-Fetch-Site"),
];

/// Names of types that say nothing without their path.
const GENERIC_TYPES: &[&str] = &[
    "Entry", "Error", "Fields", "Inner", "Kind", "Known", "Line", "Order", "Outcome", "Place", "Seen",
    "Settings", "Source", "State", "Status", "Told", "Watch", "Window", "Wish",
];

/// Words of comments that leave the subject of a sentence open, or make a person of a program.
const BANNED_PRONOUNS: &[&str] =
    &["anybody", "everybody", "he", "him", "his", "nobody", "somebody", "whoever"];

/// The list of what does not keep to the rules yet.
const REMAINING: &str = "tests/it/vocabulary.txt";

/// How many places break a rule, by rule and by file (or by type, for types that share a name).
type Counts = BTreeMap<(String, String), usize>;

/// A source file: its path below the project, its code without literals, and its comments; both line for line.
struct SourceFile {
    path: String,
    code: String,
    comments: String,
}

impl SourceFile {
    fn new(path: &str, text: &str) -> Self {
        let (code, comments) = split_comments(text);
        Self { path: path.to_owned(), code, comments }
    }

    fn read_all(root: &Path, folders: &[&str]) -> Vec<Self> {
        let mut paths = Vec::new();
        folders.iter().for_each(|folder| collect_files(&root.join(folder), "rs", &mut paths));
        let read = |path: PathBuf| {
            let below = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            Self::new(&below, &fs::read_to_string(path).unwrap())
        };
        paths.into_iter().map(read).collect()
    }
}

fn collect_files(folder: &Path, extension: &str, paths: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            collect_files(&path, extension, paths);
        } else if path.extension().is_some_and(|found| found == extension) {
            paths.push(path);
        }
    }
}

/// A text's code, with literals blanked, and its comments.
fn split_comments(text: &str) -> (String, String) {
    let (mut code, mut comments, mut rest) = (String::new(), String::new(), text);
    while let Some(first) = rest.chars().next() {
        let in_word = code.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let (length, is_comment) = match rest.as_bytes() {
            [b'/', b'/', ..] => (rest.find('\n').unwrap_or(rest.len()), true),
            [b'/', b'*', ..] => (rest.find("*/").map_or(rest.len(), |end| end + 2), true),
            [b'"', ..] => (string_length(rest), false),
            [b'r', b'"' | b'#', ..] if !in_word => (raw_string_length(rest), false),
            [b'b', b'r', b'"' | b'#', ..] if !in_word => (1 + raw_string_length(&rest[1..]), false),
            [b'\'', ..] => (char_length(rest), false),
            _ => (0, false),
        };
        if length == 0 {
            code.push(first);
            if first == '\n' {
                comments.push(first);
            }
            rest = &rest[first.len_utf8()..];
            continue;
        }
        let (skipped, after) = rest.split_at(length);
        let lines = skipped.chars().filter(|c| *c == '\n');
        code.push(' ');
        code.extend(lines.clone());
        if is_comment {
            comments.push_str(skipped);
        } else {
            comments.extend(lines);
        }
        rest = after;
    }
    (code, comments)
}

/// Length of the string literal `text` begins with.
fn string_length(text: &str) -> usize {
    let mut is_escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            '"' if !is_escaped => return at + 1,
            _ => is_escaped = c == '\\' && !is_escaped,
        }
    }
    text.len()
}

/// Length of the raw string literal `text` begins with; 0 for a raw identifier.
fn raw_string_length(text: &str) -> usize {
    let hashes = text[1..].chars().take_while(|c| *c == '#').count();
    let body = 1 + hashes;
    if !text[body..].starts_with('"') {
        return 0;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    text[body + 1..].find(&end).map_or(text.len(), |at| body + 1 + at + end.len())
}

/// Length of the character literal `text` begins with; 0 for a lifetime.
fn char_length(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some((escaped, _))) => {
            text[escaped + 1..].find('\'').map_or(0, |end| escaped + 1 + end + 1)
        }
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 0,
    }
}

/// The words of a text: runs of letters, digits and `_`.
fn tokens(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|token| !token.is_empty())
}

/// The words of an identifier in small letters: `SecFetchSite` and `sec_fetch_site` have the same three.
fn identifier_words(identifier: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for part in identifier.split('_').filter(|part| !part.is_empty()) {
        let mut last_is_lower = false;
        for (index, c) in part.chars().enumerate() {
            if index == 0 || (c.is_uppercase() && last_is_lower) {
                words.push(String::new());
            }
            last_is_lower = !c.is_uppercase();
            words.last_mut().unwrap().extend(c.to_lowercase());
        }
    }
    words
}

/// Whether a word is banned, in any of its forms.
fn is_banned(word: &str) -> bool {
    let is_form =
        |banned: &str| word.strip_prefix(banned).is_some_and(|end| ["", "s", "es", "d", "ed"].contains(&end));
    BANNED_WORDS.iter().any(|banned| is_form(banned))
}

/// The identifiers of a file's code with a banned word.
fn banned_identifiers(file: &SourceFile) -> Vec<String> {
    let is_foreign = |token: &str| FOREIGN_IDENTIFIERS.iter().any(|(foreign, _)| *foreign == token);
    let found = tokens(&file.code).filter(|token| !is_foreign(token));
    found
        .filter(|token| identifier_words(token).iter().any(|word| is_banned(word)))
        .map(str::to_owned)
        .collect()
}

/// The types that a file defines: name, and whether `pub` alone stands before it. Private ones are left out.
fn visible_types(file: &SourceFile) -> Vec<(String, bool)> {
    let define = |line: &str| {
        let rest = line.trim_start().strip_prefix("pub")?;
        let (is_public, rest) = match rest.strip_prefix('(') {
            Some(scope) => (false, scope.split_once(')')?.1),
            None => (true, rest),
        };
        let mut words = tokens(rest).skip_while(|word| matches!(*word, "unsafe" | "auto"));
        matches!(words.next()?, "struct" | "enum" | "trait" | "type" | "union")
            .then(|| words.next().map(|name| (name.to_owned(), is_public)))?
    };
    file.code.lines().filter_map(define).collect()
}

fn generic_types(file: &SourceFile) -> Vec<String> {
    let names = visible_types(file).into_iter().map(|(name, _)| name);
    names.filter(|name| GENERIC_TYPES.contains(&name.as_str())).collect()
}

/// The names that several public types share, with their files.
fn shared_names(files: &[SourceFile]) -> Vec<(String, Vec<String>)> {
    let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in files {
        for (name, _) in visible_types(file).into_iter().filter(|(_, is_public)| *is_public) {
            names.entry(name).or_default().push(file.path.clone());
        }
    }
    names.into_iter().filter(|(_, files)| files.len() > 1).collect()
}

fn banned_pronouns(file: &SourceFile) -> Vec<String> {
    let words = tokens(&file.comments).map(str::to_lowercase);
    words.filter(|word| BANNED_PRONOUNS.contains(&word.as_str())).collect()
}

/// The bold terms of a glossary in Markdown: `**a, b**` has two.
fn bold_terms(glossary: &str) -> Vec<String> {
    let bold = glossary.split("**").skip(1).step_by(2);
    bold.flat_map(|terms| terms.split(',')).map(|term| term.trim().to_lowercase()).collect()
}

/// Whether a term occurs in a text of small letters, as words or as an identifier.
fn occurs(term: &str, text: &str) -> bool {
    [term.to_owned(), term.replace(' ', "_"), term.replace(' ', "")].iter().any(|form| text.contains(form))
}

/// The glossary's terms that occur neither in `src/` nor in another document.
fn unused_terms(root: &Path) -> Vec<String> {
    let Ok(glossary) = fs::read_to_string(root.join("docs/GLOSSARY.md")) else {
        return vec!["the file is missing".to_owned()];
    };
    let mut paths = Vec::new();
    collect_files(&root.join("src"), "rs", &mut paths);
    collect_files(&root.join("docs"), "md", &mut paths);
    paths.retain(|path| !path.ends_with("docs/GLOSSARY.md"));
    let texts: Vec<String> =
        paths.into_iter().map(|path| fs::read_to_string(path).unwrap().to_lowercase()).collect();
    let is_unused = |term: &String| !texts.iter().any(|text| occurs(term, text));
    bold_terms(&glossary).into_iter().filter(is_unused).collect()
}

fn read_counts(list: &str) -> Counts {
    let mut counts = Counts::new();
    for line in list.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let columns: Vec<&str> = line.split(' ').collect();
        let [rule, subject, count] = columns[..] else {
            panic!("{REMAINING}: {line:?} has not three columns")
        };
        let before = counts.insert((rule.to_owned(), subject.to_owned()), count.parse().unwrap());
        assert!(before.is_none(), "{REMAINING}: {rule} {subject} is listed twice");
    }
    counts
}

fn write_counts(counts: &Counts) -> String {
    let mut list = String::from(
        "# What does not keep to a rule of tests/it/vocabulary.rs yet: rule, file or type, number of places.\n\
         # It may only shrink.\n",
    );
    for ((rule, subject), count) in counts {
        writeln!(list, "{rule} {subject} {count}").unwrap();
    }
    list
}

/// What is wrong with the found places, compared with the list; one message each.
fn compare(found: &BTreeMap<(String, String), Vec<String>>, listed: &Counts) -> Vec<String> {
    let mut messages = Vec::new();
    for (key @ (rule, subject), places) in found {
        let allowed = listed.get(key).copied().unwrap_or(0);
        if places.len() > allowed {
            let places = places.join(", ");
            messages.push(format!("{rule}: {subject} has more than {allowed}: {places}"));
        }
    }
    for (key @ (rule, subject), allowed) in listed {
        let count = found.get(key).map_or(0, Vec::len);
        if count < *allowed {
            messages.push(format!("{rule}: {subject} has {count}: lower its {allowed} in {REMAINING}"));
        }
    }
    messages
}

/// The list without what is not found any more.
fn lowered(found: &BTreeMap<(String, String), Vec<String>>, listed: Counts) -> Counts {
    let lower = |(key, allowed): ((String, String), usize)| {
        let count = found.get(&key).map_or(0, Vec::len).min(allowed);
        (count > 0).then_some((key, count))
    };
    listed.into_iter().filter_map(lower).collect()
}

/// Every place in the project that breaks a rule.
fn find_all(root: &Path) -> BTreeMap<(String, String), Vec<String>> {
    let mut found = BTreeMap::new();
    let mut add = |rule: &str, subject: &str, places: Vec<String>| {
        if !places.is_empty() {
            found.insert((rule.to_owned(), subject.to_owned()), places);
        }
    };
    let source = SourceFile::read_all(root, &["src"]);
    for file in &source {
        add("identifiers", &file.path, banned_identifiers(file));
    }
    // A program names the façade's types with their module: `session::Error`, `task::TaskStatus`.
    let (_, rooms): (Vec<SourceFile>, Vec<SourceFile>) =
        source.into_iter().partition(|file| file.path.starts_with("src/facade/"));
    for file in &rooms {
        add("generic-types", &file.path, generic_types(file));
    }
    for (name, files) in shared_names(&rooms) {
        add("shared-names", &name, files);
    }
    for file in SourceFile::read_all(root, &["src", "tests", "benches"]) {
        add("pronouns", &file.path, banned_pronouns(&file));
    }
    add("glossary", "docs/GLOSSARY.md", unused_terms(root));
    found
}

#[test]
fn every_word_is_of_the_glossary() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let list = root.join(REMAINING);
    let listed = read_counts(&fs::read_to_string(&list).unwrap());
    let found = find_all(root);
    if env::var_os("VOCABULARY_LOWER").is_some() {
        fs::write(&list, write_counts(&lowered(&found, listed.clone()))).unwrap();
        return;
    }
    let messages = compare(&found, &listed);
    assert!(messages.is_empty(), "the vocabulary is not kept:\n{}", messages.join("\n"));
}

#[test]
fn code_comments_and_literals_are_separated() {
    let text = "let a = \"// x \\\" y\"; // one \"two\"\nlet b = r#\"told\"#; /* three\nfour */ let c: &'a str = '\"'; '\\'';";
    let (code, comments) = split_comments(text);
    let words = |text: &str| tokens(text).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(&code), ["let", "a", "let", "b", "let", "c", "a", "str"]);
    assert_eq!(words(&comments), ["one", "two", "three", "four"]);
    assert_eq!((code.lines().count(), comments.lines().count()), (3, 3));
    assert_eq!(
        words(&split_comments("let r#type = br\"x\"; b'\\n'; for_r\"y\"").0),
        ["let", "r", "type", "b", "for_r"]
    );
}

#[test]
fn a_banned_word_is_found_in_identifiers_alone() {
    let places = |text: &str| banned_identifiers(&SourceFile::new("src/a.rs", text));
    assert_eq!(
        places("struct SeatTable { was_told: bool } fn count_seats() {}"),
        ["SeatTable", "was_told", "count_seats"]
    );
    assert_eq!(places("fn settled() {} const MACHINES: u8 = 1; mod news;"), ["settled", "MACHINES", "news"]);
    assert_eq!(places("// told\nlet x = \"seat\"; interface(surface, visitor, website, careful);"), [""; 0]);
    assert_eq!(places("map.peek(&key); socket.recv(MSG_PEEK); impl Visit for Fields {}"), [""; 0]);
    assert_eq!(identifier_words("SecFetchSite_of_TLS13"), ["sec", "fetch", "site", "of", "tls13"]);
}

#[test]
fn a_generic_name_of_a_visible_type_is_found() {
    let places = |text: &str| generic_types(&SourceFile::new("src/a.rs", text));
    assert_eq!(
        places("pub enum Error {}\n    pub(super) struct State;\npub(in crate::a) trait Kind {}"),
        ["Error", "State", "Kind"]
    );
    assert_eq!(places("pub type Outcome = u8;"), ["Outcome"]);
    assert_eq!(places("struct Inner;\npub struct TaskError;\npub fn Error() {}\n// pub enum Error"), [""; 0]);
}

#[test]
fn two_public_types_of_one_name_are_found() {
    let file = |path: &str, text: &str| SourceFile::new(path, text);
    let files = [
        file("src/a.rs", "pub struct Reply;\npub struct Other;\npub(super) struct Own;"),
        file("src/b.rs", "pub enum Reply {}\npub(super) struct Own;\nstruct Other;"),
    ];
    assert_eq!(
        shared_names(&files),
        [("Reply".to_owned(), vec!["src/a.rs".to_owned(), "src/b.rs".to_owned()])]
    );
}

#[test]
fn a_pronoun_is_found_in_comments_alone() {
    let places = |text: &str| banned_pronouns(&SourceFile::new("src/a.rs", text));
    assert_eq!(
        places("//! Nobody.\n/// He, and his.\nfn f() {} // somebody's\n/* him */"),
        ["nobody", "he", "his", "somebody", "him"]
    );
    assert_eq!(places("let he = \"nobody\"; // the other, this"), [""; 0]);
}

#[test]
fn a_term_that_nothing_uses_is_found() {
    let terms = bold_terms("| **spawn, ready** | with one **drain order** | x |\n| **fleet** |");
    assert_eq!(terms, ["spawn", "ready", "drain order", "fleet"]);
    assert!(occurs("drain order", "the drain order") && occurs("drain order", "enum drainorder"));
    assert!(occurs("drain order", "drain_order: u8") && !occurs("drain order", "drain the order"));
}

#[test]
fn the_list_may_only_shrink() {
    let key = |rule: &str, subject: &str| (rule.to_owned(), subject.to_owned());
    let listed = read_counts("# text\n\npronouns src/a.rs 2\nidentifiers src/b.rs 1\n");
    let places = |count: usize| vec!["x".to_owned(); count];
    let same = BTreeMap::from([
        (key("pronouns", "src/a.rs"), places(2)),
        (key("identifiers", "src/b.rs"), places(1)),
    ]);
    assert_eq!(compare(&same, &listed), [""; 0]);
    let more =
        BTreeMap::from([(key("pronouns", "src/a.rs"), places(3)), (key("pronouns", "src/c.rs"), places(1))]);
    let messages = compare(&more, &listed);
    assert_eq!(messages.len(), 3, "{messages:?}");
    assert!(messages[0].starts_with("pronouns: src/a.rs has more than 2"), "{messages:?}");
    assert!(messages[1].starts_with("pronouns: src/c.rs has more than 0"), "{messages:?}");
    assert!(messages[2].starts_with("identifiers: src/b.rs has 0: lower its 1"), "{messages:?}");
    let list = write_counts(&lowered(&more, listed));
    assert_eq!(
        list.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>(),
        ["pronouns src/a.rs 2"]
    );
}
