//! HTTP/2 without TLS (prior knowledge, RFC 9113 §3.3): served like HTTP/1.1, and told to go away in time.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::TokioExecutor;
use tokio::runtime::Runtime;

use crate::support::exposition::sum;
use crate::support::fleet::TestFleetBuilder;
use crate::support::redis::TestRedis;
use crate::support::stream::connections;
use crate::support::wait;

/// A client that speaks HTTP/2 only, over one connection.
struct Multiplexed {
    runtime: Runtime,
    client: Client<HttpConnector, Body>,
    address: SocketAddr,
}

impl Multiplexed {
    fn new(address: SocketAddr) -> Self {
        let runtime = Runtime::new().unwrap();
        let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
        Self { runtime, client, address }
    }

    fn ask(&self, target: &str) -> impl Future<Output = Result<Response<Incoming>, Error>> + Send + 'static {
        let request = Request::get(format!("http://{}{target}", self.address)).body(Body::empty()).unwrap();
        self.client.request(request)
    }
}

fn worker(response: &Response<Incoming>) -> String {
    response.headers()["X-Worker-Id"].to_str().unwrap().to_owned()
}

#[test]
fn a_hundred_streams_of_one_connection_are_served_at_once() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(2).start();
    let client = Multiplexed::new(fleet.listen);
    client.runtime.block_on(async {
        // The first one makes the connection that the others share.
        assert_eq!(client.ask("/hello").await.unwrap().version(), Version::HTTP_2);
        let streams: Vec<_> = (0..100).map(|_| tokio::spawn(client.ask("/counters/laps"))).collect();
        let mut workers = BTreeSet::new();
        for stream in streams {
            let response = stream.await.unwrap().unwrap();
            assert_eq!((response.status(), response.version()), (StatusCode::OK, Version::HTTP_2));
            workers.insert(worker(&response));
        }
        assert_eq!(workers.len(), 1, "one connection, one worker");
    });
}

#[test]
fn streams_under_way_are_finished_before_their_worker_leaves() {
    let redis = TestRedis::shared();
    let mut fleet = TestFleetBuilder::on(&redis).example("faulty").workers(1).start();
    let client = Multiplexed::new(fleet.listen);
    client.runtime.block_on(async { client.ask("/hello").await.unwrap() });
    let held: Vec<_> = (0..3).map(|_| client.runtime.spawn(client.ask("/slow/1200"))).collect();
    wait::until("they are under way", wait::LONG, || fleet.get("/held").text().trim() == "3");
    assert_eq!(fleet.stop(), 0);
    for stream in held {
        let response = client.runtime.block_on(stream).unwrap().expect("it is answered");
        assert_eq!(response.status(), StatusCode::OK);
    }
    let late = async { tokio::time::timeout(Duration::from_secs(5), client.ask("/hello")).await };
    let after = client.runtime.block_on(late);
    assert!(after.expect("an error at once").is_err(), "nobody is there any more");
}

#[test]
fn a_header_that_is_too_large_costs_its_stream_only() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).set("REGATTA_HTTP__MAX_HEADER_SIZE", "16KiB").start();
    let client = Multiplexed::new(fleet.listen);
    client.runtime.block_on(async {
        client.ask("/hello").await.unwrap();
        let large =
            Request::get(format!("http://{}/hello", fleet.listen)).header("X-Large", "x".repeat(40_000));
        match client.client.request(large.body(Body::empty()).unwrap()).await {
            Ok(response) => assert_eq!(response.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
            Err(error) => assert!(!error.is_connect(), "{error}"),
        }
        assert_eq!(client.ask("/hello").await.unwrap().status(), StatusCode::OK);
    });
}

/// A frame (RFC 9113 §4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

#[test]
fn a_client_that_gives_no_room_is_cut_however_alive_it_looks() {
    let redis = TestRedis::shared();
    let plan = TestFleetBuilder::on(&redis).workers(1).set("REGATTA_HTTP__KEEP_ALIVE_TIMEOUT", "1s");
    let fleet = plan.set("REGATTA_BROADCAST__KEEP_ALIVE_INTERVAL", "200ms").start();
    let mut deaf = TcpStream::connect(fleet.listen).unwrap();
    // Settings: a window of nothing (INITIAL_WINDOW_SIZE, §6.5.2).
    let mut opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    opening.extend(frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]));
    // GET, http, and two literals that are named by the static table (RFC 7541 §6.2.2).
    let head = b"\x82\x86\x04\x07/events\x01\x09localhost";
    for stream in [1, 3, 5] {
        opening.extend(frame(1, 5, stream, head));
    }
    deaf.write_all(&opening).unwrap();
    let listens = || {
        let text = fleet.operator("/metrics").text();
        sum(&text, "regatta_broadcast_subscribers", &[])
    };
    wait::until("it listens three times", wait::LONG, || listens() == 3.0);
    wait::until("it is cut, whatever it asks", wait::LONG, || {
        // A ping, which is answered.
        let _ = deaf.write_all(&frame(6, 0, 0, &[0; 8]));
        connections(&fleet) == 0
    });
    wait::until("its places are free", wait::LONG, || listens() == 0.0);
}
