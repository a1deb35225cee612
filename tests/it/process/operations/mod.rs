//! What operators run and read: commands, logs, metrics, pages, nginx.

pub(crate) mod commands;
pub(crate) mod config_errors;
pub(crate) mod control_socket;
pub(crate) mod dashboard;
pub(crate) mod dashboard_browser;
pub(crate) mod instances;
pub(crate) mod logs;
pub(crate) mod metrics;
pub(crate) mod migrate;
pub(crate) mod nginx;
pub(crate) mod nginx_upstream;
pub(crate) mod status_and_top;
pub(crate) mod two_releases;
