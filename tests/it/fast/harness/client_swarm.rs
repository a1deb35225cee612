//! A load harness that takes a wrong answer for a right one proves nothing: each kind of wrong answer is found.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::Duration;

use crate::support::client_swarm::{ClientSwarm, SwarmPlan, SwarmReport, SwarmRequest};
use crate::support::wait;

/// Serves one connection after the other: the n-th request of all gets the n-th answer, the last one for ever.
fn scripted(answers: Vec<String>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let mut next = 0;
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            while let Ok(1..) = stream.read(&mut request) {
                let answer = &answers[next.min(answers.len() - 1)];
                next += 1;
                if answer.is_empty() || stream.write_all(answer.as_bytes()).is_err() {
                    break;
                }
            }
        }
    });
    address
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len())
}

fn views(count: u64) -> String {
    answer("200 OK", "Set-Cookie: sid=1; Path=/\r\n", &format!("PID: 7 | Views: {count}\n"))
}

/// What one client makes of these answers, of which the last goes on for ever.
fn seen(answers: &[String]) -> SwarmReport {
    let crowd = ClientSwarm::start(SwarmPlan::closed(scripted(answers.to_vec()), 1, SwarmRequest::View));
    let enough = answers.len() as u64;
    wait::until("it was answered", wait::LONG, || crowd.answered() + crowd.failed() >= enough);
    crowd.finish()
}

fn kinds(report: &SwarmReport) -> Vec<&str> {
    report.failures.keys().map(String::as_str).collect()
}

#[test]
fn counts_that_grow_by_one_are_right() {
    let counts: Vec<_> = (1..=500).map(views).collect();
    let crowd = ClientSwarm::start(SwarmPlan::closed(scripted(counts), 1, SwarmRequest::View));
    wait::until("it was answered", wait::LONG, || crowd.answered() >= 3);
    let report = crowd.finish();
    // The script's last answer repeats itself, which a quick client may have met.
    assert!(report.answered() >= 3 && report.counted <= report.answered(), "{report}");
}

#[test]
fn every_wrong_answer_is_found() {
    let stale = answer("200 OK", "Session-State: stale\r\n", "PID: 7 | Views: 3\n");
    let problem = "Content-Type: application/problem+json\r\n";
    let cases = BTreeMap::from([
        ("a count went back or stood still", vec![views(1), views(2), views(2)]),
        ("a count jumped", vec![views(1), views(3)]),
        ("200 with Session-State: stale", vec![views(1), stale]),
        ("200 without a count", vec![answer("200 OK", "", "hello")]),
        ("503 that is no refusal", vec![answer("503 Service Unavailable", problem, "{}")]),
        ("status 500", vec![answer("500 Internal Server Error", problem, "{}")]),
        ("no HTTP", vec!["nonsense\r\n\r\n".to_owned()]),
        ("closed without an answer", vec![views(1), String::new()]),
    ]);
    for (kind, answers) in cases {
        let report = seen(&answers);
        assert!(kinds(&report).contains(&kind), "{kind}: {report}");
    }
}

#[test]
fn a_refusal_is_told_from_a_failure_and_is_no_success() {
    let headers = "Content-Type: application/problem+json\r\nRetry-After: 1\r\n";
    let report = seen(&[views(1), answer("503 Service Unavailable", headers, "{}")]);
    assert!(report.refused() > 0 && report.failed() == 0 && report.answered() == 1, "{report}");
}

#[test]
fn an_open_loop_sends_at_its_rate() {
    let answers = (1..=100_000).map(views).collect();
    let crowd = ClientSwarm::start(SwarmPlan::open(scripted(answers), 1, SwarmRequest::View, 200.0));
    wait::until("it was answered", wait::LONG, || crowd.answered() >= 100);
    assert!(crowd.age() >= Duration::from_millis(450), "requests came faster than they were due");
    let report = crowd.finish();
    report.is_exact();
}
