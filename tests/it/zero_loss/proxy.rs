//! Behind nginx: one replica after the other is stopped and started again, and no visitor notices.

use std::net::SocketAddr;
use std::process::Child;

use tempfile::TempDir;

use crate::deploy::root;
use crate::nginx;
use crate::support::client;
use crate::support::client::Request;
use crate::support::fleet::Fleet;
use crate::support::fleet::Plan;
use crate::support::redis::RedisServer;
use crate::support::soak;
use crate::support::volley::COUNTER;
use crate::support::volley::Kind;
use crate::support::volley::Volley;

/// nginx speaks HTTP/1.1 here.
const MIX: &[(Kind, usize)] = &[
    (Kind::KeepAlive, 2),
    (Kind::Close, 2),
    (Kind::Post, 1),
    (Kind::Idle, 4),
    (Kind::SlowReader, 1),
    (Kind::Stream, 3),
];

/// A running nginx with these replicas behind it.
struct Front {
    _folder: TempDir,
    address: SocketAddr,
    process: Child,
}

impl Front {
    fn before(replicas: &[Fleet]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let shipped = std::fs::read_to_string(root().join("docker/nginx/upstream.conf")).unwrap();
        let mut upstream: Vec<_> =
            shipped.lines().filter(|line| !line.trim().starts_with("resolver")).map(str::to_owned).collect();
        let mut named = replicas.iter();
        for line in upstream.iter_mut().filter(|line| line.contains("server app:3000 resolve")) {
            let replica = named.next().expect("as many entries as replicas");
            *line = line.replace("app:3000 resolve", &replica.listen.to_string());
        }
        let (address, process) = nginx::serve(folder.path(), &upstream.join("\n"));
        Self { _folder: folder, address, process }
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn stopping_one_replica_after_the_other_behind_nginx_fails_no_request() {
    let redis = RedisServer::start();
    let plan = || Plan::on(&redis).example("faulty").workers(2).set("REGATTA_REDIS__PREFIX", "shared");
    let mut replicas = vec![plan().start(), plan().start()];
    let front = Front::before(&replicas);
    let volley = Volley::start(front.address, MIX);
    volley.more(100);
    for round in 0..soak::length(2, 10) {
        let replica = &mut replicas[round % 2];
        let (listen, admin) = (replica.listen.to_string(), replica.admin.to_string());
        let same = replica.plan().clone().set("REGATTA_LISTEN", &listen).set("REGATTA_ADMIN__LISTEN", &admin);
        assert_eq!(replica.stop(), 0, "{}", replica.log());
        volley.more(50);
        *replica = same.start();
        volley.more(50);
    }
    let tally = volley.finish();
    soak::report("TERM behind nginx", &tally);
    tally.assert_clean();
    let next = client::once(front.address, Request::post(&format!("/counters/{COUNTER}"))).unwrap();
    assert_eq!(next.text(), (tally.posted() + 1).to_string(), "posts are counted once each");
}
