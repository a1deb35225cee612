//! Clients that speak HTTP/1.1.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::support::client;
use crate::support::client::{Connection, Failure, Request, Response, TIMEOUT};
use crate::support::load_generator::{COUNTER, ClientAction, POSTED, RequestLoss, RequestOutcome};
use crate::support::stand_in;

/// Size of what a slow reader reads.
const LARGE: usize = 512 * 1024;

/// Its receive buffer, so that the fleet feels how slow it is.
const WINDOW: usize = 4 * 1024;

/// How many bytes it takes at a time, and how long it pauses then.
const SIP: (usize, Duration) = (16 * 1024, Duration::from_millis(4));

/// Pause between two pieces of a request that is sent slowly.
const BETWEEN: Duration = Duration::from_millis(100);

/// Pieces of a stream are this far apart; `examples/faulty.rs` knows it too.
const DRIP_MILLIS: u64 = 25;

/// Someone who keeps a connection for as long as it lasts.
pub(super) struct PersistentClient {
    address: SocketAddr,
    kept: Option<Connection>,
}

impl PersistentClient {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self { address, kept: None }
    }

    pub(super) fn request(&mut self, request: &Request) -> Result<Response, Failure> {
        self.request_in_pieces(&[&request.bytes()], Duration::ZERO)
    }

    /// Sends the pieces of a request with pauses between them, and waits for its answer.
    fn request_in_pieces(&mut self, pieces: &[&[u8]], pause: Duration) -> Result<Response, Failure> {
        let mut connection = match self.kept.take() {
            Some(connection) if !connection.is_closed() => connection,
            _ => Connection::open(self.address)?,
        };
        for (nth, piece) in pieces.iter().enumerate() {
            if nth > 0 {
                thread::sleep(pause);
            }
            connection.send(piece)?;
        }
        let response = connection.receive(false)?;
        self.kept = response.keeps_alive().then_some(connection);
        Ok(response)
    }
}

/// The worker that gave the right answer, or how the request was lost.
pub(super) fn outcome_of(
    result: Result<Response, Failure>,
    right: impl FnOnce(&Response) -> bool,
) -> RequestOutcome {
    let response = result.map_err(|failure| (RequestLoss::from(&failure), format!("{failure:?}")))?;
    match response.status {
        200 if right(&response) => Ok(response.worker()),
        200 => Err((
            RequestLoss::Short,
            format!("{} bytes are not the answer: {response:?}", response.body.len()),
        )),
        status => Err((RequestLoss::of_status(status), format!("{response:?}"))),
    }
}

pub(super) fn is_hello(response: &Response) -> bool {
    response.text() == format!("Handled by worker {}\n", response.worker())
}

fn posted() -> Request {
    let target = format!("/counters/{COUNTER}");
    Request::post(&target).body("application/octet-stream", &[b'x'; POSTED])
}

pub(super) fn keep_alive(address: SocketAddr) -> ClientAction {
    let mut client = PersistentClient::new(address);
    let hello = Request::get("/hello");
    Box::new(move |book| {
        let begin = Instant::now();
        book.record(begin, outcome_of(client.request(&hello), is_hello));
    })
}

pub(super) fn close(address: SocketAddr) -> ClientAction {
    Box::new(move |book| {
        let begin = Instant::now();
        book.record(begin, outcome_of(client::once(address, Request::get("/hello")), is_hello));
    })
}

/// Posts, each after a pause of up to `pause`.
pub(super) fn post(address: SocketAddr, pause: Duration) -> ClientAction {
    let mut client = PersistentClient::new(address);
    let request = posted();
    Box::new(move |book| {
        thread::sleep(pause.mul_f64(rand::random()));
        let begin = Instant::now();
        book.record_posted(
            begin,
            outcome_of(client.request(&request), |response| response.text().parse::<u64>().is_ok()),
        );
    })
}

/// Posts in pieces, the first of which ends within the header, each after a pause of up to `pause`.
pub(super) fn slow_sender(address: SocketAddr, pause: Duration) -> ClientAction {
    let mut client = PersistentClient::new(address);
    let request = posted().bytes();
    Box::new(move |book| {
        thread::sleep(pause.mul_f64(rand::random()));
        let begin = Instant::now();
        let pieces = [&request[..30], &request[30..4_000], &request[4_000..]];
        let result = client.request_in_pieces(&pieces, BETWEEN);
        book.record_posted(begin, outcome_of(result, |response| response.text().parse::<u64>().is_ok()));
    })
}

/// Answers that come in pieces over 0.2 to 1.5 s, over one connection.
pub(super) fn stream(address: SocketAddr) -> ClientAction {
    let mut client = PersistentClient::new(address);
    Box::new(move |book| {
        let pieces = rand::random_range(200..1500) / DRIP_MILLIS;
        let begin = Instant::now();
        let result = client.request(&Request::get(&format!("/drip/{pieces}")));
        let whole =
            |response: &Response| response.text() == "drip\n".repeat(usize::try_from(pieces).unwrap());
        book.record(begin, outcome_of(result, whole));
    })
}

pub(super) fn slow_reader(address: SocketAddr) -> ClientAction {
    Box::new(move |book| {
        let begin = Instant::now();
        book.record(begin, read_slowly(address));
    })
}

fn read_slowly(address: SocketAddr) -> RequestOutcome {
    let answer = sip(address).map_err(|error| {
        let failure = Failure::from(error);
        (RequestLoss::from(&failure), format!("{failure:?}"))
    })?;
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
    let Some(head) = head else {
        let loss = if answer.is_empty() { RequestLoss::Reset } else { RequestLoss::Short };
        return Err((loss, format!("{} bytes and no header", answer.len())));
    };
    let text = String::from_utf8_lossy(&answer[..head]).to_ascii_lowercase();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    if status != 200 {
        return Err((RequestLoss::of_status(status), text));
    }
    if answer.len() - head != LARGE {
        return Err((RequestLoss::Short, format!("{} of {LARGE} bytes", answer.len() - head)));
    }
    let worker = text.lines().find_map(|line| line.strip_prefix("x-worker-id: ")?.parse().ok());
    worker.ok_or_else(|| (RequestLoss::Other, format!("no worker in {text}")))
}

fn sip(address: SocketAddr) -> std::io::Result<Vec<u8>> {
    let mut socket = match stand_in::is_one(address) {
        true => stand_in::connect(address)?.into(),
        false => Socket::new(Domain::for_address(address), Type::STREAM, None)?,
    };
    socket.set_recv_buffer_size(WINDOW)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    if !stand_in::is_one(address) {
        socket.connect_timeout(&address.into(), TIMEOUT)?;
    }
    let target = format!("/bytes/{LARGE}");
    socket.write_all(&Request::get(&target).header("Connection", "close").bytes())?;
    let mut answer = Vec::with_capacity(LARGE + 1024);
    let (size, pause) = SIP;
    let mut buffer = vec![0; size];
    loop {
        match socket.read(&mut buffer)? {
            0 => return Ok(answer),
            count => answer.extend_from_slice(&buffer[..count]),
        }
        thread::sleep(pause);
    }
}
