//! Messages to all who subscribe to a topic.

use std::time::Duration;

use crate::config::setting::settings;
use crate::config::settings::reference_phrases::{DURATION, MESSAGE};
use crate::config::value::{basic, bounds};

settings! {
    /// Messages to all who subscribe to a topic.
    #[derive(Debug, Clone, PartialEq, Eq)]
    struct BroadcastConfig {
        /// Messages kept of each topic, about, for clients that come back.
        retention_messages: u64 = required(
            "broadcast.retention_messages", |text| basic::number(text, 100_000);
            "1000", "a number from 1 to 100000", Reload,
            formerly = &["broadcast.history"]
        );
        /// A topic's messages are forgotten this long after the last one.
        retention: Duration = required(
            "broadcast.retention", basic::positive_duration; "1h", DURATION, Reload,
            formerly = &["broadcast.keep"]
        );
        /// Largest message that is broadcast.
        ///
        /// Largest message that is broadcast; then 413.
        max_message_size: usize = required(
            "broadcast.max_message_size", bounds::message_size; "16KiB", MESSAGE, Reload,
            formerly = &["broadcast.message_limit"]
        );
        /// Messages a client may fall behind before it is told and dropped, and never fewer than 128.
        max_lag: usize = required(
            "broadcast.max_lag", |text| basic::capacity(text, 65_536);
            "256", "a number from 1 to 65536", Reload,
            formerly = &["broadcast.buffer"]
        );
        /// Subscribed clients per worker, and as many other streams.
        ///
        /// Subscribed clients per worker, and as many other streams of events and WebSockets; then 503.
        max_subscribers: usize = required(
            "broadcast.max_subscribers", |text| basic::capacity(text, 1_000_000);
            "10000", "a number from 1 to 1000000", Reload,
            formerly = &["broadcast.subscribers"]
        );
        /// Subscribed topics per worker.
        ///
        /// Subscribed topics per worker, as far as the largest message of each fits into 48 MiB in three forms (1018 at
        /// 16 KiB, 15 at 1 MiB); then 503.
        max_topics: usize = required(
            "broadcast.max_topics", |text| basic::capacity(text, 100_000);
            "1000", "a number from 1 to 100000", Reload,
            formerly = &["broadcast.topics"]
        );
        /// A stream with nothing to say gives a sign of life this often.
        ///
        /// A stream with nothing to say gives a sign of life this often, and a WebSocket is asked for one; shorter than
        /// `http.keep_alive_timeout` and every proxy's read timeout.
        keep_alive_interval: Duration = required(
            "broadcast.keep_alive_interval", basic::positive_duration; "15s", DURATION, Reload,
            formerly = &["broadcast.heartbeat"]
        );
    }
}
