//! Every form of `redis.url` with every kind of credential, and that nothing of them is printed.

use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> RedisAddress {
    RedisAddress::parse(text).unwrap_or_else(|reason| panic!("{text}: {reason}"))
}

fn peers(hosts: &[(&str, u16)]) -> Vec<HostPort> {
    hosts.iter().map(|(host, port)| HostPort { host: (*host).into(), port: *port }).collect()
}

fn login(user: &str, password: &str) -> RedisLogin {
    let filled = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    RedisLogin { user: filled(user), password: filled(password) }
}

/// Every form with these credentials before its first host, and with these options behind.
fn forms(pair: &str, options: &str) -> [String; 7] {
    let query = if options.is_empty() { String::new() } else { format!("?{options}") };
    [
        format!("redis://{pair}h:7/{query}"),
        format!("REDISS://{pair}[::1]{query}"),
        format!("unix://{pair}/run/redis.sock{query}"),
        format!("redis-sentinel://{pair}a,b:1/mymaster{query}"),
        format!("rediss-sentinel://{pair}a/?sentinelServiceName=m&{options}"),
        format!("redis-cluster://{pair}a:7000,b,[fd00::2]:7002{query}"),
        format!("rediss-cluster://{pair}a?node=b:1&{options}"),
    ]
}

#[test]
fn every_form_takes_the_same_credentials_decoded() {
    let cases = [
        ("u:p%40ss@", "", login("u", "p@ss")),
        (":p%40ss@", "", login("", "p@ss")),
        ("u:@", "", login("u", "")),
        ("u@", "", login("u", "")),
        (":@", "", login("", "")),
        ("", "", login("", "")),
        ("us%65r:a+b%2Bc=d@", "", login("user", "a+b+c=d")),
        (":p@ss@", "", login("", "p@ss")),
        (":a:b:c@", "", login("", "a:b:c")),
        (":%2F%3F%23%25%2C%5B@", "", login("", "/?#%,[")),
        (":p%C3%A4ss@", "", login("", "päss")),
        ("", "password=p%40ss&user=u", login("u", "p@ss")),
        ("", "username=u&pass=a+b", login("u", "a+b")),
        ("u@", "password=x@y", login("u", "x@y")),
        ("", "password=x@y?/", login("", "x@y?/")),
        (":same@", "password=same", login("", "same")),
        ("", "password=", login("", "")),
    ];
    for (pair, options, expected) in cases {
        for url in forms(pair, options) {
            assert_eq!(parse(&url).login, expected, "{url}");
            assert_eq!(RedisUrl::parse(&url).map(|url| url.expose().to_owned()), Ok(url));
        }
    }
}

#[test]
fn a_database_stands_in_the_path_or_in_an_option() {
    for url in [
        "redis://h/3",
        "redis://h/3/",
        "redis://h?db=3",
        "redis://h/?database=3",
        "redis://h/3?db=3",
        "redis://h/%33",
        "unix:///run/r.sock?db=3",
        "unix://u:p@/run/r.sock?db=3&password=p",
        "redis-sentinel://h/m/3",
        "redis-sentinel://h/m?db=3",
        "redis-sentinel://h/3?sentinelServiceName=m",
    ] {
        assert_eq!(parse(url).database, 3, "{url}");
    }
    assert_eq!(parse("redis-cluster://h/0?db=0").database, 0);
}

#[test]
fn one_server_has_a_host_a_port_and_a_database() {
    let place = parse("redis://h");
    assert_eq!(
        (&place.topology, place.database, place.tls),
        (&RedisTopology::Server(peers(&[("h", 6379)])[0].clone()), 0, false)
    );
    let place = parse("Rediss://us%65r:p%40ss@10.0.0.1:7/3");
    assert_eq!(place.topology, RedisTopology::Server(peers(&[("10.0.0.1", 7)])[0].clone()));
    assert_eq!((place.login, place.database, place.tls), (login("user", "p@ss"), 3, true));
    let hosts =
        [("[::1]:7", "::1"), ("[fe80::1%25eth0]:7", "fe80::1%eth0"), ("[FE80::1%eth0]:7", "fe80::1%eth0")];
    for (text, host) in hosts.into_iter().chain([("my_redis:7", "my_redis"), ("H.EXAMPLE:7", "h.example")]) {
        assert_eq!(
            parse(&format!("redis://:p@{text}/")).topology,
            RedisTopology::Server(peers(&[(host, 7)])[0].clone())
        );
    }
}

