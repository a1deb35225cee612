//! A reader of Redis, its traffic, its dump or our log finds nothing to log in with.

use std::fs;
use std::fs::File;
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::support::client::{CookieClient, Request};
use crate::support::fleet::TestFleetBuilder;
use crate::support::redis::TestRedis;
use crate::support::redis_tcp::{TestRedisTcp, words};
use crate::support::{process, wait};

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

#[test]
fn neither_redis_nor_the_log_ever_knows_a_session_id() {
    let server = TestRedis::start_with(&["--rdbcompression", "no"]);
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
    let mut fleet = TestFleetBuilder::on(&server).set("REGATTA_LOG__FILTER", "trace").start();
    let visitors: Vec<_> = (0..5)
        .map(|_| {
            let mut visitor = CookieClient::default();
            (0..3).for_each(|_| _ = visitor.view(fleet.listen));
            visitor.request(fleet.listen, Request::post("/counters/x"));
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
    assert!(contains(&monitored, b"regatta_v6_batch") && contains(&dump, b":s:") && !log.is_empty());
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

/// A password with everything in it that means something in a URL, and as it stands in one.
const PASSWORD: &str = "p@ss:/?#%+Hunter22";
const ESCAPED: &str = "p%40ss%3A%2F%3F%23%25+Hunter22";

#[test]
fn the_password_of_redis_is_told_to_redis_alone() {
    let mut server = TestRedisTcp::start_locked(
        |port, folder| {
            let socket = folder.join("redis.sock").display().to_string();
            words(&["--port", &port.to_string(), "--unixsocket", &socket, "--requirepass", PASSWORD])
        },
        &["-a", PASSWORD],
    );
    let socket = server.cli(&["CONFIG", "GET", "unixsocket"]).lines().last().unwrap().to_owned();
    let urls = [
        format!("redis://:{ESCAPED}@127.0.0.1:{}/0", server.port),
        format!("redis://127.0.0.1:{}?password={ESCAPED}&db=0", server.port),
        format!("unix://:{ESCAPED}@{socket}"),
        format!("unix://{socket}?password={ESCAPED}"),
    ];
    for url in urls {
        let plan =
            TestFleetBuilder::new().set("REGATTA_REDIS__URL", &url).set("REGATTA_LOG__FILTER", "trace");
        let fleet = plan.start();
        assert_eq!(fleet.get("/").status, 200, "{url}");
        let mut told: Vec<String> = ["/livez", "/readyz", "/metrics", "/fleet.json", "/fleet"]
            .map(|target| fleet.operator(target).text())
            .into();
        for words in [
            &["check"][..],
            &["status"],
            &["status", "--json"],
            &["status", "--all"],
            &["events", "--json"],
            &["reload", "--json"],
            &["migrate", "--check"],
            &["limits", "show", "default", "127.0.0.1"],
        ] {
            told.push(plan.clone().args(words).run().1);
        }
        server.kill();
        wait::until("the loss is told", wait::LONG, || {
            fleet.operator("/readyz").text().contains("degraded") || fleet.log().contains("refused")
        });
        told.extend([fleet.operator("/readyz").text(), plan.clone().args(&["check"]).run().1, fleet.log()]);
        let children = process::children(fleet.pid()).into_iter().chain([fleet.pid()]);
        told.extend(
            children.map(|pid| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default()),
        );
        for text in told {
            assert!(!text.contains("Hunter22"), "{url}: {text}");
        }
        drop(fleet);
        server.restart();
    }
}

#[test]
fn the_private_redis_gets_no_secret_of_the_fleet_s() {
    let key = "Hunter22 Hunter22 Hunter22 Hunter22";
    let plan = TestFleetBuilder::new()
        .set("REGATTA_SESSION__SECRETS", key)
        .set("DATABASE_URL", key)
        .set("LANG", "C");
    let fleet = plan.start();
    assert_eq!(fleet.get("/").status, 200);
    for pid in fleet.others() {
        for file in ["environ", "cmdline"] {
            let text = fs::read(format!("/proc/{pid}/{file}")).unwrap();
            assert!(!contains(&text, b"Hunter22"), "{}", String::from_utf8_lossy(&text));
        }
    }
    assert_eq!(fleet.others().len(), 1);
}

#[test]
fn an_address_that_cannot_be_read_is_told_without_its_password() {
    for url in [
        "redis://:p#Hunter22@h",
        "redis://:Hunter22/x@h",
        "redis://:p?Hunter22@h",
        "redis://h?pwd=Hunter22",
        "redis://h/x?password=Hunter22",
        "redis://:Hunter22%@h",
        "rediss://u:Hunter22@h:port",
        "redis-sentinel://:Hunter22@h",
        "redis-sentinel://h/m?sentinelPassword=Hunter22&x=1",
        "redis-cluster://u:Hunter22@a,u:other@b",
        "unix://:Hunter22/x@/run/redis.sock",
        "unix:///run/redis.sock?pass=Hunter22&y=1",
        "Hunter22",
        "http://u:Hunter22@h",
        ":Hunter22@h:6379",
    ] {
        let typed = if url.contains(':') { url } else { "" };
        for plan in [
            TestFleetBuilder::new().set("REDIS_URL", url).args(&["check"]),
            TestFleetBuilder::new().set("REGATTA_REDIS__URL", url),
            TestFleetBuilder::new().args(&["--redis-url", url, "check"]),
            TestFleetBuilder::new().args(&["--set", &format!("redis.url={url}"), "check"]),
            TestFleetBuilder::new().args(&["check", "--here", typed]),
        ] {
            let (code, said) = plan.run();
            assert!(code == 64 && !said.contains("Hunter22"), "{url}: {code} {said}");
        }
    }
}
