//! WebSockets of a program without a fleet and without Redis.

use axum::Router;
use axum::routing::any;
use regatta::ws::{Message, WebSocket, WebSocketUpgrade};

use crate::fast::standalone::program::Program;
use crate::support::sockets::{BINARY, Frame, WebSocketClient};

async fn give_back(mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        if socket.send(message).await.is_err() {
            return;
        }
    }
}

async fn greet(mut socket: WebSocket) {
    let protocol = socket.protocol().map_or("none", |protocol| protocol.to_str().unwrap()).to_owned();
    socket.send(Message::text(protocol)).await.unwrap();
}

fn routes() -> Router {
    let friendly = |upgrade: WebSocketUpgrade| async move {
        upgrade.allow_origins(["https://friend.test"]).on_upgrade(greet)
    };
    let versioned = |upgrade: WebSocketUpgrade| async move {
        upgrade.protocols(["chat.v2", "chat.v1"]).on_upgrade(greet)
    };
    let echo = |upgrade: WebSocketUpgrade| async move { upgrade.on_upgrade(give_back) };
    let large =
        |upgrade: WebSocketUpgrade| async move { upgrade.max_message_size(1 << 20).on_upgrade(give_back) };
    let refused = |_: WebSocketUpgrade| async { "no socket" };
    Router::new()
        .route("/friendly", any(friendly))
        .route("/versioned", any(versioned))
        .route("/echo", any(echo))
        .route("/large", any(large))
        .route("/refused", any(refused))
}

fn program() -> Program {
    Program::serve(async || routes())
}

#[test]
fn messages_come_back_and_the_bound_is_the_routes_own() {
    let program = program();
    let mut socket = WebSocketClient::handshake(program.address, "/large");
    let message = Frame::new(BINARY, vec![7; 1 << 20]);
    socket.send(&message).unwrap();
    assert!(socket.next().unwrap() == message);
    let mut socket = WebSocketClient::handshake(program.address, "/echo");
    socket.send(&message).unwrap();
    assert_eq!(socket.close_code(), Some(1009));
    let mut socket = WebSocketClient::handshake(program.address, "/echo");
    socket.send(&Frame::close(1000, "done")).unwrap();
    assert_eq!(socket.close_code(), Some(1000));
}

#[test]
fn pages_of_other_origins_are_refused_unless_the_route_allows_them() {
    let program = program();
    let open = |target: &str, origin: &str| {
        WebSocketClient::try_handshake(program.address, target, &[("Origin", origin)])
    };
    for (target, origin) in [("/echo", "http://localhost"), ("/friendly", "https://friend.test")] {
        assert!(open(target, origin).is_ok(), "{target} {origin}");
    }
    for (target, origin) in
        [("/echo", "https://friend.test"), ("/friendly", "https://evil.test"), ("/friendly", "null")]
    {
        open(target, origin).unwrap_err().assert_problem(403);
    }
}

#[test]
fn the_protocol_is_the_first_of_this_side_that_the_client_speaks() {
    let program = program();
    let offer = |offers: &[&str]| {
        let headers: Vec<_> = offers.iter().map(|offer| ("Sec-WebSocket-Protocol", *offer)).collect();
        let mut socket = WebSocketClient::try_handshake(program.address, "/versioned", &headers).unwrap();
        let answered = socket.response.header("Sec-WebSocket-Protocol").to_owned();
        (answered, socket.text())
    };
    assert_eq!(offer(&["chat.v1, chat.v2"]), ("chat.v2".into(), "chat.v2".into()));
    assert_eq!(offer(&["chat.v0", "chat.v1"]), ("chat.v1".into(), "chat.v1".into()));
    assert_eq!(offer(&["chat.v22", "CHAT.V1"]), (String::new(), "none".into()));
    assert_eq!(offer(&[]), (String::new(), "none".into()));
}

#[test]
fn a_request_that_is_no_handshake_and_a_handler_that_wants_none_open_none() {
    let program = program();
    program.get("/echo").assert_problem(426);
    let answer = WebSocketClient::try_handshake(program.address, "/refused", &[]).unwrap_err();
    assert_eq!(answer.status, 200);
}
