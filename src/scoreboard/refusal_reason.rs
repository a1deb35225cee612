//! Why a worker refuses a request by itself, or closes a connection that its client would have kept.

/// Why a request was refused without reaching the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalReason {
    /// The worker is overloaded, and the request would have waited too long.
    Overload = 0,
    /// Its client's address has as many connections as one client may have.
    ClientConnections = 1,
    /// Unfinished request headers took more memory than they may, and this was one of the largest or oldest.
    HeaderMemory = 2,
}

impl RefusalReason {
    /// Every reason, in the order of its number.
    pub const ALL: [Self; 3] = [Self::Overload, Self::ClientConnections, Self::HeaderMemory];

    /// The reason's name, as status and metrics spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Overload => "overload",
            Self::ClientConnections => "client_connections",
            Self::HeaderMemory => "header_memory",
        }
    }
}

/// Why a connection was closed before its client wanted that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionCloseReason {
    /// It was idle for as long as it may be.
    Idle = 0,
    /// It was idle, and its place was needed.
    Evicted = 1,
    /// Its request's header was not complete in time.
    SlowHeader = 2,
    /// Its client takes what it is sent too slowly, or not at all.
    SlowReader = 3,
    /// Its client sent more HTTP/2 control frames than its requests can need.
    ControlFrames = 4,
    /// Its worker had more than its share for a while (`listen.balance`).
    Surplus = 5,
    /// It did not begin as the PROXY protocol wants it, or came from a peer that may not speak it (`proxy.protocol`).
    ProxyProtocol = 6,
}

impl ConnectionCloseReason {
    /// Every reason, in the order of its number.
    pub const ALL: [Self; 7] = [
        Self::Idle,
        Self::Evicted,
        Self::SlowHeader,
        Self::SlowReader,
        Self::ControlFrames,
        Self::Surplus,
        Self::ProxyProtocol,
    ];

    /// The reason's name, as status and metrics spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Evicted => "evicted",
            Self::SlowHeader => "slow_header",
            Self::SlowReader => "slow_reader",
            Self::ControlFrames => "control_frames",
            Self::Surplus => "surplus",
            Self::ProxyProtocol => "proxy_protocol",
        }
    }
}
