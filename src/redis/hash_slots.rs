//! Hash slots, the map of nodes, and redirections of Redis Cluster. No I/O.

use fred::types::Value;
use fred::util::redis_keyslot;

use crate::config::redis_url::HostPort;
use crate::redis::error::RedisError;

/// A range of slots that one node serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HashSlotRange {
    /// The first slot.
    pub(super) first: u16,
    /// The last slot, inclusive.
    pub(super) last: u16,
    /// The node that takes writes for them.
    pub(super) node: HostPort,
}

/// A redirection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ClusterRedirect {
    /// The slot has moved to that node.
    Moved(HostPort),
    /// The slot is being migrated there; this key may be there already.
    Ask(HostPort),
}

/// Reads the reply to `CLUSTER SLOTS`; `queried` is the node that gave it.
///
/// # Errors
/// `Protocol` when it has another form, or no slot is served at all.
pub(super) fn parse_ranges(answer: &Value, queried: &HostPort) -> Result<Vec<HashSlotRange>, RedisError> {
    let Value::Array(rows) = answer else {
        return Err(RedisError::protocol("CLUSTER SLOTS did not answer with a list"));
    };
    let range = |row: &Value| {
        let Value::Array(row) = row else { return None };
        let [first, last, Value::Array(primary), ..] = row.as_slice() else { return None };
        let [host, port, ..] = primary.as_slice() else { return None };
        // A node that does not know or not announce its own name is the one that was queried.
        let host = (!host.is_null())
            .then(|| host.as_string())
            .flatten()
            .filter(|host| !host.is_empty() && host != "?");
        let node = HostPort {
            host: host.unwrap_or_else(|| queried.host.clone()),
            port: u16::try_from(port.as_u64()?).ok()?,
        };
        Some(HashSlotRange { first: parse_slot(first)?, last: parse_slot(last)?, node })
    };
    let ranges: Option<Vec<HashSlotRange>> = rows.iter().map(range).collect();
    match ranges {
        Some(mut ranges) if !ranges.is_empty() => {
            ranges.sort_by_key(|range| range.first);
            Ok(ranges)
        }
        Some(_) => Err(RedisError::unavailable("the cluster serves no slot; it is not set up yet")),
        None => Err(RedisError::protocol("CLUSTER SLOTS has a row of another form")),
    }
}

fn parse_slot(value: &Value) -> Option<u16> {
    u16::try_from(value.as_u64()?).ok()
}

/// Reads `MOVED slot host:port` and `ASK slot host:port`; `from` is the node that replied.
pub(super) fn parse_redirect(error: &RedisError, from: &HostPort) -> Option<ClusterRedirect> {
    let RedisError::Rejected { reason, .. } = error else { return None };
    let mut words = reason.split_ascii_whitespace();
    let kind = words.next().filter(|word| matches!(*word, "MOVED" | "ASK"))?;
    let (host, port) = words.nth(1)?.rsplit_once(':')?;
    let host = if matches!(host, "" | "?") { from.host.clone() } else { host.to_owned() };
    let peer = HostPort { host, port: port.parse().ok()? };
    Some(if kind == "ASK" { ClusterRedirect::Ask(peer) } else { ClusterRedirect::Moved(peer) })
}

/// Whether keys of one call are on two nodes while their slot is migrated: nothing was executed.
pub fn is_cross_slot(error: &RedisError) -> bool {
    matches!(error, RedisError::Rejected { reason, .. } if reason.starts_with("TRYAGAIN"))
}

/// Where a command goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CommandRoute {
    /// To the node that has the keys in these arguments, all of one slot.
    Keys(std::ops::Range<usize>),
    /// To any node.
    AnyNode,
    /// To every node: code that is loaded on one is not on the others.
    AllNodes,
}

/// Which arguments of a command are keys. Only commands that this program sends are known here.
pub(super) fn command_route(command: &str, args: &[Value]) -> CommandRoute {
    let word = |at: usize| args.get(at).and_then(Value::as_string).unwrap_or_default();
    match command {
        "FUNCTION" | "SCRIPT" => match word(0).as_str() {
            "LOAD" | "DELETE" | "FLUSH" => CommandRoute::AllNodes,
            _ => CommandRoute::AnyNode,
        },
        "PING" | "TIME" | "CLIENT" | "CLUSTER" | "INFO" | "CONFIG" | "ROLE" | "WAIT" | "PUBLISH" | "ACL" => {
            CommandRoute::AnyNode
        }
        "FCALL" | "FCALL_RO" | "EVAL" | "EVALSHA" => {
            let count = args.get(1).and_then(Value::as_u64).and_then(|count| usize::try_from(count).ok());
            match count.unwrap_or(0).min(args.len().saturating_sub(2)) {
                0 => CommandRoute::AnyNode,
                count => CommandRoute::Keys(2..2 + count),
            }
        }
        "DEL" | "UNLINK" | "EXISTS" | "MGET" | "PFCOUNT" => CommandRoute::Keys(0..args.len()),
        _ if args.is_empty() => CommandRoute::AnyNode,
        _ => CommandRoute::Keys(0..1),
    }
}

