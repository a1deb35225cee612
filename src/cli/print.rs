//! Commands that only print a table.
#![allow(clippy::print_stdout, reason = "printing is what these commands are for")]

use crate::cli::exit;
use crate::config::keys::KEYS;
use crate::supervisor::SIGNALS;

/// Lists the signals the supervisor takes.
pub(super) fn signals() -> u8 {
    for (signal, verb, what) in SIGNALS {
        println!("{:8} {verb:11} {what}", signal.as_str());
    }
    exit::OK
}

/// Lists every setting.
pub(super) fn settings() -> u8 {
    for key in KEYS {
        let default = if key.default.is_empty() { "none" } else { key.default };
        println!("{:24} {}\n{:24}   default {default}; {}", key.path, key.about, "", key.allowed);
    }
    exit::OK
}
