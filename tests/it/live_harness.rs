//! The crowd's own test: it is content with an honest server, and finds out each of the others.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::IntoResponse;
use axum::response::Response;
use axum::routing::get;
use axum::routing::post;
use futures_util::Stream;
use futures_util::stream;
use serde_json::Value;
use serde_json::json;
use tokio::io;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::io::DuplexStream;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::sync::watch;

use crate::support::events::Aim;
use crate::support::events::Clock;
use crate::support::events::Crowd;
use crate::support::events::books;
use crate::support::events::books::Balance;
use crate::support::events::press::Job;
use crate::support::events::press::Press;
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
    /// Whoever resumes gets what is new only.
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

fn verdict(sin: Sin) -> Result<Balance, String> {
    const CLIENTS: usize = 20;
    const MESSAGES: usize = 100;
    let (server, clock, topics) = (Running::start(sin), Clock::start(), ["news".to_owned()]);
    let crowd = Crowd::start(clock, &Aim::spread(&[server.address], &topics, CLIENTS));
    wait::until("all listen", wait::LONG, || crowd.listens());
    let job = Job {
        addresses: vec![server.address],
        topics: topics.to_vec(),
        pace: Duration::from_millis(1),
        size: 40,
        count: Some(MESSAGES),
    };
    let press = Press::start(clock, 0, job);
    wait::until("all is published", wait::LONG, || press.is_done());
    assert_eq!(press.answered(), MESSAGES, "{}", crowd.summary());
    let end = format!("{MESSAGES}-0").parse().unwrap();
    // Of the sinners' clients some never get there.
    let patience = if matches!(sin, Sin::None | Sin::Cuts) { wait::LONG } else { Duration::from_secs(1) };
    let _ = wait::until_or(patience, || crowd.all(|record| record.has(end) || !record.faults.is_empty()));
    let records = crowd.stop();
    books::judge(&records, &press.finish())
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
