//! `docs/reference/commands.md`, from what clap knows of the command line.

use clap::{Arg, Command, CommandFactory};

use crate::cli::args::CommandLine;
use crate::cli::reference::pages::{compare_page, head, row};

/// As it is typed: `-w, --workers <N>`.
fn spelling(arg: &Arg) -> String {
    let names = arg.get_short().map(|short| format!("-{short}")).into_iter();
    let names: Vec<_> = names.chain(arg.get_long().map(|long| format!("--{long}"))).collect();
    let value = match arg.get_value_names() {
        _ if !arg.get_action().takes_values() => String::new(),
        Some(values) => values.join(" "),
        None => arg.get_id().as_str().to_uppercase(),
    };
    [names.join(", "), value].join(" ").trim().to_owned()
}

fn meaning(arg: &Arg) -> String {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let defaults = arg.get_default_values().iter().map(|value| value.to_string_lossy());
    let default = defaults.collect::<Vec<_>>().join(", ");
    // Every flag that takes no value is false without it.
    match default.is_empty() || !arg.get_action().takes_values() {
        true => help,
        false => format!("{help} [default: {default}]"),
    }
}

fn usage(name: &str, command: &Command) -> String {
    let args = command.get_arguments().filter(|arg| !arg.is_hide_set());
    let args = args.map(|arg| match (arg.is_positional(), arg.is_required_set()) {
        (true, true) => spelling(arg),
        _ => format!("[{}]", spelling(arg).split(", ").last().unwrap()),
    });
    let (flags, values): (Vec<_>, Vec<_>) = args.partition(|word| word.contains("--"));
    [vec![format!("regatta {name}")], values, flags].concat().join(" ")
}

fn table(command: &Command) -> String {
    let args = command.get_arguments().filter(|arg| !arg.is_hide_set());
    args.map(|arg| row(&[&format!("`{}`", spelling(arg)), &meaning(arg)])).collect()
}

fn section(name: &str, command: &Command, out: &mut String) {
    let own: Vec<_> = command.get_subcommands().filter(|command| !command.is_hide_set()).collect();
    for inner in &own {
        section(format!("{name} {}", inner.get_name()).trim(), inner, out);
    }
    if !own.is_empty() {
        return;
    }
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let (usage, table) = (usage(name, command), table(command));
    *out += &format!("### {name}\n\n{about}.\n\n```text\n{usage}\n```\n\n");
    if !table.is_empty() {
        *out += &format!("{}{table}\n", head(&["", ""]));
    }
}

#[test]
fn the_reference_of_commands_is_what_clap_knows() {
    let command = CommandLine::command();
    let mut sections = String::new();
    section("", &command, &mut sections);
    let flags = head(&["flag", ""])
        + &table(&command)
        + &row(&["`-h, --help`", "Print help; after a command, that command's"])
        + &row(&["`-V, --version`", "Print the version"]);
    compare_page("reference/commands.md", &[("flags", flags), ("commands", sections)]);
}
