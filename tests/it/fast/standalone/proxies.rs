//! Whose word counts for a client's address, in a plain axum program.

use axum::Router;
use axum::routing::get;
use regatta::rate_limit::{Quota, RateLimitLayer};
use regatta::{ClientIp, ForwardedHeader, TrustedProxies};

use crate::fast::standalone::program::{self, Program};
use crate::support::client::Request;
use crate::support::redis::TestRedis;

async fn client(ClientIp(address): ClientIp) -> String {
    address.to_string()
}

fn serve(proxies: Option<TrustedProxies>) -> Program {
    Program::serve(async move || {
        let app = Router::new().route("/", get(client));
        match proxies {
            Some(proxies) => app.layer(proxies),
            None => app,
        }
    })
}

fn seen(program: &Program, header: &str, value: &str) -> String {
    program.request(Request::get("/").header(header, value)).text()
}

#[test]
fn without_the_layer_no_header_is_believed() {
    let program = serve(None);
    assert_eq!(seen(&program, "X-Forwarded-For", "203.0.113.9"), "127.0.0.1");
    assert_eq!(seen(&program, "Forwarded", "for=203.0.113.9"), "127.0.0.1");
}

#[test]
fn only_what_the_nearest_trusted_proxy_adds_is_believed() {
    let program = serve(Some(TrustedProxies::loopback()));
    let seen = |value| seen(&program, "X-Forwarded-For", value);
    assert_eq!(seen("203.0.113.9"), "203.0.113.9");
    assert_eq!(seen("198.51.100.1, 203.0.113.9"), "203.0.113.9", "the left part is the client's own");
    assert_eq!(seen("203.0.113.9, 127.0.0.1"), "203.0.113.9");
    assert_eq!(seen("2001:db8::7"), "2001:db8::7");
    assert_eq!(seen("[2001:db8::7]:4711"), "2001:db8::7");
    assert_eq!(seen("garbage"), "127.0.0.1");
    let other = program.request(Request::get("/").header("Forwarded", "for=203.0.113.9")).text();
    assert_eq!(other, "127.0.0.1", "the other header means nothing");
}

#[test]
fn the_standard_header_is_read_where_it_is_named() {
    let proxies = TrustedProxies::loopback().header(ForwardedHeader::Forwarded);
    let program = serve(Some(proxies));
    assert_eq!(seen(&program, "Forwarded", "for=198.51.100.1, for=203.0.113.9"), "203.0.113.9");
    assert_eq!(seen(&program, "Forwarded", "for=\"[2001:db8::7]:80\";proto=https"), "2001:db8::7");
    assert_eq!(seen(&program, "X-Forwarded-For", "203.0.113.9"), "127.0.0.1");
}

#[test]
fn a_peer_outside_the_networks_is_not_believed() {
    let program = serve(Some(TrustedProxies::new(["10.0.0.0/8", "2001:db8::7"]).unwrap()));
    assert_eq!(seen(&program, "X-Forwarded-For", "203.0.113.9"), "127.0.0.1");
}

#[test]
fn limits_count_an_ipv6_network_as_one_client() {
    let server = TestRedis::start();
    let url = server.url();
    let program = Program::serve_on("[::1]:0", async move || {
        let redis = program::connect(url.expose(), "proxies").await.unwrap();
        let limit = RateLimitLayer::new(&redis, "site", Quota::per_minute(1).burst(2));
        Router::new().route("/", get(client)).layer(limit).layer(TrustedProxies::loopback())
    });
    let status = |from: &str| program.request(Request::get("/").header("X-Forwarded-For", from)).status;
    let one_subscriber = ["2001:db8:1:100::1", "2001:db8:1:1ff::2", "2001:db8:1:180::3"];
    assert_eq!(one_subscriber.map(status), [200, 200, 429]);
    assert_eq!(status("2001:db8:1:200::1"), 200);
    assert_eq!([status("::ffff:203.0.113.9"), status("203.0.113.9"), status("203.0.113.9")], [200, 200, 429]);
    assert_eq!(program.get("/").text(), "::1");
}
