//! Requests to the example with a session.

use crate::support::client::{CookieClient, Request, Response};
use crate::support::fleet::TestFleet;
use crate::support::redis::TestRedis;

pub(crate) fn post(visitor: &mut CookieClient, fleet: &TestFleet, target: &str) -> Response {
    visitor.request(fleet.listen, Request::post(target))
}

pub(crate) fn get(visitor: &mut CookieClient, fleet: &TestFleet, target: &str) -> Response {
    visitor.request(fleet.listen, Request::get(target))
}

/// A visitor with a session.
pub(crate) fn shopper(fleet: &TestFleet) -> CookieClient {
    let mut visitor = CookieClient::default();
    assert_eq!(post(&mut visitor, fleet, "/set/first/1").status, 200);
    visitor
}

/// Keys of sessions, marks of replaced ids left out.
pub(crate) fn sessions(redis: &TestRedis) -> Vec<String> {
    let of_session = |key: &String| key.contains(":s:") && redis.cli(&["HEXISTS", key, "_c"]) == "1";
    redis.keys().into_iter().filter(of_session).collect()
}
