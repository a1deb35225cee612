//! Who a client is, by the tables of RFC 7239 and of those who got it wrong before.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderValue};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use regatta::__internals::config::settings::{ForwardedHeader, ProxyConfig};
use regatta::__internals::http::real_ip;
use regatta::__internals::http::real_ip::{ClientInfo, ClientTransport};

/// The nearest proxy, which is trusted.
const PEER: &str = "127.0.0.1";

fn resolve(header: ForwardedHeader, peer: &str, values: &[&str]) -> ClientInfo {
    let trusted = ["127.0.0.0/8", "10.0.0.0/8", "192.168.0.0/16", "::1/128", "fd00::/8"];
    let trusted = trusted.iter().map(|net| net.parse().unwrap()).collect();
    let name = match header {
        ForwardedHeader::XForwardedFor => "x-forwarded-for",
        ForwardedHeader::Forwarded => "forwarded",
        _ => panic!("{header:?} is not tested"),
    };
    let mut headers = HeaderMap::new();
    for value in values {
        headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    real_ip::client_from_headers(
        SocketAddr::new(peer.parse().unwrap(), 9).into(),
        &headers,
        &ProxyConfig { trusted, header },
    )
}

#[track_caller]
fn is(header: ForwardedHeader, values: &[&str], expected: &str) {
    let client = resolve(header, PEER, values);
    assert_eq!(client.address, expected.parse::<IpAddr>().unwrap(), "{values:?}");
}

/// RFC 7239 §4, §6 and §7, each as the nearest proxy's word.
#[test]
fn the_examples_of_rfc_7239() {
    for (value, expected) in [
        ("for=\"_gazonk\"", PEER),
        ("For=\"[2001:db8:cafe::17]:4711\"", "2001:db8:cafe::17"),
        ("for=192.0.2.60;proto=http;by=203.0.113.43", "192.0.2.60"),
        ("for=192.0.2.43, for=198.51.100.17", "198.51.100.17"),
        ("for=192.0.2.43,for=\"[2001:db8:cafe::17]\",for=unknown", PEER),
        ("for=192.0.2.43, for=\"[2001:db8:cafe::17]\"", "2001:db8:cafe::17"),
        ("for=\"192.0.2.43:47011\"", "192.0.2.43"),
        ("for=\"[2001:db8:cafe::17]:47011\"", "2001:db8:cafe::17"),
        ("for=_hidden, for=_SEVKISEK", PEER),
        // A port may be hidden too (§6.3).
        ("for=\"192.0.2.43:_port\"", "192.0.2.43"),
        ("for=\"[2001:db8:cafe::17]:_port\"", "2001:db8:cafe::17"),
        ("proto=https;for=192.0.2.43;host=a.example", "192.0.2.43"),
        ("host=\"for=9.9.9.9\";for=192.0.2.43", "192.0.2.43"),
        ("FOR=192.0.2.43", "192.0.2.43"),
        ("by=203.0.113.43", PEER),
    ] {
        is(ForwardedHeader::Forwarded, &[value], expected);
    }
}

/// The forms of addresses that occur, with zones, ports, brackets, and IPv4 inside IPv6.
#[test]
fn addresses_in_all_their_forms() {
    for (node, expected) in [
        ("188.0.2.128", "188.0.2.128"),
        ("188.0.2.128:3838", "188.0.2.128"),
        ("2607:f8b0:4004:83f::18", "2607:f8b0:4004:83f::18"),
        ("[2607:f8b0:4004:83f::18]:3838", "2607:f8b0:4004:83f::18"),
        ("[2607:f8b0:4004:83f::18]", "2607:f8b0:4004:83f::18"),
        ("fe80::abcd%eth0", "fe80::abcd"),
        ("fe80::abcd%4", "fe80::abcd"),
        ("[fe80::abcd%eth0]", "fe80::abcd"),
        ("[fe80::abcd%25eth0]:4484", "fe80::abcd"),
        ("::ffff:188.0.2.128", "188.0.2.128"),
        ("::ffff:bc00:0280", "188.0.2.128"),
        ("[::ffff:188.0.2.128]:48483", "188.0.2.128"),
        ("0:0:0:0:0:ffff:bc00:0280", "188.0.2.128"),
        ("::ffff:188.0.2.128%zone", "188.0.2.128"),
        ("64:ff9b::188.0.2.128", "64:ff9b::188.0.2.128"),
        ("2002:bc00:280::1", "2002:bc00:280::1"),
        ("  188.0.2.128  ", "188.0.2.128"),
        // Trusted in whatever form it is written: the walk goes on, and ends with it.
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("[::1]:443", "::1"),
        // What is no address ends the walk at the hop that said it.
        ("0.0.0.0", PEER),
        ("::", PEER),
        ("188.0.2", PEER),
        ("188.0.2.128.1", PEER),
        ("0188.0.2.128", PEER),
        ("188.0.2.0x80", PEER),
        ("3154117248", PEER),
        ("188.0.2.256", PEER),
        ("1.1.1.1 2.2.2.2", PEER),
        ("%eth0", PEER),
        ("[::1", PEER),
        ("::1]", PEER),
        ("[188.0.2.128", PEER),
        ("2607:f8b0:4004:83f::200e:3838:1:2:3", PEER),
        ("bad ip", PEER),
        ("localhost", PEER),
        ("-", PEER),
        ("unknown", PEER),
    ] {
        is(ForwardedHeader::XForwardedFor, &["6.6.6.6", node], expected_or_left(node, expected));
        is(
            ForwardedHeader::Forwarded,
            &["for=6.6.6.6", &format!("for=\"{node}\"")],
            expected_or_left(node, expected),
        );
    }
}

/// Past a trusted hop the walk goes on to the entry to its left.
fn expected_or_left<'a>(node: &str, expected: &'a str) -> &'a str {
    if matches!(node, "::ffff:10.0.0.1" | "[::1]:443") { "6.6.6.6" } else { expected }
}

