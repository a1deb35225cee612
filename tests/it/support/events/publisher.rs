//! Publishers: one message after the other over a connection that is kept, each noted with what was answered.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use super::parse::{Answer, Id};
use super::{Clock, delivery_audit};

/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// After a failure: a refused client must not do nothing else.
const AFTER_FAILURE: Duration = Duration::from_millis(20);

/// One message that someone tried to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PublishedMessage {
    pub(crate) topic: String,
    /// Of its text.
    pub(crate) hash: u64,
    /// What it became; otherwise why no one knows whether it became anything.
    pub(crate) answer: Result<Id, String>,
}

/// What a publisher is to do.
#[derive(Debug, Clone)]
pub(crate) struct PublishPlan {
    /// The next one after each failure.
    pub(crate) addresses: Vec<SocketAddr>,
    /// In turn.
    pub(crate) topics: Vec<String>,
    /// From one message to the next.
    pub(crate) pace: Duration,
    /// Length of a text at least, bytes.
    pub(crate) size: usize,
    /// So many messages, if not until it is stopped.
    pub(crate) count: Option<usize>,
}

/// A publisher at work.
#[derive(Debug)]
pub(crate) struct Publisher {
    stop: Arc<AtomicBool>,
    book: Arc<Mutex<Vec<PublishedMessage>>>,
    thread: JoinHandle<()>,
}

impl Publisher {
    /// Starts one; `number` is what its texts begin with, so no two may have the same.
    pub(crate) fn start(clock: Clock, number: usize, job: PublishPlan) -> Self {
        let (stop, book) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let thread = thread::spawn({
            let (stop, book) = (Arc::clone(&stop), Arc::clone(&book));
            move || run(clock, number, &job, &stop, &book)
        });
        Self { stop, book, thread }
    }

    /// How many messages were answered with an id so far.
    pub(crate) fn answered(&self) -> usize {
        let book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        book.iter().filter(|printed| printed.answer.is_ok()).count()
    }

    /// Whether it has done what it was to do.
    pub(crate) fn is_done(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends it after the message at hand; everything it tried.
    pub(crate) fn finish(self) -> Vec<PublishedMessage> {
        self.stop.store(true, Ordering::Relaxed);
        self.wait()
    }

    /// Waits for the end of one that has one; everything it tried.
    pub(crate) fn wait(self) -> Vec<PublishedMessage> {
        assert!(self.thread.join().is_ok(), "a publisher panicked");
        std::mem::take(&mut self.book.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn run(
    clock: Clock,
    number: usize,
    job: &PublishPlan,
    stop: &AtomicBool,
    book: &Mutex<Vec<PublishedMessage>>,
) {
    let mut link = PublisherConnection { addresses: job.addresses.clone(), kept: None };
    link.addresses.rotate_left(number % job.addresses.len());
    let begin = clock.micros();
    for nth in 0..job.count.unwrap_or(usize::MAX) {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let topic = &job.topics[nth % job.topics.len()];
        let text = delivery_audit::text(clock.micros(), number, nth, job.size);
        let answer = link.publish(topic, &text);
        let failed = answer.is_err();
        let printed = PublishedMessage { topic: topic.clone(), hash: delivery_audit::hash(&text), answer };
        book.lock().unwrap_or_else(PoisonError::into_inner).push(printed);
        let due = Duration::from_micros(begin) + job.pace * (nth as u32 + 1);
        let pause = due.saturating_sub(Duration::from_micros(clock.micros()));
        thread::sleep(if failed { pause.max(AFTER_FAILURE) } else { pause });
    }
}

/// A connection to one of several places.
struct PublisherConnection {
    addresses: Vec<SocketAddr>,
    kept: Option<TcpStream>,
}

impl PublisherConnection {
    /// Publishes, without ever asking twice.
    fn publish(&mut self, topic: &str, text: &str) -> Result<Id, String> {
        let result = self.request(&json!({ "topic": topic, "message": text }).to_string());
        if result.is_err() {
            self.kept = None;
            self.addresses.rotate_left(1);
        }
        result
    }

    fn request(&mut self, body: &str) -> Result<Id, String> {
        let mut stream = match self.kept.take() {
            Some(stream) if is_open(&stream) => stream,
            _ => connect(self.addresses[0]).map_err(|error| format!("connect: {error}"))?,
        };
        let head = format!(
            "POST /broadcast HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + body).as_bytes()).map_err(|error| format!("send: {error}"))?;
        let (mut answer, mut reply_body, mut piece) = (Answer::new(), Vec::new(), [0; 4096]);
        while !answer.is_done() {
            let count = stream.read(&mut piece).map_err(|error| format!("receive: {error}"))?;
            if count == 0 {
                return Err("closed before the answer's end".to_owned());
            }
            answer.take(&piece[..count], |body| reply_body.extend_from_slice(body))?;
        }
        let reply_body = String::from_utf8_lossy(&reply_body);
        if !matches!(answer.status(), Some(200..=299)) {
            return Err(format!("{}: {reply_body}", answer.status().unwrap_or_default()));
        }
        let id = serde_json::from_str::<Value>(&reply_body)
            .ok()
            .and_then(|value| value["id"].as_str()?.parse().ok());
        if answer.header("Connection").is_none_or(|value| !value.eq_ignore_ascii_case("close")) {
            self.kept = Some(stream);
        }
        id.ok_or_else(|| format!("no id in {reply_body:?}"))
    }
}

fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Whether the other end has neither closed it nor said anything unasked.
fn is_open(stream: &TcpStream) -> bool {
    let peeked = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0]));
    let quiet = peeked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
    quiet && stream.set_nonblocking(false).is_ok()
}
