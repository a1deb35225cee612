//! Which node of a cluster has a key: the nodes' own words, read. Nothing here talks to a server.

use fred::types::Value;
use fred::util::redis_keyslot;

use crate::config::place::Peer;
use crate::redis::error::Error;

/// Slots that one node serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Range {
    /// The first slot.
    pub(super) first: u16,
    /// The last slot, itself included.
    pub(super) last: u16,
    /// The node that takes writes for them.
    pub(super) node: Peer,
}

/// Where a node sends whoever asked it for a key that is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Redirect {
    /// The slot is that node's from now on.
    Moved(Peer),
    /// The slot is on its way there; this one key may be there already.
    Ask(Peer),
}

/// Reads the answer to `CLUSTER SLOTS`; `asked` is the node that gave it.
///
/// # Errors
/// `Protocol` when it has another form, or no slot is served at all.
pub(super) fn ranges(answer: &Value, asked: &Peer) -> Result<Vec<Range>, Error> {
    let Value::Array(rows) = answer else {
        return Err(Error::protocol("CLUSTER SLOTS did not answer with a list"));
    };
    let range = |row: &Value| {
        let Value::Array(row) = row else { return None };
        let [first, last, Value::Array(primary), ..] = row.as_slice() else { return None };
        let [host, port, ..] = primary.as_slice() else { return None };
        // A node that does not know its own name, or is told not to tell it, is where we asked.
        let host = (!host.is_null())
            .then(|| host.as_string())
            .flatten()
            .filter(|host| !host.is_empty() && host != "?");
        let node = Peer {
            host: host.unwrap_or_else(|| asked.host.clone()),
            port: u16::try_from(port.as_u64()?).ok()?,
        };
        Some(Range { first: slot(first)?, last: slot(last)?, node })
    };
    let ranges: Option<Vec<Range>> = rows.iter().map(range).collect();
    match ranges {
        Some(mut ranges) if !ranges.is_empty() => {
            ranges.sort_by_key(|range| range.first);
            Ok(ranges)
        }
        Some(_) => Err(Error::unavailable("the cluster serves no slot; it is not set up yet")),
        None => Err(Error::protocol("CLUSTER SLOTS has a row of another form")),
    }
}

fn slot(value: &Value) -> Option<u16> {
    u16::try_from(value.as_u64()?).ok()
}

/// Reads `MOVED slot host:port` and `ASK slot host:port`; `from` is the node that said it.
pub(super) fn redirect(error: &Error, from: &Peer) -> Option<Redirect> {
    let Error::Refused { reason, .. } = error else { return None };
    let mut words = reason.split_ascii_whitespace();
    let kind = words.next().filter(|word| matches!(*word, "MOVED" | "ASK"))?;
    let (host, port) = words.nth(1)?.rsplit_once(':')?;
    let host = if matches!(host, "" | "?") { from.host.clone() } else { host.to_owned() };
    let peer = Peer { host, port: port.parse().ok()? };
    Some(if kind == "ASK" { Redirect::Ask(peer) } else { Redirect::Moved(peer) })
}

/// Whether keys of one call lie on two nodes while their slot is on its way: nothing was executed.
pub(super) fn torn(error: &Error) -> bool {
    matches!(error, Error::Refused { reason, .. } if reason.starts_with("TRYAGAIN"))
}

/// Where a command goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// To the node that has these arguments, which are keys of one slot.
    Keys(std::ops::Range<usize>),
    /// To any node.
    Any,
    /// To every node: what is loaded on one is not on the others.
    Every,
}

/// Which arguments of a command are keys. Only commands that this program sends are known here.
pub(super) fn target(command: &str, args: &[Value]) -> Target {
    let word = |at: usize| args.get(at).and_then(Value::as_string).unwrap_or_default();
    match command {
        "FUNCTION" | "SCRIPT" => match word(0).as_str() {
            "LOAD" | "DELETE" | "FLUSH" => Target::Every,
            _ => Target::Any,
        },
        "PING" | "TIME" | "CLIENT" | "CLUSTER" | "INFO" | "CONFIG" | "ROLE" | "WAIT" | "PUBLISH" | "ACL" => {
            Target::Any
        }
        "FCALL" | "FCALL_RO" | "EVAL" | "EVALSHA" => {
            let count = args.get(1).and_then(Value::as_u64).and_then(|count| usize::try_from(count).ok());
            match count.unwrap_or(0).min(args.len().saturating_sub(2)) {
                0 => Target::Any,
                count => Target::Keys(2..2 + count),
            }
        }
        "DEL" | "UNLINK" | "EXISTS" | "MGET" | "PFCOUNT" => Target::Keys(0..args.len()),
        _ if args.is_empty() => Target::Any,
        _ => Target::Keys(0..1),
    }
}

