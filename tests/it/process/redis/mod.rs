//! Fleets whose Redis is away, slow, refusing, a cluster, behind Sentinel or TLS.

pub(crate) mod access;
pub(crate) mod clock_step;
pub(crate) mod cluster;
pub(crate) mod documented_keys;
pub(crate) mod function_reload;
pub(crate) mod not_redis;
pub(crate) mod notification_rights;
pub(crate) mod outages;
pub(crate) mod plain;
pub(crate) mod plain_limits;
pub(crate) mod redis_away;
pub(crate) mod round_trips;
pub(crate) mod sentinel;
pub(crate) mod short_absence;
pub(crate) mod tls;
pub(crate) mod unreliable_network;
pub(crate) mod wrong_clock;
