//! A log that nothing takes lines from: the fleet goes on as if it had none, and says afterwards what is missing.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::{fs, thread};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::sys::termios::{FlowArg, tcflow};
use serde_json::Value;

use crate::support::client::{Connection, Request};
use crate::support::fleet::{TestFleet, TestFleetBuilder, field};
use crate::support::redis::TestRedis;
use crate::support::{process, wait};

/// A fleet on sockets that the test opened, so that it finds them without the log.
fn start(plan: TestFleetBuilder) -> TestFleet {
    let socket = || TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let (web, admin) = (socket(), socket());
    let (listen, operators) = (web.local_addr().unwrap(), admin.local_addr().unwrap());
    let plan = plan.set("REGATTA_LOG__FILTER", "debug").set("REGATTA_DRAIN__IDLE_GRACE", "100ms");
    let mut fleet = plan.lend("web", web.into()).lend("admin", admin.into()).spawn();
    (fleet.listen, fleet.admin) = (listen, operators);
    wait::until("it serves", wait::LONG, || status(&fleet).is_some_and(|now| now["state"] == "serving"));
    fleet
}

/// Exit code and standard output of a command to a fleet, which must answer.
#[track_caller]
fn operate(fleet: &TestFleet, words: &[&str]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_regatta"));
    command.arg("--run-dir").arg(fleet.plan().setting("REGATTA_RUN_DIR")).args(words).env_clear();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let code = wait::until_some(&format!("an answer to {words:?}"), wait::LONG, || child.try_wait().unwrap());
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    (code.code().unwrap(), text)
}

fn status(fleet: &TestFleet) -> Option<Value> {
    let (code, text) = operate(fleet, &["status", "--json"]);
    (code == 0).then(|| serde_json::from_str(&text).unwrap())
}

/// Lines that the fleet says it dropped.
#[track_caller]
fn dropped(fleet: &TestFleet) -> u64 {
    status(fleet).unwrap()["totals"]["log_lines_dropped"].as_u64().unwrap()
}

/// Asks so often on one connection.
#[track_caller]
fn visit(fleet: &TestFleet, times: usize) {
    let mut connection = Connection::open(fleet.listen).unwrap();
    for _ in 0..times {
        let response = connection.request(&Request::get("/hello")).unwrap();
        assert_eq!(response.status, 200);
        // A worker that leaves answers, and says that the connection ends with that.
        if !response.keeps_alive() {
            connection = Connection::open(fleet.listen).unwrap();
        }
    }
}

/// Everything that a stuck log must not hold up.
#[track_caller]
fn goes_on(mut fleet: TestFleet) {
    visit(&fleet, 200);
    assert_eq!(operate(&fleet, &["reload"]).0, 0);
    visit(&fleet, 200);
    assert!(
        fleet.operator("/metrics").text().contains("regatta_log_lines_dropped_total{process=\"supervisor\"}")
    );
    let workers = fleet.workers();
    process::signal(workers[0], Signal::SIGKILL);
    wait::until("a killed worker has a successor", wait::LONG, || {
        let now = fleet.workers();
        now.len() == workers.len() && !now.contains(&workers[0])
    });
    assert_eq!(fleet.stop(), 0);
}

/// Writes until nothing is taken, down to the last byte, and leaves the description as it was: it waits.
fn fill(end: &OwnedFd) {
    fcntl(end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    for len in [4096, 256, 1] {
        while nix::unistd::write(end, &vec![b'.'; len]).is_ok() {}
    }
    fcntl(end, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
}

fn pipe() -> (File, OwnedFd) {
    let (read, write) = nix::unistd::pipe().unwrap();
    (read.into(), write)
}

/// Lines as they come, until the other end is closed.
fn follow(stream: impl Read + Send + 'static) -> mpsc::Receiver<Value> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let text = line.trim_start_matches('.');
            let parsed = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text:?}"));
            if send.send(parsed).is_err() {
                return;
            }
        }
    });
    receive
}

fn message(line: &Value) -> String {
    field(line, "message").as_str().unwrap_or_default().to_owned()
}

fn is_notice(line: &Value) -> bool {
    line["target"] == "regatta::logging::formatter" && message(line).contains("dropped")
}

#[test]
fn a_pipe_that_is_full_from_the_start_holds_nothing_up() {
    let redis = TestRedis::shared();
    let (_unread, write) = pipe();
    fill(&write);
    goes_on(start(TestFleetBuilder::on(&redis).errors_to(write)));
}

#[test]
fn a_pipe_whose_reader_is_gone_holds_nothing_up_and_every_line_is_counted() {
    let redis = TestRedis::shared();
    let (unread, write) = pipe();
    drop(unread);
    let fleet = start(TestFleetBuilder::on(&redis).errors_to(write));
    visit(&fleet, 50);
    assert!(dropped(&fleet) >= 50);
    goes_on(fleet);
}

