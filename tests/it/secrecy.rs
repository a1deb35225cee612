//! Whoever reads Redis, its traffic, its dump or our log finds nothing to log in with.

use std::fs;
use std::fs::File;
use std::process::Command;
use std::process::Stdio;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::support::client::Request;
use crate::support::client::Visitor;
use crate::support::fleet::Plan;
use crate::support::redis::RedisServer;
use crate::support::wait;

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

#[test]
fn neither_redis_nor_the_log_ever_knows_a_session_id() {
    let server = RedisServer::start_with(&["--rdbcompression", "no"]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("monitor");
    let mut monitor = Command::new("redis-cli")
        .arg("-s")
        .arg(server.socket())
        .arg("MONITOR")
        .stdout(File::create(&path).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait::until("the monitor listens", wait::LONG, || {
        server.cli(&["CLIENT", "LIST"]).contains("cmd=monitor")
    });
    let mut fleet = Plan::on(&server).set("REGATTA_LOG__LEVEL", "trace").start();
    let visitors: Vec<_> = (0..5)
        .map(|_| {
            let mut visitor = Visitor::default();
            (0..3).for_each(|_| _ = visitor.visit(fleet.listen));
            visitor.ask(fleet.listen, Request::post("/counters/x"));
            visitor
        })
        .collect();
    server.cli(&["SET", "the-end", "1"]);
    wait::until("the monitor has seen it all", wait::LONG, || {
        contains(&fs::read(&path).unwrap(), b"the-end")
    });
    monitor.kill().unwrap();
    monitor.wait().unwrap();
    assert_eq!(server.cli(&["SAVE"]), "OK");
    fleet.stop();
    let dump = fs::read(server.socket().with_file_name("dump.rdb")).unwrap();
    let monitored = fs::read(&path).unwrap();
    let log = fleet.log().into_bytes();
    assert!(contains(&monitored, b"regatta_v4_begin") && contains(&dump, b":s:") && !log.is_empty());
    for visitor in &visitors {
        let value = &visitor.cookies["sid"];
        let parts: Vec<_> = value.split('.').collect();
        let id = URL_SAFE_NO_PAD.decode(parts[2]).unwrap();
        let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        let number = u128::from_le_bytes(id.clone().try_into().unwrap()).to_string();
        // In any form; and the signature neither.
        let forms = [
            value.as_bytes(),
            parts[2].as_bytes(),
            parts[3].as_bytes(),
            &id,
            hex.as_bytes(),
            number.as_bytes(),
        ];
        for (place, text) in [("traffic", &monitored), ("dump", &dump), ("log", &log)] {
            for form in forms {
                assert!(!contains(text, form), "{} is in the {place}", form.escape_ascii());
            }
        }
    }
}
