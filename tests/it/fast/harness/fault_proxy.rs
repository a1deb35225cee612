//! The fault proxy itself: each of its faults is what it says, and its counts are exact.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use regatta::__internals::config::settings::ScriptingMode;
use regatta::__internals::redis::RedisError;

use crate::support::fault_proxy::{FaultProxy, Faults, LinkState, ProxyUpstream};
use crate::support::redis::{TestRedis, eventually};
use crate::support::wait;

/// One plain connection through the proxy.
fn knock(proxy: &FaultProxy) -> TcpStream {
    let stream = TcpStream::connect(proxy.address()).unwrap();
    stream.set_read_timeout(Some(wait::LONG)).unwrap();
    stream
}

fn say(stream: &mut TcpStream, words: &str) {
    let words: Vec<_> = words.split(' ').collect();
    let mut command = format!("*{}\r\n", words.len());
    words.iter().for_each(|word| command += &format!("${}\r\n{word}\r\n", word.len()));
    stream.write_all(command.as_bytes()).unwrap();
}

/// So many bytes of replies.
fn hear(stream: &mut TcpStream, bytes: usize) -> String {
    let mut reply = vec![0; bytes];
    stream.read_exact(&mut reply).unwrap();
    String::from_utf8(reply).unwrap()
}

/// How the connection ends: what came before, and whether it was reset.
fn end(stream: &mut TcpStream) -> (String, bool) {
    let mut rest = Vec::new();
    let outcome = stream.read_to_end(&mut rest);
    let reset = outcome.is_err_and(|error| {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        true
    });
    (String::from_utf8(rest).unwrap(), reset)
}

