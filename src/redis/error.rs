//! Errors of calls to Redis, by what the caller can do about them.
//!
//! The client reports most rejections as unknown errors, so they are classified by the reply's first word.

use std::time::Duration;

use fred::error::ErrorKind;

/// Why a call to Redis failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RedisError {
    /// Not connected, and for longer than calls wait; refused by a breaker; or too many calls wait already. Nothing was
    /// sent.
    #[error("Redis is not reachable: {reason}")]
    Unavailable {
        /// Why, in a few words.
        reason: String,
    },
    /// A setting, or a file that it names, cannot be used; nothing was sent.
    #[error("{reason}")]
    InvalidSetting {
        /// Which setting and why.
        reason: String,
    },
    /// The connection broke or fell silent before the reply; whether the call was executed is unknown.
    #[error("the connection to Redis was lost: {reason}")]
    ConnectionLost {
        /// Why, in a few words.
        reason: String,
    },
    /// No reply within the deadline; whether the call was executed is unknown. Calls of a request have no deadline:
    /// they end with [`RedisError::ConnectionLost`].
    #[error("Redis did not answer in time")]
    Timeout,
    /// The server rejected the call; nothing was executed.
    #[error("Redis refused: {reason}")]
    Rejected {
        /// The kind of rejection.
        rejection: ServerRejection,
        /// The server's message.
        reason: String,
    },
    /// A counter would leave the range of 64-bit integers; nothing was changed.
    #[error("the counter would overflow")]
    Overflow,
    /// Server-side code under a name differs from this program's code under the same name; nothing was changed.
    #[error(
        "{what} was applied with checksum {found}, but this program has {expected}; it was edited after its release"
    )]
    Diverged {
        /// The file or library.
        what: String,
        /// SHA-256 of what this program has.
        expected: String,
        /// SHA-256 of what the server has.
        found: String,
    },
    /// Another worker holds the migration lock and does not finish.
    #[error("migrations are being run by another worker, which does not finish")]
    MigrationsLocked,
    /// The migration lock was lost; nothing was written after that.
    #[error(
        "the lock of the migrations was lost because this process stood still for too long; another one may have \
         taken over, and nothing more was written: `migrate --check` says how it stands"
    )]
    MigrationLockLost,
    /// A migration was skipped although a later one was applied.
    #[error("{missing} is not applied although {applied} is: apply it with `migrate --repair`")]
    MigrationGap {
        /// The file that is not applied.
        missing: String,
        /// A later one that is.
        applied: String,
    },
    /// A migration cannot convert a key; the keys before it are converted and recorded.
    #[error(
        "{file} cannot convert the key {key}: {reason}; correct or delete the key and run `migrate` again"
    )]
    UnconvertibleKey {
        /// The migration's file.
        file: String,
        /// The key.
        key: String,
        /// The message of its code.
        reason: String,
    },
    /// The call needs server-side code, which this server or user does not allow.
    #[error("{what} needs server-side code, which is not allowed here or switched off (redis.mode plain)")]
    Unsupported {
        /// The call.
        what: &'static str,
    },
    /// The reply has an unknown form, or the code on the server is not this program's.
    #[error("Redis answered unexpectedly: {reason}")]
    Protocol {
        /// What was wrong with it.
        reason: String,
    },
}

/// The kind of a server's rejection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerRejection {
    /// `LOADING`, `MASTERDOWN`, `CLUSTERDOWN`, `TRYAGAIN`, `MOVED`, `ASK`: this node, or another one, will serve soon.
    NotReady,
    /// `BUSY`: a script runs too long.
    Busy,
    /// `READONLY`: it is a replica.
    ReadOnly,
    /// `OOM`, `MISCONF`, `NOREPLICAS`: it takes no writes at present.
    WritesDisabled,
    /// `NOAUTH`, `WRONGPASS`, `NOPERM`: the configuration is wrong.
    AccessDenied,
    /// `WRONGTYPE`: the key holds a value of another type.
    WrongType,
    /// `NOSCRIPT`, or the function is not found: the code is missing.
    FunctionMissing,
    /// Anything else.
    Other,
}

/// Messages of a connection that merely ended.
const UNCLEAR_TEXTS: &[&str] = &["closed", "reset", "broken pipe", "no answer", "eof"];