/// The slot of a key: 0 to 16383.
pub fn hash_slot(key: &str) -> u16 {
    redis_keyslot(key.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::error::ServerRejection;

    fn peer(host: &str, port: u16) -> HostPort {
        HostPort { host: host.into(), port }
    }

    fn row(first: i64, last: i64, host: Value, port: i64) -> Value {
        let primary = Value::Array(vec![host, Value::Integer(port), Value::from("id")]);
        let replica = Value::Array(vec![Value::from("r"), Value::Integer(1), Value::from("id")]);
        Value::Array(vec![Value::Integer(first), Value::Integer(last), primary, replica])
    }

    #[test]
    fn a_range_belongs_to_the_first_node_of_its_row() {
        let answer = Value::Array(vec![
            row(8192, 16383, Value::from("b"), 2),
            row(0, 8190, Value::from("a"), 1),
            row(8191, 8191, Value::Null, 3),
        ]);
        let ranges = parse_ranges(&answer, &peer("seed", 9)).unwrap();
        let expected = [(0, 8190, peer("a", 1)), (8191, 8191, peer("seed", 3)), (8192, 16383, peer("b", 2))];
        assert_eq!(ranges, expected.map(|(first, last, node)| HashSlotRange { first, last, node }));
    }

    #[test]
    fn an_answer_of_another_form_is_an_error() {
        for answer in [Value::Null, Value::Array(vec![]), Value::Array(vec![Value::Integer(1)])] {
            assert!(parse_ranges(&answer, &peer("a", 1)).is_err());
        }
    }

    #[test]
    fn redirections_name_a_node() {
        let refused =
            |reason: &str| RedisError::Rejected { rejection: ServerRejection::Other, reason: reason.into() };
        let from = peer("here", 1);
        let redirected = |reason: &str| parse_redirect(&refused(reason), &from);
        assert_eq!(
            redirected("MOVED 3999 10.0.0.1:6381"),
            Some(ClusterRedirect::Moved(peer("10.0.0.1", 6381)))
        );
        assert_eq!(redirected("ASK 3999 ::1:6381"), Some(ClusterRedirect::Ask(peer("::1", 6381))));
        assert_eq!(redirected("MOVED 3999 :6381"), Some(ClusterRedirect::Moved(peer("here", 6381))));
        assert_eq!(redirected("MOVED 3999 x"), None);
        assert_eq!(redirected("ERR MOVED"), None);
        assert!(is_cross_slot(&refused("TRYAGAIN Multiple keys request during rehashing of slot")));
    }

    #[test]
    fn the_keys_of_each_command_are_found() {
        let args = |words: &[&str]| words.iter().map(|word| Value::from(*word)).collect::<Vec<_>>();
        let of = |command, words: &[&str]| command_route(command, &args(words));
        assert_eq!(of("FCALL", &["f", "2", "a", "b", "x"]), CommandRoute::Keys(2..4));
        assert_eq!(of("EVALSHA", &["d", "0"]), CommandRoute::AnyNode);
        assert_eq!(of("EVAL", &["text", "9", "a"]), CommandRoute::Keys(2..3));
        assert_eq!(of("GET", &["a"]), CommandRoute::Keys(0..1));
        assert_eq!(of("SET", &["a", "b", "NX"]), CommandRoute::Keys(0..1));
        assert_eq!(of("DEL", &["a", "b"]), CommandRoute::Keys(0..2));
        assert_eq!((of("PING", &[]), of("TIME", &[])), (CommandRoute::AnyNode, CommandRoute::AnyNode));
        assert_eq!(of("FUNCTION", &["LOAD", "text"]), CommandRoute::AllNodes);
        assert_eq!(of("FUNCTION", &["LIST"]), CommandRoute::AnyNode);
    }

    #[test]
    fn the_hash_tag_decides_the_slot() {
        // CLUSTER KEYSLOT of the reference server.
        assert_eq!(hash_slot("123456789"), 12739);
        assert_eq!(hash_slot("p:{s}:a"), hash_slot("p:{s}:b"));
    }
}
