//! Addresses of both families, several for operators, and the names under which those are asked.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use nix::sys::signal::Signal;

use crate::support::client::{Connection, Request};
use crate::support::fleet::{TestFleet, TestFleetBuilder, field};
use crate::support::redis::TestRedis;
use crate::support::{client, wait};

fn four(address: SocketAddr) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], address.port()))
}

fn six(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(Ipv6Addr::LOCALHOST.into(), address.port())
}

/// That every listener of the fleet answers clients of both families.
#[track_caller]
fn serves_both(fleet: &TestFleet) {
    for to in [four(fleet.listen), six(fleet.listen)] {
        assert_eq!(client::get(to, "/hello").status, 200, "{to}");
    }
    for to in [four(fleet.admin), six(fleet.admin)] {
        assert_eq!(client::get(to, "/livez").status, 200, "{to}");
    }
}

/// Whether this machine has IPv6 at all.
fn has_ipv6() -> bool {
    TcpListener::bind("[::1]:0").is_ok()
}

#[test]
fn every_address_of_ipv6_serves_both_families_over_scaling_and_upgrades() {
    if !has_ipv6() {
        return;
    }
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis)
        .set("REGATTA_LISTEN", "[::]:0")
        .set("REGATTA_ADMIN__LISTEN", "[::]:0")
        .start();
    serves_both(&fleet);
    fleet.signal(Signal::SIGTTIN);
    wait::until("there is a third worker", wait::LONG, || fleet.ready().len() == 3);
    fleet.signal(Signal::SIGUSR2);
    wait::until("it is another program", wait::LONG, || !fleet.log_lines("upgrade done").is_empty());
    (0..20).for_each(|_| serves_both(&fleet));
    fleet.signal(Signal::SIGTTIN);
    wait::until("there is a fourth worker", wait::LONG, || fleet.ready().len() == 7);
    (0..20).for_each(|_| serves_both(&fleet));
    let told = fleet.operator("/fleet.json").json();
    assert_eq!(told["slots"].as_array().unwrap().len(), 4, "{told}");
}

#[test]
fn a_client_of_ipv4_is_one_of_ipv4_whatever_socket_it_came_to() {
    if !has_ipv6() {
        return;
    }
    let redis = TestRedis::shared();
    let lent = TcpListener::bind("[::]:0").unwrap();
    let limited = |plan: TestFleetBuilder| {
        plan.set("REGATTA_LIMITS__ONE__RATE", "1/h")
            .set("REGATTA_LIMITS__ONE__BURST", "1")
            .set("REGATTA_LIMITS__ONE__ROUTES", "/health")
            .set("REGATTA_PROXY__TRUSTED", "127.0.0.2")
            .start()
    };
    let own = limited(TestFleetBuilder::on(&redis).set("REGATTA_LISTEN", "[::]:0"));
    let activated = limited(TestFleetBuilder::on(&redis).lend("web", OwnedFd::from(lent)));
    for fleet in [own, activated] {
        let ask = |last: u8, for_whom: &str| {
            let from = IpAddr::from([127, 0, 0, last]);
            let mut connection = Connection::open_from(from, four(fleet.listen)).unwrap();
            let request = Request::get("/health").header("Connection", "close");
            let request =
                if for_whom.is_empty() { request } else { request.header("X-Forwarded-For", for_whom) };
            connection.request(&request).unwrap().status
        };
        assert_eq!([ask(3, ""), ask(3, ""), ask(4, "")], [200, 429, 200], "each address has its own limit");
        assert_eq!([ask(3, "203.0.113.9"), ask(2, "203.0.113.9")], [429, 200], "one is a trusted proxy");
        let show =
            |subject: &str| fleet.plan().clone().args(&["limits", "show", "one", subject, "--json"]).run();
        let (code, told) = show("127.0.0.3");
        assert!(code == 0 && told.contains("\"remaining\":0"), "{code}: {told}");
    }
}

#[test]
fn connections_are_counted_for_each_client_of_ipv4() {
    if !has_ipv6() {
        return;
    }
    let redis = TestRedis::shared();
    let plan = TestFleetBuilder::on(&redis).workers(1).set("REGATTA_LISTEN", "[::]:0");
    let fleet =
        plan.set("REGATTA_HTTP__MAX_CONNECTIONS_PER_CLIENT", "1").set("REGATTA_PROXY__TRUSTED", "").start();
    let open = |last: u8| {
        let mut connection =
            Connection::open_from(IpAddr::from([127, 0, 0, last]), four(fleet.listen)).unwrap();
        assert_eq!(connection.request(&Request::get("/hello")).unwrap().status, 200);
        connection
    };
    let (first, second) = (open(3), open(4));
    assert!(!first.is_closed() && !second.is_closed(), "they are two clients");
    let again = open(3);
    wait::until("the client's own idle connection makes room", wait::LONG, || first.is_closed());
    assert!(!second.is_closed() && !again.is_closed());
}

