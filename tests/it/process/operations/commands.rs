//! What operators type, against a scripted fleet: sentences, exit codes, JSON.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use regatta::__internals::control::events::{EventLog, FleetEvent};
use regatta::__internals::control::protocol::{CommandProgress, CommandResult, ControlReply, ControlRequest};
use regatta::__internals::control::server::{ClientId, ControlServer};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::scripted_supervisor::ScriptedSupervisor;
use crate::support::wait;

/// Does everything in two steps; refuses to scale beyond 100, never answers a restart, dies of an upgrade.
#[allow(clippy::needless_pass_by_value, reason = "a script owns what it is asked")]
fn script(server: &mut ControlServer, client: ClientId, request: ControlRequest) -> bool {
    let verb = request.command();
    match request {
        ControlRequest::Scale { workers, .. } if workers > 100 => {
            let verdict =
                CommandResult::rejected("more than 100 workers do not fit here").with_detail("most", 100);
            server.reply(client, &ControlReply::Result(verdict));
        }
        ControlRequest::Reload { wait: false } => {
            server.reply(client, &ControlReply::Result(CommandResult::ok("the reload has begun")));
        }
        ControlRequest::Restart { .. } => {}
        ControlRequest::Upgrade { .. } => return false,
        ControlRequest::Events { after, .. } => {
            for event in log().read_after(after, usize::MAX) {
                server.reply(client, &ControlReply::Event(event));
            }
            server.reply(client, &ControlReply::Result(CommandResult::ok("these are all")));
        }
        _ => {
            for done in 1..=2 {
                let text = format!("slot {} serves", done - 1);
                server.reply(
                    client,
                    &ControlReply::Progress(CommandProgress { completed: done, total: 2, message: text }),
                );
            }
            server.reply(client, &ControlReply::Result(CommandResult::ok(format!("{verb} done"))));
            return verb != "stop";
        }
    }
    true
}

fn log() -> EventLog {
    let mut log = EventLog::default();
    for pid in 1..=3 {
        log.push(FleetEvent::new("worker_ready", 1_700_000_000_000, format!("worker {pid} serves")).pid(pid));
    }
    log
}

