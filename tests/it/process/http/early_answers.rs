//! Answers given before the request was read arrive, whatever the client still sends; and a client that sends for ever
//! holds nothing for longer than it may.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::StatusCode;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

use crate::support::client::{Connection, Failure, Request};
use crate::support::exposition::sum;
use crate::support::fleet::TestFleetBuilder;
use crate::support::nginx::TestNginx;
use crate::support::redis::TestRedis;
use crate::support::stream::connections;
use crate::support::wait;

/// What a client has to send, beside small ones: more than is read on for the next request's sake, and as the field had it.
const SIZES: [usize; 5] = [1, 60_000, 65_537, 300_000, 1_500_000];

/// Sends all of a request, as a client does that reads only afterwards; the status, and whether the connection goes on.
fn send_all_first(address: SocketAddr, head: &str, body: usize) -> Result<(u16, bool), Failure> {
    let mut connection = Connection::open(address)?;
    connection
        .send(format!("{head} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {body}\r\n\r\n").as_bytes())?;
    connection.send(&vec![b'x'; body])?;
    let response = connection.receive(false)?;
    Ok((response.status, response.keeps_alive()))
}

/// Twenty clients at once, of which each must get this.
#[track_caller]
fn everybody_gets(address: SocketAddr, head: &str, body: usize, status: u16) {
    let clients: Vec<_> = (0..20)
        .map(|_| {
            let head = head.to_owned();
            thread::spawn(move || send_all_first(address, &head, body))
        })
        .collect();
    let got: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    let lost: Vec<_> = got.iter().filter(|one| !matches!(one, Ok((got, _)) if *got == status)).collect();
    assert!(lost.is_empty(), "{head} with {body} bytes: {} of 20: {:?}", lost.len(), lost[0]);
}

#[test]
fn answers_before_the_body_arrive() {
    let redis = TestRedis::shared();
    let plan = TestFleetBuilder::on(&redis).set("REGATTA_LIMITS__SAY__RATE", "1/h");
    let fleet = plan.set("REGATTA_LIMITS__SAY__ROUTES", "/broadcast").start();
    let front = TestNginx::before([&fleet]);
    let _ = send_all_first(fleet.listen, "POST /broadcast", 1);
    for body in SIZES {
        for address in [fleet.listen, front.address] {
            everybody_gets(address, "POST /nix", body, 404);
            everybody_gets(address, "PUT /hello", body, 405);
            everybody_gets(address, "POST /broadcast", body, 429);
        }
        everybody_gets(fleet.admin, "POST /livez", body, 405);
        everybody_gets(fleet.admin, "GET /nix", body, 404);
    }
    everybody_gets(fleet.listen, "POST /counters/x", 2_200_000, 413);
    assert_eq!(fleet.get("/hello").status, 200);
}

#[test]
fn a_little_that_is_unread_costs_no_connection() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(1).start();
    let mut connection = Connection::open(fleet.listen).unwrap();
    for round in 0..50_usize {
        let body = vec![b'x'; 1 + round * 1337 % 65_536];
        let response = connection.request(&Request::post("/nix").body("text/odd", &body)).unwrap();
        assert_eq!((response.status, response.keeps_alive()), (404, true), "{} bytes", body.len());
    }
    // The answer does not wait for the rest, and the next request does.
    connection.send(b"POST /nix HTTP/1.1\r\nHost: t\r\nContent-Length: 10\r\n\r\nhalf ").unwrap();
    assert_eq!(connection.receive(false).unwrap().status, 404);
    connection.send(b"of itGET /hello HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
    assert_eq!(connection.receive(false).unwrap().status, 200);
    // What is never sent is not waited for.
    connection.send(b"POST /nix HTTP/1.1\r\nHost: t\r\nContent-Length: 10\r\n\r\nhalf ").unwrap();
    assert_eq!(connection.receive(false).unwrap().status, 404);
    assert_eq!(connection.rest().unwrap(), b"", "closed without a word");
}

/// Sends for ever; how long it was let, and how much was taken, after the answer has come.
fn send_for_ever(
    address: SocketAddr,
    head: &[u8],
    piece: usize,
    pause: Duration,
) -> (Duration, usize, Vec<u8>) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
    stream.write_all(head).unwrap();
    let (begun, mut sent) = (Instant::now(), 0);
    let piece = vec![b'x'; piece];
    while begun.elapsed() < wait::LONG {
        match stream.write(&piece) {
            Ok(count) => sent += count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
        wait::let_pass(pause);
    }
    let lasted = begun.elapsed();
    let mut answer = vec![0; 1024];
    let count = stream.read(&mut answer).unwrap_or(0);
    answer.truncate(count);
    (lasted, sent, answer)
}