fn is_silent(stream: &TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let silent = stream.peek(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
    stream.set_read_timeout(Some(wait::LONG)).unwrap();
    silent
}

#[test]
fn commands_and_turns_are_counted_by_name() {
    let server = TestRedis::start();
    let proxy = FaultProxy::before(&server);
    let mut stream = knock(&proxy);
    let (counts, ()) = proxy.during(|| {
        say(&mut stream, "SET k 1");
        assert_eq!(hear(&mut stream, 5), "+OK\r\n");
        // Two at once are one turn.
        stream.write_all(b"*2\r\n$3\r\nget\r\n$1\r\nk\r\n*2\r\n$4\r\nincr\r\n$1\r\nk\r\n").unwrap();
        assert_eq!(hear(&mut stream, 7 + 4), "$1\r\n1\r\n:2\r\n");
        say(&mut stream, "PING");
        assert_eq!(hear(&mut stream, 7), "+PONG\r\n");
    });
    assert_eq!((counts.rounds, counts.total()), (2, 3), "{counts}");
    assert_eq!((counts.of("GET"), counts.of("INCR"), counts.housekeeping["PING"]), (1, 1, 1), "{counts}");
    assert_eq!((counts.sent, counts.received), (29 + 20 + 21 - 2, 16), "{counts}");
}

#[tokio::test]
async fn function_calls_are_counted_by_the_functions_name_and_setting_up_is_housekeeping() {
    let server = TestRedis::start();
    for (mode, name) in [(ScriptingMode::Fcall, "regatta"), (ScriptingMode::Evalsha, "EVALSHA ")] {
        let proxy = FaultProxy::before(&server);
        let redis = proxy.connect(&server, "p", mode).await;
        assert_eq!((proxy.counts().total(), proxy.counts().rounds), (0, 0), "{:?}", proxy.counts());
        redis.begin(&regatta::__internals::request_state::begin::BeginRequest::default()).await.unwrap();
        let counts = proxy.counts();
        assert_eq!((counts.of(name), counts.total(), counts.rounds), (1, 1, 1), "{counts}");
    }
}

#[test]
fn a_link_that_is_down_refuses_and_is_up_again_at_the_same_address() {
    let server = TestRedis::start();
    let proxy = FaultProxy::before(&server);
    for _ in 0..3 {
        let mut stream = knock(&proxy);
        say(&mut stream, "PING");
        hear(&mut stream, 7);
        proxy.set_link(LinkState::Down);
        assert_eq!((end(&mut stream), proxy.open()), ((String::new(), false), 0));
        let refused = TcpStream::connect(proxy.address()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        proxy.set_link(LinkState::Open);
    }
    assert_eq!(proxy.accepted().len(), 3);
}

#[test]
fn a_reset_is_a_reset() {
    let server = TestRedis::start();
    let proxy = FaultProxy::before(&server);
    let mut stream = knock(&proxy);
    say(&mut stream, "PING");
    hear(&mut stream, 7);
    proxy.reset();
    assert!(end(&mut stream).1);
    say(&mut knock(&proxy), "PING");
    proxy.set_link(LinkState::Reset);
    assert!(end(&mut knock(&proxy)).1);
}

#[test]
fn a_black_hole_loses_everything_and_a_stalled_link_nothing() {
    let server = TestRedis::start();
    let proxy = FaultProxy::before(&server);
    let mut stream = knock(&proxy);
    say(&mut stream, "PING");
    hear(&mut stream, 7);
    proxy.set_link(LinkState::Stalled);
    say(&mut stream, "INCR k");
    assert!(is_silent(&stream));
    assert_eq!(server.cli(&["EXISTS", "k"]), "0");
    proxy.set_link(LinkState::Open);
    assert_eq!(hear(&mut stream, 4), ":1\r\n");

    proxy.set_link(LinkState::BlackHole);
    say(&mut stream, "INCR k");
    let mut fresh = knock(&proxy);
    say(&mut fresh, "INCR k");
    assert!(is_silent(&stream) && is_silent(&fresh));
    proxy.set_link(LinkState::Open);
    assert!(end(&mut stream).1 && end(&mut fresh).1);
    assert_eq!(server.cli(&["GET", "k"]), "1");
}

#[test]
fn replies_come_late_in_pieces_slowly_or_not_to_the_end() {
    let server = TestRedis::start();
    server.cli(&["SET", "k", &"v".repeat(1000)]);
    let proxy = FaultProxy::before(&server);
    let whole = format!("$1000\r\n{}\r\n", "v".repeat(1000));
    let get = |bytes, change: fn(&mut Faults)| {
        proxy.set_faults(|toxics| *toxics = Faults::NONE);
        proxy.set_faults(change);
        let mut stream = knock(&proxy);
        let begin = Instant::now();
        say(&mut stream, "GET k");
        let reply = hear(&mut stream, bytes);
        (reply, begin.elapsed(), stream)
    };
    let all = whole.len();
    assert_eq!(get(all, |_| ()).0, whole);
    let (reply, time, _) = get(all, |toxics| {
        (toxics.latency, toxics.jitter) = (Duration::from_millis(80), Duration::from_millis(40));
    });
    assert!(reply == whole && time >= Duration::from_millis(40), "{time:?}");
    assert_eq!(get(all, |toxics| toxics.slices = 10).0, whole);
    let (reply, time, _) = get(all, |toxics| toxics.bandwidth = 10_000);
    assert!(reply == whole && time >= Duration::from_millis(100), "{time:?}");
    let (reply, _, mut stream) = get(100, |toxics| toxics.limit_data = Some(100));
    assert_eq!((reply.as_str(), end(&mut stream).0.as_str()), (&whole[..100], ""));
}

#[test]
fn a_reply_is_lost_after_the_server_did_what_was_asked() {
    let server = TestRedis::start();
    let proxy = FaultProxy::before(&server);
    proxy.lose_replies("INCR", 2);
    for _ in 0..2 {
        let mut stream = knock(&proxy);
        say(&mut stream, "GET none");
        assert_eq!(hear(&mut stream, 5), "$-1\r\n");
        say(&mut stream, "INCR k");
        assert!(end(&mut stream).1);
    }
    let mut stream = knock(&proxy);
    say(&mut stream, "INCR k");
    assert_eq!((hear(&mut stream, 4), proxy.faults_injected()), (":3\r\n".to_owned(), 2));
}

#[test]
fn an_answer_in_the_servers_place_comes_in_its_turn() {
    let server = TestRedis::start();
    let proxy = FaultProxy::before(&server);
    proxy.answer("INCR", 2, "-LOADING not yet");
    let mut stream = knock(&proxy);
    stream.write_all(b"*2\r\n$3\r\nget\r\n$1\r\nk\r\n*2\r\n$4\r\nincr\r\n$1\r\nk\r\n").unwrap();
    assert_eq!(hear(&mut stream, 5 + 18), "$-1\r\n-LOADING not yet\r\n");
    proxy.clear_command_faults();
    say(&mut stream, "INCR k");
    assert_eq!(hear(&mut stream, 4), ":1\r\n");
}

#[test]
fn a_share_of_commands_is_reset_before_or_after_it_was_done() {
    let server = TestRedis::start();
    let proxy = FaultProxy::to(ProxyUpstream::Unix(server.socket()));
    proxy.set_faults(|toxics| toxics.resets = 1.0);
    for _ in 0..40 {
        let mut stream = knock(&proxy);
        say(&mut stream, "INCR k");
        assert!(end(&mut stream).1);
    }
    let done: u64 = server.cli(&["GET", "k"]).parse().unwrap();
    assert!((1..40).contains(&done) && proxy.faults_injected() == 40, "{done}");
}

#[test]
fn what_is_no_redis_passes_as_it_is() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = FaultProxy::to(ProxyUpstream::Tcp(listener.local_addr().unwrap()));
    let mut stream = knock(&proxy);
    let (mut server, _) = listener.accept().unwrap();
    for bytes in [b"\x16\x03\x01\x00*".as_slice(), b"\r\n\x00$x\r\n"] {
        let mut read = vec![0; bytes.len()];
        stream.write_all(bytes).unwrap();
        server.read_exact(&mut read).unwrap();
        assert_eq!(read, bytes);
        server.write_all(bytes).unwrap();
        stream.read_exact(&mut read).unwrap();
        assert_eq!(read, bytes);
    }
}

#[tokio::test]
async fn the_librarys_client_comes_back_after_each_of_them() {
    let server = TestRedis::start();
    let proxy = FaultProxy::before(&server);
    let redis = proxy.connect(&server, "p", ScriptingMode::Auto).await;
    for link in [LinkState::Down, LinkState::Reset, LinkState::BlackHole, LinkState::Stalled] {
        assert!(redis.increment("p:c:x", 1).await.is_ok());
        proxy.set_link(link);
        let answer = redis.increment("p:c:x", 1).await;
        assert!(
            matches!(
                answer,
                Err(RedisError::Unavailable { .. } | RedisError::ConnectionLost { .. } | RedisError::Timeout)
            ),
            "{link:?}: {answer:?}"
        );
        proxy.set_link(LinkState::Open);
        eventually("Redis is used again", async || redis.increment("p:c:x", 0).await.is_ok()).await;
    }
}
