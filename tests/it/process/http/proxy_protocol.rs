//! The PROXY protocol: `HAProxy` before a fleet, and those who speak it wrongly, or who may not speak it.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::support::client::{Failure, Request};
use crate::support::exposition::sum;
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::nginx::free_address;
use crate::support::redis::TestRedis;
use crate::support::{client, stand_in, wait};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const V1: &[u8] = b"PROXY TCP4 203.0.113.9 192.0.2.1 56324 443\r\n";

fn binary(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
    [SIGNATURE, &[command, family], &length, body].concat()
}

fn plan(redis: &TestRedis) -> TestFleetBuilder {
    TestFleetBuilder::on(redis).example("faulty").set("REGATTA_PROXY__PROTOCOL", "all")
}

fn client_seen(address: SocketAddr, forwarded: Option<&str>) -> Result<String, Failure> {
    let request = Request::get("/client");
    let request = forwarded.map_or(request.clone(), |value| request.header("X-Forwarded-For", value));
    client::once(address, request).map(|response| response.text())
}

fn closed(fleet: &TestFleet) -> f64 {
    let text = fleet.operator("/metrics").text();
    sum(&text, "regatta_connections_closed_total", &["reason=\"proxy_protocol\""])
}

#[test]
fn the_client_is_who_the_header_names() {
    let redis = TestRedis::shared();
    let fleet = plan(&redis).start();
    let seen =
        |header: &[u8], forwarded| client_seen(stand_in::begun(fleet.listen, header), forwarded).unwrap();
    assert_eq!(seen(V1, None), "203.0.113.9");
    // A client that is no proxy itself speaks for no other.
    assert_eq!(seen(V1, Some("198.51.100.7")), "203.0.113.9");
    let v4 = [203, 0, 113, 10, 192, 0, 2, 1, 0xdc, 4, 1, 0xbb];
    assert_eq!(seen(&binary(0x21, 0x11, &v4), None), "203.0.113.10");
    // A checksum and more that is of no use here.
    let tlvs = [&v4[..], &[3, 0, 4, 1, 2, 3, 4, 4, 0, 255], &[0; 255]].concat();
    assert_eq!(seen(&binary(0x21, 0x11, &tlvs), None), "203.0.113.10");
    // The proxy speaks for itself, and may name a client in HTTP.
    for own in [&b"PROXY UNKNOWN\r\n"[..], &binary(0x20, 0, &[]), &binary(0x21, 0x31, &[0; 216])] {
        assert_eq!(seen(own, None), "127.0.0.1");
        assert_eq!(seen(own, Some("203.0.113.11")), "203.0.113.11");
    }
    assert_eq!(fleet.operator("/readyz").status, 200, "operators speak plain HTTP");
    assert_eq!(closed(&fleet), 0.0);
}

#[test]
fn whatever_is_no_header_is_closed_and_counted() {
    let redis = TestRedis::shared();
    let fleet = plan(&redis).workers(1).start();
    let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(200));
    let wrong: [&[u8]; 6] = [
        b"GET /client HTTP/1.1\r\nHost: a\r\n\r\n",
        b"PROXY TCP4 203.0.113.9\r\n",
        long.as_bytes(),
        &binary(0x22, 0x11, &[0; 12]),
        &binary(0x21, 0x11, &[0; 5000]),
        &[0; 4096],
    ];
    for (nth, bytes) in wrong.iter().enumerate() {
        let mut stream = TcpStream::connect(fleet.listen).unwrap();
        let _ = stream.write_all(bytes);
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty(), "{nth}: {:?}", answer.escape_ascii().to_string());
        wait::until("it is counted", wait::LONG, || closed(&fleet) > nth as f64);
    }
    // Two headers are one too many.
    let twice = stand_in::begun(fleet.listen, &[V1, V1].concat());
    assert_ne!(client_seen(twice, None).unwrap_or_default(), "203.0.113.9");
    assert_eq!(client_seen(stand_in::begun(fleet.listen, V1), None).unwrap(), "203.0.113.9");
}

