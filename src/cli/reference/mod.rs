//! What is printed from tables: the verbs `settings` and `signals`, and the generated pages of `docs/reference` (`pages`).

#[cfg(test)]
mod pages;

use crate::bootstrap::exit_code;
use crate::bootstrap::exit_code::print_line;
use crate::config::lookup;
use crate::supervisor::SIGNALS;

/// Lists the signals the supervisor takes.
pub(super) fn signals() -> u8 {
    for (signal, verb, what) in SIGNALS {
        print_line(format_args!("{:8} {verb:11} {what}", signal.as_str()));
    }
    exit_code::OK
}

/// Lists every setting.
pub(super) fn settings() -> u8 {
    for setting in lookup::by_section() {
        let default = if setting.default.is_empty() { "none" } else { setting.default };
        let (path, summary, allowed) = (setting.path, setting.summary(), setting.allowed);
        print_line(format_args!("{path:24} {summary}\n{:24}   default {default}; {allowed}", ""));
    }
    exit_code::OK
}