impl RedisError {
    /// The server cannot be used now.
    pub fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable { reason: reason.into() }
    }

    /// A setting cannot be used.
    pub(super) fn invalid_setting(reason: impl Into<String>) -> Self {
        Self::InvalidSetting { reason: reason.into() }
    }

    /// The server did not answer with what it should.
    pub fn protocol(reason: impl Into<String>) -> Self {
        Self::Protocol { reason: reason.into() }
    }

    /// How long a client should wait before it tries again.
    pub fn retry_after(&self) -> Duration {
        Duration::from_secs(match self {
            Self::Rejected {
                rejection: ServerRejection::WritesDisabled | ServerRejection::AccessDenied,
                ..
            } => 5,
            Self::Rejected { rejection: ServerRejection::NotReady | ServerRejection::Busy, .. } => 2,
            _ => 1,
        })
    }

    /// The reason without the sentence around it.
    pub(super) fn reason_text(&self) -> String {
        match self {
            Self::Unavailable { reason } | Self::ConnectionLost { reason } => reason.clone(),
            other => other.to_string(),
        }
    }

    /// Whether the server serves reads but takes no writes at present.
    pub fn blocks_writes_only(&self) -> bool {
        matches!(
            self,
            Self::Rejected { rejection: ServerRejection::ReadOnly | ServerRejection::WritesDisabled, .. }
        )
    }

    /// Whether the server may have become a replica: a new connection may find the new primary.
    pub(super) fn suggests_failover(&self) -> bool {
        matches!(self, Self::Rejected { rejection: ServerRejection::ReadOnly, .. })
    }

    /// Whether the server's memory is full: it takes nothing more, and everything else works.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Rejected { rejection: ServerRejection::WritesDisabled, reason } if reason.starts_with("OOM"))
    }

    /// Whether the code is missing on the server: nothing was executed, so loading it and calling again is safe.
    pub(super) fn is_function_missing(&self) -> bool {
        matches!(self, Self::Rejected { rejection: ServerRejection::FunctionMissing, .. })
    }

    /// Whether the configuration is wrong, so that trying again soon is useless.
    pub(super) fn is_misconfiguration(&self) -> bool {
        matches!(
            self,
            Self::InvalidSetting { .. } | Self::Rejected { rejection: ServerRejection::AccessDenied, .. }
        )
    }

    /// Whether the message does not explain the failure, so that the address may not be Redis at all.
    pub(super) fn is_unclear(&self) -> bool {
        match self {
            Self::Timeout | Self::ConnectionLost { .. } | Self::Protocol { .. } => true,
            // Messages of the operating system and of TLS do explain it.
            Self::Unavailable { reason } => {
                let reason = reason.to_ascii_lowercase();
                UNCLEAR_TEXTS.iter().any(|word| reason.contains(word))
            }
            // The client's message when a Sentinel did not answer, or not as expected.
            Self::Rejected { reason, .. } => reason.starts_with("Missing primary"),
            _ => false,
        }
    }

    /// Whether the server does not know or not allow this command.
    pub(super) fn is_unknown_command(&self) -> bool {
        let Self::Rejected { rejection: refusal, reason } = self else { return false };
        let reason = reason.to_ascii_lowercase();
        *refusal == ServerRejection::AccessDenied && reason.starts_with("noperm")
            || reason.contains("unknown command")
            || reason.contains("unknown subcommand")
    }
}

impl RedisError {
    /// Restores the client's error from its text: the name of its kind, and its details.
    pub fn from_text(kind: &str, details: &str) -> Self {
        let kind = match kind {
            "Timeout Error" => ErrorKind::Timeout,
            // What TLS refuses ends as a connection that failed, and a client without TLS has no name for it.
            "IO Error" | "TLS Error" => ErrorKind::IO,
            "Canceled" => ErrorKind::Canceled,
            "Backpressure" => ErrorKind::Backpressure,
            "Parse Error" => ErrorKind::Parse,
            "Protocol Error" => ErrorKind::Protocol,
            _ => ErrorKind::Unknown,
        };
        fred::error::Error::new(kind, details.to_owned()).into()
    }
}

/// Whether the connection failed, not the command.
fn is_connection_loss(kind: &ErrorKind) -> bool {
    matches!(kind, ErrorKind::IO | ErrorKind::Canceled | ErrorKind::Backpressure)
        || kind.to_str() == "TLS Error"
}

impl From<fred::error::Error> for RedisError {
    fn from(error: fred::error::Error) -> Self {
        let details = error.details();
        match error.kind() {
            ErrorKind::Timeout => return Self::Timeout,
            kind if is_connection_loss(kind) => {
                return Self::unavailable(with_advice(
                    os_error_text(details),
                    explain_handshake_error(details),
                ));
            }
            // The task of fred's client has ended, and with it the replies that were due.
            ErrorKind::Unknown if details == "channel closed" => {
                return Self::unavailable("the connection was closed");
            }
            ErrorKind::Parse | ErrorKind::Protocol if !details.starts_with("NO") => {
                return Self::protocol(details);
            }
            _ => {}
        }
        if details.contains("would overflow") {
            return Self::Overflow;
        }
        let refusal = ServerRejection::from_reply(details);
        let advice = match refusal {
            ServerRejection::AccessDenied if details.starts_with("NOPERM") => {
                Some("the user's ACL rules allow too little")
            }
            ServerRejection::AccessDenied => {
                Some("redis.url or redis.password_file names another password or user")
            }
            _ if details.starts_with("MOVED ") => Some("redis.url must begin with redis-cluster://"),
            _ => None,
        };
        Self::Rejected { rejection: refusal, reason: with_advice(details, advice) }
    }
}

/// A message, followed by what to do about it.
fn with_advice(words: &str, advice: Option<&str>) -> String {
    advice.map_or_else(|| words.to_owned(), |advice| format!("{words} ({advice})"))
}