#[test]
fn who_sends_for_ever_holds_nothing_for_long() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(1).start();
    let heads: [(&[u8], &[u8]); 5] = [
        (b"POST /nix HTTP/1.1\r\nHost: t\r\nContent-Length: 99999999999\r\n\r\n", b"HTTP/1.1 413 "),
        (
            b"POST /nix HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n",
            b"HTTP/1.1 404 ",
        ),
        (b"GET / HTTP/1.1\r\nBad Field: x\r\n\r\n", b"HTTP/1.1 400 "),
        (b"POST /nix HTTP/1.1\r\nHost: t\r\nContent-Length: 60000\r\n\r\n", b"HTTP/1.1 404 "),
        (b"GET /nix HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n", b"HTTP/1.1 404 "),
    ];
    let clients: Vec<_> = heads
        .iter()
        .flat_map(|(head, answer)| [(*head, *answer, 65_536, 0), (*head, *answer, 1, 50)])
        .map(|(head, answer, piece, pause)| {
            let address = fleet.listen;
            thread::spawn(move || {
                let shown = String::from_utf8_lossy(head).into_owned();
                let (lasted, sent, got) = send_for_ever(address, head, piece, Duration::from_millis(pause));
                // 2 s for a little that is to come, and 2 s of lingering; a busy machine is late for both.
                assert!(lasted < Duration::from_secs(8), "{lasted:?}: {shown}");
                // The bound, and what lies in the buffers of both kernels.
                assert!(sent < 16 << 20, "{sent} bytes: {shown}");
                assert!(
                    got.is_empty() || got.starts_with(answer),
                    "{}: {shown}",
                    String::from_utf8_lossy(&got)
                );
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().unwrap());
    wait::until("nothing is held", wait::LONG, || connections(&fleet) == 0);
}

#[test]
fn what_a_worker_refuses_by_itself_arrives_too() {
    let redis = TestRedis::shared();
    let plan =
        TestFleetBuilder::on(&redis).example("faulty").workers(1).set("REGATTA_PROXY__TRUSTED", "192.0.2.1");
    let plan = plan
        .set("REGATTA_HTTP__MAX_CONNECTIONS_PER_CLIENT", "1")
        .set("REGATTA_HTTP__MAX_HEADER_MEMORY", "64KiB");
    let fleet = plan.start();
    let from = |last| Connection::open_from(IpAddr::from([127, 0, 0, last]), fleet.listen).unwrap();
    let mut first = from(2);
    first.send(&Request::get("/slow/3000").bytes()).unwrap();
    wait::until("it is under way", wait::LONG, || {
        from(9).request(&Request::get("/held")).unwrap().text().trim() == "1"
    });
    for _ in 0..10 {
        let mut second = from(2);
        let head = "POST /hello HTTP/1.1\r\nHost: t\r\nContent-Length: 1500000\r\n\r\n";
        second.send(&[head.as_bytes(), &[b'x'; 1_500_000]].concat()).unwrap();
        let refusal = second.receive(false).unwrap();
        assert_eq!(refusal.status, 503, "too many connections from there");
    }
    assert_eq!(first.receive(false).unwrap().status, 200);
    // Large heads that do not end: the largest are told so, however much of them still comes.
    let head = format!("GET /hello HTTP/1.1\r\nHost: t\r\nX: {}", "x".repeat(20_000));
    let mut many: Vec<_> = (20..40).map(from).collect();
    let mut statuses = Vec::new();
    many.iter_mut().for_each(|one| one.send(head.as_bytes()).unwrap());
    wait::until("some are refused", wait::LONG, || {
        let text = fleet.operator("/metrics").text();
        sum(&text, "regatta_requests_refused_total", &["reason=\"header_memory\""]) > 0.0
    });
    for one in &mut many {
        let _ = one.send(&[b'x'; 8_000]);
        let _ = one.send(b"\r\n\r\n");
        statuses.push(one.receive(false).map(|response| response.status));
    }
    assert!(statuses.iter().all(|status| matches!(status, Ok(200 | 431))), "{statuses:?}");
    assert!(statuses.contains(&Ok(431)), "{statuses:?}");
}

#[test]
fn http_2_resets_what_it_does_not_read_without_an_error() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(1).start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client: Client<_, Body> = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let address = fleet.listen;
    runtime.block_on(async {
        let post = |path: &str, body: usize| {
            let request = hyper::Request::post(format!("http://{address}{path}"));
            client.request(request.body(Body::from(vec![b'x'; body])).unwrap())
        };
        for (path, body, status) in
            [("/nix", 1_500_000, 404), ("/hello", 300_000, 405), ("/counters/x", 2_500_000, 413)]
        {
            let all: Vec<_> = (0..30).map(|_| tokio::spawn(post(path, body))).collect();
            for one in all {
                let response = one.await.unwrap().expect("an answer, and not a reset");
                assert_eq!(response.status(), StatusCode::from_u16(status).unwrap());
            }
        }
    });
    assert_eq!(connections(&fleet), 1, "one connection for all of them");
}
