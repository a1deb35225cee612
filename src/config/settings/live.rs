//! The live parts' settings: broadcasts, WebSockets and tasks.

use std::time::Duration;

/// Messages to everybody who subscribes to a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BroadcastConfig {
    /// Messages that Redis keeps of each topic, about, for clients that come back.
    pub retention_messages: u64,
    /// A topic's messages are forgotten this long after the last one.
    pub retention: Duration,
    /// Largest message, bytes.
    pub max_message_size: usize,
    /// Messages a client may fall behind before it is told and dropped.
    pub max_lag: usize,
    /// Clients that may subscribe in one worker.
    pub max_subscribers: usize,
    /// Different topics that may be subscribed to in one worker.
    pub max_topics: usize,
    /// A stream that has nothing to say gives a sign of life this often.
    pub keep_alive_interval: Duration,
}

/// Bounds on WebSockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebSocketConfig {
    /// Origins that may open one beside the page's own host, such as `https://example.org`.
    pub allowed_origins: Vec<String>,
    /// Largest message a client may send, bytes.
    pub max_message_size: usize,
    /// Messages a client may send in a second.
    pub max_messages_per_second: u64,
    /// Name of the policy that messages are charged to.
    pub policy: Option<String>,
}

/// Work that any worker of the fleet takes from a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TasksConfig {
    /// Tasks that run at once in one worker; 0: its machine takes none.
    pub concurrency: usize,
    /// Tasks that may wait in the fleet's queue.
    pub max_queued: u64,
    /// Times a task is begun before it is given up.
    pub max_attempts: u64,
    /// A task whose worker was not heard of for this long is taken over.
    pub lease: Duration,
    /// A task that runs for longer has failed.
    pub timeout: Duration,
    /// A task and its result are forgotten this long after its end.
    pub retention: Duration,
}
