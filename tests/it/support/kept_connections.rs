//! Connections that are kept, and which worker has how many of them.

use std::time::Duration;

use crate::support::client::{Connection, Request};
use crate::support::exposition::sum;
use crate::support::fleet::TestFleet;

/// Connections of these tests, as many as the promise is about.
pub(crate) const KEPT: usize = 64;

pub(crate) const ACCEPTED: &str = "regatta_connections_accepted_total";

pub(crate) const PASSED: &str = "regatta_connections_transferred_total";

/// Opens so many connections, all of them before the first is used.
pub(crate) fn open(fleet: &TestFleet, count: usize) -> Vec<Connection> {
    (0..count).map(|_| Connection::open(fleet.listen).expect("no connection is refused")).collect()
}

/// One request on each; the worker that answered it.
#[track_caller]
pub(crate) fn use_all(connections: &mut [Connection]) -> Vec<u32> {
    let ask = |connection: &mut Connection| {
        let response = connection.request(&Request::get("/hello")).expect("every request is answered");
        assert_eq!(response.status, 200, "{}", response.text());
        response.worker()
    };
    connections.iter_mut().map(ask).collect()
}

/// How many of these answers each worker gave, those that gave none included.
pub(crate) fn shares(fleet: &TestFleet, answers: &[u32]) -> Vec<usize> {
    let ready = fleet.ready();
    ready.iter().map(|(_, pid)| answers.iter().filter(|worker| *worker == pid).count()).collect()
}

#[track_caller]
pub(crate) fn assert_even(shares: &[usize]) {
    let (total, workers) = (shares.iter().sum::<usize>(), shares.len());
    let most = shares.iter().max().copied().unwrap_or(0);
    assert!(most * workers * 10 <= total * 11, "one of {workers} workers has {most} of {total}: {shares:?}");
}

pub(crate) fn total(fleet: &TestFleet, name: &str) -> f64 {
    sum(&fleet.operator("/metrics").text(), name, &[])
}

/// Connections that the kernel has completed and no worker has accepted, by `proc_pid_net(5)`.
pub(crate) fn queued(fleet: &TestFleet) -> usize {
    let port = format!(":{:04X}", fleet.listen.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let waiting = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let (local, _, state, queues) = (words.next()?, words.next()?, words.next()?, words.next()?);
        let listens = local.ends_with(&port) && state == "0A";
        listens.then(|| usize::from_str_radix(queues.split_once(':').unwrap().1, 16).unwrap())
    };
    table.lines().filter_map(waiting).sum()
}

/// Which of these have been answered.
pub(crate) fn answered(connections: &mut [Connection]) -> usize {
    let mut count = 0;
    for connection in connections {
        connection.set_timeout(Duration::from_millis(1));
        count += usize::from(connection.receive(false).is_ok_and(|response| response.status == 200));
    }
    count
}
