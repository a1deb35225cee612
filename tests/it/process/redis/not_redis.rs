//! What answers where Redis should: each kind of it is told, so that the right setting is mended.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use crate::support::fleet::TestFleetBuilder;
use crate::support::redis_tcp::TestRedisTcp;
use crate::support::wait;

const UNAVAILABLE: i32 = 69;

/// A server at a port of its own that gives `answer` to what is sent, and closes the connection when there is none.
/// It ends with the test's process.
fn server(answer: fn(&[u8]) -> Option<&'static [u8]>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let (mut stream, mut sent) = (stream, [0; 4096]);
                while let Ok(len @ 1..) = stream.read(&mut sent) {
                    let Some(answer) = answer(&sent[..len]) else { return };
                    if stream.write_all(answer).is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

fn has(sent: &[u8], word: &str) -> bool {
    String::from_utf8_lossy(sent).to_uppercase().contains(word)
}

/// As twemproxy does: some commands are passed on, any other ends the connection.
fn proxy(sent: &[u8]) -> Option<&'static [u8]> {
    has(sent, "PING").then_some(b"+PONG\r\n")
}

#[track_caller]
fn told(url: &str, parts: &[&str]) {
    let (code, said) = TestFleetBuilder::new().set("REGATTA_REDIS__URL", url).args(&["check"]).run();
    assert_eq!(code, UNAVAILABLE, "{said}");
    for part in parts {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    assert!(!said.contains("hunter22") && !said.contains("did not answer in time"), "{said}");
}

#[test]
fn a_proxy_that_closes_after_a_command_is_told_with_that_command() {
    let port = server(proxy);
    told(&format!("redis://127.0.0.1:{port}"), &["after CLIENT ID", "twemproxy", "redis.url"]);
    // Another one, which knows what a connection begins with and no code.
    let port = server(|sent| {
        let known = [("PING", b"+PONG\r\n".as_slice()), ("CLIENT", b":1\r\n"), ("INFO", b"$0\r\n\r\n")];
        let known = known.into_iter().chain([("EVAL", b":1\r\n".as_slice())]);
        known.into_iter().find(|(word, _)| has(sent, word)).map(|(_, answer)| answer)
    });
    told(&format!("redis://127.0.0.1:{port}"), &["after FUNCTION LIST", "twemproxy"]);
    let port = server(|sent| has(sent, "AUTH").then_some(b"+OK\r\n".as_slice()).or_else(|| proxy(sent)));
    told(&format!("redis://:hunter22@127.0.0.1:{port}"), &["***@", "after CLIENT ID"]);
}

#[test]
fn other_protocols_are_told() {
    let web = server(|_| Some(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"));
    told(&format!("redis://127.0.0.1:{web}"), &["speaks HTTP"]);
    told(&format!("rediss://127.0.0.1:{web}"), &["rediss"]);
    let shell = server(|_| Some(b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n"));
    told(&format!("redis://127.0.0.1:{shell}"), &["does not speak Redis's protocol", "SSH-2.0"]);
    let tls = server(|_| Some(b"\x15\x03\x01\x00\x02\x02\x28"));
    told(&format!("redis://127.0.0.1:{tls}"), &["speaks TLS", "rediss"]);
    let closing = server(|_| None);
    told(&format!("redis://127.0.0.1:{closing}"), &["closes connections without an answer"]);
    told(&format!("rediss://127.0.0.1:{closing}"), &["tls handshake eof", "redis, not rediss"]);
    told(&format!("redis-sentinel://127.0.0.1:{closing}/m"), &["closes connections without an answer"]);
    let plain = TestRedisTcp::plain();
    told(&format!("rediss://127.0.0.1:{}", plain.port), &["TLS", "rediss"]);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    told(&format!("redis://127.0.0.1:{port}"), &["answers nothing"]);
    told(&format!("redis-sentinel://127.0.0.1:{web}/mymaster"), &["speaks HTTP"]);
    told(&format!("redis-cluster://127.0.0.1:{web}"), &["speaks HTTP"]);
}

#[test]
fn a_fleet_says_what_answers_instead_in_its_log_and_its_probe() {
    let port = server(proxy);
    let fleet =
        TestFleetBuilder::new().set("REGATTA_REDIS__URL", &format!("redis://127.0.0.1:{port}")).start();
    wait::until("the probe says why", wait::LONG, || {
        let probe = fleet.operator("/readyz");
        probe.status == 503 && probe.text().contains("after CLIENT ID")
    });
    assert!(fleet.log().contains("twemproxy"));
}
