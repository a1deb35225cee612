//! What is counted: each scenario is a kind of request, made again and again in lock-step.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::client::Client;
use crate::fleet::Fleet;
use crate::{Outcome, process};

/// Names, in the order in which they are counted.
pub(crate) const NAMES: [&str; 9] = [
    "hello",
    "visit",
    "visits-16-at-once",
    "visit-10-fields",
    "commit",
    "commits-16-at-once",
    "denied",
    "broadcast",
    "task",
];

/// Requests that come while the worker is stopped, and so are all there when it looks.
const AT_ONCE: usize = 16;

/// Time for what a request leaves behind, such as a task's end.
const SETTLING: Duration = Duration::from_millis(300);

/// One kind of request, and its clients.
#[derive(Debug)]
pub(crate) struct Scenario {
    name: &'static str,
    worker: u32,
    clients: Vec<Client>,
    /// Follows a topic.
    listener: Option<Client>,
    sent: u64,
}

impl Scenario {
    /// Connects, and makes the sessions there are to be.
    pub(crate) fn prepare(name: &'static str, fleet: &Fleet) -> Outcome<Self> {
        let count = if name.ends_with("-16-at-once") { AT_ONCE } else { 1 };
        let clients = (0..count).map(|_| Client::connect(fleet.address)).collect::<Outcome<Vec<_>>>()?;
        let mut scenario = Self { name, worker: fleet.worker(), clients, listener: None, sent: 0 };
        for client in &mut scenario.clients {
            // The first gets a ticket, the second a session.
            if name.starts_with("visit") || name.starts_with("commit") {
                client.ask("GET", "/", 200)?;
                client.ask("GET", "/", 200)?;
            }
            match name {
                "visit-10-fields" => client.ask("POST", "/fill/10", 200)?,
                "denied" => client.ask("GET", "/denied", 200)?,
                _ => {}
            }
        }
        if name == "broadcast" {
            scenario.listener = Some(listen(fleet.address)?);
        }
        Ok(scenario)
    }

    /// Requests of a short and of a long stretch.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        match self.name {
            "hello" | "denied" => (400, 1600),
            "visits-16-at-once" | "commits-16-at-once" => (AT_ONCE * 20, AT_ONCE * 80),
            // A hundred entries are a node of a Redis stream, and what a task costs depends on how full the last one is.
            "task" => (100, 300),
            _ => (200, 800),
        }
    }

    /// Makes so many requests.
    pub(crate) fn run(&mut self, requests: usize) -> Outcome<()> {
        for _ in 0..requests / self.clients.len() {
            self.sent += 1;
            match self.name {
                "hello" => self.clients[0].ask("GET", "/hello", 200)?,
                "visit" | "visit-10-fields" => self.clients[0].ask("GET", "/", 200)?,
                // As many digits each time, so that bytes are the same.
                "commit" => {
                    let path = format!("/commit/{}", 1_000_000 + self.sent);
                    self.clients[0].ask("POST", &path, 200)?;
                }
                "commits-16-at-once" => {
                    self.at_once("POST", &format!("/commit/{}", 1_000_000 + self.sent))?;
                }
                "denied" => self.clients[0].ask("GET", "/denied", 429)?,
                "broadcast" => self.broadcast()?,
                "task" => self.clients[0].ask("POST", "/task", 200)?,
                _ => self.at_once("GET", "/")?,
            }
        }
        thread::sleep(SETTLING);
        Ok(())
    }

    /// Bytes of all answers so far.
    pub(crate) fn received(&self) -> u64 {
        self.clients.iter().chain(&self.listener).map(|client| client.received).sum()
    }

    fn at_once(&mut self, method: &str, path: &str) -> Outcome<()> {
        process::kill(self.worker, Signal::SIGSTOP)?;
        let stat = format!("/proc/{}/stat", self.worker);
        process::wait_until("the worker stands still", || {
            std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") T "))
        })?;
        let sent = self.clients.iter_mut().try_for_each(|client| client.send(method, path));
        process::kill(self.worker, Signal::SIGCONT)?;
        sent?;
        for client in &mut self.clients {
            let status = client.answer()?;
            if status != 200 {
                return Err(format!("{method} {path} was answered {status}").into());
            }
        }
        Ok(())
    }

    fn broadcast(&mut self) -> Outcome<()> {
        self.clients[0].ask("POST", "/say", 200)?;
        let Some(listener) = &mut self.listener else { return Ok(()) };
        while !listener.line()?.starts_with("data: a message") {}
        Ok(())
    }
}

/// A client that follows the topic, and is known to.
fn listen(address: SocketAddr) -> Outcome<Client> {
    let mut listener = Client::connect(address)?;
    listener.send("GET", "/hear")?;
    while !listener.line()?.is_empty() {}
    Ok(listener)
}
