//! Streams of events from any source, from their first hint to their last.

use std::convert::Infallible;

use tokio::sync::mpsc;

use super::*;

struct Fixture {
    sender: mpsc::UnboundedSender<&'static str>,
    drain: DrainState,
    body: Body,
}

fn open(framing: Framing, on_drain: OnDrain, keep_alive_interval: Duration) -> Fixture {
    let (sender, receiver) = mpsc::unbounded_channel::<&'static str>();
    let drain = DrainState::default();
    let pieces = stream::unfold(receiver, |mut receiver| async move {
        let piece = receiver.recv().await?;
        Some((Ok::<_, Infallible>(piece), receiver))
    });
    let options = StreamOptions { framing, drain: drain.clone(), on_drain, keep_alive_interval, place: None };
    let response = respond(Body::from_stream(pieces), options);
    assert_eq!(response.headers()[header::CONTENT_TYPE], EVENT_STREAM);
    Fixture { sender, drain, body: response.into_body() }
}

fn text(on_drain: OnDrain) -> Fixture {
    open(Framing::Text, on_drain, Duration::from_secs(15))
}

async fn piece(body: &mut Body) -> Option<String> {
    let frame = body.frame().await?.unwrap();
    Some(String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap())
}

async fn rest(body: Body) -> String {
    String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

fn milliseconds(piece: &str) -> u64 {
    piece.strip_prefix("retry: ").unwrap().strip_suffix("\n\n").unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_stream_begins_with_a_hint_and_shows_that_it_lives() {
    let interval = Duration::from_millis(200);
    let Fixture { sender, drain: _drain, mut body } = open(Framing::Events, OnDrain::Close, interval);
    assert!(RETRY_AFTER_DISCONNECT_MS.contains(&milliseconds(&piece(&mut body).await.unwrap())));
    sender.send("data: one\n\n").unwrap();
    assert_eq!(piece(&mut body).await.unwrap(), "data: one\n\n");
    let start = Instant::now();
    for _ in 0..3 {
        assert_eq!(piece(&mut body).await.unwrap(), ":\n\n");
    }
    assert!(start.elapsed() > interval, "{:?}", start.elapsed());
    drop(sender);
    assert_eq!(piece(&mut body).await, None);
}

#[tokio::test]
async fn a_draining_worker_sends_a_retry_hint_and_closes_its_streams() {
    let Fixture { sender, drain, mut body } = text(OnDrain::Close);
    piece(&mut body).await.unwrap();
    sender.send("data: too late\n\n").unwrap();
    drain.start_drain();
    assert!(RETRY_AFTER_DRAIN_MS.contains(&milliseconds(&piece(&mut body).await.unwrap())));
    assert_eq!(piece(&mut body).await, None);
}

#[tokio::test]
async fn an_event_that_was_begun_is_completed_and_nothing_more() {
    let Fixture { sender, drain, mut body } = text(OnDrain::Close);
    piece(&mut body).await.unwrap();
    sender.send("data: one\n\ndata: tw").unwrap();
    assert_eq!(piece(&mut body).await.unwrap(), "data: one\n\ndata: tw");
    drain.start_drain();
    sender.send("o\n").unwrap();
    sender.send("\ndata: three\n\n").unwrap();
    let last = rest(body).await;
    let hint = last.strip_prefix("o\n\n").unwrap_or_else(|| panic!("{last:?}"));
    assert!(RETRY_AFTER_DRAIN_MS.contains(&milliseconds(hint)));
}

#[tokio::test]
async fn an_event_that_is_never_completed_does_not_hold_up_the_drain() {
    let Fixture { sender, drain, mut body } = text(OnDrain::Close);
    piece(&mut body).await.unwrap();
    sender.send("data: half").unwrap();
    piece(&mut body).await.unwrap();
    drain.start_drain();
    // A hint within the event would be dispatched with it.
    let last = tokio::time::timeout(EVENT_GRACE * 5, rest(body)).await.unwrap();
    assert_eq!(last, "");
}

#[tokio::test]
async fn no_sign_of_life_gets_into_an_event() {
    let interval = Duration::from_millis(20);
    let Fixture { sender, drain: _drain, mut body } = open(Framing::Text, OnDrain::Close, interval);
    piece(&mut body).await.unwrap();
    sender.send("data: half").unwrap();
    assert_eq!(piece(&mut body).await.unwrap(), "data: half");
    let silent = tokio::time::timeout(interval * 10, piece(&mut body)).await;
    assert!(silent.is_err(), "{silent:?}");
    sender.send("\n\n").unwrap();
    assert_eq!(piece(&mut body).await.unwrap(), "\n\n");
    assert_eq!(piece(&mut body).await.unwrap(), ":\n\n");
}

#[tokio::test]
async fn a_mark_at_the_beginning_is_left_out_because_it_is_not_the_beginning_any_more() {
    let Fixture { sender, drain: _drain, mut body } = text(OnDrain::Close);
    piece(&mut body).await.unwrap();
    sender.send("\u{feff}data: one\n\n").unwrap();
    assert_eq!(piece(&mut body).await.unwrap(), "data: one\n\n");
    sender.send("\u{feff}x\n\n").unwrap();
    assert_eq!(piece(&mut body).await.unwrap(), "\u{feff}x\n\n", "it is the source's own");
}

#[tokio::test]
async fn what_is_to_finish_goes_on_over_a_drain() {
    let Fixture { sender, drain, mut body } = text(OnDrain::Finish);
    piece(&mut body).await.unwrap();
    drain.start_drain();
    sender.send("data: the last part\n\n").unwrap();
    drop(sender);
    assert_eq!(rest(body).await, "data: the last part\n\n");
}

#[tokio::test]
async fn nothing_is_inserted_into_what_is_encoded() {
    let Fixture { sender, drain, mut body } =
        open(Framing::Opaque, OnDrain::Close, Duration::from_millis(20));
    sender.send("\u{1f}\u{8}").unwrap();
    assert_eq!(piece(&mut body).await.unwrap(), "\u{1f}\u{8}");
    assert!(tokio::time::timeout(Duration::from_millis(200), piece(&mut body)).await.is_err());
    drain.start_drain();
    assert_eq!(rest(body).await, "");
}

#[tokio::test]
async fn a_stream_opened_while_draining_is_closed_at_once() {
    let Fixture { sender: _sender, drain, body } = text(OnDrain::Close);
    drain.start_drain();
    let all = rest(body).await;
    assert_eq!(all.matches("retry: ").count(), 2, "{all}");
}

#[test]
fn only_streams_without_an_end_are_adopted() {
    let response = |kind: &str, status: u16| {
        let body = Body::from_stream(stream::pending::<Result<Bytes, Infallible>>());
        http::Response::builder().status(status).header(header::CONTENT_TYPE, kind).body(body).unwrap()
    };
    for kind in ["text/event-stream", "Text/Event-Stream; charset=utf-8", "text/event-stream;charset=UTF-8"] {
        assert!(is_unadopted(&response(kind, 200)), "{kind}");
    }
    for kind in ["text/plain", "text/event-streams", "", "application/json"] {
        assert!(!is_unadopted(&response(kind, 200)), "{kind}");
    }
    assert!(!is_unadopted(&response(EVENT_STREAM, 404)));
    let mut measured = response(EVENT_STREAM, 200);
    measured.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("7"));
    assert!(!is_unadopted(&measured), "a hint would not fit into its length");
    let mut adopted = response(EVENT_STREAM, 200);
    adopted.extensions_mut().insert(KeepAliveTrigger::default());
    assert!(!is_unadopted(&adopted));
}