#[test]
fn a_terminal_that_was_stopped_holds_nothing_up_and_shows_all_when_it_goes_on() {
    let redis = TestRedis::shared();
    let pty = nix::pty::openpty(None, None).unwrap();
    tcflow(&pty.slave, FlowArg::TCOOFF).unwrap();
    let fleet = start(TestFleetBuilder::on(&redis).errors_to(pty.slave.try_clone().unwrap()));
    visit(&fleet, 20);
    let flags = OFlag::from_bits_retain(fcntl(&pty.slave, FcntlArg::F_GETFL).unwrap());
    assert!(!flags.contains(OFlag::O_NONBLOCK), "the terminal is others' too");
    let lines = follow(File::from(pty.master));
    tcflow(&pty.slave, FlowArg::TCOON).unwrap();
    let mut answered = 0;
    while answered < 20 {
        let line = lines.recv_timeout(wait::LONG).unwrap();
        answered += usize::from(message(&line) == "request answered");
    }
    assert_eq!(dropped(&fleet), 0);
    tcflow(&pty.slave, FlowArg::TCOOFF).unwrap();
    goes_on(fleet);
}

#[test]
fn a_socket_that_nobody_reads_holds_nothing_up() {
    let redis = TestRedis::shared();
    let (stream, _unread) = UnixStream::pair().unwrap();
    let (datagram, _neither) = UnixDatagram::pair().unwrap();
    for end in [OwnedFd::from(stream), OwnedFd::from(datagram)] {
        fill(&end);
        goes_on(start(TestFleetBuilder::on(&redis).errors_to(end)));
    }
}

#[test]
fn a_full_disk_holds_nothing_up_and_every_line_is_counted() {
    let redis = TestRedis::shared();
    let fleet = start(TestFleetBuilder::on(&redis).set("REGATTA_LOG__FILE", "/dev/full"));
    visit(&fleet, 50);
    assert!(dropped(&fleet) >= 50);
    let page = fleet.operator("/fleet.json").json();
    assert!(page["totals"]["log_lines_dropped"].as_u64().unwrap() >= 50);
    assert!(
        page["slots"].as_array().unwrap().iter().any(|slot| slot["log_lines_dropped"].as_u64() > Some(0))
    );
    assert!(operate(&fleet, &["status"]).1.contains("log lines dropped"));
    goes_on(fleet);
}

