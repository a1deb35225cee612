//! Sockets over a pipe: what a client does, right or wrong, and what its handler sees of it.

use axum::extract::ws::{CloseFrame, Message};
use futures_util::{Sink, SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::*;
use crate::http::drain_state::DrainState;
use crate::http::streams::on_drain::{OnDrain, until_leaving};
use crate::http::streams::websocket::error::SocketError;
use crate::http::streams::websocket::socket::websocket_config;

/// Longest message of a client here.
const MAX_MESSAGE: usize = 1024;

const LONG: Duration = Duration::from_secs(20);

type Received = Option<Result<Message, SocketError>>;

/// A socket whose handler passes on what it sees, and sends what it is told to.
struct Scene {
    client: WebSocketStream<DuplexStream>,
    received: mpsc::UnboundedReceiver<Received>,
    say: mpsc::UnboundedSender<Message>,
    sent: mpsc::UnboundedReceiver<Result<(), SocketError>>,
    drain: DrainState,
    held: JoinHandle<()>,
}

fn limits() -> PumpLimits {
    PumpLimits {
        keep_alive_interval: Duration::from_secs(15),
        pings_per_second: 20,
        send_timeout: Duration::from_millis(300),
        close_linger: Duration::from_millis(300),
        handler_close_linger: Duration::from_millis(300),
    }
}

/// Runs `talk` at one end of a pipe that holds so many bytes, and gives the other end.
async fn serve<F>(
    limits: PumpLimits,
    pipe: usize,
    drain: &DrainState,
    talk: impl FnOnce(WebSocket) -> F + Send + 'static,
) -> (DuplexStream, JoinHandle<()>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let (client, server) = duplex(pipe);
    let config = websocket_config(MAX_MESSAGE, usize::MAX);
    let stream = WebSocketStream::from_raw_socket(MeteredIo::new(server), Role::Server, Some(config)).await;
    let leaving = until_leaving(drain.clone(), OnDrain::Close);
    let held = tokio::spawn(async move { hold(stream, limits, None, leaving, talk).await });
    (client, held)
}

async fn as_client(io: DuplexStream) -> WebSocketStream<DuplexStream> {
    WebSocketStream::from_raw_socket(io, Role::Client, None).await
}

impl Scene {
    async fn open(limits: PumpLimits, pipe: usize) -> Self {
        let (seen, received) = mpsc::unbounded_channel();
        let (say, mut orders) = mpsc::unbounded_channel();
        let (outcomes, sent) = mpsc::unbounded_channel();
        let drain = DrainState::default();
        let (client, held) = serve(limits, pipe, &drain, |mut socket| async move {
            loop {
                tokio::select! {
                    item = socket.recv() => {
                        let ends = item.is_none();
                        let _ = seen.send(item);
                        if ends {
                            return;
                        }
                    }
                    order = orders.recv() => match order {
                        Some(message) => drop(outcomes.send(socket.send(message).await)),
                        None => return,
                    },
                }
            }
        })
        .await;
        Self { client: as_client(client).await, received, say, sent, drain, held }
    }

    async fn usual() -> Self {
        Self::open(limits(), 1 << 16).await
    }

    async fn received(&mut self) -> Received {
        timeout(LONG, self.received.recv()).await.unwrap().unwrap()
    }

    async fn text(&mut self) -> String {
        match self.received().await {
            Some(Ok(Message::Text(text))) => text.to_string(),
            other => panic!("{other:?} instead of a text"),
        }
    }

    /// The next message that is neither ping nor pong.
    async fn arrived(&mut self) -> Option<tungstenite::Message> {
        loop {
            match timeout(LONG, self.client.next()).await.unwrap()? {
                Ok(tungstenite::Message::Ping(_) | tungstenite::Message::Pong(_)) => {}
                Ok(message) => return Some(message),
                Err(_) => return None,
            }
        }
    }

    async fn close_code(&mut self) -> Option<u16> {
        match self.arrived().await {
            Some(tungstenite::Message::Close(frame)) => frame.map(|frame| frame.code.into()),
            other => panic!("{other:?} instead of a close frame"),
        }
    }

    async fn say(&mut self, text: &str) {
        self.client.send(tungstenite::Message::text(text)).await.unwrap();
    }

    /// The socket and its handler have ended.
    async fn ended(self) {
        drop((self.say, self.client));
        timeout(LONG, self.held).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn messages_of_each_kind_go_both_ways() {
    let mut scene = Scene::usual().await;
    scene.say("ahoy").await;
    assert_eq!(scene.text().await, "ahoy");
    scene.client.send(tungstenite::Message::binary(vec![0, 255])).await.unwrap();
    assert_eq!(scene.received().await, Some(Ok(Message::binary(vec![0, 255]))));
    scene.client.send(tungstenite::Message::Ping("p".into())).await.unwrap();
    assert_eq!(scene.received().await, Some(Ok(Message::Ping("p".into()))));
    assert!(matches!(scene.client.next().await, Some(Ok(tungstenite::Message::Pong(p))) if p == "p"));
    for message in [Message::text("κόσμε"), Message::binary(vec![7; 100_000])] {
        scene.say.send(message.clone()).unwrap();
        let arrived = scene.arrived().await.unwrap();
        assert_eq!(arrived.into_data(), message.into_data());
        assert_eq!(scene.sent.recv().await, Some(Ok(())));
    }
    scene.ended().await;
}

#[tokio::test]
async fn a_client_that_closes_is_answered_and_its_handler_sees_why() {
    let mut scene = Scene::usual().await;
    scene.say("last").await;
    let frame = CloseFrame { code: 4001, reason: "enough".into() };
    let close = tungstenite::protocol::CloseFrame { code: 4001.into(), reason: "enough".into() };
    scene.client.close(Some(close)).await.unwrap();
    assert_eq!(scene.text().await, "last");
    assert_eq!(scene.received().await, Some(Ok(Message::Close(Some(frame)))));
    assert_eq!(scene.received().await, None);
    assert_eq!(scene.close_code().await, Some(4001), "it is answered with its own code");
    assert_eq!(scene.arrived().await, None);
    scene.ended().await;
}

#[tokio::test]
async fn a_client_that_is_gone_without_closing_is_an_error_and_then_nothing() {
    let Scene { client, mut received, held, say: _say, .. } = Scene::usual().await;
    drop(client);
    assert_eq!(timeout(LONG, received.recv()).await.unwrap(), Some(Some(Err(SocketError::Disconnected))));
    assert_eq!(received.recv().await, Some(None));
    timeout(LONG, held).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_client_that_sends_no_more_but_reads_is_gone_too() {
    let drain = DrainState::default();
    let (seen, mut received) = mpsc::unbounded_channel();
    let (mut client, held) = serve(limits(), 4096, &drain, |mut socket| async move {
        seen.send(socket.recv().await).unwrap();
    })
    .await;
    client.shutdown().await.unwrap();
    assert_eq!(received.recv().await, Some(Some(Err(SocketError::Disconnected))));
    timeout(LONG, held).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_leaving_worker_closes_with_1012_and_takes_what_was_sent_before_the_answer() {
    let mut scene = Scene::usual().await;
    scene.say.send(Message::text("before")).unwrap();
    assert_eq!(scene.sent.recv().await, Some(Ok(())));
    scene.drain.start_drain();
    // Both cross the close frame on their way: the client has not read it.
    scene.say("one").await;
    scene.say("two").await;
    assert_eq!(scene.text().await, "one");
    assert_eq!(scene.text().await, "two");
    assert_eq!(scene.arrived().await, Some(tungstenite::Message::text("before")));
    assert_eq!(scene.close_code().await, Some(1012));
    assert_eq!(scene.arrived().await, None);
    assert_eq!(scene.received().await, None);
    scene.ended().await;
}

#[tokio::test]
async fn nothing_can_be_sent_once_the_worker_leaves() {
    let drain = DrainState::default();
    let (seen, mut outcome) = mpsc::unbounded_channel();
    let begun = drain.clone();
    let (client, held) = serve(limits(), 4096, &drain, |mut socket| async move {
        begun.start_drain();
        while socket.recv().await.is_some() {}
        seen.send(socket.send(Message::text("too late")).await).unwrap();
    })
    .await;
    let mut client = as_client(client).await;
    assert!(matches!(client.next().await, Some(Ok(tungstenite::Message::Close(_)))));
    assert!(client.next().await.is_none());
    assert_eq!(timeout(LONG, outcome.recv()).await.unwrap(), Some(Err(SocketError::Closed)));
    timeout(LONG, held).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_client_that_never_answers_the_close_frame_holds_up_nothing() {
    let drain = DrainState::default();
    let (mut client, held) =
        serve(limits(), 4096, &drain, |mut socket| async move { while socket.recv().await.is_some() {} })
            .await;
    drain.start_drain();
    let begin = Instant::now();
    let mut all = Vec::new();
    timeout(LONG, client.read_to_end(&mut all)).await.unwrap().unwrap();
    assert_eq!(all[..4], [0x88, 2 + LEAVING_LENGTH, 0x03, 0xf4]);
    assert!(begin.elapsed() >= limits().close_linger, "it had time to answer");
    timeout(LONG, held).await.unwrap().unwrap();
}

const LEAVING_LENGTH: u8 = crate::http::streams::websocket::socket::LEAVING.len() as u8;

#[tokio::test]
async fn a_handler_that_is_done_closes_its_socket_and_one_that_panics_says_so() {
    for (panics, code) in [(false, 1000), (true, 1011)] {
        let drain = DrainState::default();
        let (client, held) = serve(limits(), 4096, &drain, move |mut socket| async move {
            socket.send(Message::text("ahoy")).await.unwrap();
            assert!(!panics, "overboard");
        })
        .await;
        let mut client = as_client(client).await;
        assert_eq!(client.next().await.unwrap().unwrap(), tungstenite::Message::text("ahoy"));
        let Some(Ok(tungstenite::Message::Close(Some(frame)))) = client.next().await else {
            panic!("no close")
        };
        assert_eq!(u16::from(frame.code), code);
        assert!(client.next().await.is_none());
        timeout(LONG, held).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn closing_waits_for_the_answer_but_not_for_ever() {
    for answers in [true, false] {
        let drain = DrainState::default();
        let (seen, mut closed) = mpsc::unbounded_channel();
        let (client, held) = serve(limits(), 4096, &drain, move |socket| async move {
            let begin = Instant::now();
            socket.close(Some(CloseFrame { code: 4000, reason: "bye".into() })).await;
            seen.send(begin.elapsed()).unwrap();
        })
        .await;
        let mut client = as_client(client).await;
        if answers {
            let Some(Ok(tungstenite::Message::Close(Some(frame)))) = client.next().await else {
                panic!("no close")
            };
            assert_eq!((u16::from(frame.code), &*frame.reason), (4000, "bye"));
            assert!(client.next().await.is_none());
        }
        let took = timeout(LONG, closed.recv()).await.unwrap().unwrap();
        assert!(answers || took >= limits().handler_close_linger, "{took:?}");
        drop(client);
        timeout(LONG, held).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_close_frame_that_is_sent_as_a_message_closes_and_what_still_comes_is_received() {
    let mut scene = Scene::usual().await;
    scene.say.send(Message::Close(None)).unwrap();
    assert_eq!(scene.sent.recv().await, Some(Ok(())));
    scene.say.send(Message::text("too late")).unwrap();
    assert_eq!(scene.sent.recv().await, Some(Err(SocketError::Closed)));
    scene.say("crossing").await;
    assert_eq!(scene.text().await, "crossing");
    assert_eq!(scene.close_code().await, None);
    assert_eq!(scene.arrived().await, None);
    assert_eq!(scene.received().await, None);
    scene.ended().await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_cut_and_one_that_reads_slowly_is_not() {
    let mut scene = Scene::open(limits(), 1024).await;
    scene.say.send(Message::binary(vec![7; 100_000])).unwrap();
    let begin = Instant::now();
    // A piece of it within each time that is allowed, and all of it in several of them.
    let io = scene.client.get_mut();
    let mut read = 0;
    while read < 100_000 {
        let mut piece = [0; 4096];
        read += timeout(LONG, io.read(&mut piece)).await.unwrap().unwrap();
        sleep(limits().send_timeout / 20).await;
    }
    assert!(begin.elapsed() > limits().send_timeout, "{:?}", begin.elapsed());
    assert_eq!(timeout(LONG, scene.sent.recv()).await.unwrap(), Some(Ok(())));
    scene.say.send(Message::binary(vec![7; 100_000])).unwrap();
    assert_eq!(timeout(LONG, scene.sent.recv()).await.unwrap(), Some(Err(SocketError::Closed)));
    assert_eq!(scene.received().await, Some(Err(SocketError::TooSlow)));
    assert_eq!(scene.received().await, None);
    scene.ended().await;
}

#[tokio::test]
async fn a_handler_that_reads_nothing_holds_up_its_client_and_keeps_one_message() {
    let drain = DrainState::default();
    let (go, wait) = oneshot::channel::<()>();
    let (seen, mut received) = mpsc::unbounded_channel();
    let quick = PumpLimits { keep_alive_interval: Duration::from_millis(50), ..limits() };
    let (client, held) = serve(quick, 4096, &drain, |mut socket| async move {
        wait.await.unwrap();
        while let Some(Ok(message)) = socket.recv().await {
            if matches!(message, Message::Text(_)) {
                seen.send(message).unwrap();
            }
        }
    })
    .await;
    let mut client = as_client(client).await;
    let text = "x".repeat(1000);
    let mut sent = 0;
    while timeout(Duration::from_millis(300), client.send(tungstenite::Message::text(text.as_str())))
        .await
        .is_ok()
    {
        sent += 1;
        assert!(sent < 100, "the client is not held up");
    }
    // Many intervals have gone by in which no pong was read, and it was not taken for gone.
    sleep(quick.keep_alive_interval * 10).await;
    go.send(()).unwrap();
    let mut came = 0;
    while came < sent {
        tokio::select! {
            message = received.recv() => came += usize::from(message.is_some()),
            _ = client.next() => {}
        }
    }
    drop(client);
    timeout(LONG, held).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_client_that_answers_no_ping_is_closed_and_one_that_does_is_kept() {
    let quick = PumpLimits { keep_alive_interval: Duration::from_millis(100), ..limits() };
    let mut scene = Scene::open(quick, 4096).await;
    // Reading is answering.
    let silent = timeout(quick.keep_alive_interval * 8, scene.client.next());
    assert!(matches!(silent.await, Ok(Some(Ok(tungstenite::Message::Ping(_))))));
    for _ in 0..6 {
        assert!(matches!(scene.client.next().await, Some(Ok(tungstenite::Message::Ping(_)))));
    }
    assert!(scene.received.try_recv().is_err(), "answers to its pings are not the handler's");
    assert_eq!(scene.received().await, Some(Err(SocketError::NoPong)));
    assert_eq!(scene.received().await, None);
    // As bytes: a client that answered the last ping now would find no one.
    let mut rest = Vec::new();
    timeout(LONG, scene.client.get_mut().read_to_end(&mut rest)).await.unwrap().unwrap();
    assert!(rest.windows(2).any(|code| code == 1008_u16.to_be_bytes()), "{rest:x?}");
    scene.ended().await;
}

#[tokio::test]
async fn a_flood_of_pings_is_closed_with_1008() {
    let mut scene = Scene::open(PumpLimits { pings_per_second: 2, ..limits() }, 1 << 16).await;
    let begin = Instant::now();
    loop {
        assert!(begin.elapsed() < LONG, "it is not closed");
        if scene.client.send(tungstenite::Message::Ping("flood".into())).await.is_err() {
            break;
        }
        if let Ok(Some(Ok(tungstenite::Message::Close(frame)))) =
            timeout(Duration::from_millis(5), scene.client.next()).await
        {
            assert_eq!(frame.map(|frame| frame.code.into()), Some(1008_u16));
            break;
        }
    }
    let mut pings = 0;
    loop {
        match scene.received().await {
            Some(Ok(Message::Ping(_))) => pings += 1,
            Some(Err(error)) => break assert_eq!(error, SocketError::TooManyPings),
            other => panic!("{other:?}"),
        }
    }
    assert!((2..20).contains(&pings), "{pings} came through");
    scene.ended().await;
}

/// Bytes of a client that break a rule, the error of its handler, and the close code.
#[tokio::test]
async fn each_violation_has_its_error_and_its_close_code() {
    const MASK: [u8; 4] = [0, 0, 0, 0];
    let frame = |first: u8, payload: &[u8]| {
        let mut bytes = vec![first, 0x80 | payload.len() as u8];
        bytes.extend(MASK);
        bytes.extend(payload);
        bytes
    };
    let large = [&[0x81, 0xfe, 0x04, 0x01][..], &MASK, &[b'x'; MAX_MESSAGE + 1]].concat();
    let fragments: Vec<u8> = (0..12).flat_map(|n| frame(u8::from(n == 0), &[b'x'; 100])).collect();
    let cases = [
        ("not masked", vec![0x81, 1, b'x'], SocketError::Protocol, 1002),
        ("a reserved bit", frame(0xc1, b"x"), SocketError::Protocol, 1002),
        ("a reserved opcode", frame(0x83, b"x"), SocketError::Protocol, 1002),
        ("a fragmented ping", frame(0x09, b""), SocketError::Protocol, 1002),
        ("a continuation of nothing", frame(0x80, b"x"), SocketError::Protocol, 1002),
        (
            "a message within a message",
            [frame(0x01, b"x"), frame(0x81, b"y")].concat(),
            SocketError::Protocol,
            1002,
        ),
        ("a close frame of one byte", frame(0x88, b"x"), SocketError::Protocol, 1002),
        ("a text that is not UTF-8", frame(0x81, b"\xc0\x80"), SocketError::NotUtf8, 1007),
        (
            "half a letter",
            [frame(0x01, "ü".as_bytes()), frame(0x80, b"\xc3")].concat(),
            SocketError::NotUtf8,
            1007,
        ),
        ("a large message", large, SocketError::TooLarge, 1009),
        ("a large message in pieces", fragments, SocketError::TooLarge, 1009),
        (
            "a promise of a large frame",
            vec![0x82, 0xff, 0x7f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            SocketError::TooLarge,
            1009,
        ),
    ];
    for (what, bytes, error, code) in cases {
        let mut scene = Scene::usual().await;
        scene.client.get_mut().write_all(&bytes).await.unwrap();
        assert_eq!(scene.received().await, Some(Err(error)), "{what}");
        assert_eq!(scene.received().await, None, "{what}");
        assert_eq!(scene.close_code().await, Some(code), "{what}");
        scene.ended().await;
    }
}

#[tokio::test]
async fn fragments_with_control_frames_between_are_one_message() {
    let mut scene = Scene::usual().await;
    let bytes = [
        &[0x01, 0x83, 0, 0, 0, 0, b'a', b'h', b'o'][..],
        &[0x89, 0x81, 0, 0, 0, 0, b'p'],
        &[0x00, 0x80, 0, 0, 0, 0],
        &[0x80, 0x81, 0, 0, 0, 0, b'y'],
    ]
    .concat();
    for byte in bytes {
        scene.client.get_mut().write_all(&[byte]).await.unwrap();
    }
    assert_eq!(scene.received().await, Some(Ok(Message::Ping("p".into()))));
    assert_eq!(scene.text().await, "ahoy");
    scene.ended().await;
}

#[tokio::test]
async fn halves_of_a_socket_live_in_tasks_of_their_own() {
    let drain = DrainState::default();
    let (client, held) = serve(limits(), 1 << 14, &drain, |socket| async move {
        let (mut sink, mut stream) = socket.split();
        let (forward, mut texts) = mpsc::channel(4);
        tokio::spawn(async move {
            while let Some(Ok(message)) = stream.next().await {
                if forward.send(message).await.is_err() {
                    return;
                }
            }
        });
        tokio::spawn(async move {
            while let Some(message) = texts.recv().await {
                if sink.send(message).await.is_err() {
                    return;
                }
            }
        });
    })
    .await;
    let mut client = as_client(client).await;
    for n in 0..200 {
        let text = tungstenite::Message::text(n.to_string());
        client.send(text.clone()).await.unwrap();
        assert_eq!(timeout(LONG, client.next()).await.unwrap().unwrap().unwrap(), text);
    }
    drain.start_drain();
    let last = timeout(LONG, client.next()).await.unwrap().unwrap().unwrap();
    assert!(matches!(last, tungstenite::Message::Close(Some(frame)) if u16::from(frame.code) == 1012));
    assert!(client.next().await.is_none());
    timeout(LONG, held).await.unwrap().unwrap();
}

#[test]
fn a_socket_is_a_stream_and_a_sink_that_can_be_sent() {
    fn is_both<
        T: Sink<Message, Error = SocketError> + futures_util::Stream<Item = Result<Message, SocketError>>,
    >() {
    }
    fn is_sent<T: Send + Sync + std::fmt::Debug>() {}
    is_both::<WebSocket>();
    is_sent::<WebSocket>();
}
