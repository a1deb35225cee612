//! Pages of JSON documents, from the declarations and comments of the types that are serialised.

use std::collections::BTreeMap;

use crate::cli::reference::pages::{compare_page, head, row};

/// A field, or a value of an enumeration.
#[derive(Debug, Default, Clone)]
struct Member {
    name: String,
    kind: String,
    meaning: String,
    /// Fields of a request of the control socket.
    fields: Vec<Self>,
}

/// A `struct` or `enum` of the source.
#[derive(Debug, Default, Clone)]
struct Declaration {
    meaning: String,
    members: Vec<Member>,
}

/// What stands before a declaration.
#[derive(Debug, Default)]
struct Above {
    docs: Vec<String>,
    rename: Option<String>,
    /// `snake_case` or `lowercase`, for the members of the type that follows.
    rename_all: Option<String>,
    with: Option<String>,
    is_optional: bool,
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    text.split_once(start)?.1.split_once(end).map(|(inner, _)| inner)
}

impl Above {
    /// Whether the line belongs to what follows it.
    fn take(&mut self, line: &str) -> bool {
        if let Some(doc) = line.strip_prefix("///") {
            self.docs.push(doc.trim().to_owned());
        } else if line.starts_with("#[serde(") {
            self.rename = between(line, "rename = \"", "\"").map(str::to_owned).or(self.rename.take());
            self.rename_all =
                between(line, "rename_all = \"", "\"").map(str::to_owned).or(self.rename_all.take());
            self.with = between(line, "with = \"", "\"").map(str::to_owned).or(self.with.take());
            self.is_optional |= line.contains("skip_serializing_if");
        }
        line.starts_with("///") || line.starts_with('#')
    }

    /// The first paragraph, with links as code.
    fn meaning(&self) -> String {
        let paragraph: Vec<_> =
            self.docs.iter().take_while(|line| !line.is_empty()).map(String::as_str).collect();
        let text = paragraph.join(" ").replace("[`", "`").replace("`]", "`");
        // The comments speak of the field in memory; what JSON has instead is said by the type.
        let in_memory = [
            (", Unix milliseconds", ""),
            (", Unix time in milliseconds", ""),
            ("; RFC 3339 in JSON", ""),
            (", microseconds", ""),
            (", 0 to 100,", ""),
            (", 0 to 100", ""),
            ("Milliseconds since", "Time since"),
        ];
        in_memory.iter().fold(text, |text, (memory, json)| text.replace(memory, json))
    }
}

fn snake_case(name: &str) -> String {
    let mut out = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.extend(letter.to_lowercase());
    }
    out
}

/// The type as JSON has it.
fn json_type(rust: &str, above: &Above) -> String {
    let inner =
        |name: &str| rust.strip_prefix(name).and_then(|rest| rest.strip_prefix('<')?.strip_suffix('>'));
    let or_null = |text: String| match rust.starts_with("Option<") {
        true if above.is_optional => format!("{text}, or missing"),
        true => format!("{text}, or null"),
        false => text,
    };
    if let Some(with) = &above.with {
        let seconds = ["micros", "millis"].iter().any(|unit| with.contains(unit));
        return or_null(match with.as_str() {
            with if with.contains("rfc3339") => "RFC 3339".to_owned(),
            with if with.contains("percent") => "0 to 1".to_owned(),
            _ if seconds => "seconds".to_owned(),
            with => with.to_owned(),
        });
    }
    if let Some(inner) = inner("Option") {
        return or_null(json_type(inner, &Above::default()));
    }
    if let Some(inner) = inner("Vec") {
        return format!("list of {}", json_type(inner, &Above::default()));
    }
    match rust {
        "u16" | "u32" | "u64" | "usize" | "f64" | "u8" => "number".to_owned(),
        "bool" => "boolean".to_owned(),
        "String" | "PathBuf" | "Cow<'static, str>" => "text".to_owned(),
        "Value" | "Map<String, Value>" => "object".to_owned(),
        _ if rust.starts_with("BTreeMap") => "object of numbers".to_owned(),
        named => format!("`{named}`"),
    }
}

/// A field's line, `pub name: Type,`.
fn field(line: &str, above: &Above) -> Option<Member> {
    let (name, rust) = line.strip_prefix("pub ").unwrap_or(line).strip_suffix(',')?.split_once(": ")?;
    Some(Member {
        name: above.rename.clone().unwrap_or_else(|| name.to_owned()),
        kind: json_type(rust, above),
        meaning: above.meaning(),
        fields: Vec::new(),
    })
}

