//! Many commits in one call: the wire form, and each commit's reply out of the one reply.
//!
//! Guarantees that a batch does what its commits would do one after the other at one instant, and that a commit's
//! failure is its own. The form is described at the head of `migrations/0023_regatta_v6.lua`.

use bytes::Bytes;

use crate::redis::RedisError;
use crate::redis::wire::{Value, to_f64};
use crate::request_state::begin::batch::BatchLedger;
use crate::sessions::commit::{CommitOutcome, CommitSession, NewSession};

/// Flag of a batch.
const RECORDED: u64 = 1;

/// One commit as it waits to be sent.
#[derive(Debug)]
pub struct CommitEntry {
    key: Value,
    /// 1 to create a session, most fields, most bytes, and the numbers of expected, set, added and removed fields.
    head: [u64; 7],
    args: Vec<Value>,
}

impl CommitSession<'_> {
    /// About how many bytes it has on the wire: a length before each part and line ends included.
    pub fn bytes(&self) -> usize {
        let expect =
            self.expect.iter().map(|(name, value)| name.len() + value.as_ref().map_or(0, Bytes::len));
        let set = self.set.iter().map(|(name, value)| name.len() + value.len());
        let add = self.add.iter().map(|(name, _)| name.len() + 10);
        let texts: usize = expect.chain(set).chain(add).chain(self.remove.iter().map(String::len)).sum();
        self.key.len() + texts + 10 * (self.argument_count() + 1) + 8 * 7
    }
}

impl CommitEntry {
    /// Copies what the request borrows.
    pub fn new(request: &CommitSession<'_>) -> Self {
        let count = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
        let CommitSession { key, create, expect, set, add, remove, max_fields, max_bytes } = *request;
        let head = [
            u64::from(create.is_some()),
            max_fields,
            max_bytes,
            count(expect.len()),
            count(set.len()),
            count(add.len()),
            count(remove.len()),
        ];
        let mut args = Vec::with_capacity(request.argument_count() + if create.is_some() { 4 } else { 0 });
        args.extend(create.into_iter().flat_map(NewSession::to_args));
        args.extend(
            request
                .expected_args()
                .chain(request.set_args())
                .chain(request.add_args())
                .chain(request.remove_args()),
        );
        Self { key: Value::from(key), head, args }
    }

    /// Fields that it adds to.
    fn addition_count(&self) -> usize {
        usize::try_from(self.head[5]).unwrap_or(0)
    }
}

/// The arguments in wire order: function, number of keys, keys, arguments.
pub fn encode(entries: &[&CommitEntry], ledger: Option<&BatchLedger>, entry: Value) -> Vec<Value> {
    let values: usize = entries.iter().map(|entry| 1 + entry.args.len()).sum();
    let mut args = Vec::with_capacity(5 + values);
    let keys = entries.len() + usize::from(ledger.is_some());
    args.extend([entry, Value::Integer(i64::try_from(keys).unwrap_or(i64::MAX))]);
    args.extend(ledger.map(|ledger| ledger.key.clone()));
    args.extend(entries.iter().map(|entry| entry.key.clone()));
    let mut head = Vec::with_capacity(size_of::<f64>() * (2 + 7 * entries.len()));
    let count = u64::try_from(entries.len()).unwrap_or(u64::MAX);
    let flags = if ledger.is_some() { RECORDED } else { 0 };
    for number in [flags, count].into_iter().chain(entries.iter().flat_map(|entry| entry.head)) {
        head.extend_from_slice(&to_f64(number).to_le_bytes());
    }
    args.push(Value::Bytes(head.into()));
    args.push(ledger.map_or(Value::from_static_str(""), BatchLedger::number_text));
    args.extend(entries.iter().flat_map(|entry| entry.args.iter().cloned()));
    args
}

/// Reads the reply to what [`encode`] made of the same entries.
///
/// # Errors
/// `Protocol` when the server's reply has another form; an entry's own errors are in the list.
pub fn decode(
    entries: &[&CommitEntry],
    reply: Value,
) -> Result<Vec<Result<CommitOutcome, RedisError>>, RedisError> {
    let reply =
        reply.into_bytes().ok_or_else(|| RedisError::protocol("commits were not answered with letters"))?;
    let (letters, mut texts) = match reply.is_empty() {
        true => (None, &[][..]),
        false => {
            let (letters, texts) = reply
                .split_at_checked(entries.len())
                .ok_or_else(|| RedisError::protocol("a batch did not answer for every commit"))?;
            (Some(letters), texts)
        }
    };
    let letter = |at: usize| letters.map_or(b'1', |letters| letters[at]);
    entries
        .iter()
        .enumerate()
        .map(|(at, entry)| decode_entry(letter(at), entry.addition_count(), &mut texts))
        .collect()
}