#[test]
fn a_fifo_without_a_reader_holds_nothing_up_and_each_reader_finds_whole_lines() {
    let redis = TestRedis::shared();
    let plan = TestFleetBuilder::on(&redis).workers(1).set("REGATTA_LOG__FILE", "fifo");
    let path = plan.folder().join("fifo");
    nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
    assert_eq!(plan.clone().args(&["check"]).run().0, 0);
    let fleet = start(plan);
    visit(&fleet, 10);
    for round in 0..2 {
        let reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        let (mut reader, mut text) = (BufReader::new(reader), String::new());
        let answered = |text: &str| text.matches("\"request answered\"").count();
        wait::until("what was logged without a reader comes", wait::LONG, || {
            // A line may be in the writing.
            let _ = reader.read_line(&mut text);
            answered(&text) >= 10
        });
        let whole = text.rsplit_once('\n').unwrap().0;
        assert!(whole.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{round}: {whole}");
        drop(reader);
        visit(&fleet, 10);
        fleet.signal(Signal::SIGUSR1);
    }
    assert_eq!(dropped(&fleet), 0);
    goes_on(fleet);
}

/// Of each process, its answers so far and what it says is missing.
#[derive(Debug, Default)]
struct Told {
    answers: u64,
    dropped: u64,
    times: Vec<String>,
}

#[test]
fn a_pipe_that_is_read_again_gets_every_line_in_order_or_a_line_that_counts_the_missing_ones() {
    const VISITS: usize = 3000;
    let redis = TestRedis::shared();
    let (read, write) = pipe();
    let mut fleet = start(TestFleetBuilder::on(&redis).workers(1).errors_to(write));
    visit(&fleet, 100);
    let memory = process::private_memory(fleet.workers()[0]);
    visit(&fleet, VISITS - 100);
    let grown = process::private_memory(fleet.workers()[0]).saturating_sub(memory);
    assert!(grown < 4 << 20, "{grown} bytes");
    let lost = dropped(&fleet);
    assert!(lost > 0, "nobody has read");
    let lines = follow(read);
    let mut processes: BTreeMap<Option<u64>, Told> = BTreeMap::new();
    let mut hear = |line: &Value| {
        let told = processes.entry(line["pid"].as_u64().filter(|_| line.get("slot").is_some())).or_default();
        told.times.push(line["timestamp"].as_str().unwrap().to_owned());
        told.answers += u64::from(message(line) == "request answered");
        if is_notice(line) {
            told.dropped += line["dropped"].as_u64().unwrap();
        }
        told.dropped
    };
    while hear(&lines.recv_timeout(wait::LONG).unwrap()) < lost {}
    visit(&fleet, 10);
    assert_eq!(fleet.stop(), 0);
    // With its plan the last copy of the pipe is closed.
    drop(fleet);
    for line in &lines {
        let _ = hear(&line);
    }
    assert_eq!(processes.values().map(|told| told.dropped).sum::<u64>(), lost);
    assert!(processes.values().all(|told| told.times.is_sorted()));
    let answers: u64 = processes.values().map(|told| told.answers).sum();
    // Other lines may be among the lost ones.
    assert!(answers + lost >= VISITS as u64 + 10 && answers < VISITS as u64 + 10, "{answers} and {lost}");
}

#[test]
fn what_a_worker_could_not_write_before_it_left_is_counted_and_said_by_its_supervisor() {
    let redis = TestRedis::shared();
    let (unread, write) = pipe();
    let fleet = start(TestFleetBuilder::on(&redis).workers(1).errors_to(write.try_clone().unwrap()));
    fill(&write);
    visit(&fleet, 20);
    assert_eq!(operate(&fleet, &["restart", "0"]).0, 0);
    wait::until("the old worker is gone", wait::LONG, || fleet.workers().len() == 1);
    assert!(dropped(&fleet) >= 20);
    let lines = follow(unread);
    let mut said = 0;
    while said < 20 {
        let line = lines.recv_timeout(wait::LONG).unwrap();
        let of_supervisor = line.get("slot").is_none() && is_notice(&line);
        said += if of_supervisor { line["dropped"].as_u64().unwrap() } else { 0 };
    }
    goes_on(fleet);
}

#[test]
fn an_upgrade_goes_on_over_a_full_pipe_and_the_count_with_it() {
    let redis = TestRedis::shared();
    let (unread, write) = pipe();
    fill(&write);
    let fleet = start(TestFleetBuilder::on(&redis).workers(1).errors_to(write));
    let before = dropped(&fleet);
    assert_eq!(operate(&fleet, &["upgrade"]).0, 0);
    let lost = dropped(&fleet);
    assert!(lost > before, "what the old program could not write is counted");
    visit(&fleet, 10);
    let lines = follow(unread);
    let mut said = 0;
    while said < lost {
        let line = lines.recv_timeout(wait::LONG).unwrap();
        said += if is_notice(&line) { line["dropped"].as_u64().unwrap() } else { 0 };
    }
    assert_eq!(said, lost);
    goes_on(fleet);
}

#[test]
fn a_fleet_that_cannot_boot_ends_although_nobody_hears_why() {
    let redis = TestRedis::shared();
    let (_unread, write) = pipe();
    fill(&write);
    let plan = TestFleetBuilder::on(&redis)
        .workers(1)
        .example("faulty")
        .set("FAULTY_FILE", "faults")
        .errors_to(write);
    fs::write(plan.folder().join("faults"), "all").unwrap();
    let mut fleet = plan.spawn();
    assert_eq!(fleet.exit_code(wait::LONG), 70);
}

#[test]
fn the_private_redis_writes_to_a_file_of_its_own() {
    let mut fleet = TestFleetBuilder::new().workers(1).start();
    let server = fleet.others()[0];
    let file = |fd: u32| fs::read_link(format!("/proc/{server}/fd/{fd}")).unwrap();
    assert!(file(2).ends_with("redis.log"), "{:?}", file(2));
    assert_eq!(file(1), Path::new("/dev/null"));
    assert_eq!(fleet.stop(), 0);
}

#[test]
fn a_panic_is_a_line_of_the_log() {
    let redis = TestRedis::shared();
    let plan =
        TestFleetBuilder::on(&redis).workers(1).example("faulty").set("REGATTA_LOG__FILE", "fleet.log");
    let path = plan.folder().join("fleet.log");
    let mut fleet = start(plan);
    assert_eq!(fleet.get("/panic").status, 500);
    let panicked =
        |line: &str| line.contains("\"panicked at examples/faulty.rs") && line.contains("man overboard");
    wait::until("the panic is logged", wait::LONG, || {
        fs::read_to_string(&path).is_ok_and(|text| text.lines().any(panicked))
    });
    assert_eq!(fleet.stop(), 0);
    assert_eq!(fleet.log(), "", "nothing goes elsewhere");
}
