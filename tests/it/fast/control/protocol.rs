//! The control socket, no matter what is at its other end: strangers, stalled readers, noise.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::{Strategy, any};
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use regatta::__internals::control;
use regatta::__internals::control::client::ControlClient;
use regatta::__internals::control::events::FleetEvent;
use regatta::__internals::control::protocol::{CommandProgress, CommandResult, ControlReply, ControlRequest};
use regatta::__internals::control::server::{CLIENTS_MAX, ClientId, ControlServer};
use regatta::__internals::sys::clock;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::scripted_supervisor::{RawControlClient, ScriptedSupervisor};
use crate::support::wait;

const STATUS: &str = "{\"version\":2,\"command\":\"status\"}\n";

/// Answers everything at once, a restart of slot 99 never; a scale tells that many events before its verdict.
fn script(server: &mut ControlServer, client: ClientId, request: ControlRequest) -> bool {
    match request {
        ControlRequest::Status => server.reply(client, &ControlReply::Status(json!({"schema": 1}))),
        ControlRequest::Restart { slot: 99, .. } => {}
        ControlRequest::Events { follow, after } => server.start_events(client, after, follow),
        ControlRequest::Scale { workers, .. } => {
            for at_ms in 0..workers as u64 {
                server.publish(FleetEvent::new("tick", at_ms, "x".repeat(1000)));
            }
            server.reply(client, &ControlReply::Result(CommandResult::ok("scaled")));
        }
        ControlRequest::Stop { .. } => {
            server.reply(client, &ControlReply::Result(CommandResult::ok("stopped")));
            return false;
        }
        other => {
            let progress = CommandProgress { completed: 1, total: 1, message: "begun".into() };
            server.reply(client, &ControlReply::Progress(progress));
            server
                .reply(client, &ControlReply::Result(CommandResult::ok(format!("{} done", other.command()))));
        }
    }
    true
}

