//! Commands that only print a table.

use crate::cli::exit;
use crate::cli::exit::print_line;
use crate::config::keys::SETTINGS;
use crate::supervisor::SIGNALS;

/// Lists the signals the supervisor takes.
pub(super) fn signals() -> u8 {
    for (signal, verb, what) in SIGNALS {
        print_line(format_args!("{:8} {verb:11} {what}", signal.as_str()));
    }
    exit::OK
}

/// Lists every setting.
pub(super) fn settings() -> u8 {
    for key in SETTINGS {
        let default = if key.default.is_empty() { "none" } else { key.default };
        print_line(format_args!(
            "{:24} {}\n{:24}   default {default}; {}",
            key.path, key.doc, "", key.allowed
        ));
    }
    exit::OK
}
