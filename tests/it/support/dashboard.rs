//! A fleet whose operators may sign in.

use crate::support::fleet::TestFleetBuilder;
use crate::support::redis::TestRedis;

pub(crate) const TOKEN: &str = "a token for the tests of today";

/// Two workers that tell Redis of their machine, and whose operators have a token.
pub(crate) fn plan(redis: &TestRedis) -> TestFleetBuilder {
    TestFleetBuilder::on(redis)
        .set("REGATTA_DASHBOARD__TOKEN", TOKEN)
        .set("REGATTA_FLEET__HEARTBEAT_INTERVAL", "200ms")
}