#[test]
fn sentinels_come_with_a_service_in_both_spellings() {
    let ours = parse("rediss-sentinel://u:p@a,b:1/mymaster/2");
    let sentinels = peers(&[("a", 26379), ("b", 1)]);
    let kind =
        RedisTopology::Sentinel { sentinels, service: "mymaster".into(), login: RedisLogin::default() };
    assert_eq!((&ours.topology, ours.database, ours.tls), (&kind, 2, true));
    let theirs = "redis-sentinel://u:p@a/2?sentinelServiceName=mymaster&node=b:1&sentinelPassword=x%20y+z&sentinelUsername=%C3%A4";
    let RedisAddress {
        topology: RedisTopology::Sentinel { sentinels, service, login: to_sentinels },
        database,
        ..
    } = parse(theirs)
    else {
        panic!("no sentinels")
    };
    assert_eq!((sentinels, service.as_str(), database), (peers(&[("a", 26379), ("b", 1)]), "mymaster", 2));
    assert_eq!(to_sentinels, login("ä", "x y+z"));
}

#[test]
fn a_list_has_its_credentials_once_or_the_same_ones_everywhere() {
    for url in [
        "redis-cluster://u:p@a:7000,b,[::1]:7002/0?node=b",
        "redis-cluster://u:p@a:7000,u:p@b,u:p@[::1]:7002",
        "redis-cluster://u:p@a:7000,b,u:p@[::1]:7002",
    ] {
        let place = parse(url);
        assert_eq!(
            place.topology,
            RedisTopology::Cluster(peers(&[("a", 7000), ("b", 6379), ("::1", 7002)])),
            "{url}"
        );
        assert_eq!(place.login, login("u", "p"), "{url}");
    }
    assert_eq!(
        parse("redis-cluster://:p,q@a,b").login,
        login("", "p,q"),
        "only one @: it cannot be anything else"
    );
    let error = RedisAddress::parse("redis-cluster://u:p@a,u:other@b").unwrap_err();
    assert!(
        error.contains("write them once") && error.contains("%2C") && !error.contains("other@"),
        "{error}"
    );
}

#[test]
fn sockets_carry_path_credentials_and_database() {
    assert_eq!(parse("unix:///tmp/r.sock").topology, RedisTopology::Unix("/tmp/r.sock".into()));
    let place = parse("unix://u:p@h/run/a%3Fb@c.sock?db=3");
    assert_eq!((place.topology, place.database), (RedisTopology::Unix("/run/a?b@c.sock".into()), 3));
    assert_eq!(place.login, login("u", "p"));
    use std::os::unix::ffi::OsStrExt;
    for path in ["/srv/a b/100%/x?y#z@/ä.sock".as_bytes(), b"/srv/\xff/r.sock", b"/srv/?db=1"] {
        let path = std::path::Path::new(std::ffi::OsStr::from_bytes(path));
        let place = parse(RedisUrl::from_socket_path(path).expose());
        assert_eq!((place.topology, place.login), (RedisTopology::Unix(path.into()), RedisLogin::default()));
    }
}

#[test]
fn mistakes_are_reported() {
    let cases = [
        ("h:6379", "scheme is missing"),
        ("http://h", "scheme http is unknown"),
        ("redis-foo://h", "scheme redis-foo is unknown"),
        ("redisunix:///x", "scheme redisunix is unknown"),
        ("redis://", "host is missing"),
        ("redis://:p@/", "host is missing"),
        ("redis://h/x", "database"),
        ("redis://h/300", "database"),
        ("redis://h?db=x", "database"),
        ("redis://h/1?db=2", "db is given twice"),
        ("redis://:a@h?password=b", "password is given twice"),
        ("redis://h?password=a&pass=b", "password is given twice"),
        ("redis://h:99999", "port of h"),
        ("redis://h:0", "port of h"),
        ("redis://h:", "port of h"),
        ("redis://a,b", "redis-sentinel:// or redis-cluster://"),
        ("redis://a b", "neither a name nor"),
        ("redis://::1:6379", "in brackets"),
        ("redis://[::1", "in brackets"),
        ("redis://[h]", "not an IPv6 address"),
        ("redis://[fe80::1%]", "not an IPv6 address"),
        ("redis://h?timeout=3", "none of username, user, password, pass, db, database;"),
        ("redis://h/0#x", "# as %23"),
        ("redis-sentinel://a:1", "service's name"),
        ("redis-sentinel://a:1/m/x", "database"),
        ("redis-cluster://a,,b", "host is missing"),
        ("redis-cluster://a?db=1", "no other database"),
        ("redis-sentinel://a/m?x=1", "node, sentinelServiceName"),
        ("redis-cluster://a/1", "no other database"),
        ("redis://%ff:p@h", "escape"),
        ("redis://:100%@h", "%25"),
        ("redis://:%4@h", "%25"),
        ("redis://:p#ss@h", "# as %23"),
        ("redis://:p/ss@h", "/ as %2F"),
        ("redis://:p?ss@h", "? as %3F"),
        ("redis://u:12?ss@h", "? as %3F"),
        ("redis://u:12/ss@h", "/ as %2F"),
        ("redis-cluster://:p/ss@h,i", "/ as %2F"),
        ("redis-sentinel://:p?ss@h/m", "? as %3F"),
        ("unix://:p/ss@/run/x", "/ as %2F"),
        ("unix://:p#ss@/run/x", "# as %23"),
        ("unix:///pass@/run/x", "/ as %2F"),
        ("unix://", "path is missing"),
        ("unix://relative/x.sock", "begin with /"),
        ("unix:///x?db=999", "database"),
        ("unix:///x?pasword=y", "none of username"),
        ("unix:///x%00y", "zero byte"),
    ];
    let long = format!("unix:///{}", "x".repeat(107));
    for (url, reason) in cases.into_iter().chain([(long.as_str(), "has 108 bytes")]) {
        let error = RedisAddress::parse(url).expect_err(url);
        assert!(error.contains(reason), "{url}: {error}");
    }
}

