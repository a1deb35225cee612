//! Frames that no WebSocket may send, in the manner of the Autobahn test suite, and clients that are no good: each is
//! answered with the close code that says what it did wrong, and costs no one else anything.

use std::time::Duration;

use serde_json::json;

use crate::support::client::{Connection, Request};
use crate::support::fleet::TestFleet;
use crate::support::redis::TestRedis;
use crate::support::sockets::{BINARY, CLOSE, CONTINUATION, Frame, PING, PONG, TEXT, WebSocketClient};
use crate::support::stream::{Stream, connections, publish};
use crate::support::{stream, wait};

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// A fleet that takes as many messages as a test sends.
fn fleet(redis: &TestRedis) -> TestFleet {
    let plan = stream::plan(redis).workers(1).set("REGATTA_WEBSOCKET__MAX_MESSAGES_PER_SECOND", "1000");
    plan.set("REGATTA_WEBSOCKET__MAX_MESSAGE_SIZE", "64KiB")
        .set("REGATTA_BROADCAST__MAX_MESSAGE_SIZE", "64KiB")
        .start()
}

fn masked(frames: &[Frame]) -> Vec<u8> {
    frames.iter().flat_map(|frame| frame.bytes(Some(MASK))).collect()
}

/// The code with which these bytes are answered, in one piece and byte by byte.
#[track_caller]
fn closes(fleet: &TestFleet, bytes: &[u8], code: u16) {
    let shown: Vec<_> = bytes.iter().take(24).collect();
    let mut socket = WebSocketClient::open(fleet.listen, "/ws");
    socket.send_raw(bytes).unwrap();
    assert_eq!(socket.close_code(), Some(code), "{shown:x?}");
    if bytes.len() < 200 {
        let mut socket = WebSocketClient::open(fleet.listen, "/ws");
        for byte in bytes {
            // It may have been refused before the last byte.
            if socket.send_raw(&[*byte]).is_err() {
                break;
            }
        }
        assert_eq!(socket.close_code(), Some(code), "{shown:x?}, byte by byte");
    }
}

/// That this text arrives, however it is sent: short ones byte by byte.
#[track_caller]
fn arrives(socket: &mut WebSocketClient, text: &str, frames: &[Frame]) {
    let bytes = masked(frames);
    for piece in bytes.chunks(if bytes.len() < 400 { 1 } else { bytes.len() }) {
        socket.send_raw(piece).unwrap();
    }
    assert_eq!(socket.json()["message"], text, "{frames:?}");
}

fn said(text: &str) -> Vec<u8> {
    json!({ "message": text }).to_string().into_bytes()
}

#[test]
fn messages_may_come_in_any_number_of_frames_with_control_frames_between() {
    let redis = TestRedis::start();
    let fleet = fleet(&redis);
    let mut socket = WebSocketClient::open(fleet.listen, "/ws");
    for text in ["x", "κόσμε", "\u{10ffff}\u{1f6a3}", &"long ".repeat(5000)] {
        let whole = said(text);
        arrives(&mut socket, text, &[Frame::new(TEXT, whole.clone())]);
        // Every cut, also within a letter.
        let cuts: Vec<_> = if whole.len() < 60 { (0..=whole.len()).collect() } else { vec![1, 126, 4096] };
        for cut in cuts {
            let (left, right) = whole.split_at(cut);
            let frames = [Frame::new(TEXT, left).unfinished(), Frame::new(CONTINUATION, right)];
            arrives(&mut socket, text, &frames);
        }
        // Byte by byte, with empty frames and control frames between.
        let mut frames = vec![Frame::new(TEXT, "").unfinished()];
        for byte in whole.iter().take(200) {
            frames.push(Frame::new(CONTINUATION, [*byte]).unfinished());
            frames.push(Frame::new(PONG, "nobody asked"));
        }
        frames.push(Frame::new(CONTINUATION, whole.get(200..).unwrap_or_default()).unfinished());
        frames.push(Frame::new(CONTINUATION, ""));
        arrives(&mut socket, text, &frames);
    }
}

