//! The chat of `examples/room.rs` over a reload: no client is cut off without 1012, and no line is lost or heard twice.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::browser::Browser;
use crate::support::client::Failure;
use crate::support::fleet::TestFleetBuilder;
use crate::support::operate;
use crate::support::redis::TestRedis;
use crate::support::sockets::{CLOSE, Frame, TEXT, WebSocketClient};
use crate::support::wait;

/// A line that has not come back for so long over a new socket was not published.
const REPEAT_AFTER: Duration = Duration::from_secs(3);

/// A client that says lines, hears all, and comes again after where it was.
struct Talker {
    address: SocketAddr,
    name: usize,
    socket: WebSocketClient,
    last: String,
    heard: Vec<(String, String)>,
    closed_with: Vec<Option<u16>>,
}

impl Talker {
    fn join(address: SocketAddr, name: usize) -> Self {
        let socket = WebSocketClient::handshake(address, "/chat");
        Self { address, name, socket, last: String::new(), heard: Vec::new(), closed_with: Vec::new() }
    }

    /// Comes again until it is let in: a worker that has just left may have taken the connection.
    fn rejoin(&mut self, code: Option<u16>) {
        self.closed_with.push(code);
        let target = format!("/chat?after={}", self.last);
        self.socket = wait::until_some("a new socket", wait::LONG, || {
            WebSocketClient::try_handshake(self.address, &target, &[]).ok()
        });
    }

    /// Reads what comes for a moment.
    fn listen(&mut self) {
        // Long enough for a whole frame: what was read of one would be lost.
        self.socket.set_timeout(Duration::from_secs(1));
        match self.socket.next() {
            Ok(frame) if frame.opcode == TEXT => self.hear(&serde_json::from_slice(&frame.payload).unwrap()),
            Ok(frame) if frame.opcode == CLOSE => {
                let _ = self.socket.send(&Frame::new(CLOSE, frame.payload.clone()));
                self.rejoin(frame.code());
            }
            Ok(frame) => panic!("{frame:?}"),
            Err(Failure::TimedOut) => {}
            Err(_) => self.rejoin(None),
        }
    }

    fn hear(&mut self, told: &Value) {
        assert_eq!(told["gap"], Value::Null, "nothing was missed");
        let text = |name: &str| told[name].as_str().map(str::to_owned);
        if let Some(id) = text("id").or_else(|| text("after")) {
            self.last = id;
        }
        if let (Some(id), Some(line)) = (text("id"), text("text")) {
            self.heard.push((id, line));
        }
    }

    /// Says a line until it has come back.
    fn say(&mut self, line: &str) {
        let mut sent = None;
        while !self.heard.iter().any(|(_, heard)| heard == line) {
            let rounds = self.closed_with.len();
            let again = sent
                .is_none_or(|(at, round): (Instant, usize)| round != rounds && at.elapsed() > REPEAT_AFTER);
            if again {
                let _ = self.socket.send(&Frame::text(line));
                sent = Some((Instant::now(), rounds));
            }
            self.listen();
        }
    }
}

#[test]
fn over_reloads_no_client_is_cut_off_and_no_line_is_lost_or_heard_twice() {
    const TALKERS: usize = 6;
    let redis = TestRedis::shared();
    let plan = TestFleetBuilder::on(&redis).example("room").workers(2);
    let fleet = plan.set("REGATTA_WORKERS__CANARY_PERIOD", "300ms").start();
    let (stop, all) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(BTreeSet::new())));
    let threads: Vec<_> = (0..TALKERS)
        .map(|name| {
            let (stop, all) = (Arc::clone(&stop), Arc::clone(&all));
            let mut talker = Talker::join(fleet.listen, name);
            thread::spawn(move || {
                let mut n = 0;
                while !stop.load(Relaxed) {
                    let line = format!("{} says {n}", talker.name);
                    talker.say(&line);
                    // So that a client which is away for a moment finds all lines in what Redis retains.
                    wait::pace(Duration::from_millis(50));
                    all.lock().unwrap().insert(line);
                    n += 1;
                }
                talker
            })
        })
        .collect();
    for _ in 0..2 {
        operate::rollout(&fleet, nix::sys::signal::Signal::SIGHUP, "reload");
    }
    stop.store(true, Relaxed);
    let mut talkers: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let all = all.lock().unwrap().clone();
    assert!(all.len() > 20, "there was a talk: {}", all.len());
    for talker in &mut talkers {
        let lines =
            |talker: &Talker| talker.heard.iter().map(|(_, line)| line.clone()).collect::<BTreeSet<_>>();
        wait::until("it has heard all", wait::LONG, || {
            talker.listen();
            lines(talker).len() == all.len()
        });
        assert_eq!(lines(talker), all);
        let mut times = BTreeMap::new();
        talker.heard.iter().for_each(|(_, line)| *times.entry(line).or_insert(0) += 1);
        assert!(times.values().all(|times| *times == 1), "heard twice: {times:?}");
        let ids: BTreeSet<_> = talker.heard.iter().map(|(id, _)| id).collect();
        assert_eq!(ids.len(), talker.heard.len(), "an id twice");
        assert!(!talker.closed_with.is_empty(), "it was closed by a reload");
        assert!(talker.closed_with.iter().all(|code| *code == Some(1012)), "{:?}", talker.closed_with);
    }
}

#[test]
fn a_browser_talks_on_over_a_reload() {
    let redis = TestRedis::shared();
    let plan = TestFleetBuilder::on(&redis).example("room").workers(2);
    let fleet = plan.set("REGATTA_WORKERS__CANARY_PERIOD", "300ms").start();
    let browser = Browser::open(800, 600);
    let lines =
        || browser.run("return [...document.querySelectorAll('#lines li')].map(line => line.textContent)");
    let say = |line: &str| {
        let before = lines().as_array().unwrap().len();
        browser.run(&format!("say({line:?})"));
        wait::until("the line is shown", wait::LONG, || lines().as_array().unwrap().len() > before);
    };
    browser.go(&format!("http://{}/", fleet.listen));
    browser.until("the socket is open", "socket.readyState === 1");
    let mut other = Talker::join(fleet.listen, 0);
    say("one");
    operate::rollout(&fleet, nix::sys::signal::Signal::SIGHUP, "reload");
    // Whether its new socket is open already or not.
    say("two");
    other.say("three");
    wait::until("the third line is shown", wait::LONG, || lines().as_array().unwrap().len() == 3);
    assert_eq!(lines(), serde_json::json!(["one", "two", "three"]));
    assert_eq!(browser.run("return document.body.dataset.closed"), "1012");
    assert_eq!(
        other.heard.iter().map(|(_, line)| line.as_str()).collect::<Vec<_>>(),
        ["one", "two", "three"]
    );
}
