//! What is logged, and in which form.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::setting::settings;
use crate::config::settings::reference_phrases::DURATION;
use crate::config::value::choice::LogFormat;
use crate::config::value::{basic, choice};

settings! {
    /// What is logged, and in which form.
    #[derive(Debug, Clone)]
    struct LogConfig {
        /// Form of log lines.
        ///
        /// Auto: pretty on a terminal, JSON elsewhere.
        format: LogFormat = required(
            "log.format", choice::log_format; "auto", "auto, pretty or json", Upgrade
        );
        /// What is logged.
        ///
        /// For example `info,regatta=debug`.
        filter: String = required(
            "log.filter", |text| Ok(text.to_owned());
            "info", "tracing directives such as info or regatta=debug", Upgrade,
            variable = "RUST_LOG", formerly = &["log.level"]
        );
        /// Where lines go; none: standard error.
        ///
        /// Where lines go; none: standard error. SIGUSR1 to the supervisor has every process open it again, after a
        /// rotation has renamed it. Neither [holds a process up](OPERATIONS.md#logs--usr1); a FIFO may have no reader.
        file: Option<PathBuf> = file("log.file"; "", "a file", Upgrade);
        /// The supervisor logs totals and rates this often; 0s: never.
        ///
        /// The supervisor logs totals and rates this often; `0s`: never.
        stats_interval: Duration = required("log.stats_interval", basic::duration; "0s", DURATION, Reload);
    }
}
