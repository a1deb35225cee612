//! What a request costs in Redis: exact commands and round trips, by kind of request.

use crate::support::fleet::Plan;
use crate::support::proxy::Proxy;
use crate::support::redis::RedisServer;

#[test]
fn a_route_without_state_asks_nothing_and_a_visit_asks_once() {
    let server = RedisServer::start();
    let proxy = Proxy::before(&server);
    let fleet = Plan::through(&proxy).start();
    let (counts, _) = proxy.during(|| fleet.get("/hello"));
    assert_eq!((counts.total(), counts.rounds), (0, 0), "{counts}");
    let (counts, _) = proxy.during(|| fleet.get("/"));
    assert_eq!((counts.total(), counts.rounds), (1, 1), "{counts}");
}