#[test]
fn a_client_of_ipv4_keeps_its_slot_at_a_dual_stack_address() {
    if !has_ipv6() {
        return;
    }
    let redis = TestRedis::shared();
    let plan = TestFleetBuilder::on(&redis).workers(4).set("REGATTA_LISTEN", "[::]:0");
    let fleet =
        plan.set("REGATTA_LISTEN__STEERING", "client-ip").set("REGATTA_WORKERS__HANG_TIMEOUT", "0s").start();
    for last in 2..12 {
        let worker = || {
            let from = IpAddr::from([127, 0, 0, last]);
            let mut connection = Connection::open_from(from, four(fleet.listen)).unwrap();
            connection.request(&Request::get("/hello").header("Connection", "close")).unwrap().worker()
        };
        let first = worker();
        assert!((0..5).all(|_| worker() == first), "client {last}");
    }
}

#[test]
fn operators_may_have_several_addresses() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).set("REGATTA_ADMIN__LISTEN", "127.0.0.1:0, 127.0.0.1:0").start();
    let said = fleet.log_lines("serving on")[0].clone();
    let listed = field(&said, "admin").as_str().unwrap().to_owned();
    let addresses: Vec<SocketAddr> = listed.split(',').map(|text| text.parse().unwrap()).collect();
    assert_eq!(addresses.len(), 2);
    let all_answer = || {
        for address in &addresses {
            assert_eq!(client::get(*address, "/readyz").status, 200, "{address}");
        }
    };
    all_answer();
    fleet.signal(Signal::SIGHUP);
    wait::until("it is reloaded", wait::LONG, || !fleet.log_lines("reload done").is_empty());
    all_answer();
    fleet.signal(Signal::SIGUSR2);
    wait::until("it is another program", wait::LONG, || !fleet.log_lines("upgrade done").is_empty());
    all_answer();
    let health = |admin: &str| {
        TestFleetBuilder::on(&redis).set("REGATTA_ADMIN__LISTEN", admin).args(&["health"]).run()
    };
    let (code, told) = health(&format!("127.0.0.1:1, {}", addresses[1]));
    assert_eq!(code, 0, "the first that answers counts: {told}");
    assert_eq!(health("127.0.0.1:1, 127.0.0.1:2").0, 1);
    let taken = addresses[1].to_string();
    let (code, told) =
        TestFleetBuilder::on(&redis).set("REGATTA_ADMIN__LISTEN", &format!("127.0.0.1:0,{taken}")).run();
    assert!(code == 75 && told.contains(&taken), "{code}: {told}");
}

#[test]
fn every_path_of_the_operators_is_asked_by_a_name_of_theirs() {
    let redis = TestRedis::shared();
    let fleet =
        TestFleetBuilder::on(&redis).set("REGATTA_ADMIN__ALLOWED_HOSTS", "app, *.regatta.svc").start();
    let ask = |head: &str| {
        let mut connection = Connection::open(fleet.admin).unwrap();
        connection.send(format!("{head}\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
        connection.receive(head.starts_with("HEAD")).unwrap()
    };
    let paths = ["/livez", "/readyz", "/metrics", "/fleet.json", "/fleet", "/fleet/events", "/", "/nothing"];
    for path in paths {
        for method in ["GET", "HEAD", "POST", "DELETE"] {
            let refused = ask(&format!("{method} {path} HTTP/1.1\r\nHost: evil.test:3001"));
            assert_eq!(refused.status, 421, "{method} {path}");
            assert!(refused.worker() > 0);
        }
    }
    let refused = ask("GET /metrics HTTP/1.1\r\nHost: rebound.test");
    assert!(refused.assert_problem(421)["detail"].as_str().unwrap().contains("admin.allowed_hosts"));
    assert_eq!(ask("GET http://evil.test/metrics HTTP/1.1\r\nHost: localhost").status, 421);
    let upgrade = "GET /fleet/events HTTP/1.1\r\nHost: evil.test\r\nUpgrade: websocket";
    assert_eq!(ask(upgrade).status, 421);
    for host in ["127.0.0.1:3001", "[::1]:3001", "localhost", "app:3001", "pod.regatta.svc", "10.1.2.3"] {
        for path in ["/livez", "/readyz", "/metrics", "/fleet.json", "/fleet"] {
            assert_eq!(ask(&format!("GET {path} HTTP/1.1\r\nHost: {host}")).status, 200, "{host} {path}");
        }
    }
    assert_eq!(ask("GET /livez HTTP/1.0").status, 200, "a program that names nothing");
    let public = {
        let mut connection = Connection::open(fleet.listen).unwrap();
        connection.send(b"GET /hello HTTP/1.1\r\nHost: any.test\r\nConnection: close\r\n\r\n").unwrap();
        connection.receive(false).unwrap()
    };
    assert_eq!(public.status, 200, "visitors' names are their own affair");
}
