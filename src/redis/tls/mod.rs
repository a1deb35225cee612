//! TLS to Redis, or where the program was built without it the refusal of an address that asks for it.

#[cfg(feature = "tls")]
mod client_config;
#[cfg(not(feature = "tls"))]
mod refusal;

#[cfg(feature = "tls")]
pub(super) use client_config::encrypt;
#[cfg(not(feature = "tls"))]
pub(super) use refusal::encrypt;
