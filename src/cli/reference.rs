//! Commands that only print a table.

use crate::cli::exit_code;
use crate::cli::exit_code::print_line;
use crate::config::setting_info::SETTINGS;
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
    for key in SETTINGS {
        let default = if key.default.is_empty() { "none" } else { key.default };
        print_line(format_args!(
            "{:24} {}\n{:24}   default {default}; {}",
            key.path, key.doc, "", key.allowed
        ));
    }
    exit_code::OK
}
