//! The control socket, no matter what is at its other end: strangers, stalled readers, noise.

use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;
use std::time::Instant;

use proptest::collection::vec;
use proptest::prelude::Strategy;
use proptest::prelude::any;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use regatta::__internals::control;
use regatta::__internals::control::events::Event;
use regatta::__internals::control::protocol::Progress;
use regatta::__internals::control::protocol::Reply;
use regatta::__internals::control::protocol::Request;
use regatta::__internals::control::protocol::Verdict;
use regatta::__internals::control::server::CLIENTS_MAX;
use regatta::__internals::control::server::ClientId;
use regatta::__internals::control::server::Server;
use serde_json::json;
use tempfile::TempDir;

use crate::support::host::Host;
use crate::support::host::Raw;
use crate::support::wait;

const STATUS: &str = "{\"version\":1,\"verb\":\"status\"}\n";

/// Answers everything at once, a restart of slot 99 never; a scale tells that many events before its verdict.
fn script(server: &mut Server, client: ClientId, request: Request) -> bool {
    match request {
        Request::Status => server.reply(client, &Reply::Status(json!({"schema": 1}))),
        Request::Restart { slot: 99, .. } => {}
        Request::Events { follow, after } => server.tell_events(client, after, follow),
        Request::Scale { workers, .. } => {
            for at_ms in 0..workers as u64 {
                server.publish(Event::new("tick", at_ms, "x".repeat(1000)));
            }
            server.reply(client, &Reply::Verdict(Verdict::done("scaled")));
        }
        Request::Stop { .. } => {
            server.reply(client, &Reply::Verdict(Verdict::done("stopped")));
            return false;
        }
        other => {
            let progress = Progress { done: 1, total: 1, text: "begun".into() };
            server.reply(client, &Reply::Progress(progress));
            server.reply(client, &Reply::Verdict(Verdict::done(format!("{} done", other.verb()))));
        }
    }
    true
}

