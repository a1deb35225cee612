//! What a program gives its workers: the application, and what goes on beside it.
//!
//! Guarantees that a mistake while the application is built is a sentence and no panic, and that neither a hook nor
//! background work can hold up a worker beyond its deadline. The room must not know connections, processes or signals:
//! `worker` decides when something begins and ends.

mod app;
mod context;
mod factory;
mod into_app;
mod lifecycle;

pub use app::{App, AppParts};
pub use axum::BoxError;
pub use context::{Context, NoSettings};
pub use factory::{AppError, AppFactory};
pub use into_app::IntoApp;
pub use lifecycle::{Lifecycle, RunningApp};
