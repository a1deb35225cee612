//! HTTP: what happens to a request between its connection and its handler, and to the response on its way back.
//!
//! Guarantees one order of everything (`service`), one map from errors to responses (`error`, `problem`), and that a
//! request costs no round trip unless it uses state, then one. It must not know how connections are accepted, which
//! processes there are, and how anything is encoded for Redis.

#[cfg(feature = "fleet")]
mod admin;
#[cfg(feature = "fleet")]
mod admin_hosts;
pub(crate) mod body;
mod body_pace;
#[cfg(feature = "fleet")]
pub mod checks;
pub mod csrf;
#[cfg(feature = "dashboard")]
mod dashboard;
mod drain_state;
pub mod error;
mod fleet_handle;
#[cfg(feature = "fleet")]
mod fleet_services;
pub mod header_names;
pub mod idempotency;
mod idempotency_key;
mod instance;
#[cfg(all(feature = "fleet", not(feature = "dashboard")))]
mod no_dashboard;
pub mod offload;
#[cfg(feature = "fleet")]
mod outer_layers;
mod prepared_rejection;
pub mod problem;
pub mod real_ip;
mod request_head;
mod request_id;
pub(crate) mod request_scope;
pub(crate) mod request_state;
pub mod request_timeout;
pub(crate) mod response;
pub mod same_origin;
pub mod security;
#[cfg(feature = "fleet")]
pub mod service;
pub(crate) mod services;
mod spawned_work;
pub mod standalone;
pub mod streams;
mod untrusted_proxy;
mod worker;

#[cfg(test)]
pub(crate) use admin::metrics::all_series;
pub use axum::Router;
pub use axum::body::Body;
#[cfg(feature = "dashboard")]
pub use dashboard::Dashboard;
pub use drain_state::{DrainState, Shutdown};
pub use error::RequestError;
pub use fleet_handle::FleetHandle;
#[cfg(feature = "fleet")]
pub use fleet_services::{admin_service, fleet_handle, public_service};
pub use instance::InstanceIdentity;
#[cfg(all(feature = "fleet", not(feature = "dashboard")))]
pub use no_dashboard::NoDashboard as Dashboard;
#[cfg(feature = "fleet")]
pub use outer_layers::OuterLayers;
pub use prepared_rejection::PreparedRejection;
pub(crate) use request_head::has_token;
#[cfg(feature = "fleet")]
pub use service::HttpService;
#[cfg(feature = "fleet")]
pub use service::response_future::ResponseFuture;
pub use services::app_services::AppServices;
pub use streams::event_stream::KeepAliveTrigger;
pub use worker::Worker;
