//! The crowd's own test: it is content with an honest server, and finds out each of the others.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::{Stream, stream};
use serde_json::{Value, json};
use tokio::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};

use crate::support::events::delivery_audit::{DeliveryReport, audit};
use crate::support::events::parse::{Answer, Event, Stream as Events, StreamItem};
use crate::support::events::publisher::{PublishPlan, PublishedMessage, Publisher};
use crate::support::events::{Clock, ReceivedMessage, SubscribePlan, SubscriberGroup, SubscriberRecord};
use crate::support::wait;

/// What a server does wrong, once in a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sin {
    None,
    /// Streams break off in the middle of a message; the client can resume.
    Cuts,
    /// A message is left out.
    Loses,
    /// A message comes twice.
    Repeats,
    /// A client that resumes gets what is new only.
    Forgets,
    /// Two messages change places.
    Swaps,
}

#[derive(Clone)]
struct Server {
    sin: Sin,
    texts: watch::Sender<Vec<String>>,
    /// Messages sent, all streams.
    sent: Arc<AtomicUsize>,
}

async fn publish(State(server): State<Server>, Json(body): Json<Value>) -> Json<Value> {
    let mut id = 0;
    server.texts.send_modify(|texts| {
        texts.push(body["message"].as_str().unwrap().to_owned());
        id = texts.len();
    });
    Json(json!({ "id": format!("{id}-0") }))
}

async fn events(State(server): State<Server>, headers: HeaderMap) -> Response {
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.strip_suffix("-0")?.parse().ok());
    let length = server.texts.borrow().len();
    let begin = last.filter(|_| server.sin != Sin::Forgets).unwrap_or(length);
    let (mut body, half) = io::duplex(1 << 16);
    let reader = Reader(half);
    tokio::spawn(async move {
        let _ = server.send(&mut body, begin).await;
    });
    let head = [("content-type", "text/event-stream"), ("x-worker-id", "7")];
    (head, Body::from_stream(reader.pieces())).into_response()
}

struct Reader(DuplexStream);

impl Reader {
    fn pieces(self) -> impl Stream<Item = std::io::Result<Vec<u8>>> {
        stream::unfold(self.0, |mut half| async move {
            let mut piece = vec![0; 4096];
            match half.read(&mut piece).await {
                Ok(0) => None,
                Ok(count) => {
                    piece.truncate(count);
                    // What ends within an event is cut off, as by a worker that is killed.
                    let broken = piece.ends_with(b"CUT");
                    Some((if broken { Err(std::io::ErrorKind::Other.into()) } else { Ok(piece) }, half))
                }
                Err(error) => Some((Err(error), half)),
            }
        })
    }
}

impl Server {
    async fn send(self, body: &mut DuplexStream, begin: usize) -> std::io::Result<()> {
        let mut texts = self.texts.subscribe();
        let mut next = begin;
        let mut say = async |text: String| body.write_all(text.as_bytes()).await;
        say("retry: 5\n\n".to_owned()).await?;
        loop {
            let new = texts
                .wait_for(|texts| texts.len() > next)
                .await
                .map_or(Vec::new(), |all| all[next..].to_vec());
            if new.is_empty() {
                return Ok(());
            }
            for text in new {
                next += 1;
                let message = |number: usize| format!("id: {number}-0\ndata: {text}\n\n");
                let sins = self.sent.fetch_add(1, Ordering::Relaxed) % 97 == 96;
                match self.sin {
                    Sin::Cuts if sins => {
                        say(format!("id: {next}-0\ndata: CUT")).await?;
                        return Ok(());
                    }
                    Sin::Loses if sins => {}
                    Sin::Repeats if sins => say(message(next) + &message(next)).await?,
                    Sin::Forgets if sins => return Ok(()),
                    Sin::Swaps if sins => say(message(next + 1) + &message(next)).await?,
                    _ => say(message(next)).await?,
                }
            }
        }
    }
}