#[test]
fn its_file_is_private_and_a_stale_one_is_replaced() {
    let folder = TempDir::new().unwrap();
    let path = control::socket(folder.path());
    // What a killed fleet leaves: a file with no one behind it.
    drop(UnixListener::bind(&path).unwrap());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(UnixStream::connect(&path).is_err());
    let server = Server::open(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    assert!(UnixStream::connect(&path).is_ok());
    drop(server);
    assert!(!path.exists(), "the file leaves with its server");
    fs::write(&path, "notes").unwrap();
    let refused = Server::open(&path).unwrap_err().to_string();
    assert!(refused.contains("no socket"), "{refused}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "notes");
}

#[test]
fn a_successors_file_is_left_alone() {
    let folder = TempDir::new().unwrap();
    let path = control::socket(folder.path());
    let first = Server::open(&path).unwrap();
    let second = Server::open(&path).unwrap();
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
    let host = Host::start(script);
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
    assert!(host.asked().is_empty());
    assert!(host.knock().has_status(), "root is let in");
}

#[test]
fn requests_are_answered_in_order_on_one_connection() {
    let host = Host::start(script);
    let mut client = host.knock();
    let lines = "{\"version\":1,\"verb\":\"reload\"}\n\n  \r\n{\"version\":1,\"verb\":\"upgrade\"}\r\n";
    client.say(format!("{lines}{STATUS}"));
    for verb in ["reload", "upgrade"] {
        assert_eq!(client.hear().unwrap()["progress"]["text"], "begun");
        assert_eq!(client.sentence(), format!("{verb} done"));
    }
    assert_eq!(client.hear().unwrap()["status"]["schema"], 1);
    assert!(client.has_status(), "the connection stays open");
    // A client that has no more to say still gets its answer.
    client.say(STATUS);
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert!(client.hear().unwrap()["status"].is_object());
    assert_eq!(client.hear(), None);
}

#[test]
fn a_request_may_come_in_pieces_and_must_be_whole() {
    let host = Host::start(script);
    let mut slow = host.knock();
    let (head, tail) = STATUS.split_at(11);
    slow.say(head);
    assert!(host.knock().has_status(), "half a request holds up nobody");
    for byte in tail.bytes() {
        slow.say([byte]);
    }
    assert!(slow.hear().unwrap()["status"].is_object());
    let mut half = host.knock();
    half.say(STATUS.trim_end());
    half.stream.shutdown(Shutdown::Write).unwrap();
    assert!(half.sentence().contains("does not end with a newline"));
    assert_eq!(half.hear(), None);
}

#[test]
fn what_is_no_request_gets_one_answer_and_the_end() {
    let host = Host::start(script);
    let cases = [
        ("make me a sandwich", "not a JSON object"),
        ("\u{0}\u{1}\u{2}", "not a JSON object"),
        ("{\"verb\":\"reload\"}", "version nothing"),
        ("{\"version\":2,\"verb\":\"reload\"}", "version 2"),
        ("{\"version\":1,\"verb\":\"dance\"}", "unknown variant `dance`"),
        ("{\"version\":1,\"verb\":\"scale\",\"workers\":\"many\"}", "invalid type"),
        ("{\"version\":1,\"verb\":\"stop\",\"force\":true}", "unknown field `force`"),
    ];
    for (line, expected) in cases {
        let mut client = host.knock();
        client.say(format!("{line}\n{STATUS}"));
        let reply = client.hear().unwrap();
        assert_eq!((&reply["verdict"]["ok"], &reply["verdict"]["code"]), (&json!(false), &json!(64)));
        assert!(reply["verdict"]["sentence"].as_str().unwrap().contains(expected), "{line}: {reply}");
        assert_eq!(client.hear(), None, "{line}: nothing after a mistake is looked at");
    }
    assert!(host.asked().is_empty());
}

#[test]
fn the_longest_request_is_bounded() {
    let host = Host::start(script);
    let padded = |length: usize| format!("{}{}\n", " ".repeat(length - STATUS.len() + 1), STATUS.trim_end());
    let mut client = host.knock();
    client.say(padded(64 * 1024));
    assert!(client.hear().unwrap()["status"].is_object());
    for too_long in [padded(64 * 1024 + 1), "x".repeat(64 * 1024 + 1), "x".repeat(4 * 1024 * 1024)] {
        let mut client = host.knock();
        client.say(&too_long);
        assert!(client.sentence().contains("at most 65536 bytes"));
        assert_eq!(client.hear(), None);
    }
    assert!(host.knock().has_status());
}

#[test]
fn two_hundred_idle_clients_hold_up_nobody() {
    let host = Host::start(script);
    let idle: Vec<Raw> = (0..200).map(|_| host.knock()).collect();
    let mut client = host.knock();
    let begin = Instant::now();
    assert!(client.has_status());
    eprintln!("status beside 200 idle clients: {:?}", begin.elapsed());
    for mut one in idle {
        assert!(one.has_status(), "they were all still there");
    }
}

#[test]
fn beyond_the_most_clients_the_longest_idle_goes() {
    let host = Host::start(script);
    let mut first = host.knock();
    let mut second = host.knock();
    assert!(second.has_status() && first.has_status(), "the second is idle for longer now");
    let mut busy = host.knock();
    busy.say("{\"version\":1,\"verb\":\"restart\",\"slot\":99}\n");
    let idle: Vec<Raw> = (3..CLIENTS_MAX).map(|_| host.knock()).collect();
    assert!(idle.into_iter().all(|mut one| one.has_status()), "there is room for all of these");
    let crowd: Vec<Raw> = (0..CLIENTS_MAX - 3).map(|_| host.knock()).collect();
    assert!(crowd.into_iter().all(|mut one| one.has_status()));
    assert!(first.has_status() && second.has_status(), "places were free again");
    let _crowd: Vec<Raw> = (0..CLIENTS_MAX - 3)
        .map(|_| {
            let mut one = host.knock();
            assert!(one.has_status());
            one
        })
        .collect();
    assert!(host.knock().has_status(), "there is always room for one more");
    assert_eq!(first.hear(), None, "the one idle for longest had to go");
    assert!(second.has_status());
    busy.stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let waits = busy.stream.read(&mut [0]).unwrap_err();
    assert_eq!(waits.kind(), std::io::ErrorKind::WouldBlock, "who waits for an answer keeps its place");
}

#[test]
fn a_reader_that_reads_late_is_told_what_it_missed_and_holds_up_nobody() {
    let host = Host::start(script);
    let (mut stalled, mut reader, mut client) = (host.knock(), host.knock(), host.knock());
    for follower in [&mut stalled, &mut reader] {
        follower.say("{\"version\":1,\"verb\":\"events\",\"follow\":true}\n");
    }
    wait::until("both follow", wait::LONG, || host.asked().len() == 2);
    // Two megabytes in portions that the one that reads keeps up with.
    for _ in 0..20 {
        client.say("{\"version\":1,\"verb\":\"scale\",\"workers\":100}\n");
        for _ in 0..100 {
            assert_eq!(reader.hear().unwrap()["event"]["kind"], "tick");
        }
        assert_eq!(client.sentence(), "scaled");
    }
    assert!(client.has_status());
    let (mut got, mut gap) = (Vec::new(), None);
    while got.last() != Some(&2000) {
        let event = stalled.hear().expect("its place in the log is kept")["event"].clone();
        let seq = event["seq"].as_u64().unwrap();
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
    let host = Host::start(script);
    let mut client = host.knock();
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
    assert!(host.knock().has_status());
    client.stream.set_nonblocking(false).unwrap();
    for _ in 0..sent / STATUS.len() {
        assert!(client.hear().unwrap()["status"].is_object());
    }
}

#[test]
fn leaving_early_is_harmless() {
    let host = Host::start(script);
    for ask in ["", "{\"ver", STATUS, "{\"version\":1,\"verb\":\"restart\",\"slot\":99}\n"] {
        for _ in 0..50 {
            host.knock().say(ask);
        }
    }
    // What was asked in whole is done though no one waits for the answer.
    let both =
        format!("{}{}", "{\"version\":1,\"verb\":\"reload\"}\n", "{\"version\":1,\"verb\":\"upgrade\"}\n");
    host.knock().say(both);
    wait::until("both were asked", wait::LONG, || {
        let asked = host.asked();
        asked.contains(&Request::Reload { wait: true })
            && asked.contains(&Request::Upgrade { binary: None, wait: true })
    });
    assert!(host.knock().has_status());
}

#[test]
fn the_last_word_is_heard_before_the_socket_goes() {
    let host = Host::start(script);
    let mut client = host.knock();
    client.say("{\"version\":1,\"verb\":\"stop\"}\n");
    assert_eq!(client.sentence(), "stopped");
    assert_eq!(client.hear(), None);
    wait::until("its file is gone", wait::LONG, || !host.socket().exists());
}

#[test]
fn another_program_goes_on_with_its_clients() {
    let folder = TempDir::new().unwrap();
    let path = control::socket(folder.path());
    let mut server = Server::open(&path).unwrap();
    let connect = || Raw::new(UnixStream::connect(&path).unwrap());
    let (mut asked, mut half, mut follower) = (connect(), connect(), connect());
    asked.say("{\"version\":1,\"verb\":\"upgrade\"}\n");
    half.say(&STATUS[..9]);
    follower.say("{\"version\":1,\"verb\":\"events\",\"follow\":true}\n");
    let mut requests = Vec::new();
    wait::until("all have come", wait::LONG, || {
        requests.extend(server.poll());
        requests.len() == 2
    });
    let upgrade = requests.iter().find(|(_, request)| matches!(request, Request::Upgrade { .. })).unwrap().0;
    let follows = requests.iter().find(|(_, request)| matches!(request, Request::Events { .. })).unwrap().0;
    server.tell_events(follows, None, true);
    drop(server.poll());
    server.keep_on_exec(true).unwrap();
    let text = serde_json::to_string(&server.parts()).unwrap();
    // As an exec does: it is gone without a trace, its descriptors are open.
    std::mem::forget(server);
    let mut server = Server::resume(serde_json::from_str(&text).unwrap()).unwrap();
    assert_eq!(server.clients(), 3);
    server.reply(upgrade, &Reply::Verdict(Verdict::done("upgraded")));
    assert_eq!(asked.sentence(), "upgraded");
    server.publish(Event::new("upgrade_done", 1, ""));
    assert_eq!(follower.hear().unwrap()["event"]["kind"], "upgrade_done");
    half.say(&STATUS[9..]);
    let (client, request) =
        wait::until_some("the other half has come", wait::LONG, || server.poll().into_iter().next());
    assert_eq!(request, Request::Status);
    assert!(client != upgrade && client != follows);
    let mut new = Raw::new(UnixStream::connect(&path).unwrap());
    new.say(STATUS);
    let (client, _) = wait::until_some("a new one asks", wait::LONG, || server.poll().into_iter().next());
    server.reply(client, &Reply::Status(json!({})));
    assert!(new.hear().unwrap()["status"].is_object());
    drop(server);
    assert!(!path.exists());
}

#[test]
fn ten_thousand_frames_of_noise_break_nothing() {
    let host = Host::start(script);
    let text = vec(any::<char>(), 0..40).prop_map(|chars| chars.into_iter().collect::<String>());
    let word =
        proptest::sample::select(&["version", "verb", "status", "workers", "slot", "reload", "events"]);
    let value =
        (any::<i64>(), text.clone(), word.clone(), 0..5_usize).prop_map(|(number, text, word, kind)| {
            [json!(number), json!(text), json!(word), json!({word: number}), json!([1, null])][kind].clone()
        });
    let object = vec((word, value), 0..6).prop_map(|pairs| {
        let mut object: serde_json::Map<_, _> = pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        object.entry("version").or_insert(json!(1));
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
        let mut client = host.knock();
        client.say(&frame);
        if turn % 3 == 0 {
            client.stream.shutdown(Shutdown::Write).unwrap();
            while client.hear().is_some() {}
        }
        if turn % 500 == 0 {
            assert!(host.knock().has_status(), "turn {turn}");
        }
    }
    assert!(host.knock().has_status());
}