/// The message of the operating system or TLS, out of the debug format in which the client reports it.
fn os_error_text(details: &str) -> &str {
    let quoted = details.split_once("message: \"").and_then(|(_, rest)| rest.split_once('"'));
    let custom = details.strip_prefix("Custom { kind: ").and_then(|rest| rest.split_once("error: "));
    let custom = custom.map(|(_, error)| error.trim_end_matches([' ', '}']).trim_matches('"'));
    quoted.map(|(message, _)| message).or(custom).unwrap_or(details).trim()
}

/// What to change after a failed handshake; `None` when the message is clear by itself.
fn explain_handshake_error(details: &str) -> Option<&'static str> {
    let mentions = |words: &[&str]| words.iter().any(|word| details.contains(word));
    if mentions(&["UnknownIssuer", "UnknownCA", "BadSignature"]) {
        return Some("redis.tls_ca must name the authority that signed the server's certificate");
    }
    if mentions(&["NotValidForName"]) {
        return Some("the server's certificate is for another name than the host in redis.url");
    }
    if mentions(&["CertificateRequired", "HandshakeFailure", "BadCertificate"]) {
        return Some("the server wants a certificate of ours: redis.tls_cert and redis.tls_key");
    }
    if mentions(&["handshake eof"]) {
        return Some(
            "it closed the connection; if nothing speaks TLS there, redis.url begins with redis, not rediss",
        );
    }
    if mentions(&["InvalidContentType", "corrupt message"]) {
        return Some("nothing speaks TLS there; without it redis.url begins with redis, not rediss");
    }
    mentions(&["Expired"]).then_some("renew the server's certificate, or set the clock")
}

impl ServerRejection {
    fn from_reply(details: &str) -> Self {
        match details.split_ascii_whitespace().next().unwrap_or_default() {
            "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "MOVED" | "ASK" => Self::NotReady,
            "BUSY" => Self::Busy,
            "READONLY" => Self::ReadOnly,
            "OOM" | "MISCONF" | "NOREPLICAS" => Self::WritesDisabled,
            "NOAUTH" | "WRONGPASS" | "NOPERM" => Self::AccessDenied,
            "WRONGTYPE" => Self::WrongType,
            "NOSCRIPT" => Self::FunctionMissing,
            _ if details.contains("Function not found") => Self::FunctionMissing,
            _ if details.contains("invalid username-password pair") => Self::AccessDenied,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: ErrorKind, details: &'static str) -> RedisError {
        fred::error::Error::new(kind, details).into()
    }

    #[test]
    fn rejections_are_classified_by_their_first_word() {
        let cases = [
            ("LOADING Redis is loading the dataset in memory", ServerRejection::NotReady),
            ("BUSY Redis is busy running a script", ServerRejection::Busy),
            ("READONLY You can't write against a read only replica.", ServerRejection::ReadOnly),
            ("OOM command not allowed when used memory > 'maxmemory'.", ServerRejection::WritesDisabled),
            ("MISCONF Redis is configured to save RDB snapshots", ServerRejection::WritesDisabled),
            ("NOAUTH Authentication required.", ServerRejection::AccessDenied),
            ("WRONGTYPE Operation against a key", ServerRejection::WrongType),
            ("NOSCRIPT No matching script.", ServerRejection::FunctionMissing),
            ("ERR Function not found", ServerRejection::FunctionMissing),
            ("ERR something new", ServerRejection::Other),
        ];
        for (details, expected) in cases {
            let RedisError::Rejected { rejection: refusal, .. } = of(ErrorKind::Unknown, details) else {
                panic!("{details}")
            };
            assert_eq!(refusal, expected, "{details}");
        }
        assert_eq!(of(ErrorKind::Timeout, "Request timed out."), RedisError::Timeout);
        assert!(matches!(of(ErrorKind::IO, "reset"), RedisError::Unavailable { .. }));
        assert!(matches!(of(ErrorKind::Unknown, "channel closed"), RedisError::Unavailable { .. }));
        assert_eq!(of(ErrorKind::Unknown, "ERR increment or decrement would overflow"), RedisError::Overflow);
    }

    #[test]
    fn operating_system_errors_keep_their_text() {
        let details = "Os { code: 111, kind: ConnectionRefused, message: \"Connection refused\" }";
        assert_eq!(of(ErrorKind::IO, details), RedisError::unavailable("Connection refused"));
        assert_eq!(of(ErrorKind::IO, "Connection closed."), RedisError::unavailable("Connection closed."));
        let details = "Custom { kind: UnexpectedEof, error: \"tls handshake eof\" }";
        let RedisError::Unavailable { reason } = of(ErrorKind::IO, details) else { panic!() };
        assert!(reason.starts_with("tls handshake eof (it closed the connection"), "{reason}");
    }

    #[test]
    fn a_server_without_functions_is_recognised() {
        assert!(of(ErrorKind::Unknown, "ERR unknown command 'FUNCTION', with args").is_unknown_command());
        assert!(
            of(ErrorKind::Auth, "NOPERM this user has no permissions to run 'function|list'")
                .is_unknown_command()
        );
        assert!(!of(ErrorKind::Unknown, "LOADING Redis is loading").is_unknown_command());
    }
}
