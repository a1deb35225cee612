//! Unix sockets as real programs use them, and what is said where one cannot be had.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;

use crate::support::client::Request;
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::TestRedis;
use crate::support::{client, nginx, process, stand_in, wait};

fn plan(redis: &TestRedis) -> (TestFleetBuilder, PathBuf) {
    let plan = TestFleetBuilder::on(redis).example("faulty");
    let socket = plan.folder().join("shop.sock");
    (plan.set("REGATTA_LISTEN", &format!("unix:{}", socket.display())), socket)
}

fn hello(socket: &Path) {
    assert_eq!(client::get(stand_in::unix(socket), "/hello").status, 200);
}

fn client_seen(socket: &Path, forwarded: Option<&str>) -> String {
    let request = Request::get("/client");
    let request = forwarded.map_or(request.clone(), |value| request.header("X-Forwarded-For", value));
    client::once(stand_in::unix(socket), request).unwrap().text()
}

#[test]
fn curl_and_nginx_reach_it_and_name_their_clients() {
    let redis = TestRedis::shared();
    let (plan, socket) = plan(&redis);
    let mut fleet = plan.start();
    assert_eq!(fs::metadata(&socket).unwrap().mode() & 0o7777, 0o660);
    let mut curl = Command::new("curl");
    curl.args(["-sf", "--unix-socket"]).arg(&socket).arg("http://localhost/hello");
    let curl = curl.output().expect("curl is installed by `make deps-test`");
    assert!(curl.status.success() && curl.stdout.starts_with(b"Handled by worker"), "{curl:?}");
    // A peer without an address is one client, unless it names others.
    assert_eq!(client_seen(&socket, None), "0.0.0.0");
    assert_eq!(client_seen(&socket, Some("203.0.113.9")), "203.0.113.9");
    assert_eq!(client_seen(&socket, Some("198.51.100.7, 203.0.113.9")), "203.0.113.9");
    let folder = tempfile::tempdir().unwrap();
    let upstream =
        format!("upstream regatta {{\n    server unix:{};\n    keepalive 4;\n}}\n", socket.display());
    let (address, mut process) = nginx::serve(folder.path(), &upstream);
    for _ in 0..20 {
        assert_eq!(client::get(address, "/client").text(), "127.0.0.1", "nginx says so");
    }
    let _ = process.kill();
    let _ = process.wait();
    assert_eq!(fleet.stop(), 0, "{}", fleet.log());
    assert!(!socket.exists());
}

#[test]
fn several_addresses_an_abstract_name_and_the_operators_socket_are_served_at_once() {
    let redis = TestRedis::shared();
    let (plan, socket) = plan(&redis);
    let name = format!("regatta-{}", std::process::id());
    let operators = plan.folder().join("admin.sock");
    let listen = format!("127.0.0.1:0 127.0.0.2:0 unix:{} unix:@{name}", socket.display());
    let plan = plan
        .set("REGATTA_LISTEN", &listen)
        .set("REGATTA_LISTEN__SOCKET_MODE", "0600")
        .set("REGATTA_ADMIN__LISTEN", &format!("127.0.0.1:0,unix:{}", operators.display()));
    let fleet = plan.start();
    assert_eq!(fleet.also.len(), 1, "{:?}", fleet.also);
    assert_eq!((fleet.get("/hello").status, client::get(fleet.also[0], "/hello").status), (200, 200));
    assert_eq!(fs::metadata(&socket).unwrap().mode() & 0o7777, 0o600);
    hello(&socket);
    let curl = Command::new("curl")
        .args(["-sf", "--abstract-unix-socket", &name, "http://localhost/hello"])
        .output();
    assert!(curl.unwrap().status.success());
    assert_eq!(client::get(stand_in::unix(&operators), "/readyz").status, 200);
    let only = fleet.plan().clone().set("REGATTA_ADMIN__LISTEN", &format!("unix:{}", operators.display()));
    let (code, said) = only.args(&["health"]).run();
    assert!(code == 0 && said.contains("200"), "{code}: {said}");
}

fn kill_supervisor(fleet: &TestFleet) {
    fleet.signal(Signal::SIGKILL);
    wait::until("the supervisor is dead", wait::LONG, || !process::alive(fleet.pid()));
}

#[test]
fn a_killed_fleets_socket_is_taken_by_the_next_and_a_living_ones_is_not() {
    let redis = TestRedis::shared();
    let (plan, socket) = plan(&redis);
    let fleet = plan.start();
    let other = TestFleetBuilder::on(&redis).set("REGATTA_LISTEN", plan.setting("REGATTA_LISTEN"));
    let (code, said) = other.run();
    let holder = format!("process {}", fleet.pid());
    assert!(code == 75 && said.contains(&holder) && said.contains("name another socket"), "{code}: {said}");
    hello(&socket);
    kill_supervisor(&fleet);
    let next = plan.start();
    hello(&socket);
    assert!(next.workers().len() == 2 && socket.exists());
}

