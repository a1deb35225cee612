//! Where the shared state lives.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::key_prefix;
use crate::config::redis_url::RedisUrl;
use crate::config::setting::settings;
use crate::config::settings::reference_phrases::DURATION;
use crate::config::value::choice::{MaxMemory, ScriptingMode};
use crate::config::value::{basic, bounds, choice};

settings! {
    /// Where the shared state lives and how long requests wait for it.
    #[derive(Debug, Clone)]
    struct RedisConfig {
        /// The shared Redis; none: a private one.
        ///
        /// None: a private redis-server in `data_dir`; [forms](#the-address-of-redis).
        url: Option<RedisUrl> = optional(
            "redis.url", RedisUrl::parse;
            "", "redis://host:port/db, unix:///path, redis-sentinel://host:port,…/service or redis-cluster://host:port,…; rediss for TLS", Reload,
            variable = "REDIS_URL"
        );
        /// Files that are read at every attempt to connect, so that a renewed one needs no restart.
        credentials: RedisCredentials = section();
        /// First part of every key.
        ///
        /// First part of every key: fleets with the same prefix share everything, with different ones nothing. No part
        /// behind a `:` is empty, one small letter, `bt`, `dw`, `io`, `mig`, `news`, `once` or `secret`.
        prefix: String = required(
            "redis.prefix", key_prefix::parse;
            "regatta", "1 to 64 letters, digits, - _ . or :, no part behind a : being one of our own", Reload
        );
        /// How server-side code is called; plain: not at all.
        ///
        /// How server-side code is called; plain: not at all, by commands that promise less ([Without server-side
        /// code](OPERATIONS.md#without-server-side-code)); auto: functions where they are allowed, else scripts, else
        /// plain.
        scripting: ScriptingMode = required(
            "redis.mode", choice::scripting_mode; "auto", "auto, fcall, evalsha or plain", Reload
        );
        /// A connection on which calls wait and nothing is answered for this long is taken for dead.
        ///
        /// A connection on which calls wait and nothing at all is answered for this long is taken for silent: calls
        /// wait, another connection is tried beside it. No call has a deadline of its own, so this is not the longest
        /// wait for one answer.
        silence_timeout: Duration = required(
            "redis.silence_timeout", basic::positive_duration; "250ms", DURATION, Reload,
            formerly = &["redis.command_timeout"]
        );
        /// Longest absence of Redis that requests wait for; 0s: none.
        ///
        /// Longest absence of Redis that requests wait for and are then carried out, once each; after it they are
        /// answered without Redis at once, until a connection lives; `0s`: they never wait.
        reconnect_wait: Duration = required(
            "redis.patience", bounds::reconnect_wait; "2s", "0s to 1m", Reload
        );
        /// Memory of the private Redis; auto: a quarter of what the host or container has.
        ///
        /// Memory of the private Redis's data; auto: a quarter of what the host or its container (cgroup) has, at
        /// least 64 MiB; 0: any. A Redis that is named by `redis.url` has its own setting.
        maxmemory: MaxMemory = required(
            "redis.maxmemory", choice::maxmemory;
            "auto", "auto, 0 for none, or a size such as 512MiB", Restart
        );
    }

    /// Files that are read at every attempt to connect, so that a renewed one needs no restart.
    #[derive(Debug, Clone, Default, PartialEq, Eq)]
    struct RedisCredentials {
        /// The password, read again at every attempt to connect.
        ///
        /// The password, instead of one in the URL; read again at every attempt to connect.
        password_file: Option<PathBuf> = file("redis.password_file"; "", "a file", Reload);
        /// Authorities that are trusted; none: the system's.
        tls_ca: Option<PathBuf> = file("redis.tls_ca"; "", "a PEM file", Reload);
        /// Our certificate, if the server wants one.
        ///
        /// Our certificate, if the server wants one; read again at every attempt to connect.
        tls_cert: Option<PathBuf> = file("redis.tls_cert"; "", "a PEM file", Reload);
        /// Its private key.
        tls_key: Option<PathBuf> = file("redis.tls_key"; "", "a PEM file", Reload);
    }
}