/// The slot of a key: 0 to 16383.
pub(super) fn slot_of(key: &str) -> u16 {
    redis_keyslot(key.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::error::Refusal;

    fn peer(host: &str, port: u16) -> Peer {
        Peer { host: host.into(), port }
    }

    fn row(first: i64, last: i64, host: Value, port: i64) -> Value {
        let primary = Value::Array(vec![host, Value::Integer(port), Value::from("id")]);
        let replica = Value::Array(vec![Value::from("r"), Value::Integer(1), Value::from("id")]);
        Value::Array(vec![Value::Integer(first), Value::Integer(last), primary, replica])
    }

    #[test]
    fn slots_belong_to_the_first_node_of_their_row() {
        let answer = Value::Array(vec![
            row(8192, 16383, Value::from("b"), 2),
            row(0, 8190, Value::from("a"), 1),
            row(8191, 8191, Value::Null, 3),
        ]);
        let ranges = ranges(&answer, &peer("seed", 9)).unwrap();
        let expected = [(0, 8190, peer("a", 1)), (8191, 8191, peer("seed", 3)), (8192, 16383, peer("b", 2))];
        assert_eq!(ranges, expected.map(|(first, last, node)| Range { first, last, node }));
    }

    #[test]
    fn an_answer_of_another_form_is_an_error() {
        for answer in [Value::Null, Value::Array(vec![]), Value::Array(vec![Value::Integer(1)])] {
            assert!(ranges(&answer, &peer("a", 1)).is_err());
        }
    }

    #[test]
    fn redirections_name_a_node() {
        let refused = |reason: &str| Error::Refused { refusal: Refusal::Other, reason: reason.into() };
        let from = peer("here", 1);
        let told = |reason: &str| redirect(&refused(reason), &from);
        assert_eq!(told("MOVED 3999 10.0.0.1:6381"), Some(Redirect::Moved(peer("10.0.0.1", 6381))));
        assert_eq!(told("ASK 3999 ::1:6381"), Some(Redirect::Ask(peer("::1", 6381))));
        assert_eq!(told("MOVED 3999 :6381"), Some(Redirect::Moved(peer("here", 6381))));
        assert_eq!(told("MOVED 3999 x"), None);
        assert_eq!(told("ERR MOVED"), None);
        assert!(torn(&refused("TRYAGAIN Multiple keys request during rehashing of slot")));
    }

    #[test]
    fn keys_stand_where_each_command_has_them() {
        let args = |words: &[&str]| words.iter().map(|word| Value::from(*word)).collect::<Vec<_>>();
        let of = |command, words: &[&str]| target(command, &args(words));
        assert_eq!(of("FCALL", &["f", "2", "a", "b", "x"]), Target::Keys(2..4));
        assert_eq!(of("EVALSHA", &["d", "0"]), Target::Any);
        assert_eq!(of("EVAL", &["text", "9", "a"]), Target::Keys(2..3));
        assert_eq!(of("GET", &["a"]), Target::Keys(0..1));
        assert_eq!(of("SET", &["a", "b", "NX"]), Target::Keys(0..1));
        assert_eq!(of("DEL", &["a", "b"]), Target::Keys(0..2));
        assert_eq!((of("PING", &[]), of("TIME", &[])), (Target::Any, Target::Any));
        assert_eq!(of("FUNCTION", &["LOAD", "text"]), Target::Every);
        assert_eq!(of("FUNCTION", &["LIST"]), Target::Any);
    }

    #[test]
    fn a_slot_is_that_of_the_hash_tag() {
        // CLUSTER KEYSLOT of the reference server.
        assert_eq!(slot_of("123456789"), 12739);
        assert_eq!(slot_of("p:{s}:a"), slot_of("p:{s}:b"));
    }
}
