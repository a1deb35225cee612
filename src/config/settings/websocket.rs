//! Bounds on WebSockets.

use crate::config::limits;
use crate::config::setting::settings;
use crate::config::settings::reference_phrases::MESSAGE;
use crate::config::value::{address, basic, bounds};

settings! {
    /// Bounds on WebSockets.
    #[derive(Debug, Clone, PartialEq, Eq)]
    struct WebSocketConfig {
        /// Pages of other hosts that may open a WebSocket; none: the own host's only.
        allowed_origins: Vec<String> = list(
            "websocket.allowed_origins", address::origins;
            "", "origins such as https://example.org, separated by commas", Reload,
            formerly = &["websocket.origins"]
        );
        /// Limit that messages over WebSockets are charged to; none: none.
        ///
        /// What a client sends over its WebSockets is charged to this policy, a request for each KiB of a message
        /// ([Limits](#limits)).
        policy: Option<String> = custom(
            "websocket.policy", limits::read_policy_name; "", "a policy's name", Reload,
            unset = "none; `messages` in the shipped application"
        );
        /// Largest message a client may send over a WebSocket.
        ///
        /// Largest message a client may send over a WebSocket; then it is closed (1009).
        max_message_size: usize = required(
            "websocket.max_message_size", bounds::message_size; "16KiB", MESSAGE, Reload,
            formerly = &["websocket.message_limit"]
        );
        /// Messages a client may send over a WebSocket in a second.
        ///
        /// Messages a client may send over a WebSocket in a second, twice as many at once; beyond that it is told, and
        /// closed (1008) if it goes on. A socket's own bound, before `websocket.policy`. Of an application's own sockets
        /// only pings are counted.
        max_messages_per_second: u64 = required(
            "websocket.max_messages_per_second", |text| basic::number(text, 100_000);
            "20", "a number from 1 to 100000", Reload,
            formerly = &["websocket.messages_per_second"]
        );
    }
}
