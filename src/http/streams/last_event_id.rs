//! The id from which a client resumes a stream.

use std::str::FromStr;

use axum::extract::FromRequestParts;
use http::request::Parts;

use crate::broadcasts::MessageId;
use crate::http::error::RequestError;
use crate::http::header_names::LAST_EVENT_ID;

/// The same in a query: `last_event_id` of polyfills, `after` of WebSocket clients, which can send no header.
const QUERY_PARAMETERS: [&str; 2] = ["last_event_id", "after"];

/// The last message that a client has seen; also an extractor.
///
/// A browser that connects again sends the header and its first query, so the header takes precedence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastEventId {
    /// From now on: the client names no message.
    Latest,
    /// From the message after this one.
    After(MessageId),
    /// The id is none of this fleet: a gap, then everything from now on.
    Unknown,
}

impl LastEventId {
    /// Parses an id; no text and an empty one are [`Self::Latest`].
    pub fn parse(text: Option<&str>) -> Self {
        match text.map(str::trim) {
            None | Some("") => Self::Latest,
            Some(text) => MessageId::from_str(text).map_or(Self::Unknown, Self::After),
        }
    }

    /// The message, if the id is valid.
    pub fn id(self) -> Option<MessageId> {
        match self {
            Self::After(id) => Some(id),
            Self::Latest | Self::Unknown => None,
        }
    }

    fn from_parts(parts: &Parts) -> Self {
        if let Some(value) = parts.headers.get(LAST_EVENT_ID).filter(|value| !value.is_empty()) {
            return Self::parse(Some(value.to_str().unwrap_or("?")));
        }
        let query = url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
        let parameter =
            query.into_iter().find(|(name, value)| QUERY_PARAMETERS.contains(&&**name) && !value.is_empty());
        Self::parse(parameter.as_ref().map(|(_, value)| &**value))
    }
}

impl<S: Sync> FromRequestParts<S> for LastEventId {
    type Rejection = RequestError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, RequestError> {
        Ok(Self::from_parts(parts))
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn last_event_id(target: &str, header: Option<&[u8]>) -> LastEventId {
        let mut request = Request::get(target);
        if let Some(value) = header {
            request = request.header(LAST_EVENT_ID, value);
        }
        LastEventId::from_parts(&request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn the_header_counts_before_the_query_and_nonsense_is_a_gap() {
        let id = |text: &str| LastEventId::After(text.parse().unwrap());
        assert_eq!(last_event_id("/events", None), LastEventId::Latest);
        assert_eq!(last_event_id("/events?topic=a&after=5-1", None), id("5-1"));
        assert_eq!(last_event_id("/events?last_event_id=7-0", None), id("7-0"));
        assert_eq!(last_event_id("/events?after=5-1", Some(b"6-2")), id("6-2"));
        assert_eq!(last_event_id("/events?after=5-1", Some(b"")), id("5-1"));
        assert_eq!(last_event_id("/events?after=", None), LastEventId::Latest);
        for nonsense in [&b"x"[..], b"5", b"-1-2", b"5-1-1", b"\xff", b"99999999999999999999-0"] {
            assert_eq!(last_event_id("/events", Some(nonsense)), LastEventId::Unknown, "{nonsense:?}");
        }
    }
}
