//! Streams and sockets through the shipped nginx, in front of two hosts that share one Redis.

mod tasks;

use std::net::SocketAddr;
use std::process::Child;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;
use tempfile::TempDir;

use crate::support::client::{Connection, Request};
use crate::support::delivery_scenario::DeliveryScenario;
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::nginx;
use crate::support::operate::kill;
use crate::support::operate::rollout;
use crate::support::redis::TestRedis;
use crate::support::repository::root;
use crate::support::sockets::{CLOSE, Frame, WebSocketClient};
use crate::support::{client, process, soak, wait};

fn clients() -> usize {
    soak::length(60, 400)
}

/// Two hosts and nginx before them.
struct Site {
    address: SocketAddr,
    process: Child,
    hosts: Vec<TestFleet>,
    _folder: TempDir,
    _redis: TestRedis,
}

impl Site {
    fn start() -> Self {
        Self::with(|plan| plan, &[])
    }

    /// With other settings, and other words in nginx's configuration.
    fn with(change: impl Fn(TestFleetBuilder) -> TestFleetBuilder, words: &[(&str, &str)]) -> Self {
        let redis = TestRedis::start();
        let plan = || {
            let plan = TestFleetBuilder::on(&redis).workers(2).set("REGATTA_REDIS__PREFIX", "shared");
            let plan =
                plan.set("REGATTA_WORKERS__CANARY_PERIOD", "300ms").set("REGATTA_DRAIN__TIMEOUT", "60s");
            change(plan.set("REGATTA_TASKS__CONCURRENCY", "1"))
        };
        let hosts = vec![plan().start(), plan().start()];
        let upstream = std::fs::read_to_string(root().join("docker/nginx/upstream.hosts.conf")).unwrap();
        let upstream = upstream
            .replace("192.0.2.11:3000", &hosts[0].listen.to_string())
            .replace("192.0.2.12:3000", &hosts[1].listen.to_string());
        let folder = tempfile::tempdir().unwrap();
        let (address, process) = nginx::serve_changed(folder.path(), &upstream, words);
        Self { address, process, hosts, _folder: folder, _redis: redis }
    }

    /// Starts a host again where it was.
    fn again(&mut self, number: usize) {
        let old = &self.hosts[number];
        let (listen, admin) = (old.listen.to_string(), old.admin.to_string());
        let plan = old.plan().clone().set("REGATTA_LISTEN", &listen).set("REGATTA_ADMIN__LISTEN", &admin);
        self.hosts[number] = plan.start();
    }

    /// How many of a stage's clients hang on a host.
    fn share(&self, stage: &DeliveryScenario, number: usize) -> usize {
        let workers = self.hosts[number].workers();
        stage.subscribers.count(|record| record.worker.is_some_and(|pid| workers.contains(&pid)))
    }

