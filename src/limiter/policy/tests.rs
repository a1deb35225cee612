//! Which policies a request falls under, and whom they count.

use super::*;
use crate::config::limits::Rate;

fn limit(per: SubjectKind, routes: &[&str]) -> LimitConfig {
    let rate = Rate { count: 10, period: Duration::from_secs(1) };
    let routes: Vec<_> = routes.iter().map(ToString::to_string).collect();
    LimitConfig {
        subject: per,
        kind: LimitKind::Rate { rate, burst: 20, prefetch: PrefetchMode::Auto },
        cost: 1,
        scope: match routes.is_empty() {
            true => LimitScope::State,
            false => LimitScope::Routes { paths: routes, when: LimitTiming::BeforeHandler },
        },
        methods: Vec::new(),
        enforcement: Enforcement::Enforced,
        on_redis_down: OnRedisDown::Local,
        on_redis_full: OnRedisFull::Open,
        client_factor: 10,
    }
}

fn prepared<const N: usize>(limits: [(&str, LimitConfig); N]) -> PolicyTable {
    PolicyTable::new(&limits.map(|(name, limit)| (name.to_owned(), limit)).into(), "p")
}

fn policies() -> PolicyTable {
    prepared([
        ("all", limit(SubjectKind::Client, &[])),
        ("api", limit(SubjectKind::Client, &["/api", "/api/slow"])),
        ("login", limit(SubjectKind::Session, &["/login"])),
        ("total", limit(SubjectKind::Global, &["/"])),
    ])
}

/// Policy and subject of each limit of a request.
fn subjects(set: &AppliedLimits, session: Option<&str>, user: Option<&str>) -> Vec<String> {
    let subject = LimitSubject { client: "10.0.0.1", session, user };
    let policy_and_subject = |arg: RateLimitCheck| {
        let parts: Vec<&str> = arg.key.splitn(5, ':').collect();
        format!("{} {}", parts[2], parts[4])
    };
    set.checks(0, &subject).into_iter().map(policy_and_subject).collect()
}

#[test]
fn a_path_falls_under_its_routes_and_under_policies_without_routes() {
    let of = |path: &str, session| subjects(&policies().select("GET", path, |_| None), session, None);
    assert_eq!(of("/api/slow/1", None), ["all 10.0.0.1", "api 10.0.0.1", "total *"]);
    assert_eq!(of("/apix", None), ["all 10.0.0.1", "total *"]);
    assert_eq!(of("/login", Some("digest")), ["all 10.0.0.1", "login digest", "total *"]);
    assert_eq!(of("/login", None), ["all 10.0.0.1", "login 10.0.0.1", "total *"]);
}

#[test]
fn users_and_headers_are_counted_where_there_are_some() {
    let policies = prepared([
        ("key", limit(SubjectKind::Header("x-api-key".into()), &[])),
        ("user", limit(SubjectKind::User, &[])),
    ]);
    let with_key = policies.select("GET", "/", |name| (name == "x-api-key").then_some(b"secret"));
    let tag = header_digest(b"secret");
    assert!(!tag.contains("secret") && !tag.contains(['.', ':']));
    let expected = [format!("key {tag}"), "key/client 10.0.0.1".into(), "user u-7".into()];
    assert_eq!(subjects(&with_key, Some("s"), Some("7")), expected);
    let without = policies.select("GET", "/", |_| None);
    assert_eq!(subjects(&without, Some("s"), None), ["key 10.0.0.1", "user s"]);
    assert_eq!(subjects(&without, None, None), ["key 10.0.0.1", "user 10.0.0.1"]);
}

#[test]
fn methods_and_switches_are_heeded() {
    let post = LimitConfig { methods: vec!["POST".into()], ..limit(SubjectKind::Client, &["/login"]) };
    let off = LimitConfig { enforcement: Enforcement::Disabled, ..limit(SubjectKind::Client, &[]) };
    let layer = LimitConfig { scope: LimitScope::Layer, ..limit(SubjectKind::Client, &[]) };
    let shadow = LimitConfig { enforcement: Enforcement::Shadow, ..limit(SubjectKind::Client, &[]) };
    let policies = prepared([("layer", layer), ("off", off), ("post", post), ("shadow", shadow)]);
    let get = policies.select("GET", "/login", |_| None);
    assert!(!get.names_path());
    assert_eq!(subjects(&get, None, None), ["shadow 10.0.0.1"]);
    assert!(get.checks(0, &LimitSubject::default())[0].shadow);
    let post = policies.select("POST", "/login", |_| None);
    assert!(post.names_path());
    assert_eq!(subjects(&post, None, None), ["post 10.0.0.1", "shadow 10.0.0.1"]);
    assert!(policies.find("off").is_none() && policies.find("layer").is_some());
    assert_eq!(policies.names().collect::<Vec<_>>(), ["layer", "post", "shadow"]);
}