#[test]
fn an_address_prints_in_one_form_without_its_credentials() {
    let cases = [
        ("redis://user:hunter22@h", "redis://***@h:6379"),
        ("REDIS://h/4", "redis://h:6379/4"),
        ("rediss://hunter22@[::1]:7/?db=3", "rediss://***@[::1]:7/3"),
        ("redis://h?password=hunter22", "redis://***@h:6379"),
        ("unix://:hunter22@/run/r.sock?db=2", "unix://***@/run/r.sock?db=2"),
        ("redis-cluster://:hunter22@a,:hunter22@b", "redis-cluster://***@a:6379,b:6379"),
        (
            "redis-sentinel://:hunter22@h/m?sentinelPassword=hunter33&node=b",
            "redis-sentinel://***@h:26379,b:26379/m?sentinelPassword=***",
        ),
        ("redis://:hun#ter22@h", "redis://***"),
        ("hunter22", "***"),
        ("hunter22@h://x", "***"),
    ];
    for (url, shown) in cases {
        let url = RedisUrl(url.to_owned());
        assert_eq!((url.to_string(), format!("{url:?}")), (shown.to_owned(), format!("RedisUrl({shown})")));
    }
}

/// What an operator may have for a password, with a mark in it by which it is found again.
fn secret() -> impl Strategy<Value = String> {
    let part = "[a-z0-9@:/?#%,+&=;\\[\\] äµ]{0,4}";
    (part, part).prop_map(|(before, after)| format!("{before}Hunter22{after}"))
}

proptest! {
    #[test]
    fn a_secret_is_never_printed_wherever_it_stands(secret in secret(), form in 0..7_usize, place in 0..5_usize) {
        let url = match place {
            0 => forms(&format!(":{secret}@"), "")[form].clone(),
            1 => forms(&format!("{secret}@"), "")[form].clone(),
            2 => forms(&format!("u:1{secret}@"), "db=0")[form].clone(),
            3 => forms("", &format!("password={secret}"))[form].clone(),
            _ => forms("u:p@", &format!("sentinelPassword={secret}"))[form].clone(),
        };
        let mut printed = RedisUrl(url.clone()).to_string();
        match RedisAddress::parse(&url) {
            Ok(place) => printed += &format!("{place} {place:?}"),
            Err(reason) => printed += &reason,
        }
        prop_assert!(!printed.to_lowercase().contains("hunter22"), "{url}: {printed}");
    }

    #[test]
    fn what_is_escaped_is_read_as_it_was(secret in secret(), form in 0..7_usize, place in 0..3_usize) {
        let escaped = percent_encoding::utf8_percent_encode(&secret, percent_encoding::NON_ALPHANUMERIC);
        let url = match place {
            0 => forms(&format!(":{escaped}@"), "")[form].clone(),
            1 => forms(&format!("u:{escaped}@"), "")[form].clone(),
            _ => forms("", &format!("password={escaped}"))[form].clone(),
        };
        prop_assert_eq!(parse(&url).login.password, Some(secret));
    }
}

#[test]
fn a_password_that_looks_like_a_host_or_a_path_is_no_part_of_any_message() {
    for url in [
        "redis://:@Hunter22:/@h:7/",
        "unix://:@/Hunter22@/run/redis.sock",
        "redis-sentinel://@Hunter22,@a,b:1/mymaster",
    ] {
        let reason = RedisAddress::parse(url).unwrap_err();
        assert!(!reason.to_lowercase().contains("hunter22"), "{url}: {reason}");
    }
}

#[test]
fn passwords_never_print() {
    let url = RedisUrl::parse("redis://user:hunter22@h/0").unwrap();
    assert!(!format!("{url} {url:?}").contains("hunter22"));
}
