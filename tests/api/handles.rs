//! What is held by an application's state can be shared by its handlers, and says nothing secret in a log.

use std::fmt::Debug;

use regatta::broadcast::{Broadcast, Message, MessageId, Presence, Topic};
use regatta::counter::{BatchedCounter, BoundedCounter, Counters, DistinctCounter};
use regatta::rate_limit::{RateLimit, RateLimitLayer};
use regatta::session::{
    ActiveSession, AuthSession, CsrfToken, PageView, RequireLogin, Session, SessionFields, UserId,
};
use regatta::task::{TaskContext, TaskId, TaskQueue, TaskStatus};
use regatta::{
    ClientIp, FleetHandle, FleetSnapshot, Idempotency, LastEventId, Problem, RequestTimeout, SameOrigin,
    SlotSnapshot, Worker,
};

fn is_handle<T: Clone + Send + Sync + Debug + 'static>() {}
fn is_sent<T: Send + Debug + 'static>() {}

#[test]
fn every_handle_can_be_cloned_sent_shared_and_logged() {
    is_handle::<FleetHandle>();
    is_handle::<Worker>();
    is_handle::<FleetSnapshot>();
    is_handle::<SlotSnapshot>();
    is_handle::<ClientIp>();
    is_handle::<LastEventId>();
    is_handle::<Problem>();
    is_handle::<Idempotency>();
    is_handle::<RequestTimeout>();
    is_handle::<SameOrigin>();
    is_handle::<Session>();
    is_handle::<AuthSession>();
    is_handle::<ActiveSession>();
    is_handle::<CsrfToken>();
    is_handle::<PageView>();
    is_handle::<SessionFields>();
    is_handle::<UserId>();
    is_handle::<RequireLogin>();
    is_handle::<RateLimit>();
    is_handle::<RateLimitLayer>();
    is_handle::<Counters>();
    is_handle::<BatchedCounter>();
    is_handle::<BoundedCounter>();
    is_handle::<DistinctCounter>();
    is_handle::<Broadcast>();
    is_handle::<Topic>();
    is_handle::<Message>();
    is_handle::<MessageId>();
    is_handle::<Presence>();
    is_handle::<TaskQueue>();
    is_handle::<TaskContext>();
    is_handle::<TaskStatus>();
    is_handle::<TaskId>();
}

#[test]
fn every_stream_can_be_sent_and_logged() {
    fn is_stream<T: futures_util::Stream + Unpin + Send + Debug + 'static>() {}
    is_stream::<regatta::broadcast::Subscription>();
    is_stream::<regatta::task::TaskWatch>();
    is_sent::<regatta::ws::WebSocketUpgrade>();
}
