//! The examples without a fleet, run as a reader of the documentation would run them.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use crate::support::client::{self, CookieClient, Request};
use crate::support::redis::TestRedis;

/// An example's process, which is killed with the value.
struct Example {
    process: Child,
    address: SocketAddr,
}

impl Example {
    fn run(name: &str, server: &TestRedis) -> Self {
        let path = Path::new(env!("CARGO_BIN_EXE_regatta")).with_file_name("examples").join(name);
        let mut command = Command::new(&path);
        command.env("REDIS_URL", server.url().expose()).env("PORT", "0").stdout(Stdio::piped());
        let mut process = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().trim_start_matches("http://").parse().unwrap();
        Self { process, address }
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn copies_of_the_example_with_limits_count_together() {
    let server = TestRedis::start();
    let copies = [Example::run("plain_limits", &server), Example::run("plain_limits", &server)];
    assert_eq!(client::get(copies[0].address, "/").text(), "ahoy\n");
    let of = |from: &str, at: usize| {
        let request = Request::get("/").header("X-Forwarded-For", from);
        client::once(copies[at % 2].address, request).unwrap().status
    };
    let statuses: Vec<_> = (0..60).map(|at| of("203.0.113.9", at)).collect();
    let denied = statuses.iter().filter(|status| **status == 429).count();
    assert!(statuses[..20].iter().all(|status| *status == 200) && denied > 0, "{statuses:?}");
    assert_eq!(of("203.0.113.10", 0), 200);
}

#[test]
fn twenty_clicks_at_once_are_twenty_items() {
    let server = TestRedis::start();
    let example = Example::run("plain_sessions", &server);
    let mut visitor = CookieClient::default();
    assert_eq!(visitor.request(example.address, Request::post("/cart")).text(), "1 in the cart\n");
    let clicks: Vec<_> = (0..20)
        .map(|_| {
            let (mut visitor, address) = (visitor.clone(), example.address);
            thread::spawn(move || visitor.request(address, Request::post("/cart")).status)
        })
        .collect();
    assert!(clicks.into_iter().all(|click| click.join().unwrap() == 200));
    assert_eq!(visitor.request(example.address, Request::post("/cart")).text(), "22 in the cart\n");
}