#[test]
fn an_orphan_that_is_stuck_does_not_keep_the_socket() {
    let redis = TestRedis::shared();
    let (plan, socket) = plan(&redis);
    let fleet = plan.workers(1).start();
    let worker = fleet.workers()[0];
    process::stop(worker);
    kill_supervisor(&fleet);
    let next = fleet.plan().start();
    hello(&socket);
    assert!(!process::alive(worker), "{}", next.log());
}

#[test]
fn what_cannot_be_listened_on_is_one_sentence_with_the_next_step() {
    let folder = tempfile::tempdir().unwrap();
    let below = |name: &str| format!("unix:{}", folder.path().join(name).display());
    fs::write(folder.path().join("file"), "").unwrap();
    let long = format!("unix:/{}", "x".repeat(120));
    for (listen, code, sentence) in [
        (below("missing/shop.sock"), 64, "make it first"),
        (below("file"), 64, "no socket: remove it"),
        (long, 64, "at most 107 bytes"),
        ("unix:shop.sock".to_owned(), 64, "absolute path"),
    ] {
        let (found, said) = TestFleetBuilder::new().set("REGATTA_LISTEN", &listen).run();
        assert!(found == code && said.contains(sentence), "{listen} {found}: {said}");
    }
    let owned = TestFleetBuilder::new()
        .set("REGATTA_LISTEN", &below("a"))
        .set("REGATTA_LISTEN__SOCKET_GROUP", "no-such");
    let (code, said) = owned.run();
    assert!(code == 64 && said.contains("no group no-such"), "{code}: {said}");
    let steered = TestFleetBuilder::new()
        .set("REGATTA_LISTEN", &below("a"))
        .set("REGATTA_LISTEN__STEERING", "client-ip");
    let (code, said) = steered.run();
    assert!(code == 64 && said.contains("set it to kernel"), "{code}: {said}");
    if nix_is_root() {
        return;
    }
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o500)).unwrap();
    let (code, said) = TestFleetBuilder::new().set("REGATTA_LISTEN", &below("shop.sock")).run();
    assert!(code == 64 && said.contains("may not make a file"), "{code}: {said}");
}

/// Root may write anywhere.
fn nix_is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

#[test]
fn checking_the_ports_leaves_no_file() {
    let redis = TestRedis::shared();
    let (plan, socket) = plan(&redis);
    let (code, said) = plan.args(&["check"]).run();
    assert!(code == 0 && said.contains("unix:"), "{code}: {said}");
    assert!(!socket.exists());
}

#[test]
fn a_lent_unix_socket_is_served_and_outlives_the_fleet() {
    let redis = TestRedis::shared();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("lent.sock");
    let lent = UnixListener::bind(&socket).unwrap();
    let plan = TestFleetBuilder::on(&redis).example("faulty").lend("web", OwnedFd::from(lent));
    let mut fleet = plan.start();
    hello(&socket);
    fleet.signal(Signal::SIGTTIN);
    wait::until("three workers", wait::LONG, || fleet.workers().len() == 3);
    hello(&socket);
    assert_eq!(fleet.stop(), 0, "{}", fleet.log());
    let _queued = UnixStream::connect(&socket).expect("it still listens");
    assert!(socket.exists());
}

#[test]
fn systemd_socket_activate_starts_it_with_the_first_connection() {
    let redis = TestRedis::shared();
    let (plan, _) = plan(&redis);
    let socket = plan.folder().join("activated.sock");
    let listen = format!("--listen={}", socket.display());
    let mut words: Vec<String> = vec!["systemd-socket-activate".into(), listen];
    // It passes no other variable of its environment on.
    for name in ["REGATTA_RUN_DIR", "REGATTA_REDIS__URL", "REGATTA_REDIS__PREFIX", "REGATTA_LISTEN", "PATH"] {
        words.push(format!("--setenv={name}={}", plan.setting(name)));
    }
    words.push("--setenv=REGATTA_ADMIN__LISTEN=127.0.0.1:0".into());
    words.push("--setenv=REGATTA_LOG__FORMAT=json".into());
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let fleet = plan.wrapped(&words).spawn();
    wait::until("the socket is there", wait::LONG, || UnixStream::connect(&socket).is_ok());
    hello(&socket);
    let fleet = fleet.after("serving on");
    assert!(fleet.log().contains("activated.sock"), "{}", fleet.log());
}
