//! Behind nginx: one replica after the other is stopped and started again, and no visitor notices.

use crate::support::client::Request;
use crate::support::fleet::TestFleetBuilder;
use crate::support::load_generator::{COUNTER, ClientKind, LoadGenerator};
use crate::support::nginx::TestNginx;
use crate::support::redis::TestRedis;
use crate::support::{client, soak};

/// nginx speaks HTTP/1.1 here.
const MIX: &[(ClientKind, usize)] = &[
    (ClientKind::KeepAlive, 2),
    (ClientKind::Close, 2),
    (ClientKind::Post, 1),
    (ClientKind::Idle, 4),
    (ClientKind::SlowReader, 1),
    (ClientKind::Stream, 3),
];

#[test]
fn stopping_one_replica_after_the_other_behind_nginx_fails_no_request() {
    let redis = TestRedis::start();
    let plan =
        || TestFleetBuilder::on(&redis).example("faulty").workers(2).set("REGATTA_REDIS__PREFIX", "shared");
    let mut replicas = vec![plan().start(), plan().start()];
    let front = TestNginx::before(&replicas);
    let volley = LoadGenerator::start(front.address, MIX);
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
