//! One request's state in Redis: nothing until it is first used, then everything missing in one round trip.
//!
//! Guarantees that limits are decided once and before anything else of the request counts, that a view is counted at
//! most once, and that a rejection is recorded: whatever the handler makes of the error, the client gets the rejection.
//! It knows no route and no response.

mod begin;
pub(crate) mod cookie_identity;
mod counters;
mod fallback;
mod limits;
mod request_limits;
mod response_timeout;
mod session;
pub(crate) mod session_cookie;
pub(crate) mod session_store;
mod state;
mod view;

pub(crate) use state::{CountedView, RequestState, RequestStateInner, SessionFreshness, SessionOrigin};
