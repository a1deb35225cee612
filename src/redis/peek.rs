//! A session read by plain commands: all that a server does which takes no writes, because to it functions are writes.

use fred::types::Value;

use crate::redis::Redis;
use crate::redis::begin::SessionArg;
use crate::redis::begin::SessionReply;
use crate::redis::begin::sort;
use crate::redis::error::Error;
use crate::redis::error::Refusal;
use crate::redis::lanes::Kind;
use crate::redis::link::Live;
use crate::redis::plain;

impl Redis {
    /// Reads a session and changes nothing: where the server takes no writes, this is all that can be done.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn peek(&self, session: &SessionArg) -> Result<SessionReply, Error> {
        if self.is_plain() {
            return self.plainly(Kind::Read, async |caller| plain::peek(caller, session).await).await;
        }
        let call = |live: Live| async move {
            let listed = match live.caller.call("HGETALL", [session.key.as_str()]).await {
                Err(Error::Refused { refusal: Refusal::WrongType, .. }) => {
                    return Ok(SessionReply::Damaged);
                }
                listed => listed?,
            };
            let generation = match &session.generation {
                Some(key) => live.caller.call("GET", [key.as_str()]).await?.as_u64().unwrap_or(0),
                None => 0,
            };
            peeked(listed, generation)
        };
        self.guard_as(Kind::Read, call).await
    }
}

/// A session as plain commands read it: `HGETALL` of its key, and its user's generation.
///
/// # Errors
/// `Protocol` when the server's answer has another form.
fn peeked(listed: Value, generation: u64) -> Result<SessionReply, Error> {
    let Value::Array(flat) = listed else { return Err(Error::protocol("a session is not a list")) };
    if flat.is_empty() {
        return Ok(SessionReply::Gone);
    }
    let reserved = |wanted: &str| {
        let mut pairs = flat.chunks_exact(2);
        pairs.find(|pair| pair[0].as_str().as_deref() == Some(wanted)).map(|pair| &pair[1])
    };
    // 0: it ended, and its ticket is not to make it anew.
    if let Some(mark) = reserved("_r") {
        return Ok(if mark.as_u64() == Some(0) { SessionReply::Gone } else { SessionReply::Rotated });
    }
    let number = |name: &str| reserved(name).and_then(Value::as_u64);
    let Some(created_ms) = number("_c") else { return Ok(SessionReply::Damaged) };
    if generation > number("_g").unwrap_or(0) {
        return Ok(SessionReply::Revoked);
    }
    let views = number("_v").unwrap_or(0);
    let (own, fields) = sort(flat);
    Ok(SessionReply::Live { created_ms, views, own, fields })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::redis::begin::Own;

    #[test]
    fn a_session_read_by_plain_commands_is_the_same_session() {
        let list = |pairs: &[&str]| Value::Array(pairs.iter().map(|text| Value::from(*text)).collect());
        let stored = list(&["_c", "5", "_t", "6", "_v", "7", "cart", "[1]", "_g", "2", "_i", "9"]);
        let live = SessionReply::Live {
            created_ms: 5,
            views: 7,
            own: Some(Box::new(Own { idle_ms: Some(9), ..Own::default() })),
            fields: vec![("cart".to_owned(), Bytes::from_static(b"[1]"))],
        };
        assert_eq!(peeked(stored.clone(), 2), Ok(live));
        assert_eq!(peeked(stored, 3), Ok(SessionReply::Revoked));
        assert_eq!(peeked(list(&[]), 0), Ok(SessionReply::Gone));
        assert_eq!(peeked(list(&["_r", "1", "_c", "5"]), 0), Ok(SessionReply::Rotated));
        assert_eq!(peeked(list(&["_r", "0"]), 0), Ok(SessionReply::Gone));
        assert_eq!(peeked(list(&["cart", "[1]"]), 0), Ok(SessionReply::Damaged));
        assert!(peeked(Value::Null, 0).is_err());
    }
}