#[test]
fn its_file_is_private_and_a_stale_one_is_replaced() {
    let folder = TempDir::new().unwrap();
    let path = control::socket_path(folder.path());
    // What a killed fleet leaves: a file with no one behind it.
    drop(UnixListener::bind(&path).unwrap());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(UnixStream::connect(&path).is_err());
    let server = ControlServer::open(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    assert!(UnixStream::connect(&path).is_ok());
    drop(server);
    assert!(!path.exists(), "the file leaves with its server");
    fs::write(&path, "notes").unwrap();
    let refused = ControlServer::open(&path).unwrap_err().to_string();
    assert!(refused.contains("no socket"), "{refused}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "notes");
}

#[test]
fn a_successors_file_is_left_alone() {
    let folder = TempDir::new().unwrap();
    let path = control::socket_path(folder.path());
    let first = ControlServer::open(&path).unwrap();
    let second = ControlServer::open(&path).unwrap();
    drop(first);
    assert!(path.exists(), "the file was the second's");
    drop(second);
    assert!(!path.exists());
}

#[test]
fn another_user_is_turned_away_with_a_sentence() {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        // Only root can be someone else.
        return;
    }
    let host = ScriptedSupervisor::start(script);
    // The file alone would keep it out, so the door is opened wide.
    fs::set_permissions(host.run_dir(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(host.socket(), fs::Permissions::from_mode(0o777)).unwrap();
    let nobody = 65534;
    let program = "import socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.settimeout(20)\ns.connect(sys.argv[1])\n\
                   print(s.makefile().readline())";
    let mut python = Command::new("python3");
    let asked =
        python.args(["-c", program]).arg(host.socket()).current_dir("/").uid(nobody).gid(nobody).output();
    let asked = asked.unwrap();
    let said = String::from_utf8_lossy(&asked.stdout).into_owned();
    assert!(said.contains("only root and the user with id 0 may ask this fleet, not 65534"), "{asked:?}");
    assert!(host.requests().is_empty());
    assert!(host.connect().has_status(), "root is let in");
}

#[test]
fn requests_are_answered_in_order_on_one_connection() {
    let host = ScriptedSupervisor::start(script);
    let mut client = host.connect();
    let lines = "{\"version\":2,\"command\":\"reload\"}\n\n  \r\n{\"version\":2,\"command\":\"upgrade\"}\r\n";
    client.send(format!("{lines}{STATUS}"));
    for verb in ["reload", "upgrade"] {
        assert_eq!(client.receive().unwrap()["progress"]["message"], "begun");
        assert_eq!(client.result_message(), format!("{verb} done"));
    }
    assert_eq!(client.receive().unwrap()["status"]["schema"], 1);
    assert!(client.has_status(), "the connection stays open");
    // A client that has no more to say still gets its answer.
    client.send(STATUS);
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert!(client.receive().unwrap()["status"].is_object());
    assert_eq!(client.receive(), None);
}

#[test]
fn a_client_of_the_release_before_commands_in_its_own_form() {
    let host = ScriptedSupervisor::start(script);
    let mut client = host.connect();
    client.send("{\"version\":1,\"verb\":\"reload\"}\n");
    let progress = client.receive().unwrap();
    assert_eq!((&progress["version"], &progress["progress"]["text"]), (&json!(1), &json!("begun")));
    let end = client.receive().unwrap();
    assert_eq!((&end["version"], &end["verdict"]["sentence"]), (&json!(1), &json!("reload done")));
    client.send("{\"version\":1,\"verb\":\"status\"}\n");
    let refused = client.receive().unwrap();
    assert!(refused["verdict"]["sentence"].as_str().unwrap().contains("restart this command"), "{refused}");
    assert_eq!(client.receive(), None);
}

#[test]
fn a_request_may_come_in_pieces_and_must_be_whole() {
    let host = ScriptedSupervisor::start(script);
    let mut slow = host.connect();
    let (head, tail) = STATUS.split_at(11);
    slow.send(head);
    assert!(host.connect().has_status(), "half a request holds up nobody");
    for byte in tail.bytes() {
        slow.send([byte]);
    }
    assert!(slow.receive().unwrap()["status"].is_object());
    let mut half = host.connect();
    half.send(STATUS.trim_end());
    half.stream.shutdown(Shutdown::Write).unwrap();
    assert!(half.result_message().contains("does not end with a newline"));
    assert_eq!(half.receive(), None);
}

#[test]
fn what_is_no_request_gets_one_answer_and_the_end() {
    let host = ScriptedSupervisor::start(script);
    let cases = [
        ("make me a sandwich", "not a JSON object"),
        ("\u{0}\u{1}\u{2}", "not a JSON object"),
        ("{\"command\":\"reload\"}", "version nothing"),
        ("{\"version\":3,\"command\":\"reload\"}", "version 3"),
        ("{\"version\":2,\"command\":\"dance\"}", "unknown variant `dance`"),
        ("{\"version\":2,\"command\":\"scale\",\"workers\":\"many\"}", "invalid type"),
        ("{\"version\":2,\"command\":\"stop\",\"force\":true}", "unknown field `force`"),
    ];
    for (line, expected) in cases {
        let mut client = host.connect();
        client.send(format!("{line}\n{STATUS}"));
        let reply = client.receive().unwrap();
        assert_eq!((&reply["result"]["ok"], &reply["result"]["exit_code"]), (&json!(false), &json!(64)));
        assert!(reply["result"]["message"].as_str().unwrap().contains(expected), "{line}: {reply}");
        assert_eq!(client.receive(), None, "{line}: nothing after a mistake is looked at");
    }
    assert!(host.requests().is_empty());
}

#[test]
fn the_longest_request_is_bounded() {
    let host = ScriptedSupervisor::start(script);
    let padded = |length: usize| format!("{}{}\n", " ".repeat(length - STATUS.len() + 1), STATUS.trim_end());
    let mut client = host.connect();
    client.send(padded(64 * 1024));
    assert!(client.receive().unwrap()["status"].is_object());
    for too_long in [padded(64 * 1024 + 1), "x".repeat(64 * 1024 + 1), "x".repeat(4 * 1024 * 1024)] {
        let mut client = host.connect();
        client.send(&too_long);
        assert!(client.result_message().contains("at most 65536 bytes"));
        assert_eq!(client.receive(), None);
    }
    assert!(host.connect().has_status());
}

#[test]
fn two_hundred_idle_clients_hold_up_nobody() {
    let host = ScriptedSupervisor::start(script);
    let idle: Vec<RawControlClient> = (0..200).map(|_| host.connect()).collect();
    let mut client = host.connect();
    let begin = Instant::now();
    assert!(client.has_status());
    eprintln!("status beside 200 idle clients: {:?}", begin.elapsed());
    for mut one in idle {
        assert!(one.has_status(), "they were all still there");
    }
}

#[test]
fn beyond_the_most_clients_the_longest_idle_goes() {
    let host = ScriptedSupervisor::start(script);
    let mut first = host.connect();
    let mut second = host.connect();
    assert!(second.has_status() && first.has_status(), "the second is idle for longer now");
    let mut busy = host.connect();
    busy.send("{\"version\":2,\"command\":\"restart\",\"slot\":99}\n");
    let idle: Vec<RawControlClient> = (3..CLIENTS_MAX).map(|_| host.connect()).collect();
    assert!(idle.into_iter().all(|mut one| one.has_status()), "there is room for all of these");
    let crowd: Vec<RawControlClient> = (0..CLIENTS_MAX - 3).map(|_| host.connect()).collect();
    assert!(crowd.into_iter().all(|mut one| one.has_status()));
    assert!(first.has_status() && second.has_status(), "places were free again");
    let _crowd: Vec<RawControlClient> = (0..CLIENTS_MAX - 3)
        .map(|_| {
            let mut one = host.connect();
            assert!(one.has_status());
            one
        })
        .collect();
    assert!(host.connect().has_status(), "there is always room for one more");
    assert_eq!(first.receive(), None, "the one idle for longest had to go");
    assert!(second.has_status());
    busy.stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let waits = busy.stream.read(&mut [0]).unwrap_err();
    assert_eq!(waits.kind(), std::io::ErrorKind::WouldBlock, "who waits for an answer keeps its place");
}

#[test]
fn a_reader_that_reads_late_is_told_what_it_missed_and_holds_up_nobody() {
    let host = ScriptedSupervisor::start(script);
    let (mut stalled, mut reader, mut client) = (host.connect(), host.connect(), host.connect());
    for follower in [&mut stalled, &mut reader] {
        follower.send("{\"version\":2,\"command\":\"events\",\"follow\":true}\n");
    }
    wait::until("both follow", wait::LONG, || host.requests().len() == 2);
    // Two megabytes in portions that the one that reads keeps up with.
    for _ in 0..20 {
        client.send("{\"version\":2,\"command\":\"scale\",\"workers\":100}\n");
        for _ in 0..100 {
            assert_eq!(reader.receive().unwrap()["event"]["kind"], "tick");
        }
        assert_eq!(client.result_message(), "scaled");
    }
    assert!(client.has_status());
    let (mut got, mut gap) = (Vec::new(), None);
    while got.last() != Some(&2000) {
        let event = stalled.receive().expect("its place in the log is kept")["event"].clone();
        let seq = event["sequence"].as_u64().unwrap();
        if event["kind"] == "events_missed" {
            assert!(gap.replace((got.len(), seq)).is_none(), "one gap, told once: {event}");
        } else {
            got.push(seq);
        }
    }
    let (before, last_missed) = gap.expect("2000 events are more than are kept");
    assert_eq!((got[0], got[before]), (1, last_missed + 1), "none is lost but those that it says");
    assert!(got.windows(2).filter(|pair| pair[1] != pair[0] + 1).count() == 1, "{got:?}");
}

#[test]
fn what_is_asked_without_reading_waits_for_the_reader() {
    let host = ScriptedSupervisor::start(script);
    let mut client = host.connect();
    client.stream.set_nonblocking(true).unwrap();
    let mut sent = 0;
    let full = |error: std::io::Error| assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    let quiet = Duration::from_millis(300);
    let mut last = Instant::now();
    // Until nothing has been taken for a while: the server has stopped reading.
    while last.elapsed() < quiet {
        match client.stream.write(&STATUS.as_bytes()[sent % STATUS.len()..]) {
            Ok(taken) => {
                sent += taken;
                last = Instant::now();
            }
            Err(error) => full(error),
        }
        assert!(sent < 16 * 1024 * 1024, "somebody keeps it all");
    }
    assert!(host.connect().has_status());
    client.stream.set_nonblocking(false).unwrap();
    for _ in 0..sent / STATUS.len() {
        assert!(client.receive().unwrap()["status"].is_object());
    }
}

#[test]
fn leaving_early_is_harmless() {
    let host = ScriptedSupervisor::start(script);
    for ask in ["", "{\"ver", STATUS, "{\"version\":2,\"command\":\"restart\",\"slot\":99}\n"] {
        for _ in 0..50 {
            host.connect().send(ask);
        }
    }
    // What was asked in whole is done though no one waits for the answer.
    let both = format!(
        "{}{}",
        "{\"version\":2,\"command\":\"reload\"}\n", "{\"version\":2,\"command\":\"upgrade\"}\n"
    );
    host.connect().send(both);
    wait::until("both were asked", wait::LONG, || {
        let asked = host.requests();
        asked.contains(&ControlRequest::Reload { wait: true })
            && asked.contains(&ControlRequest::Upgrade { binary: None, wait: true })
    });
    assert!(host.connect().has_status());
}

#[test]
fn the_last_word_is_heard_before_the_socket_goes() {
    let host = ScriptedSupervisor::start(script);
    let mut client = host.connect();
    client.send("{\"version\":2,\"command\":\"stop\"}\n");
    assert_eq!(client.result_message(), "stopped");
    assert_eq!(client.receive(), None);
    wait::until("its file is gone", wait::LONG, || !host.socket().exists());
}

#[test]
fn another_program_goes_on_with_its_clients() {
    let folder = TempDir::new().unwrap();
    let path = control::socket_path(folder.path());
    let mut server = ControlServer::open(&path).unwrap();
    let connect = || RawControlClient::new(UnixStream::connect(&path).unwrap());
    let (mut asked, mut half, mut follower) = (connect(), connect(), connect());
    asked.send("{\"version\":2,\"command\":\"upgrade\"}\n");
    half.send(&STATUS[..9]);
    follower.send("{\"version\":2,\"command\":\"events\",\"follow\":true}\n");
    let mut requests = Vec::new();
    wait::until("all have come", wait::LONG, || {
        requests.extend(server.poll());
        requests.len() == 2
    });
    let upgrade =
        requests.iter().find(|(_, request)| matches!(request, ControlRequest::Upgrade { .. })).unwrap().0;
    let follows =
        requests.iter().find(|(_, request)| matches!(request, ControlRequest::Events { .. })).unwrap().0;
    server.start_events(follows, None, true);
    drop(server.poll());
    server.set_inheritable(true).unwrap();
    let text = serde_json::to_string(&server.save()).unwrap();
    // As an exec does: it is gone without a trace, its descriptors are open.
    std::mem::forget(server);
    let mut server = ControlServer::restore(serde_json::from_str(&text).unwrap()).unwrap();
    assert_eq!(server.client_count(), 3);
    server.reply(upgrade, &ControlReply::Result(CommandResult::ok("upgraded")));
    assert_eq!(asked.result_message(), "upgraded");
    server.publish(FleetEvent::new("upgrade_completed", 1, ""));
    assert_eq!(follower.receive().unwrap()["event"]["kind"], "upgrade_completed");
    half.send(&STATUS[9..]);
    let (client, request) =
        wait::until_some("the other half has come", wait::LONG, || server.poll().into_iter().next());
    assert_eq!(request, ControlRequest::Status);
    assert!(client != upgrade && client != follows);
    let mut new = RawControlClient::new(UnixStream::connect(&path).unwrap());
    new.send(STATUS);
    let (client, _) = wait::until_some("a new one asks", wait::LONG, || server.poll().into_iter().next());
    server.reply(client, &ControlReply::Status(json!({})));
    assert!(new.receive().unwrap()["status"].is_object());
    drop(server);
    assert!(!path.exists());
}

/// A fleet of the release before: it reads version 1 only, and closes the connection of who sends anything else.
fn serve_as_the_release_before(listener: &UnixListener, connections: usize) -> Vec<Value> {
    let mut requests = Vec::new();
    for _ in 0..connections {
        let (stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        let request: Value = serde_json::from_str(&line).unwrap();
        let replies = match request["version"].as_u64() {
            Some(1) => concat!(
                "{\"version\":1,\"progress\":{\"done\":1,\"total\":2,\"text\":\"slot 0 serves\"}}\n",
                "{\"version\":1,\"verdict\":{\"ok\":true,\"code\":0,\"sentence\":\"upgrade done\",\"details\":{}}}\n",
            ),
            _ => concat!(
                "{\"version\":1,\"verdict\":{\"ok\":false,\"code\":64,\"sentence\":",
                "\"version 2 of the control protocol is not spoken here, version 1 is\",\"details\":{}}}\n",
            ),
        };
        (&stream).write_all(replies.as_bytes()).unwrap();
        requests.push(request);
    }
    requests
}

#[test]
fn a_new_command_line_upgrades_a_fleet_of_the_release_before() {
    let folder = TempDir::with_prefix("control").unwrap();
    let listener = UnixListener::bind(control::socket_path(folder.path())).unwrap();
    let fleet = std::thread::spawn(move || serve_as_the_release_before(&listener, 3));
    let receive = |client: &mut ControlClient| client.receive(Some(clock::monotonic() + wait::LONG));
    let mut client = ControlClient::connect(folder.path()).unwrap();
    client.send(&ControlRequest::Upgrade { binary: None, wait: true }).unwrap();
    let progress = CommandProgress { completed: 1, total: 2, message: "slot 0 serves".into() };
    assert_eq!(receive(&mut client).unwrap(), ControlReply::Progress(progress));
    assert_eq!(receive(&mut client).unwrap(), ControlReply::Result(CommandResult::ok("upgrade done")));
    let mut client = ControlClient::connect(folder.path()).unwrap();
    client.send(&ControlRequest::Status).unwrap();
    let refused = receive(&mut client).unwrap_err().to_string();
    assert!(refused.contains("`upgrade` makes it this release"), "{refused}");
    let sent = fleet.join().unwrap();
    assert_eq!(sent[0]["command"], "upgrade");
    assert_eq!(sent[1], json!({"version": 1, "verb": "upgrade", "wait": true}));
}

#[test]
fn ten_thousand_frames_of_noise_break_nothing() {
    let host = ScriptedSupervisor::start(script);
    let text = vec(any::<char>(), 0..40).prop_map(|chars| chars.into_iter().collect::<String>());
    let word =
        proptest::sample::select(&["version", "command", "status", "workers", "slot", "reload", "events"]);
    let value =
        (any::<i64>(), text.clone(), word.clone(), 0..5_usize).prop_map(|(number, text, word, kind)| {
            [json!(number), json!(text), json!(word), json!({word: number}), json!([1, null])][kind].clone()
        });
    let object = vec((word, value), 0..6).prop_map(|pairs| {
        let mut object: serde_json::Map<_, _> = pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        object.entry("version").or_insert(json!(2));
        json!(object).to_string().into_bytes()
    });
    let bytes = vec(any::<u8>(), 0..300);
    let broken = (object.clone(), any::<proptest::sample::Index>()).prop_map(|(bytes, at)| {
        let end = at.index(bytes.len());
        bytes[..end].to_vec()
    });
    let frames = proptest::prop_oneof![bytes, text.prop_map(String::into_bytes), object, broken];
    let mut runner = TestRunner::deterministic();
    for turn in 0..10_000 {
        let mut frame = frames.new_tree(&mut runner).unwrap().current();
        frame.push(b'\n');
        let mut client = host.connect();
        client.send(&frame);
        if turn % 3 == 0 {
            client.stream.shutdown(Shutdown::Write).unwrap();
            while client.receive().is_some() {}
        }
        if turn % 500 == 0 {
            assert!(host.connect().has_status(), "turn {turn}");
        }
    }
    assert!(host.connect().has_status());
}