/// A server that runs until it is dropped.
struct Running {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn start(sin: Sin) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server { sin, texts: watch::channel(Vec::new()).0, sent: Arc::default() };
        let routes = Router::new().route("/broadcast", post(publish)).route("/events", get(events));
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let serve = axum::serve(TcpListener::from_std(listener).unwrap(), routes.with_state(server));
                tokio::select! {
                    served = serve => served.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        Self { address, stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        assert!(self.thread.take().is_none_or(|thread| thread.join().is_ok()), "the server panicked");
    }
}

fn verdict(sin: Sin) -> Result<DeliveryReport, String> {
    const CLIENTS: usize = 20;
    const MESSAGES: usize = 100;
    let (server, clock, topics) = (Running::start(sin), Clock::start(), ["news".to_owned()]);
    let crowd = SubscriberGroup::start(clock, &SubscribePlan::spread(&[server.address], &topics, CLIENTS));
    wait::until("all listen", wait::LONG, || crowd.listens());
    let job = PublishPlan {
        addresses: vec![server.address],
        topics: topics.to_vec(),
        pace: Duration::from_millis(1),
        size: 40,
        count: Some(MESSAGES),
    };
    let press = Publisher::start(clock, 0, job);
    wait::until("all is published", wait::LONG, || press.is_done());
    assert_eq!(press.answered(), MESSAGES, "{}", crowd.summary());
    let end = format!("{MESSAGES}-0").parse().unwrap();
    // Of the sinners' clients some never get there.
    let patience = if matches!(sin, Sin::None | Sin::Cuts) { wait::LONG } else { Duration::from_secs(1) };
    let _ = wait::until_or(patience, || crowd.all(|record| record.has(end) || !record.faults.is_empty()));
    let records = crowd.stop();
    audit(&records, &press.finish())
}

#[test]
fn an_honest_server_is_believed() {
    let balance = verdict(Sin::None).unwrap();
    assert_eq!((balance.answered, balance.delivered, balance.failed, balance.resumed), (100, 2000, 0, 0));
    assert_eq!(balance.late_us.len(), 2000);
    let balance = verdict(Sin::Cuts).unwrap();
    assert!(balance.delivered == 2000 && balance.resumed >= 10, "{balance}");
}

#[test]
fn a_server_that_sins_is_found_out() {
    for sin in [Sin::Loses, Sin::Repeats, Sin::Forgets, Sin::Swaps] {
        let verdict = verdict(sin);
        assert!(verdict.is_err(), "{sin:?} was not noticed: {}", verdict.unwrap());
    }
}

fn record(seen: &[(&str, u64)]) -> SubscriberRecord {
    let seen =
        seen.iter().map(|(id, hash)| ReceivedMessage { id: id.parse().unwrap(), hash: *hash, late_us: None });
    SubscriberRecord { topic: "a".into(), seen: seen.collect(), ..SubscriberRecord::default() }
}

fn printed(answer: Option<&str>, hash: u64) -> PublishedMessage {
    let answer = answer.map(|id| id.parse().unwrap()).ok_or_else(String::new);
    PublishedMessage { topic: "a".into(), hash, answer }
}

#[test]
fn every_discrepancy_is_found() {
    let press = [printed(Some("1-0"), 1), printed(None, 2), printed(Some("3-0"), 3)];
    let verdict = |clients: &[&[(&str, u64)]]| {
        let records: Vec<_> = clients.iter().map(|seen| record(seen)).collect();
        audit(&records, &press).map(|balance| balance.adopted)
    };
    let (all, without) = ([("1-0", 1), ("2-0", 2), ("3-0", 3)], [("1-0", 1), ("3-0", 3)]);
    assert_eq!(verdict(&[&all, &all]), Ok(1));
    assert_eq!(verdict(&[&without, &without]), Ok(0));
    assert!(verdict(&[&all, &without]).unwrap_err().contains("2-0 is missing"));
    assert!(verdict(&[&without[..1]]).unwrap_err().contains("3-0 and what follows is missing"));
    assert!(verdict(&[&without[1..]]).unwrap_err().contains("1-0 is missing"));
    assert!(verdict(&[&[("1-0", 1), ("3-0", 9)]]).unwrap_err().contains("another text"));
    assert!(verdict(&[&[("1-0", 1), ("2-0", 7), ("3-0", 3)]]).unwrap_err().contains("never published"));
    assert!(verdict(&[&all, &[("1-0", 1), ("2-1", 2), ("3-0", 3)]]).unwrap_err().contains("one call"));
    assert!(verdict(&[&[("1-0", 1), ("3-0", 3), ("3-0", 3)]]).is_err(), "twice");
    let mut told = record(&without);
    told.others.push(("gap".into(), String::new()));
    assert!(audit(&[told], &press).unwrap_err().contains("gap"));
}

fn heard(text: &str, piece: usize) -> (Vec<(String, StreamItem)>, String) {
    let (mut stream, mut all) = (Events::default(), Vec::new());
    for piece in text.as_bytes().chunks(piece) {
        stream.take(piece, |last, heard| all.push((last.to_owned(), heard)));
    }
    (all, stream.last)
}

fn event(name: &str, data: &str) -> StreamItem {
    StreamItem::Event(Event { name: name.into(), data: data.into() })
}

#[test]
fn streams_are_read_in_any_pieces() {
    let text = "retry: 50\n\n: quiet\n\nid: 1-0\ndata: a\ndata:  b\n\nevent:gap\r\ndata\r\n\r\nid: 2-0\n\nid\ndata: c\n\n";
    for piece in 1..text.len() {
        let (heard, last) = heard(text, piece);
        let expected = [
            (String::new(), StreamItem::Retry(50)),
            (String::new(), StreamItem::Comment),
            ("1-0".into(), event("message", "a\n b")),
            ("1-0".into(), event("gap", "")),
            (String::new(), event("message", "c")),
        ];
        assert_eq!((heard, last), (expected.to_vec(), String::new()), "in pieces of {piece}");
    }
    assert_eq!(heard("id: 7-1\n\n", 100), (Vec::new(), "7-1".into()), "an id without data counts");
    assert_eq!(heard("id: 7-1\ndata: lost", 100), (Vec::new(), String::new()), "half an event is none");
}

#[test]
fn answers_are_read_in_any_pieces() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Worker-Id: 7\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n";
    let counted = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nx-worker-id: 7\r\n\r\nabcde";
    for text in [chunked, counted] {
        for piece in 1..text.len() {
            let (mut answer, mut body) = (Answer::new(), Vec::new());
            for piece in text.as_bytes().chunks(piece) {
                assert!(!answer.is_done());
                answer.take(piece, |bytes| body.extend_from_slice(bytes)).unwrap();
            }
            assert!(answer.is_done() && body == b"abcde", "in pieces of {piece}");
            assert_eq!((answer.status(), answer.header("X-Worker-Id")), (Some(200), Some("7")));
            assert!(answer.take(b"x", |_| ()).is_err(), "nothing follows");
        }
    }
}
