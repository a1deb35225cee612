//! One client of an event stream that looks at every piece of it, and a way to publish.

use std::net::SocketAddr;

use serde_json::json;

use crate::support::client;
use crate::support::client::{Connection, Failure, Request, Response};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::TestRedis;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// `message` if it has no name.
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) data: String,
}

/// A response of events, read one block at a time.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) connection: Connection,
    pub(crate) response: Response,
    text: String,
}

impl Stream {
    /// Opens a stream, which has to succeed.
    #[track_caller]
    pub(crate) fn open(address: SocketAddr, target: &str) -> Self {
        Self::request(Connection::open(address).unwrap(), &Request::get(target))
    }

    /// Opens it again where it was.
    #[track_caller]
    pub(crate) fn resume(address: SocketAddr, target: &str, last: &str) -> Self {
        Self::request(Connection::open(address).unwrap(), &Request::get(target).header("Last-Event-ID", last))
    }

    /// Opens one over this connection.
    #[track_caller]
    pub(crate) fn request(mut connection: Connection, request: &Request) -> Self {
        connection.send(&request.bytes()).unwrap();
        let response = connection.receive(true).unwrap();
        assert_eq!((response.status, response.header("Content-Type")), (200, "text/event-stream"));
        Self { connection, response, text: String::new() }
    }

    /// The next block, without the empty line after it: an event, a hint or a comment. None at the stream's end.
    pub(crate) fn block(&mut self) -> Result<Option<String>, Failure> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let block = block.to_owned();
                self.text = rest.to_owned();
                return Ok(Some(block));
            }
            match self.connection.chunk()? {
                Some(chunk) => self.text += std::str::from_utf8(&chunk).unwrap(),
                None if self.text.is_empty() => return Ok(None),
                None => return Err(Failure::Short),
            }
        }
    }

    /// The next event; comments, hints and beginnings are passed over. None at the stream's end.
    #[track_caller]
    pub(crate) fn next(&mut self) -> Option<Event> {
        loop {
            let block = self.block().unwrap_or_else(|failure| panic!("{failure:?} instead of an event"))?;
            if let Some(event) = parse(&block).filter(|event| event.name != "start") {
                return Some(event);
            }
        }
    }

    /// The next event, which has to come.
    #[track_caller]
    pub(crate) fn event(&mut self) -> Event {
        self.next().expect("an event, not the stream's end")
    }

    /// The data of the next so many events, which have to be messages.
    #[track_caller]
    pub(crate) fn messages(&mut self, count: usize) -> Vec<String> {
        let message = |_| {
            let event = self.event();
            assert_eq!(event.name, "message", "{event:?}");
            event.data
        };
        (0..count).map(message).collect()
    }
}

/// An event as browsers read it (WHATWG HTML §9.2.6); none without data.
fn parse(block: &str) -> Option<Event> {
    let mut event = Event { name: "message".into(), id: String::new(), data: String::new() };
    let mut data: Vec<&str> = Vec::new();
    for line in block.split(['\n', '\r']) {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => event.name = value.to_owned(),
            "id" => event.id = value.to_owned(),
            "data" => data.push(value),
            _ => {}
        }
    }
    event.data = data.join("\n");
    (!data.is_empty()).then_some(event)
}

/// Broadcasts a message, which has to succeed; its id.
#[track_caller]
pub(crate) fn publish(address: SocketAddr, topic: &str, message: &str) -> String {
    let response = try_publish(address, topic, message);
    assert_eq!(response.status, 202, "{response:?}");
    response.json()["id"].as_str().unwrap().to_owned()
}

/// Broadcasts a message, which may fail.
#[track_caller]
pub(crate) fn try_publish(address: SocketAddr, topic: &str, message: &str) -> Response {
    let body = json!({"topic": topic, "message": message}).to_string();
    let request = Request::post("/broadcast").body("application/json", body.as_bytes());
    client::once(address, request).unwrap()
}

/// Open connections, as operators see them, without the one over which it is asked.
pub(crate) fn connections(fleet: &TestFleet) -> u64 {
    let slots = fleet.operator("/fleet.json").json()["slots"].as_array().unwrap().clone();
    slots.iter().map(|slot| slot["connections"].as_u64().unwrap()).sum::<u64>().saturating_sub(1)
}

/// A fleet on this Redis.
pub(crate) fn plan(redis: &TestRedis) -> TestFleetBuilder {
    TestFleetBuilder::on(redis)
}