#[test]
fn pings_are_answered_with_what_they_carry() {
    let redis = TestRedis::start();
    let fleet = fleet(&redis);
    let mut socket = WebSocketClient::open(fleet.listen, "/ws");
    for payload in [&b""[..], b"hello", b"\x00\xff\xfe", &[b'x'; 125]] {
        socket.send(&Frame::ping(payload)).unwrap();
        let pong = socket.frame().unwrap();
        assert_eq!((pong.opcode, pong.payload.as_slice()), (PONG, payload));
    }
    // Of many at once the last one has to be answered (RFC 6455 §5.5.3).
    socket.send_raw(&masked(&[0, 1, 2, 3].map(|n| Frame::ping([n])))).unwrap();
    while socket.frame().unwrap().payload != [3] {}
    // In the midst of a message.
    let (left, right) = (&said("whole")[..5], &said("whole")[5..]);
    let frames = [Frame::new(TEXT, left).unfinished(), Frame::ping("now"), Frame::new(CONTINUATION, right)];
    socket.send_raw(&masked(&frames)).unwrap();
    let pong = socket.frame().unwrap();
    assert_eq!((pong.opcode, pong.payload.as_slice()), (PONG, &b"now"[..]));
    assert_eq!(socket.json()["message"], "whole");
}

#[test]
fn what_breaks_the_protocol_is_closed_with_1002() {
    let redis = TestRedis::start();
    let fleet = fleet(&redis);
    let text = || Frame::new(TEXT, said("x"));
    for bits in 1..=7 {
        closes(&fleet, &masked(&[text().reserved(bits)]), 1002);
        closes(&fleet, &masked(&[Frame::ping("").reserved(bits)]), 1002);
    }
    for opcode in (3..=7).chain(11..=15) {
        closes(&fleet, &masked(&[Frame::new(opcode, "")]), 1002);
        closes(&fleet, &masked(&[text(), Frame::new(opcode, "x"), Frame::ping("")]), 1002);
    }
    for opcode in [PING, PONG, CLOSE] {
        // Control frames are short and whole.
        closes(&fleet, &masked(&[Frame::new(opcode, [b'x'; 126])]), 1002);
        closes(&fleet, &masked(&[Frame::new(opcode, "").unfinished()]), 1002);
    }
    let half = || Frame::new(TEXT, "a").unfinished();
    closes(&fleet, &masked(&[Frame::new(CONTINUATION, "nothing to continue")]), 1002);
    closes(&fleet, &masked(&[Frame::new(CONTINUATION, "").unfinished()]), 1002);
    closes(&fleet, &masked(&[half(), text()]), 1002);
    closes(&fleet, &masked(&[half(), Frame::new(CONTINUATION, "b"), Frame::new(CONTINUATION, "c")]), 1002);
    // Clients have to mask.
    closes(&fleet, &text().bytes(None), 1002);
    closes(&fleet, &Frame::ping("").bytes(None), 1002);
    closes(&fleet, &[masked(&[half()]), Frame::new(CONTINUATION, "b").bytes(None)].concat(), 1002);
    // No HTTP any more.
    closes(&fleet, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 1002);
}

#[test]
fn what_is_not_utf8_is_closed_with_1007() {
    let redis = TestRedis::start();
    let fleet = fleet(&redis);
    let wrong: [&[u8]; 9] = [
        b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited", // a surrogate
        b"\xf4\x90\x80\x80",                                               // above U+10FFFF
        b"\xc0\xaf",                                                       // longer than needed
        b"\xe0\x80\xaf",
        b"\x80",        // begins in the middle
        b"\xff",        // never
        b"abc\xe2\x82", // cut off
        b"\xf8\x88\x80\x80\x80",
        b"{\"message\": \"\xff\"}",
    ];
    for bytes in wrong {
        closes(&fleet, &masked(&[Frame::new(TEXT, bytes)]), 1007);
        for cut in 1..bytes.len() {
            let (left, right) = bytes.split_at(cut);
            let frames =
                [Frame::new(TEXT, left).unfinished(), Frame::ping(""), Frame::new(CONTINUATION, right)];
            closes_either(&fleet, &masked(&frames));
        }
    }
    let reason = [&1000_u16.to_be_bytes()[..], b"\xce\xba\xff"].concat();
    closes(&fleet, &masked(&[Frame::new(CLOSE, reason)]), 1007);
}

