//! One client: opens a stream, writes down what comes, and comes again.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::parse::{Answer, Stream, StreamItem};
use super::{Clock, ReceivedMessage, SharedRecord, SubscribePlan, SubscriberRecord, delivery_audit, lock};

/// Longest wait for a connection, and for the head of an answer.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Above every heartbeat's interval: who is quiet for longer is dead.
const SILENCE: Duration = Duration::from_secs(45);

/// Pause before the next attempt where the server has said nothing.
const RETRY: Duration = Duration::from_millis(100);

/// Longest pause whatever the server says: these clients are to be back while the test goes on.
const RETRY_MAX: Duration = Duration::from_secs(1);

/// Taken from a socket at once.
const PIECE: usize = 16 * 1024;

/// Reasons that are kept of one client.
const REASONS: usize = 8;

/// Listens until its task ends.
pub(super) async fn subscribe(clock: Clock, plan: SubscribePlan, record: SharedRecord, begin: Duration) {
    sleep(begin).await;
    for address in plan.addresses.iter().cycle() {
        let end = attempt(clock, *address, &plan.target, &record).await;
        let pause = {
            let mut record = lock(&record);
            record.worker = None;
            record_end(&mut record, end);
            record.retry_ms.map_or(RETRY, Duration::from_millis).min(RETRY_MAX)
        };
        sleep(pause).await;
    }
}

/// How a stream can end, or not begin.
enum StreamEnd {
    /// The server ended it.
    Finished,
    /// It broke off.
    Cut,
    /// There was none.
    Refused(String),
    /// What must never happen.
    Fault(String),
}

fn record_end(record: &mut SubscriberRecord, end: StreamEnd) {
    match end {
        StreamEnd::Finished => record.finished += 1,
        StreamEnd::Cut => record.cut += 1,
        StreamEnd::Refused(reason) if record.refused.len() < REASONS => record.refused.push(reason),
        StreamEnd::Refused(_) => {}
        StreamEnd::Fault(fault) => record.faults.push(fault),
    }
}

async fn attempt(clock: Clock, address: SocketAddr, target: &str, record: &SharedRecord) -> StreamEnd {
    let stream = match timeout(HEADER_TIMEOUT, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return StreamEnd::Refused(format!("connect: {error}")),
        Err(_) => return StreamEnd::Refused("connect: too late".to_owned()),
    };
    match converse(clock, stream, target, record).await {
        Ok(end) => end,
        Err(error) => match lock(record).worker {
            Some(_) => StreamEnd::Cut,
            None => StreamEnd::Refused(format!("before the answer: {error}")),
        },
    }
}

async fn converse(
    clock: Clock,
    mut stream: TcpStream,
    target: &str,
    record: &SharedRecord,
) -> std::io::Result<StreamEnd> {
    let last = lock(record).last.clone();
    let resume = if last.is_empty() { String::new() } else { format!("Last-Event-ID: {last}\r\n") };
    let head =
        format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n{resume}\r\n");
    stream.write_all(head.as_bytes()).await?;
    let (mut answer, mut events) = (Answer::new(), Stream::after(&last));
    loop {
        let longest = if answer.status().is_some() { SILENCE } else { HEADER_TIMEOUT };
        if timeout(longest, stream.readable()).await.is_err() {
            return Ok(match answer.status() {
                Some(_) => StreamEnd::Fault(format!("silent for {SILENCE:?}")),
                None => StreamEnd::Refused("no answer in time".to_owned()),
            });
        }
        // Not across an await: thousands of clients have no buffer of their own.
        let mut piece = [0; PIECE];
        let count = match stream.try_read(&mut piece) {
            Ok(0) if answer.ends_with_connection() => return Ok(StreamEnd::Finished),
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        if let Some(end) = digest(clock, &mut answer, &mut events, &piece[..count], record) {
            return Ok(end);
        }
    }
}

/// Writes down what these bytes say; an end, if they are the last.
fn digest(
    clock: Clock,
    answer: &mut Answer,
    events: &mut Stream,
    bytes: &[u8],
    record: &SharedRecord,
) -> Option<StreamEnd> {
    let (began, now) = (answer.status().is_none(), clock.micros());
    let mut record = lock(record);
    let taken = answer.take(bytes, |body| {
        record.bytes += body.len() as u64;
        events.take(body, |last, received| record_received(&mut record, last, received, now));
    });
    if let Err(fault) = taken {
        return Some(StreamEnd::Fault(fault));
    }
    record.last.clone_from(&events.last);
    if let Some(status) = answer.status().filter(|_| began) {
        let kind = answer.header("Content-Type").unwrap_or_default();
        if status != 200 || !kind.starts_with("text/event-stream") {
            return Some(StreamEnd::Refused(format!("{status} {kind}")));
        }
        record.opened += 1;
        // Operators' streams name no worker.
        let worker = answer.header("X-Worker-Id").and_then(|id| id.parse().ok()).or(Some(0));
        record.worker = worker;
    }
    answer.is_done().then_some(StreamEnd::Finished)
}

fn record_received(record: &mut SubscriberRecord, last: &str, received: StreamItem, now: u64) {
    match received {
        StreamItem::Comment => record.comments += 1,
        StreamItem::Retry(millis) => record.retry_ms = Some(millis),
        StreamItem::Event(event) if event.name == "message" => match last.parse() {
            Ok(id) => {
                if let Some(before) = record.seen.last().filter(|before| before.id >= id) {
                    let fault = format!("{id} ({:?}) came after {}", event.data, before.id);
                    record.faults.push(fault);
                }
                let late_us = delivery_audit::printed_at(&event.data).map(|then| now.saturating_sub(then));
                let late_us = late_us.map(|late| u32::try_from(late).unwrap_or(u32::MAX));
                record.seen.push(ReceivedMessage { id, hash: delivery_audit::hash(&event.data), late_us });
            }
            Err(error) => record.faults.push(format!("{error}, but the message's {:?}", event.data)),
        },
        StreamItem::Event(event) => record.others.push((event.name, event.data)),
    }
}