#[test]
fn half_a_header_has_the_time_of_a_requests_header() {
    let redis = TestRedis::shared();
    let fleet = plan(&redis).workers(1).set("REGATTA_HTTP__HEADER_TIMEOUT", "300ms").start();
    let mut half: Vec<_> = (0..200)
        .map(|nth: usize| {
            let mut stream = TcpStream::connect(fleet.listen).unwrap();
            stream.write_all(&V1[..nth % V1.len()]).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
            stream
        })
        .collect();
    assert_eq!(client_seen(stand_in::begun(fleet.listen, V1), None).unwrap(), "203.0.113.9");
    for stream in &mut half {
        let mut answer = Vec::new();
        let ended = stream.read_to_end(&mut answer);
        assert!(answer.is_empty(), "{answer:?}");
        assert!(ended.is_ok_and(|count| count == 0), "it is closed");
    }
}

#[test]
fn who_is_not_trusted_may_not_connect() {
    let redis = TestRedis::shared();
    let fleet = plan(&redis).set("REGATTA_PROXY__TRUSTED", "203.0.113.0/24").workers(1).start();
    for bytes in [V1, b"GET /client HTTP/1.1\r\nHost: a\r\n\r\n"] {
        let mut stream = TcpStream::connect(fleet.listen).unwrap();
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty(), "{answer:?}");
    }
    wait::until("both are counted", wait::LONG, || closed(&fleet) >= 2.0);
}

#[test]
fn one_address_may_speak_it_and_another_not() {
    let redis = TestRedis::shared();
    let plan = TestFleetBuilder::on(&redis).example("faulty");
    let socket = plan.folder().join("shop.sock");
    let unix = format!("unix:{}", socket.display());
    let listen = format!("127.0.0.1:0 {unix}");
    let fleet = plan.set("REGATTA_LISTEN", &listen).set("REGATTA_PROXY__PROTOCOL", &unix).start();
    assert_eq!(client_seen(fleet.listen, None).unwrap(), "127.0.0.1");
    assert_eq!(client_seen(stand_in::begun(stand_in::unix(&socket), V1), None).unwrap(), "203.0.113.9");
    assert!(client_seen(stand_in::unix(&socket), None).is_err());
    let unknown = TestFleetBuilder::new().set("REGATTA_PROXY__PROTOCOL", "unix:/run/other.sock");
    let (code, said) = unknown.run();
    assert!(code == 64 && said.contains("listen does not name unix:/run/other.sock"), "{code}: {said}");
}

/// `HAProxy` with one fleet behind it; its way to it is told by `server`.
struct HaProxy {
    _folder: TempDir,
    address: SocketAddr,
    process: Child,
}

impl HaProxy {
    fn before(server: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = free_address();
        let text = format!(
            "global\n    maxconn 200\ndefaults\n    mode tcp\n    timeout connect 5s\n    timeout client 30s\n\
             \x20   timeout server 30s\nfrontend front\n    bind {address}\n    default_backend fleet\n\
             backend fleet\n    server fleet {server}\n"
        );
        let file = folder.path().join("haproxy.cfg");
        fs::write(&file, text).unwrap();
        let program = if fs::exists("/usr/sbin/haproxy").unwrap() { "/usr/sbin/haproxy" } else { "haproxy" };
        let mut command = Command::new(program);
        command.arg("-db").arg("-f").arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().expect("HAProxy is installed by `make deps-test`");
        wait::until("HAProxy answers", wait::LONG, || TcpStream::connect(address).is_ok());
        Self { _folder: folder, address, process }
    }
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn haproxy_names_its_clients_in_both_versions() {
    let redis = TestRedis::shared();
    let plan = plan(&redis);
    let socket = plan.folder().join("shop.sock");
    let fleet = plan.set("REGATTA_LISTEN", &format!("127.0.0.1:0 unix:{}", socket.display())).start();
    let places = [fleet.listen.to_string(), format!("unix@{}", socket.display())];
    for place in &places {
        for version in ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c,unique-id"] {
            // Its health checks begin with LOCAL, or with its own address.
            let front = HaProxy::before(&format!("{place} {version} check inter 100ms"));
            let from = "127.0.0.77".parse().unwrap();
            let seen = || {
                let mut connection = client::Connection::open_from(from, front.address).ok()?;
                Some(connection.request(&Request::get("/client").header("Connection", "close")).ok()?.text())
            };
            let seen = wait::until_some("HAProxy has its server", wait::LONG, seen);
            assert_eq!(seen, "127.0.0.77", "{place} {version}");
        }
    }
    let without = HaProxy::before(&fleet.listen.to_string());
    assert!(client_seen(without.address, None).is_err(), "it must not be guessed");
    assert!(closed(&fleet) >= 1.0);
}