    /// Publishes through nginx; the id.
    #[track_caller]
    fn publish(&self, topic: &str, text: &str) -> String {
        let body = json!({ "topic": topic, "message": text }).to_string();
        let request = Request::post("/broadcast").body("application/json", body.as_bytes());
        let answer = client::once(self.address, request).unwrap();
        assert!((200..300).contains(&answer.status), "{answer:?}");
        answer.json()["id"].as_str().expect("an id").to_owned()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_host_killed_mid_stream_costs_no_message() {
    let mut site = Site::start();
    let stage = DeliveryScenario::busy(&[site.address], clients());
    let shares = [site.share(&stage, 0), site.share(&stage, 1)];
    assert!(!shares.contains(&0), "nginx spreads streams over the hosts: {shares:?}");
    for round in 0..soak::length(2, 10) {
        let victim = round % 2;
        kill(&mut site.hosts[victim]);
        stage.more(60);
        stage.listens();
        assert_eq!(site.share(&stage, 1 - victim), clients(), "all are with the other one");
        site.again(victim);
        stage.more(60);
    }
    let balance = stage.close("host killed behind nginx");
    assert!(balance.cut >= clients() as u64, "{balance}");
}

#[test]
fn hosts_that_reload_upgrade_and_stop_in_turn_cost_no_message() {
    let mut site = Site::start();
    let stage = DeliveryScenario::busy(&[site.address], clients());
    for round in 0..soak::length(1, 5) {
        rollout(&site.hosts[0], Signal::SIGHUP, "reload");
        stage.more(40);
        rollout(&site.hosts[1], Signal::SIGUSR2, "upgrade");
        stage.more(40);
        let leaver = round % 2;
        assert_eq!(site.hosts[leaver].stop(), 0, "{}", site.hosts[leaver].log());
        stage.more(40);
        stage.listens();
        site.again(leaver);
        stage.more(40);
    }
    let balance = stage.close("rolling restart behind nginx");
    assert_eq!((balance.cut, balance.unanswered), (0, 0), "{balance}");
}

/// Times cut short: heartbeats every second, and nginx gives a silent stream up after three.
fn quick() -> Site {
    let change = |plan: TestFleetBuilder| plan.set("REGATTA_BROADCAST__KEEP_ALIVE_INTERVAL", "1s");
    Site::with(change, &[("proxy_read_timeout 60s", "proxy_read_timeout 3s")])
}

#[test]
fn quiet_streams_stay_and_those_of_a_host_that_vanished_go_on_elsewhere() {
    let site = quick();
    let stage = DeliveryScenario::open(&[site.address], clients());
    wait::until("time passes, with signs of life", wait::LONG, || {
        stage.subscribers.all(|record| record.comments >= 5)
    });
    assert!(
        stage.subscribers.all(|record| record.opened == 1),
        "nobody was cut: {}",
        stage.subscribers.summary()
    );
    // Power lost: no word, no reset. nginx has the connections, and nothing comes.
    let victim = &site.hosts[0];
    let processes: Vec<_> = victim.workers().into_iter().chain([victim.pid()]).rev().collect();
    let stranded = site.share(&stage, 0);
    assert!(stranded > 0, "nginx spreads streams over the hosts");
    processes.iter().for_each(|pid| process::stop(*pid));
    let id = loop {
        let body = json!({ "topic": "news", "message": "after the lights went out" }).to_string();
        let request = Request::post("/broadcast").body("application/json", body.as_bytes());
        let answer = client::once(site.hosts[1].listen, request).unwrap();
        if answer.status < 300 {
            break answer.json()["id"].as_str().unwrap().parse().unwrap();
        }
    };
    let all = wait::until_or(wait::LONG, || {
        stage.subscribers.all(|record| record.topic != "news" || record.has(id))
            && site.share(&stage, 1) == clients()
    });
    processes.iter().rev().for_each(|pid| process::signal(*pid, Signal::SIGCONT));
    assert!(all.is_ok(), "{} were stranded, {}", stranded, stage.subscribers.summary());
    for record in stage.subscribers.stop() {
        let news = usize::from(record.topic == "news");
        assert_eq!((record.seen.len(), record.faults.len(), record.times("gap")), (news, 0, 0), "{record:?}");
    }
}

/// The next message's text with its id; other frames must not come.
#[track_caller]
fn heard(socket: &mut WebSocketClient) -> (String, String) {
    let value = socket.json();
    let field =
        |name: &str| value[name].as_str().unwrap_or_else(|| panic!("no {name} in {value}")).to_owned();
    (field("id"), field("message"))
}

#[test]
fn sockets_pass_both_ways() {
    let site = Site::start();
    let mut sockets: Vec<_> = (0..6).map(|_| WebSocketClient::open(site.address, "/ws?topic=news")).collect();
    let worker = |socket: &WebSocketClient| socket.response.worker();
    let hosts: Vec<_> = site.hosts.iter().map(TestFleet::workers).collect();
    let spread = hosts.iter().all(|pids| sockets.iter().any(|socket| pids.contains(&worker(socket))));
    assert!(spread, "nginx spreads sockets over the hosts");
    sockets[0].send(&Frame::text("{\"message\":\"ahoy\"}")).unwrap();
    let said: Vec<_> = sockets.iter_mut().map(heard).collect();
    assert!(said.iter().all(|(id, text)| text == "ahoy" && *id == said[0].0), "{said:?}");
    let posted = site.publish("news", "by post");
    assert!(sockets.iter_mut().all(|socket| heard(socket) == (posted.clone(), "by post".to_owned())));
    // And so does the end, in both directions.
    sockets[0].send(&Frame::close(1000, "")).unwrap();
    assert_eq!(sockets[0].close_code(), Some(1000));
    sockets[1].send_raw(&Frame::text("no mask").bytes(None)).unwrap();
    assert_eq!(sockets[1].close_code(), Some(1002));
    let elsewhere =
        WebSocketClient::try_open(site.address, "/ws?topic=news", &[("Origin", "https://evil.example")]);
    assert_eq!(elsewhere.expect_err("another site's page").status, 403);
}

#[test]
fn sockets_of_a_host_that_reloads_or_dies_resume_on_the_other() {
    let mut site = Site::start();
    let mut socket = WebSocketClient::open(site.address, "/ws?topic=news");
    socket.set_timeout(wait::LONG);
    site.publish("news", "first");
    let (mut last, _) = heard(&mut socket);
    for round in 0..4 {
        let on = usize::from(site.hosts[1].workers().contains(&socket.response.worker()));
        if round % 2 == 0 {
            rollout(&site.hosts[on], Signal::SIGHUP, "reload");
            assert_eq!(socket.close_code(), Some(1012), "service restart");
        } else {
            kill(&mut site.hosts[on]);
            assert_eq!(socket.closed(), None, "cut");
        }
        let missed: Vec<_> = (0..3).map(|number| format!("missed {round}.{number}")).collect();
        let ids: Vec<_> = missed.iter().map(|text| site.publish("news", text)).collect();
        socket = WebSocketClient::open(site.address, &format!("/ws?topic=news&after={last}"));
        for (id, text) in ids.iter().zip(missed) {
            assert_eq!(heard(&mut socket), (id.clone(), text));
        }
        last = ids.last().unwrap().clone();
        if round % 2 == 1 {
            site.again(on);
        }
    }
    socket.send(&Frame::new(CLOSE, [])).unwrap();
    assert!(socket.closed().is_some(), "a close without a code is answered");
}

/// Reads a stream's body until it contains this.
#[track_caller]
fn until_says(connection: &mut Connection, words: &str) -> String {
    let (mut text, begin) = (String::new(), Instant::now());
    while !text.contains(words) {
        assert!(begin.elapsed() < 2 * wait::LONG, "no {words:?} in {text:?}");
        match connection.read(1) {
            Ok(byte) => text.push(char::from(byte[0])),
            Err(failure) => panic!("{failure:?} before {words:?} in {text:?}"),
        }
    }
    text
}

#[test]
fn no_stream_waits_in_a_buffer() {
    let site = Site::start();
    let targets = ["/events?topic=quiet", "/live"];
    for target in targets {
        let mut connection = Connection::open(site.address).unwrap();
        connection.set_timeout(Duration::from_secs(5));
        connection.send(&Request::get(target).header("Accept-Encoding", "gzip").bytes()).unwrap();
        let head = until_says(&mut connection, "\r\n\r\n").to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 200 ") && head.contains("text/event-stream"), "{target}: {head}");
        assert!(!head.contains("content-encoding"), "{target}: {head}");
        until_says(&mut connection, "retry:");
    }
    let mut connection = Connection::open(site.address).unwrap();
    connection.send(&Request::get("/events?topic=quiet").bytes()).unwrap();
    until_says(&mut connection, "\r\n\r\n");
    for number in 0..5 {
        let text = format!("small message {number}");
        site.publish("quiet", &text);
        until_says(&mut connection, &text);
    }
}