/// One commit's reply; `texts` are its texts and those of the commits after it.
fn decode_entry(
    letter: u8,
    adds: usize,
    texts: &mut &[u8],
) -> Result<Result<CommitOutcome, RedisError>, RedisError> {
    Ok(Ok(match letter {
        b'1' => {
            let sums = (0..adds).map(|_| parse_sum(next_text(texts)?)).collect::<Result<_, _>>()?;
            CommitOutcome::Committed { sums }
        }
        b'0' => CommitOutcome::Gone,
        b'x' => CommitOutcome::Exists,
        b'f' => CommitOutcome::TooLarge,
        b'c' => CommitOutcome::Conflict,
        b'n' => CommitOutcome::NotANumber,
        b'r' => CommitOutcome::Rotated,
        b'e' => return Ok(Err(RedisError::from_text("", &String::from_utf8_lossy(next_text(texts)?)))),
        _ => return Err(RedisError::protocol("a commit was answered with a letter that it does not know")),
    }))
}

/// The next text, which follows its length.
fn next_text<'a>(texts: &mut &'a [u8]) -> Result<&'a [u8], RedisError> {
    let text = texts.split_first_chunk::<4>().and_then(|(length, rest)| {
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        rest.split_at_checked(length)
    });
    let (text, rest) = text.ok_or_else(|| RedisError::protocol("a commit's answer is cut short"))?;
    *texts = rest;
    Ok(text)
}

fn parse_sum(text: &[u8]) -> Result<i64, RedisError> {
    let sum = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    sum.ok_or_else(|| RedisError::protocol("commit answered with a sum that is no number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(add: &[(String, i64)]) -> CommitEntry {
        CommitEntry::new(&CommitSession { key: "p:s:1", add, max_fields: 64, ..Default::default() })
    }

    fn answer(entries: &[&CommitEntry], reply: &[u8]) -> Vec<Result<CommitOutcome, RedisError>> {
        decode(entries, Value::Bytes(Bytes::copy_from_slice(reply))).unwrap()
    }

    #[test]
    fn each_commit_has_its_own_letter_and_its_own_texts() {
        let (plain, adds) = (entry(&[]), entry(&[("a".into(), 1), ("b".into(), 2)]));
        let stored = || CommitOutcome::Committed { sums: Vec::new() };
        assert_eq!(answer(&[&plain, &plain], b""), [Ok(stored()), Ok(stored())]);
        let entries = [&plain, &adds, &plain, &plain, &adds];
        let answers = answer(&entries, b"11ce0\x01\0\0\x007\x03\0\0\0-12\x0c\0\0\0WRONGTYPE no");
        assert_eq!(answers[1], Ok(CommitOutcome::Committed { sums: vec![7, -12] }));
        assert_eq!(
            (&answers[0], &answers[2], &answers[4]),
            (&Ok(stored()), &Ok(CommitOutcome::Conflict), &Ok(CommitOutcome::Gone))
        );
        assert!(matches!(&answers[3], Err(RedisError::Rejected { .. })), "{:?}", answers[3]);
    }

    #[test]
    fn a_reply_of_another_form_is_an_error_not_a_panic() {
        let adds = entry(&[("a".into(), 1)]);
        for reply in ["", "1", "1\u{1}\0\0\0", "1\u{1}\0\0\0x", "?", "e\u{7f}\0\0\0x", "1\u{1}"] {
            assert!(decode(&[&adds], Value::from(reply)).is_err(), "{reply:?}");
        }
        assert!(decode(&[&adds, &adds], Value::from("0")).is_err());
        assert!(decode(&[&adds], Value::Null).is_err());
        assert!(decode(&[&adds], Value::Array(vec![])).is_err());
    }

    #[test]
    fn keys_come_first_and_each_commit_brings_its_own_fields() {
        let set = [("_x".to_owned(), Bytes::from_static(b"v"))];
        let one = CommitSession { key: "p:s:1", set: &set, max_fields: 64, ..Default::default() };
        assert!(one.bytes() > "p:s:1_xv".len());
        let args = encode(&[&CommitEntry::new(&one), &entry(&[("a".into(), 5)])], None, Value::from("f"));
        let texts: Vec<_> = args.iter().filter_map(Value::as_string).collect();
        assert_eq!(
            (&texts[..4], &args[5..]),
            (
                &["f", "2", "p:s:1", "p:s:1"].map(String::from)[..],
                &[
                    Value::from(""),
                    Value::from("__x"),
                    Value::Bytes(Bytes::from_static(b"v")),
                    Value::from("a"),
                    Value::Integer(5)
                ][..],
            )
        );
    }
}