/// As [`closes`] with 1007, where an answer to the ping may come first.
#[track_caller]
fn closes_either(fleet: &TestFleet, bytes: &[u8]) {
    let mut socket = WebSocketClient::open(fleet.listen, "/ws");
    socket.send_raw(bytes).unwrap();
    assert_eq!(socket.close_code(), Some(1007), "{bytes:x?}");
}

#[test]
fn what_is_too_large_is_closed_with_1009_before_it_has_come() {
    let redis = TestRedis::start();
    let fleet = fleet(&redis);
    // No one waits for the rest of these.
    for length in [64 * 1024 + 1, 1 << 20, 1 << 32, u64::MAX >> 1] {
        closes(&fleet, &Frame::text("").head(length, Some(MASK)), 1009);
    }
    let piece = Frame::new(CONTINUATION, vec![b'x'; 16 * 1024]).unfinished();
    let begin = Frame::new(TEXT, vec![b'x'; 16 * 1024]).unfinished();
    closes(&fleet, &masked(&[begin, piece.clone(), piece.clone(), piece.clone(), piece]), 1009);
    let mut socket = WebSocketClient::open(fleet.listen, "/ws");
    let text = "x".repeat(64 * 1024 - 14);
    assert_eq!(said(&text).len(), 64 * 1024);
    socket.send(&Frame::new(TEXT, said(&text))).unwrap();
    assert_eq!(socket.json()["message"], text, "just right");
}

#[test]
fn data_that_is_no_text_is_closed_with_1003() {
    let redis = TestRedis::start();
    let fleet = fleet(&redis);
    closes(&fleet, &masked(&[Frame::new(BINARY, [0, 1, 2])]), 1003);
    let parts = [Frame::new(BINARY, [0]).unfinished(), Frame::new(CONTINUATION, [1])];
    closes(&fleet, &masked(&parts), 1003);
}

#[test]
fn a_close_frame_is_answered_with_its_code_if_that_is_one() {
    let redis = TestRedis::start();
    let fleet = fleet(&redis);
    for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 3000, 3999, 4000, 4999] {
        closes(&fleet, &masked(&[Frame::close(code, "bye")]), code);
    }
    for code in [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535] {
        closes(&fleet, &masked(&[Frame::close(code, "")]), 1002);
    }
    closes(&fleet, &masked(&[Frame::close(1000, &"x".repeat(123))]), 1000);
    closes(&fleet, &masked(&[Frame::new(CLOSE, [3])]), 1002);
    let mut socket = WebSocketClient::open(fleet.listen, "/ws");
    socket.send(&Frame::new(CLOSE, "")).unwrap();
    assert_eq!(socket.closed().map(|frame| frame.payload), Some(Vec::new()), "no code, none in the answer");
    // What comes after a close frame is not heard.
    let mut listener = Stream::open(fleet.listen, "/events");
    closes(&fleet, &masked(&[Frame::close(1000, ""), Frame::new(TEXT, said("too late"))]), 1000);
    publish(fleet.listen, "news", "next");
    assert_eq!(listener.messages(1), ["next"]);
}