#[test]
fn lists_over_lines_and_what_clients_put_into_them() {
    for (values, expected) in [
        (&["1.1.1.1, 2.2.2.2, 192.168.1.1"][..], "2.2.2.2"),
        (&["1.1.1.1,2.2.2.2,192.168.1.1"], "2.2.2.2"),
        (&["1.1.1.1", "2.2.2.2, 192.168.1.1"], "2.2.2.2"),
        (&["1.1.1.1, 2.2.2.2", "192.168.1.1, 10.1.1.1"], "2.2.2.2"),
        (&["192.168.1.1, 10.1.1.1"], "192.168.1.1"),
        (&["2.2.2.2, , 192.168.1.1,"], "2.2.2.2"),
        (&[",,,"], PEER),
        (&["2.2.2.2, nope, 192.168.1.1"], "192.168.1.1"),
        (&["127.0.0.1, 2.2.2.2"], "2.2.2.2"),
        (&["for=1.1.1.1, 2.2.2.2"], "2.2.2.2"),
        (&["2.2.2.2, \"3.3.3.3\""], PEER),
        (&["2.2.2.2; 3.3.3.3"], PEER),
    ] {
        is(ForwardedHeader::XForwardedFor, values, expected);
    }
}

#[test]
fn a_subscribers_network_is_one_client_and_a_thousand_forged_ones_are_none() {
    let subjects = |nodes: &mut dyn Iterator<Item = String>| {
        let subject =
            |node: String| resolve(ForwardedHeader::XForwardedFor, PEER, &[&node]).limit_subject(64);
        nodes.map(subject).collect::<std::collections::BTreeSet<_>>()
    };
    let forged = subjects(&mut (0..1000u32).map(|i| format!("{}.7.8.9, 198.51.100.1", i % 200 + 11)));
    assert_eq!(forged.into_iter().collect::<Vec<_>>(), ["198.51.100.1"]);
    let network = subjects(
        &mut (0..1u32 << 12).map(|i| format!("2001:db8:1:2:{:x}:{:x}::{i:x}", i % 7, i << 4 & 0xffff)),
    );
    assert_eq!(network.into_iter().collect::<Vec<_>>(), ["2001:db8:1:2::/64"]);
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::V4(bits.into())),
        any::<u128>().prop_map(|bits| IpAddr::V6(bits.into()))
    ]
}

/// How an address may be written by an honest proxy.
fn written(address: IpAddr) -> impl Strategy<Value = String> {
    let forms = match address {
        IpAddr::V4(v4) => {
            vec![format!("{v4}"), format!("{v4}:80"), format!("::ffff:{v4}"), format!("[::ffff:{v4}]:80")]
        }
        IpAddr::V6(v6) => {
            vec![format!("{v6}"), format!("[{v6}]"), format!("[{v6}]:80"), format!("{v6}%eth0")]
        }
    };
    select(forms)
}

proptest! {
    #[test]
    fn who_the_nearest_trusted_hop_saw_is_the_client_whatever_stands_before(
        (address, node) in address().prop_flat_map(|address| (Just(address), written(address))),
        hops in vec(select(&["10.0.0.1", "::ffff:10.0.0.2", "[fd00::1]:1", "192.168.3.4"][..]), 0..4),
        before in vec("[ -~]{0,30}", 0..4),
    ) {
        let trusted: [ipnet::IpNet; 5] =
            ["127.0.0.0/8", "10.0.0.0/8", "192.168.0.0/16", "::1/128", "fd00::/8"].map(|net| net.parse().unwrap());
        let canonical = address.to_canonical();
        prop_assume!(!canonical.is_unspecified() && !trusted.iter().any(|net| net.contains(&canonical)));
        // What the client wrote is a line of its own, or on the same one.
        let mut values: Vec<&str> = before.iter().map(String::as_str).collect();
        let own = std::iter::once(node.as_str()).chain(hops.iter().copied()).collect::<Vec<_>>().join(", ");
        values.push(&own);
        prop_assert_eq!(resolve(ForwardedHeader::XForwardedFor, PEER, &values).address, canonical);
        let same_line = format!("{}, {own}", before.join(","));
        prop_assert_eq!(resolve(ForwardedHeader::XForwardedFor, PEER, &[&same_line]).address, canonical);
        let elements: Vec<_> = own.split(", ").map(|node| format!("for=\"{node}\"")).collect();
        let own = elements.join(", ");
        values.pop();
        values.push(&own);
        prop_assert_eq!(resolve(ForwardedHeader::Forwarded, PEER, &values).address, canonical);
    }

    #[test]
    fn a_stranger_is_believed_nothing(values in vec("[ -~]{0,40}", 0..4)) {
        let values: Vec<_> = values.iter().map(String::as_str).collect();
        for header in [ForwardedHeader::XForwardedFor, ForwardedHeader::Forwarded] {
            let client = resolve(header, "203.0.113.9", &values);
            let peer: IpAddr = "203.0.113.9".parse().unwrap();
            prop_assert_eq!((client.address, client.transport, client.proxied), (peer, ClientTransport::Plain, false));
        }
    }
}
