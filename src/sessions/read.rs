//! Reads a session by plain commands, because a server that takes no writes executes no functions.

use crate::redis::wire::Value;
use crate::redis::{ActiveConnection, CallKind, RedisClient, RedisError, ServerRejection};
use crate::sessions::plain as session_plain;
use crate::sessions::query::{SessionLookup, SessionQuery, split_reserved_fields};

impl RedisClient {
    /// Reads a session and changes nothing.
    ///
    /// # Errors
    /// See [`RedisError`].
    pub async fn read_session_without_functions(
        &self,
        session: &SessionQuery,
    ) -> Result<SessionLookup, RedisError> {
        if self.is_plain() {
            return self
                .call_plain(CallKind::Read, async |caller| {
                    session_plain::lookup_session(caller, session).await
                })
                .await;
        }
        let call = |active: ActiveConnection| async move {
            let listed = match active.transport.call("HGETALL", [session.key.as_str()]).await {
                Err(RedisError::Rejected { rejection: ServerRejection::WrongType, .. }) => {
                    return Ok(SessionLookup::Corrupt);
                }
                listed => listed?,
            };
            let generation = match &session.generation {
                Some(key) => active.transport.call("GET", [key.as_str()]).await?.as_u64().unwrap_or(0),
                None => 0,
            };
            decode_session(listed, generation)
        };
        self.send(CallKind::Read, call).await
    }
}

/// A session from the replies to `HGETALL` of its key and `GET` of its user's generation.
///
/// # Errors
/// `Protocol` when a reply has another form.
fn decode_session(listed: Value, generation: u64) -> Result<SessionLookup, RedisError> {
    let Value::Array(flat) = listed else { return Err(RedisError::protocol("a session is not a list")) };
    if flat.is_empty() {
        return Ok(SessionLookup::Gone);
    }
    let reserved = |field: &str| {
        let mut pairs = flat.chunks_exact(2);
        pairs.find(|pair| pair[0].as_str().as_deref() == Some(field)).map(|pair| &pair[1])
    };
    // 0: it ended, and its provisional id must not create it again.
    if let Some(mark) = reserved("_r") {
        return Ok(if mark.as_u64() == Some(0) { SessionLookup::Gone } else { SessionLookup::Rotated });
    }
    let number = |name: &str| reserved(name).and_then(Value::as_u64);
    let Some(created_ms) = number("_c") else { return Ok(SessionLookup::Corrupt) };
    if generation > number("_g").unwrap_or(0) {
        return Ok(SessionLookup::Revoked);
    }
    let views = number("_v").unwrap_or(0);
    let (own, fields) = split_reserved_fields(flat);
    Ok(SessionLookup::Found { created_ms, views, attributes: own, fields })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::sessions::query::SessionAttributes;

    #[test]
    fn a_session_read_by_plain_commands_is_the_same_session() {
        let list = |pairs: &[&str]| Value::Array(pairs.iter().map(|text| Value::from(*text)).collect());
        let stored = list(&["_c", "5", "_t", "6", "_v", "7", "cart", "[1]", "_g", "2", "_i", "9"]);
        let active = SessionLookup::Found {
            created_ms: 5,
            views: 7,
            attributes: Some(Box::new(SessionAttributes {
                idle_ms: Some(9),
                ..SessionAttributes::default()
            })),
            fields: vec![("cart".to_owned(), Bytes::from_static(b"[1]"))],
        };
        assert_eq!(decode_session(stored.clone(), 2), Ok(active));
        assert_eq!(decode_session(stored, 3), Ok(SessionLookup::Revoked));
        assert_eq!(decode_session(list(&[]), 0), Ok(SessionLookup::Gone));
        assert_eq!(decode_session(list(&["_r", "1", "_c", "5"]), 0), Ok(SessionLookup::Rotated));
        assert_eq!(decode_session(list(&["_r", "0"]), 0), Ok(SessionLookup::Gone));
        assert_eq!(decode_session(list(&["cart", "[1]"]), 0), Ok(SessionLookup::Corrupt));
        assert!(decode_session(Value::Null, 0).is_err());
    }
}
