//! Sockets that a service manager opened: served by all workers, never closed, and named when they cannot be served.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use nix::sys::signal::Signal;

use crate::support::client::{Connection, Request};
use crate::support::fleet::TestFleetBuilder;
use crate::support::redis::TestRedis;
use crate::support::{client, process, wait};

fn any() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn hello(address: SocketAddr) -> client::Response {
    let response = client::once(address, Request::get("/hello")).expect("no connection is refused or lost");
    assert_eq!(response.status, 200);
    response
}

#[test]
fn lent_sockets_are_served_and_what_comes_between_two_fleets_is_answered_by_the_next() {
    let redis = TestRedis::shared();
    let (web, operators) = (TcpListener::bind(any()).unwrap(), TcpListener::bind(any()).unwrap());
    let (listen, admin) = (web.local_addr().unwrap(), operators.local_addr().unwrap());
    // The settings name other addresses, which then have no effect.
    let plan = TestFleetBuilder::on(&redis)
        .workers(2)
        .lend("web", OwnedFd::from(web))
        .lend("admin", OwnedFd::from(operators));
    let mut fleet = plan.start();
    assert_eq!((fleet.listen, fleet.admin), (listen, admin));
    assert_eq!(fleet.operator("/readyz").status, 200);
    for pid in fleet.workers() {
        process::signal(pid, Signal::SIGKILL);
        hello(listen);
    }
    assert_eq!(fleet.stop(), 0, "{}", fleet.log());
    let mut between = Connection::open(listen).expect("it still listens");
    between.send(&Request::get("/hello").bytes()).unwrap();
    let _next = plan.start();
    assert_eq!(between.receive(false).expect("it is answered").status, 200);
}

#[test]
fn lent_sockets_outlive_scaling() {
    let redis = TestRedis::shared();
    let web = TcpListener::bind(any()).unwrap();
    let fleet = TestFleetBuilder::on(&redis).workers(1).lend("web", OwnedFd::from(web)).start();
    assert_ne!(fleet.admin, fleet.listen);
    for (signal, workers) in [(Signal::SIGTTIN, 2), (Signal::SIGTTOU, 1)] {
        fleet.signal(signal);
        wait::until(&format!("{workers} workers"), wait::LONG, || {
            hello(fleet.listen);
            fleet.workers().len() == workers
        });
    }
    (0..20).for_each(|_| drop(hello(fleet.listen)));
    assert_eq!(fleet.operator("/readyz").status, 200);
}

#[test]
fn operators_may_be_lent_several_sockets() {
    let redis = TestRedis::shared();
    let [one, other] = [(); 2].map(|()| TcpListener::bind(any()).unwrap());
    let addresses = [&one, &other].map(|socket| socket.local_addr().unwrap());
    let plan = TestFleetBuilder::on(&redis)
        .workers(2)
        .lend("admin", OwnedFd::from(one))
        .lend("admin", OwnedFd::from(other));
    let fleet = plan.start();
    for address in addresses {
        assert_eq!(client::get(address, "/readyz").status, 200);
    }
    assert_eq!(fleet.get("/hello").status, 200);
}

#[test]
fn what_cannot_be_served_is_one_sentence() {
    let web = || OwnedFd::from(TcpListener::bind(any()).unwrap());
    let udp = || OwnedFd::from(std::net::UdpSocket::bind(any()).unwrap());
    let plans = [
        (TestFleetBuilder::new().lend("web", udp()), "descriptor 3 (web)"),
        (
            TestFleetBuilder::new().set("REGATTA_LISTEN__STEERING", "client-ip").lend("web", web()),
            "listen.steering cannot steer",
        ),
    ];
    for (plan, sentence) in plans {
        let (code, said) = plan.run();
        assert!(code == 64 && said.contains(sentence), "{code}: {said}");
    }
}
