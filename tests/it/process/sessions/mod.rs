//! Sessions over the workers of a fleet: cookies, tickets, logins, merging.

pub(crate) mod auth;
pub(crate) mod cookies;
pub(crate) mod index;
pub(crate) mod merge;
pub(crate) mod pages;
pub(crate) mod provisional;
pub(crate) mod secrets_at_rest;
