//! More requests than a worker can answer: a crowd waits and is served, what can never be served in time is refused, and
//! operators are answered all the while.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::Barrier;
use tokio::time::timeout;

use crate::support::exposition::sum;
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::TestRedis;
use crate::support::{soak, wait};

/// An answer as it came; its text is head and body.
#[derive(Debug)]
struct Answer {
    status: u16,
    text: String,
    took: Duration,
}

impl Answer {
    fn closes(&self) -> bool {
        self.text.to_lowercase().lines().any(|line| line == "connection: close")
    }
}

/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks on a connection and reads the whole answer; an error is a connection that ended without one.
async fn ask(stream: &mut TcpStream, target: &str) -> Result<Answer, String> {
    let begun = Instant::now();
    let request = format!("GET {target} HTTP/1.1\r\nHost: fleet.test\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(|error| format!("cannot send: {error}"))?;
    let mut bytes = Vec::new();
    loop {
        let read =
            timeout(PATIENCE, stream.read_buf(&mut bytes)).await.map_err(|_| "no answer".to_owned())?;
        let read = read.map_err(|error| format!("cannot read: {error}"))?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.to_lowercase().strip_prefix("content-length: ").map(str::to_owned));
            if body.len() >= length.and_then(|length| length.parse().ok()).unwrap_or(0) {
                let status = head[9..12].parse().map_err(|_| format!("no status in {head}"))?;
                return Ok(Answer { status, text, took: begun.elapsed() });
            }
        }
        if read == 0 {
            return Err(format!("ended after {} bytes", bytes.len()));
        }
    }
}

/// As many connections as wanted, each of which asks so often, one request after the other; all begin together.
fn crowd(
    address: SocketAddr,
    connections: usize,
    times: usize,
    target: &'static str,
) -> Vec<Result<Answer, String>> {
    Runtime::new().unwrap().block_on(async {
        let start = Arc::new(Barrier::new(connections));
        let clients: Vec<_> = (0..connections)
            .map(|_| {
                let start = Arc::clone(&start);
                tokio::spawn(async move {
                    let mut stream = TcpStream::connect(address).await.unwrap();
                    start.wait().await;
                    let mut answers = Vec::new();
                    for _ in 0..times {
                        let answer = ask(&mut stream, target).await;
                        // A worker that has more connections than the other says so to some, to make them even.
                        if answer.as_ref().is_ok_and(Answer::closes) {
                            stream = TcpStream::connect(address).await.unwrap();
                        }
                        answers.push(answer);
                    }
                    answers
                })
            })
            .collect();
        let mut answers = Vec::new();
        for client in clients {
            answers.extend(client.await.unwrap());
        }
        answers
    })
}

fn refused(fleet: &TestFleet, reason: &str) -> f64 {
    let metrics = fleet.operator("/metrics").text();
    let lines = metrics.lines().filter(|line| line.starts_with("regatta_requests_refused_total"));
    let lines = lines.filter(|line| line.contains(&format!("reason=\"{reason}\"")));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Operators get their answers however many visitors wait.
fn operators_are_served(fleet: &TestFleet) {
    for path in ["/livez", "/readyz", "/metrics", "/fleet.json"] {
        let begun = Instant::now();
        assert_eq!(fleet.operator(path).status, 200, "{path}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{path} took {:?}", begun.elapsed());
    }
}

#[test]
fn a_crowd_waits_and_every_request_is_served() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).example("faulty").workers(2).start();
    let address = fleet.listen;
    let asking = std::thread::spawn(move || crowd(address, soak::length(400, 1000), 4, "/spin/1"));
    wait::until("requests wait for their turn", wait::LONG, || {
        sum(&fleet.operator("/metrics").text(), "regatta_requests_queued", &[]) > 100.0
    });
    operators_are_served(&fleet);
    let answers = asking.join().unwrap();
    let failed: Vec<_> =
        answers.iter().filter(|answer| !matches!(answer, Ok(answer) if answer.status == 200)).collect();
    assert!(failed.is_empty(), "{} failed, such as {:?}", failed.len(), failed[0]);
    let mut times: Vec<_> = answers.iter().flatten().map(|answer| answer.took).collect();
    times.sort();
    let (median, slowest) = (times[times.len() / 2], times[times.len() - 1]);
    assert!(slowest < 5 * median, "in their order: median {median:?}, slowest {slowest:?}");
    assert_eq!(refused(&fleet, "overload"), 0.0);
    wait::until("nobody waits any more", wait::LONG, || {
        sum(&fleet.operator("/metrics").text(), "regatta_requests_queued", &[]) == 0.0
    });
}

#[test]
fn handlers_that_wait_do_not_keep_others_waiting() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).example("faulty").workers(1).start();
    let begun = Instant::now();
    let answers = crowd(fleet.listen, 1000, 1, "/slow/1000");
    assert!(answers.iter().all(|answer| matches!(answer, Ok(answer) if answer.status == 200)));
    assert!(begun.elapsed() < Duration::from_secs(30), "they slept side by side: {:?}", begun.elapsed());
}

#[test]
fn what_would_wait_too_long_is_refused_until_the_load_is_gone() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).example("faulty").workers(1).start();
    let address = fleet.listen;
    // 36 s of work for one worker, all at once: too much even if the machine is busy with other things.
    let asking = std::thread::spawn(move || crowd(address, 1800, 1, "/spin/20"));
    wait::until("it begins to refuse", wait::LONG, || !fleet.log_lines("overloaded").is_empty());
    operators_are_served(&fleet);
    // And twice what it can serve goes on coming, over connections of their own.
    let coming = Runtime::new().unwrap().block_on(async {
        let mut asked = Vec::new();
        for _ in 0..400 {
            asked.push(tokio::spawn(async move {
                let mut stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
                ask(&mut stream, "/spin/20").await
            }));
            wait::paced(Duration::from_millis(10)).await;
        }
        let mut answers = Vec::new();
        for one in asked {
            answers.push(one.await.unwrap());
        }
        answers
    });
    operators_are_served(&fleet);
    let mut answers = asking.join().unwrap();
    answers.extend(coming);
    let mut counts = [0_usize; 2];
    for answer in &answers {
        let answer = answer.as_ref().expect("each is answered, and no answer is lost to a reset");
        match answer.status {
            200 => counts[0] += 1,
            503 => {
                counts[1] += 1;
                let text = answer.text.to_lowercase();
                for part in
                    ["retry-after: ", "connection: close", "application/problem+json", "\"status\":503"]
                {
                    assert!(text.contains(part), "{part} in {text}");
                }
            }
            other => panic!("{other}: {answer:?}"),
        }
    }
    let [served, turned_away] = counts;
    assert!(served >= 60 && turned_away >= 400, "{served} served, {turned_away} refused");
    assert_eq!(refused(&fleet, "overload"), turned_away as f64);
    assert_eq!(sum(&fleet.operator("/metrics").text(), "regatta_worker_shedding", &[]), 1.0);
    wait::until("it is no longer overloaded", wait::LONG, || {
        !fleet.log_lines("no longer overloaded").is_empty()
    });
    assert_eq!(fleet.log_lines("overloaded: ").len(), 1, "said once");
    assert_eq!(fleet.get("/hello").status, 200);
    assert_eq!(sum(&fleet.operator("/metrics").text(), "regatta_worker_shedding", &[]), 0.0);
}
