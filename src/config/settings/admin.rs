//! The operators' address, and the page on it.

use std::path::PathBuf;

use crate::config::setting::settings;
use crate::config::settings::reference_phrases::{ADDRESSES, FLAG};
use crate::config::value::address::ListenAddress;
use crate::config::value::secret::Secret;
use crate::config::value::{address, basic, secret};

settings! {
    /// The operators' listener (`/livez`, `/readyz`, `/metrics`, `/fleet.json`).
    #[derive(Debug, Clone)]
    struct AdminConfig {
        /// Operators' addresses.
        ///
        /// Operators' addresses: `/livez`, `/readyz`, `/metrics`, `/fleet.json`, `/fleet`; never expose them.
        listen: Vec<ListenAddress> = list(
            "admin.listen", address::addresses; "127.0.0.1:3001", ADDRESSES, Reload
        );
        /// Names under which the operators' address may be asked, beside IP addresses and localhost.
        ///
        /// Names under which the operators' addresses may be asked, beside IP addresses, `localhost` and the host's
        /// own name ([why](OPERATIONS.md#who-may-ask-the-operators-address)).
        allowed_hosts: Vec<String> = list(
            "admin.allowed_hosts", address::hosts;
            "", "names such as fleet.example.org or *.svc.cluster.local, separated by commas", Reload,
            formerly = &["admin.hosts", "dashboard.hosts"]
        );
    }

    /// Where the operators' page is shown, and to whom it offers its buttons.
    #[derive(Debug, Clone, PartialEq, Eq)]
    struct DashboardConfig {
        /// Visitors may open the operators' page, too.
        ///
        /// The [dashboard](OPERATIONS.md#the-dashboard) `/fleet` is served to visitors too, and not at the operators'
        /// address alone.
        public: bool = required("dashboard.public", basic::flag; "false", FLAG, Reload);
        /// What operators sign in with at their page; none: it has no buttons.
        ///
        /// What an operator signs in with to get the dashboard's buttons; none, here and in a file: it has none.
        token: Option<Secret> = optional(
            "dashboard.token", secret::dashboard_token; "", "a text of 16 to 1024 bytes", Reload,
            secret = true
        );
        /// The token, read whenever a worker starts.
        ///
        /// The token, instead of in the configuration; read whenever a worker starts, so a reload takes a new one.
        token_file: Option<PathBuf> = file("dashboard.token_file"; "", "a file", Reload);
    }
}