/// Every public type of a source file.
fn declarations(source: &str) -> BTreeMap<String, Declaration> {
    let mut found = BTreeMap::new();
    let mut lines = source.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).map(str::trim);
    let mut above = Above::default();
    while let Some(line) = lines.next() {
        if above.take(line) {
            continue;
        }
        let declared = line.strip_prefix("pub struct ").or(line.strip_prefix("pub enum "));
        let declared = declared.and_then(|rest| rest.strip_suffix(" {"));
        let outer = std::mem::take(&mut above);
        if let Some(name) = declared {
            let mut declaration = Declaration { meaning: outer.meaning(), members: Vec::new() };
            let is_enum = line.starts_with("pub enum");
            members(&mut lines, is_enum, outer.rename_all.as_deref(), &mut declaration.members);
            found.insert(name.to_owned(), declaration);
        }
    }
    found
}

/// The members up to the closing brace.
fn members<'a>(
    lines: &mut impl Iterator<Item = &'a str>,
    is_enum: bool,
    rename_all: Option<&str>,
    members: &mut Vec<Member>,
) {
    let mut above = Above::default();
    while let Some(line) = lines.next() {
        match line {
            "}" => return,
            "}," => above = Above::default(),
            _ if above.take(line) => {}
            _ if is_enum => {
                let name: String = line.chars().take_while(|letter| letter.is_alphanumeric()).collect();
                let name = match rename_all {
                    _ if above.rename.is_some() => above.rename.clone().unwrap_or_default(),
                    Some("snake_case") => snake_case(&name),
                    Some("lowercase") => name.to_lowercase(),
                    _ => name,
                };
                let mut member = Member { name, meaning: above.meaning(), ..Member::default() };
                if line.ends_with('{') {
                    inner_fields(lines, &mut member.fields);
                }
                member.kind =
                    between(line, "(", ")").map(|inner| json_type(inner, &above)).unwrap_or_default();
                members.push(member);
                above = Above::default();
            }
            _ => {
                members.extend(field(line, &above));
                above = Above::default();
            }
        }
    }
}

fn inner_fields<'a>(lines: &mut impl Iterator<Item = &'a str>, fields: &mut Vec<Member>) {
    let mut above = Above::default();
    for line in lines.take_while(|line| *line != "},") {
        if !above.take(line) {
            fields.extend(field(line, &above));
            above = Above::default();
        }
    }
}

/// A type, and after it every type that its fields name, each once.
fn document(types: &BTreeMap<String, Declaration>, name: &str, seen: &mut Vec<String>) -> String {
    let Some(declaration) = types.get(name).filter(|_| !seen.iter().any(|known| known == name)) else {
        return String::new();
    };
    seen.push(name.to_owned());
    let is_enum = declaration.members.iter().all(|member| member.kind.is_empty());
    let rows: String = declaration
        .members
        .iter()
        .map(|member| match is_enum {
            true => row(&[&format!("`{}`", member.name), &member.meaning]),
            false => row(&[&format!("`{}`", member.name), &member.kind, &member.meaning]),
        })
        .collect();
    let titles = if is_enum { head(&["value", ""]) } else { head(&["field", "type", ""]) };
    let own = format!("### {name}\n\n{}\n\n{titles}{rows}\n", declaration.meaning);
    let inner = declaration.members.iter().flat_map(|member| member.kind.split('`').skip(1).step_by(2));
    inner.fold(own, |text, inner| text + &document(types, inner, seen))
}

#[test]
fn the_reference_of_the_status_document_is_its_types() {
    let mut types = declarations(include_str!("../../../status/document.rs"));
    types.extend(declarations(include_str!("../../../breaker/mod.rs")));
    types.extend(declarations(include_str!("../../../scoreboard/slot_state.rs")));
    types.extend(declarations(include_str!("../../../scoreboard/cell_state.rs")));
    types.extend(declarations(include_str!("../../../scoreboard/exit_reason.rs")));
    let text = document(&types, "InstanceStatus", &mut Vec::new());
    assert!(
        text.matches("### ").count() > 8
            && text.contains("`hung`")
            && text.contains("`started_at` | RFC 3339")
    );
    compare_page("reference/status-document.md", &[("types", text)]);
}

#[test]
fn the_reference_of_the_control_protocol_is_its_types() {
    let mut types = declarations(include_str!("../../../control/protocol.rs"));
    types.extend(declarations(include_str!("../../../control/events.rs")));
    let requests = &types["ControlRequest"].members;
    assert!(requests.iter().any(|request| request.name == "scale" && request.fields.len() == 2));
    let mut table = head(&["`command`", "field", "type", ""]);
    for request in requests {
        table += &row(&[&format!("`{}`", request.name), "", "", &request.meaning]);
        for field in &request.fields {
            table += &row(&["", &format!("`{}`", field.name), &field.kind, &field.meaning]);
        }
    }
    let replies = document(&types, "ControlReply", &mut Vec::new());
    compare_page("reference/control-protocol.md", &[("requests", table), ("replies", replies)]);
}