#[test]
fn a_client_that_invents_header_values_falls_under_a_bound_of_its_own() {
    let policies = prepared([("key", limit(SubjectKind::Header("x-api-key".into()), &["/api"]))]);
    let kinds = |value: Option<&'static [u8]>| {
        let set = policies.select("GET", "/api", |_| value);
        set.checks(0, &LimitSubject { client: "c", ..LimitSubject::default() })
            .into_iter()
            .map(|arg| (arg.key, arg.parameters))
    };
    let (one, other) = (kinds(Some(b"one")).collect::<Vec<_>>(), kinds(Some(b"other")).collect::<Vec<_>>());
    assert_ne!(one[0], other[0]);
    assert_eq!(one[1], other[1]);
    assert_eq!(one[1].1, LimitParameters::Rate { interval_us: 10_000, tolerance_us: 2_000_000 });
    assert_eq!(kinds(None).count(), 1, "who has no such header has one bucket already");
    let trusting = LimitConfig { client_factor: 0, ..limit(SubjectKind::Header("x".into()), &[]) };
    assert_eq!(prepared([("key", trusting)]).select("GET", "/", |_| Some(b"v")).len(), 1);
    let layer = LimitConfig { scope: LimitScope::Layer, ..limit(SubjectKind::Header("x".into()), &[]) };
    let layered = prepared([("a", limit(SubjectKind::Client, &[])), ("key", layer)]);
    let mut set = layered.select("GET", "/", |_| Some(b"v"));
    set.add_policy(1, Some(3), 0);
    assert_eq!(subjects(&set, None, None).len(), 3);
    assert!(set.checks(0, &LimitSubject::default())[1..].iter().all(|arg| arg.cost == 3));
}

#[test]
fn a_policy_of_get_holds_for_head_and_none_is_walked_around_by_a_spelling() {
    let get = LimitConfig { methods: vec!["GET".into()], ..limit(SubjectKind::Client, &["/login"]) };
    let policies = prepared([("get", get)]);
    let key = |method: &str, path: &str| {
        let set = policies.select(method, path, |_| None);
        set.checks(0, &LimitSubject { client: "c", ..LimitSubject::default() })
            .into_iter()
            .map(|arg| arg.key)
            .next()
    };
    let plain = key("GET", "/login");
    assert!(plain.is_some());
    for path in ["/login", "/%6cogin", "//login", "/./login", "/x/../login", "/login/", "/login;a=b"] {
        assert!(["GET", "HEAD", "get"].iter().all(|method| key(method, path) == plain), "{path}");
        assert!(key("POST", path).is_none() && key("HEADS", path).is_none());
    }
    let head = LimitConfig { methods: vec!["HEAD".into()], ..limit(SubjectKind::Client, &["/"]) };
    assert!(prepared([("head", head)]).select("GET", "/", |_| None).is_empty());
}

#[test]
fn a_policy_without_routes_holds_everywhere_or_where_state_is_used() {
    let everywhere = LimitConfig { scope: LimitScope::Everywhere, ..limit(SubjectKind::Client, &[]) };
    assert!(prepared([("all", everywhere.clone())]).select("GET", "/x", |_| None).names_path());
    let post = LimitConfig { methods: vec!["POST".into()], ..everywhere };
    let policies = prepared([("post", post), ("state", limit(SubjectKind::Client, &[]))]);
    assert!(policies.select("POST", "/x", |_| None).names_path());
    let get = policies.select("GET", "/x", |_| None);
    assert!(!get.names_path() && get.len() == 1);
    let scope = LimitScope::Routes { paths: vec!["/x".into()], when: LimitTiming::WithState };
    let lazily = prepared([("lazily", LimitConfig { scope, ..limit(SubjectKind::Client, &[]) })]).select(
        "GET",
        "/x/y",
        |_| None,
    );
    assert!(!lazily.names_path() && lazily.len() == 1);
}

#[test]
fn a_changed_quota_has_other_keys_and_an_unchanged_one_has_those_of_every_release() {
    let key = |burst| {
        let rate = Rate { count: 10, period: Duration::from_secs(1) };
        let limit = LimitConfig {
            kind: LimitKind::Rate { rate, burst, prefetch: PrefetchMode::Auto },
            ..limit(SubjectKind::Client, &[])
        };
        prepared([("a", limit)]).find("a").unwrap().1.key("c")
    };
    assert_eq!(key(5), key(5));
    assert_ne!(key(5), key(6));
    // Workers of two releases count together while one replaces the other.
    assert_eq!(key(20), "p:l:a:N3CYCzbN:c");
}

#[test]
fn only_a_policy_with_a_matching_route_names_a_path() {
    let policies =
        prepared([("all", limit(SubjectKind::Client, &[])), ("api", limit(SubjectKind::Client, &["/api"]))]);
    assert!(policies.select("GET", "/api", |_| None).names_path());
    assert!(!policies.select("GET", "/", |_| None).names_path());
    assert!(!policies.select("GET", "/", |_| None).is_empty());
    assert!(PolicyTable::new(&BTreeMap::new(), "p").select("GET", "/", |_| None).is_empty());
}