#[test]
fn frames_of_any_nonsense_end_one_connection_and_no_worker() {
    let redis = TestRedis::start();
    let fleet = fleet(&redis);
    let worker = fleet.workers();
    let mut good = WebSocketClient::open(fleet.listen, "/ws");
    for seed in 0..200_u64 {
        let mut socket = WebSocketClient::open(fleet.listen, "/ws");
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let noise = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        });
        let noise: Vec<u8> = noise.take(1 + seed as usize % 300).collect();
        // Half of them begin well.
        let begin =
            if seed % 2 == 0 { masked(&[Frame::new(TEXT, said("x")).unfinished()]) } else { Vec::new() };
        drop(socket.send_raw(&[begin, noise].concat()));
    }
    good.send(&Frame::new(TEXT, said("still here"))).unwrap();
    while good.json()["message"] != "still here" {}
    assert_eq!(fleet.workers(), worker, "the same worker");
    drop(good);
    wait::until("nobody is left", wait::LONG, || connections(&fleet) == 0);
}

#[test]
fn a_flood_of_empty_frames_costs_others_little() {
    let redis = TestRedis::start();
    let fleet = fleet(&redis);
    let mut flood = WebSocketClient::open(fleet.listen, "/ws");
    let mut good = WebSocketClient::open(fleet.listen, "/ws");
    let begin = masked(&[Frame::new(TEXT, "").unfinished()]);
    let pieces = masked(&vec![Frame::new(CONTINUATION, "").unfinished(); 10_000]);
    flood.send_raw(&begin).unwrap();
    let flooding = std::thread::spawn(move || {
        for _ in 0..200 {
            if flood.send_raw(&pieces).is_err() {
                break;
            }
        }
        flood
    });
    for n in 0..20 {
        good.send(&Frame::new(TEXT, said(&n.to_string()))).unwrap();
        assert_eq!(good.json()["message"], n.to_string());
        assert_eq!(fleet.get("/hello").status, 200);
    }
    drop(flooding.join().unwrap());
    wait::until("it is gone", wait::LONG, || connections(&fleet) == 1);
}

#[test]
fn a_client_that_takes_nothing_is_dropped_and_holds_up_nobody() {
    let redis = TestRedis::shared();
    let plan = stream::plan(&redis).workers(1).set("REGATTA_HTTP__KEEP_ALIVE_TIMEOUT", "2s");
    let fleet = plan.set("REGATTA_BROADCAST__MAX_MESSAGE_SIZE", "64KiB").start();
    let deaf = WebSocketClient::open(fleet.listen, "/ws");
    let mut stream = Stream::open(fleet.listen, "/events");
    let large = "x".repeat(60_000);
    wait::until("it is dropped", wait::LONG, || {
        publish(fleet.listen, "news", &large);
        assert_eq!(stream.messages(1), [large.as_str()]);
        connections(&fleet) == 1
    });
    drop(deaf);
}

#[test]
fn what_is_half_a_handshake_waits_no_longer_than_a_header() {
    let redis = TestRedis::shared();
    let fleet = stream::plan(&redis).workers(1).set("REGATTA_HTTP__HEADER_TIMEOUT", "500ms").start();
    let mut slow = Connection::open(fleet.listen).unwrap();
    slow.send(b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n").unwrap();
    assert!(slow.rest().is_ok());
    // What follows a handshake that is refused is no frame, and no second request in disguise.
    let mut smuggler = Connection::open(fleet.listen).unwrap();
    let request = Request::get("/ws").header("Connection", "Upgrade").header("Upgrade", "websocket");
    let request = request.header("Sec-WebSocket-Version", "99").header("Sec-WebSocket-Key", "x");
    smuggler.send(&[request.bytes(), masked(&[Frame::text("hello")])].concat()).unwrap();
    assert_eq!(smuggler.receive(false).unwrap().status, 426);
    smuggler.set_timeout(Duration::from_secs(5));
    let rest = String::from_utf8_lossy(&smuggler.rest().unwrap()).into_owned();
    assert!(rest.is_empty() || rest.starts_with("HTTP/1.1 400"), "{rest}");
}
