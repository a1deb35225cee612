//! A client of a real cluster, and what its requests ask.

use std::time::Duration;

use regatta::__internals::config::settings;
use regatta::__internals::config::settings::ScriptingMode;
use regatta::__internals::redis::begin::{LimitParameters, RateLimitCheck, SessionAccess, SessionQuery};
use regatta::__internals::redis::{RedisClient, RedisStatus, keys};

use crate::support::redis::{eventually, new_session};
use crate::support::redis_cluster::TestRedisCluster;

pub(crate) const DAY_MS: u64 = 86_400_000;

pub(crate) fn handle(cluster: &TestRedisCluster, mode: ScriptingMode) -> RedisClient {
    let url = url_of(&cluster.url());
    let settings = settings::RedisConfig {
        url: Some(url.clone()),
        prefix: "p".into(),
        scripting: mode,
        silence_timeout: Duration::from_millis(250),
        maxmemory: settings::MaxMemory::Auto,
        reconnect_wait: Duration::from_secs(2),
        credentials: settings::RedisCredentials::default(),
    };
    RedisClient::new(&settings, &url, "test").unwrap()
}

pub(crate) fn url_of(text: &str) -> settings::RedisUrl {
    let flags = vec![("redis.url".to_owned(), text.to_owned(), "test".to_owned())];
    let inputs = regatta::__internals::config::ConfigInputs { flags, ..Default::default() };
    regatta::__internals::config::load(&inputs).unwrap().redis.url.unwrap()
}

pub(crate) async fn connect(cluster: &TestRedisCluster, mode: ScriptingMode) -> RedisClient {
    let redis = handle(cluster, mode);
    redis.start();
    eventually("all nodes are connected", async || redis.status() == RedisStatus::Up).await;
    redis
}

pub(crate) fn session(digest: &str, create: bool) -> SessionQuery {
    SessionQuery {
        key: keys::session("p", digest),
        generation: None,
        // One that is made has its ticket's view.
        access: if create { SessionAccess::Read } else { SessionAccess::CountView },
        provisional: create.then(new_session),
        idle_ms: DAY_MS,
        absolute_ms: 30 * DAY_MS,
    }
}

/// So slow that a test never sees a request come back.
pub(crate) fn limit(subject: &str, burst: u64) -> RateLimitCheck {
    let interval_us = 3_600_000_000;
    RateLimitCheck {
        key: keys::limit("p", "slow", "v", subject),
        parameters: LimitParameters::Rate { interval_us, tolerance_us: interval_us * burst },
        shadow: false,
        cost: 1,
    }
}

pub(crate) const TOTAL: &str = "p:{c}:c:total";
