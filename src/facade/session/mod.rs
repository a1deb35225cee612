//! A visitor's session: its fields, who is logged in with it, its views, and tokens for its forms.
//!
//! ```no_run
//! use axum::Router;
//! use axum::response::Redirect;
//! use axum::routing::{get, post};
//! use regatta::session::{AuthSession, Error, RequireLogin, UserId};
//!
//! async fn login(mut session: AuthSession, name: String) -> Result<Redirect, Error> {
//!     session.login(&name).await?;
//!     Ok(Redirect::to("/me"))
//! }
//!
//! async fn me(UserId(name): UserId) -> String {
//!     format!("You are {name}\n")
//! }
//!
//! let members: Router = Router::new().route("/me", get(me)).layer(RequireLogin::redirect_to("/login"));
//! let app = members.route("/login", post(login));
//! # let _ = app;
//! ```

mod auth_session;
mod csrf_token;
pub(super) mod error;
mod page_view;
mod require_login;
mod session_fields;
mod user_id;

pub use auth_session::{ActiveSession, AuthSession};
pub use csrf_token::CsrfToken;
pub use error::Error;
pub use page_view::PageView;
pub use require_login::{RequireLogin, RequireLoginService};
pub use session_fields::SessionFields;
pub use tower_sessions::Session;
pub use user_id::UserId;
