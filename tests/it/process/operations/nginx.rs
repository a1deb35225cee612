//! The shipped nginx configuration, run by a real nginx in front of stand-ins for two replicas.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Child;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use crate::support::nginx::{free_address, nginx, serve, write_configuration};
use crate::support::repository::root;

const PATIENCE: Duration = Duration::from_secs(10);

/// What a stand-in answers to a request's head; `None`: it closes the connection, as a worker that crashes.
type Answer = fn(&str) -> Option<String>;

/// A stand-in for one replica: answers on a Unix socket and keeps the heads of all requests.
struct Replica {
    socket: PathBuf,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Replica {
    fn start(socket: PathBuf, answer: Answer) -> Self {
        let listener = UnixListener::bind(&socket).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&seen);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let kept = Arc::clone(&kept);
                thread::spawn(move || converse(&stream.unwrap(), answer, &kept));
            }
        });
        Self { socket, seen }
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

fn converse(mut stream: &UnixStream, answer: Answer, seen: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        seen.lock().unwrap().push(head.clone());
        let Some(answer) = answer(&head) else { return };
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn ok(_: &str) -> Option<String> {
    Some("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nset-cookie: a=1\r\nset-cookie: b=2\r\nx-worker-id: 7\r\n\r\nok".into())
}

fn crash(_: &str) -> Option<String> {
    None
}

fn redis_away(_: &str) -> Option<String> {
    Some("HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 4\r\n\r\naway".into())
}

/// Agrees to an upgrade if the head asks for one.
fn upgrade(head: &str) -> Option<String> {
    let head = head.to_ascii_lowercase();
    let asked = head.contains("\r\nconnection: upgrade\r\n") && head.contains("\r\nupgrade: websocket\r\n");
    asked.then(|| {
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhi".into()
    })
}

/// The first piece of a stream that goes on; the connection stays open.
fn stream(_: &str) -> Option<String> {
    Some("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: 1\n\n".into())
}

/// A running nginx with two replicas behind it.
struct Front {
    _folder: TempDir,
    address: SocketAddr,
    process: Child,
    replicas: [Replica; 2],
}

impl Front {
    fn start(answers: [Answer; 2]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = |name: &str| folder.path().join(name);
        let replicas =
            [Replica::start(socket("a.sock"), answers[0]), Replica::start(socket("b.sock"), answers[1])];
        let mut upstream = std::fs::read_to_string(root().join("docker/nginx/upstream.conf")).unwrap();
        for replica in &replicas {
            let server = format!("server unix:{}", replica.socket.display());
            assert!(upstream.contains("server app:3000 resolve"), "{upstream}");
            upstream = upstream.replacen("server app:3000 resolve", &server, 1);
        }
        // Debian's nginx is older than `resolver` in an upstream, and sockets need none.
        let upstream: Vec<_> = upstream.lines().filter(|line| !line.trim().starts_with("resolver")).collect();
        let (address, process) = serve(folder.path(), &upstream.join("\n"));
        Self { _folder: folder, address, process, replicas }
    }

    /// Sends one request and reads until `end` or the end of the connection.
    fn ask(&self, request: &str, end: &str) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let mut buffer = [0; 4096];
        while !String::from_utf8_lossy(&answer).contains(end) {
            match stream.read(&mut buffer).unwrap() {
                0 => break,
                count => answer.extend_from_slice(&buffer[..count]),
            }
        }
        String::from_utf8(answer).unwrap()
    }

    fn request(&self, method: &str, extra: &str) -> String {
        let length = if method == "POST" { "Content-Length: 0\r\n" } else { "" };
        let request = format!(
            "{method} / HTTP/1.1\r\nHost: example.com:8080\r\nConnection: close\r\n{length}{extra}\r\n"
        );
        self.ask(&request, "never said")
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn header<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    let fields = head.lines().filter_map(|line| line.split_once(": "));
    fields.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
}

#[test]
fn nginx_accepts_its_configuration() {
    let hosts = std::fs::read_to_string(root().join("docker/nginx/upstream.hosts.conf")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    write_configuration(folder.path(), free_address(), &hosts);
    let output = nginx(folder.path()).arg("-t").output().expect("nginx is installed by `make deps-test`");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("[warn]"), "{said}");
}

#[test]
fn clients_cannot_choose_their_address() {
    let front = Front::start([ok, ok]);
    let spoofed = "X-Forwarded-For: 1.2.3.4\r\nForwarded: for=1.2.3.4\r\nX-Forwarded-Proto: https\r\n\
                   X-Forwarded-Host: elsewhere\r\nX-Request-Id: mine\r\n";
    let answer = front.request("GET", spoofed);
    assert_eq!(header(&answer, "set-cookie"), ["a=1", "b=2"]);
    assert_eq!(header(&answer, "x-worker-id"), ["7"]);
    let head = front.replicas.iter().flat_map(Replica::seen).next().unwrap();
    assert_eq!(header(&head, "x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(header(&head, "x-forwarded-proto"), ["http"]);
    assert_eq!(header(&head, "x-forwarded-host"), ["example.com:8080"]);
    assert_eq!(header(&head, "host"), ["example.com:8080"]);
    assert_eq!(header(&head, "x-request-id")[0].len(), 32);
    assert!(header(&head, "forwarded").is_empty() && header(&head, "connection").is_empty(), "{head}");
}

#[test]
fn a_crashed_worker_costs_a_repeatable_request_nothing() {
    let front = Front::start([crash, ok]);
    for _ in 0..10 {
        let answer = front.request("GET", "");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    assert!(!front.replicas[0].seen().is_empty(), "the crashing one was asked too");
}

#[test]
fn a_request_that_is_not_repeatable_is_never_sent_twice() {
    let front = Front::start([crash, ok]);
    let answers: Vec<_> = (0..10).map(|_| front.request("POST", "")).collect();
    let lost = answers.iter().filter(|answer| answer.starts_with("HTTP/1.1 502 ")).count();
    assert_eq!(front.replicas[0].seen().len(), lost);
    assert_eq!(front.replicas[0].seen().len() + front.replicas[1].seen().len(), 10);
}

#[test]
fn redis_away_is_passed_on_and_not_asked_again() {
    let front = Front::start([redis_away, redis_away]);
    let answer = front.request("GET", "");
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("away"), "{answer}");
    assert_eq!(header(&answer, "retry-after"), ["1"]);
    assert_eq!(front.replicas.iter().flat_map(Replica::seen).count(), 1);
}

#[test]
fn upgrades_and_streams_pass() {
    let front = Front::start([upgrade, upgrade]);
    let request = "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    assert!(front.ask(request, "\r\n\r\nhi").starts_with("HTTP/1.1 101 "));

    let front = Front::start([stream, stream]);
    let answer = front.ask("GET /events HTTP/1.1\r\nHost: x\r\n\r\n", "data: 1\n\n");
    assert!(answer.contains("data: 1\n\n"), "what was sent is passed on before the end: {answer}");
}
