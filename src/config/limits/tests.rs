//! What a policy may say, and what does not go together.

use std::path::PathBuf;

use super::*;
use crate::config::{ConfigFile, ConfigInputs, load};

fn policy(text: &str) -> Result<LimitConfig, String> {
    let text = format!("[limits.x]\n{text}");
    let content = ConfigFile::Contents { path: PathBuf::from("regatta.toml"), text, real: None };
    let inputs = ConfigInputs { content, ..ConfigInputs::default() };
    load(&inputs).map(|config| config.limits["x"].clone()).map_err(|error| error.to_string())
}

#[test]
fn rates_name_a_count_and_whole_seconds() {
    assert_eq!(rate("100/s").unwrap(), Rate { count: 100, period: Duration::from_secs(1) });
    assert_eq!(rate("5 / 10s").unwrap(), Rate { count: 5, period: Duration::from_secs(10) });
    for bad in ["100", "0/s", "/s", "1/0s", "1/500ms", "x/s", "1/s/s", "1/32d"] {
        assert!(rate(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_policy_has_a_subject_a_scope_and_a_rule_for_when_redis_is_away() {
    let plain = policy("rate = \"10/s\"").unwrap();
    assert_eq!(
        (&plain.subject, plain.cost, &plain.scope),
        (&SubjectKind::Client, 1, &LimitScope::Everywhere)
    );
    assert_eq!((plain.enforcement, plain.on_redis_down), (Enforcement::Enforced, OnRedisDown::Local));
    let full = policy(
        "per = \"header\"\nheader = \"X-API-Key\"\nrate = \"600/min\"\nburst = 200\ncost = 5\nprefetch = true\n\
         routes = [\"/api\"]\nmethods = \"post, put\"\nshadow = true\non_redis_down = \"closed\"",
    );
    let full = full.unwrap();
    assert_eq!(full.subject, SubjectKind::Header("x-api-key".into()));
    assert_eq!(
        (full.cost, full.enforcement, full.on_redis_down),
        (5, Enforcement::Shadow, OnRedisDown::Closed)
    );
    assert!(matches!(full.kind, LimitKind::Rate { burst: 200, prefetch: PrefetchMode::Always, .. }));
    assert_eq!((full.on_redis_full, full.client_factor), (OnRedisFull::Open, CLIENT_FACTOR));
    let api = LimitScope::Routes { paths: vec!["/api".into()], when: LimitTiming::BeforeHandler };
    assert_eq!((full.scope, full.methods.len()), (api, 2));
    let lazily = policy("rate = \"1/s\"\nroutes = [\"/api\", \"state\"]").unwrap().scope;
    assert_eq!(lazily, LimitScope::Routes { paths: vec!["/api".into()], when: LimitTiming::WithState });
    assert_eq!(policy("rate = \"1/s\"\nroutes = \"state\"").unwrap().scope, LimitScope::State);
    assert!(policy("rate = \"1/s\"\nmethods = \"M-SEARCH\"").is_ok());
    assert!(policy("rate = \"1/s\"\nmethods = \"G T\"").is_err());
    let places = policy("concurrency = 10\nroutes = \"layer\"\nenabled = false").unwrap();
    assert_eq!(places.kind, LimitKind::Concurrency { max: 10, lease: CONCURRENCY_LEASE });
    assert_eq!((places.scope, places.enforcement), (LimitScope::Layer, Enforcement::Disabled));
}

#[test]
fn what_does_not_go_together_is_named() {
    let wrong = [
        ("burst = 5", "limits.x.rate is missing"),
        ("rate = \"1/s\"\nconcurrency = 5", "two policies"),
        ("concurrency = 5\nburst = 5", "limits.x.burst"),
        ("concurrency = 5\nprefetch = true", "limits.x.prefetch"),
        ("rate = \"1/s\"\nconcurrency_lease = \"5s\"", "limits.x.concurrency_lease"),
        ("rate = \"1/s\"\nprefetch = true", "below 100"),
        ("rate = \"100/s\"\nprefetch = 1", "2 requests at least"),
        ("rate = \"1/s\"\nburst = 3\ncost = 4", "ever be allowed"),
        ("rate = \"1/s\"\nper = \"header\"", "limits.x.header is missing"),
        ("rate = \"1/s\"\nper = \"global\"\nheader = \"x\"", "limits.x.header"),
        ("rate = \"1/s\"\nroutes = \"login\"", "does not begin with /"),
        ("rate = \"1/s\"\nshadow = \"perhaps\"", "limits.x.shadow"),
        ("concurrency = 5\nconcurrency_lease = \"1h\"", "limits.x.concurrency_lease"),
    ];
    for (text, part) in wrong {
        let message = policy(text).unwrap_err();
        assert!(message.contains(part), "{text}: {message}");
    }
}