fn regatta(run_dir: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_regatta"));
    command.arg("--run-dir").arg(run_dir).args(words).env_clear().current_dir(run_dir);
    command.stdin(Stdio::null()).output().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn lines(output: &Output) -> Vec<Value> {
    out(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_verb_ends_with_one_sentence_and_shows_its_way() {
    let host = ScriptedSupervisor::start(script);
    for (words, sentence) in [(&["reload"][..], "reload done\n"), (&["scale", "8"], "scale done\n")] {
        let output = regatta(host.run_dir(), words);
        assert_eq!((output.status.code(), out(&output).as_str()), (Some(0), sentence));
        assert_eq!(err(&output), "1/2 slot 0 serves\n2/2 slot 1 serves\n");
    }
    assert_eq!(
        host.requests(),
        [ControlRequest::Reload { wait: true }, ControlRequest::Scale { workers: 8, wait: true }]
    );
}

#[test]
fn on_a_terminal_a_bar_comes_and_goes() {
    let host = ScriptedSupervisor::start(script);
    let program = env!("CARGO_BIN_EXE_regatta");
    let typed = format!("{program} --run-dir {} reload", host.run_dir().display());
    // Python's terminal, so that the test needs no other program.
    let script = "import pty, sys\nsys.exit(pty.spawn(['/bin/sh', '-c', sys.argv[1]]) >> 8)";
    let mut python = Command::new("python3");
    python.args(["-c", script, &typed]).env("TERM", "xterm").stdin(Stdio::null());
    let shown = python.output().unwrap();
    let text = out(&shown);
    assert!(shown.status.success() && text.contains("reload done\r\n"), "{shown:?}");
    assert!(text.contains("2/2") && text.contains("slot 1 serves"), "a bar was drawn: {text:?}");
    assert!(text.trim_end().ends_with("reload done"), "and cleared: {text:?}");
}

#[test]
fn a_refusal_is_a_sentence_and_an_exit_code() {
    let host = ScriptedSupervisor::start(script);
    let output = regatta(host.run_dir(), &["scale", "101"]);
    assert_eq!(output.status.code(), Some(64));
    assert_eq!(
        (out(&output).as_str(), err(&output).as_str()),
        ("", "regatta: more than 100 workers do not fit here\n")
    );
    let output = regatta(host.run_dir(), &["scale", "101", "--json"]);
    assert_eq!((output.status.code(), err(&output).as_str()), (Some(64), ""));
    assert_eq!(lines(&output)[0]["result"]["details"], json!({"most": 100}));
}

#[test]
fn json_is_a_line_for_each_reply_and_the_verdict_last() {
    let host = ScriptedSupervisor::start(script);
    let output = regatta(host.run_dir(), &["reload", "--json"]);
    let lines = lines(&output);
    assert_eq!(lines.len(), 3);
    assert_eq!(
        lines[1],
        json!({"version": 2, "progress": {"completed": 2, "total": 2, "message": "slot 1 serves"}})
    );
    assert_eq!(lines[2]["result"]["message"], "reload done");
    assert_eq!((output.status.code(), err(&output).as_str()), (Some(0), ""));
}

#[test]
fn without_a_fleet_the_sentence_says_where_it_was_looked_for() {
    let folder = TempDir::new().unwrap();
    let place = folder.path().display().to_string();
    for words in [&["reload"][..], &["stop"], &["events"], &["events", "--follow"]] {
        let output = regatta(folder.path(), words);
        assert_eq!(output.status.code(), Some(69), "{words:?}");
        assert!(
            err(&output).starts_with(&format!("regatta: no fleet runs here (run_dir {place})")),
            "{output:?}"
        );
    }
    let output = regatta(folder.path(), &["stop", "--json"]);
    assert_eq!(output.status.code(), Some(69));
    assert_eq!(lines(&output)[0]["result"]["exit_code"], 69);
    // A broken configuration must not keep anyone from stopping a fleet.
    std::fs::write(folder.path().join("regatta.toml"), "no such thing").unwrap();
    assert_eq!(regatta(folder.path(), &["stop"]).status.code(), Some(69));
}

#[test]
fn beyond_its_timeout_a_verb_goes_on_in_the_fleet() {
    let host = ScriptedSupervisor::start(script);
    let output = regatta(host.run_dir(), &["restart", "3", "--timeout", "200ms"]);
    assert_eq!(output.status.code(), Some(1));
    let expected = "no result within 200ms; the restart goes on in the fleet";
    assert!(err(&output).contains(expected), "{output:?}");
    assert_eq!(host.requests(), [ControlRequest::Restart { slot: 3, wait: true }]);
}

#[test]
fn no_wait_returns_when_the_fleet_has_accepted() {
    let host = ScriptedSupervisor::start(script);
    let output = regatta(host.run_dir(), &["reload", "--no-wait"]);
    assert_eq!((output.status.code(), out(&output).as_str()), (Some(0), "the reload has begun\n"));
}

#[test]
fn a_fleet_that_dies_on_the_way_is_no_success() {
    let host = ScriptedSupervisor::start(script);
    let output = regatta(host.run_dir(), &["upgrade", "--binary", "next/regatta"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("the fleet ended before the upgrade had a result"), "{output:?}");
    let [ControlRequest::Upgrade { binary: Some(binary), wait: true }] = &host.requests()[..] else {
        panic!()
    };
    let folder = host.run_dir().canonicalize().unwrap();
    assert_eq!(*binary, folder.join("next/regatta"), "a path is meant from where it was typed");
}

#[test]
fn stop_returns_when_the_supervisor_has_ended() {
    let host = ScriptedSupervisor::start(script);
    let output = regatta(host.run_dir(), &["stop", "--now"]);
    assert_eq!((output.status.code(), out(&output).as_str()), (Some(0), "stop done\n"));
    wait::until("nobody serves the socket", wait::LONG, || !host.socket().exists());
    assert_eq!(host.requests(), [ControlRequest::Stop { now: true, wait: true }]);
}

#[test]
fn events_are_lines_for_people_or_programs() {
    let host = ScriptedSupervisor::start(script);
    let output = regatta(host.run_dir(), &["events", "--after", "1"]);
    let expected = "     2  2023-11-14T22:13:20.000Z  worker_ready         worker 2 serves\n     \
                    3  2023-11-14T22:13:20.000Z  worker_ready         worker 3 serves\n";
    assert_eq!((output.status.code(), out(&output).as_str()), (Some(0), expected));
    let output = regatta(host.run_dir(), &["events", "--json"]);
    let lines = lines(&output);
    assert_eq!(
        lines[2]["event"],
        json!({"sequence": 3, "timestamp": "2023-11-14T22:13:20.000Z", "kind": "worker_ready", "pid": 3, "message": "worker 3 serves"})
    );
    assert_eq!(lines[3]["result"]["ok"], true);
}

#[test]
fn events_are_followed_until_the_fleet_ends() {
    let mut log: Vec<_> = log().read_after(None, usize::MAX);
    let mut asked = Vec::new();
    let host = ScriptedSupervisor::start(move |server, client, request| {
        let ControlRequest::Events { after, follow: true } = request else { panic!("{request:?}") };
        server.start_events(client, after, true);
        log.push(FleetEvent::new("reload_completed", 1_700_000_001_000, "reloaded"));
        log.drain(..).for_each(|event| server.publish(event));
        asked.push(after);
        // The first connection is dropped, as that of a reader that is too slow; the second with the fleet.
        server.close_client(client);
        assert!(asked == [None] || asked == [None, Some(4)], "{asked:?}");
        asked.len() < 2
    });
    let output = regatta(host.run_dir(), &["events", "--follow"]);
    let seqs: Vec<_> =
        out(&output).lines().map(|line| line.split_whitespace().next().unwrap().to_owned()).collect();
    assert_eq!(seqs, ["1", "2", "3", "4", "5"], "each once");
    assert_eq!((output.status.code(), err(&output).as_str()), (Some(0), "the fleet has ended\n"));
}
