//! Bounds on what a client may send, and which peers may speak for one.

use std::time::Duration;

use ipnet::IpNet;

use crate::config::limits;
use crate::config::limits::RateLimitHeaderStyle;
use crate::config::setting::settings;
use crate::config::settings::reference_phrases::{DURATION, SIZE};
use crate::config::value::address::ProxyProtocolListeners;
use crate::config::value::bounds::ClientConnectionLimit;
use crate::config::value::choice::ForwardedHeader;
use crate::config::value::{address, basic, bounds, choice};

settings! {
    /// Which peers may speak for a client.
    #[derive(Debug, Clone)]
    struct ProxyConfig {
        /// Trusted proxies.
        ///
        /// Peers whose header is believed, and hops that are walked past.
        trusted: Vec<IpNet> = list(
            "proxy.trusted", address::networks;
            "127.0.0.0/8, ::1/128", "networks such as 10.0.0.0/8, separated by commas", Reload
        );
        /// The header a trusted proxy sets.
        ///
        /// The one header they set.
        header: ForwardedHeader = required(
            "proxy.header", choice::forwarded_header;
            "x-forwarded-for", "x-forwarded-for or forwarded", Reload
        );
    }

    /// Which public addresses speak the PROXY protocol.
    #[derive(Debug, Clone)]
    struct ProxyProtocolConfig {
        /// Addresses whose connections begin with a header of the PROXY protocol.
        ///
        /// Addresses of `listen` whose connections begin with a header of the PROXY protocol, version 1 or 2, which
        /// names the client; only from `proxy.trusted`; a connection that begins otherwise is closed
        /// ([PROXY protocol](guide/sockets.md#proxy-protocol)).
        listeners: ProxyProtocolListeners = list(
            "proxy.protocol", address::proxy_protocol_listeners;
            "none", "none, all, or addresses of listen, separated by commas", Reload
        );
    }

    /// Bounds on what a client may send, and how slowly.
    #[derive(Debug, Clone)]
    struct HttpConfig {
        /// A request's header must be complete by then.
        header_timeout: Duration = required(
            "http.header_timeout", basic::positive_duration; "10s", DURATION, Reload
        );
        /// Longest pause within a request's body.
        body_timeout: Duration = required(
            "http.body_timeout", basic::positive_duration; "30s", DURATION, Reload
        );
        /// A request's body must come this fast while it is waited for, after 5 s.
        ///
        /// A request's body must come at least this fast while it is waited for, after 5 s; then 408. 0: at any rate.
        min_body_rate: u64 = required(
            "http.min_body_rate", basic::number_or_zero;
            "240", "0 for any, or a number of bytes a second", Reload,
            formerly = &["http.body_min_rate"]
        );
        /// A response must have begun by then.
        ///
        /// A response must have begun by then ([Slow clients](OPERATIONS.md#slow-clients-and-slow-handlers)); a route
        /// may say otherwise. 0s: whenever it does.
        request_timeout: Duration = required(
            "http.request_timeout", basic::duration; "0s", "0s for never, or a duration such as 30s", Reload
        );
        /// An idle connection is closed after this.
        ///
        /// An idle connection is closed after this, and so is one whose client takes what it is sent by less than 240
        /// bytes a second; a proxy in front should keep its own for less. In HTTP/2 a connection without an open stream
        /// is idle, whatever frames come.
        keep_alive_timeout: Duration = required(
            "http.keep_alive_timeout", basic::positive_duration; "75s", DURATION, Reload,
            formerly = &["http.keep_alive"]
        );
        /// Largest request header.
        ///
        /// Largest request header; then 431.
        max_header_size: usize = required(
            "http.max_header_size", bounds::header_size; "32KiB", "a size from 8KiB to 1GiB", Reload,
            formerly = &["http.header_limit"]
        );
        /// Unfinished request headers may take so much per worker, beyond 8KiB each.
        ///
        /// Unfinished headers may take so much per worker, beyond the first 8 KiB of each; then the largest are
        /// refused, 431.
        max_header_memory: usize = required(
            "http.max_header_memory", basic::size; "16MiB", SIZE, Reload,
            formerly = &["http.header_memory"]
        );
        /// Largest request body.
        ///
        /// Largest request body; then 413. As much is read and thrown away of a body that nothing reads, 1 MiB at
        /// least.
        max_body_size: usize = required(
            "http.max_body_size", basic::size; "2MiB", SIZE, Reload,
            formerly = &["http.body_limit"]
        );
        /// Open connections per worker.
        ///
        /// Open connections per worker; when there are more, those that have been idle for longest are closed, and
        /// where none is idle new ones wait in the slot's queue.
        max_connections: usize = required(
            "http.max_connections", |text| basic::capacity(text, 1_000_000);
            "16384", "a number from 1 to 1000000", Reload,
            formerly = &["http.connections"]
        );
        /// Of these, open connections of one client address; trusted proxies may have any number.
        ///
        /// Open connections per worker of one client address (IPv6: one network, `limits.ipv6_prefix`); for one more
        /// the client's own that has been idle for longest is closed, else it is refused, 503. Addresses in
        /// `proxy.trusted` may have any number.
        max_connections_per_client: ClientConnectionLimit = required(
            "http.max_connections_per_client", bounds::share;
            "50%", "a share of http.max_connections from 1% to 100%, or a number from 1 to 1000000", Reload,
            formerly = &["http.connections_per_client"]
        );
        /// Headers that tell a client its limits.
        ///
        /// Draft: `RateLimit-Policy` and `RateLimit`; legacy: `X-RateLimit-Limit`, `-Remaining`, `-Reset` (seconds from
        /// now) of the tightest policy.
        rate_limit_headers: RateLimitHeaderStyle = required(
            "http.rate_limit_headers", limits::rate_limit_headers;
            "draft", "draft, legacy, both or off", Reload,
            formerly = &["http.limit_headers"]
        );
    }
}
