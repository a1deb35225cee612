//! The id from which a client resumes a stream.

use std::convert::Infallible;
use std::str::FromStr;

use axum::extract::FromRequestParts;
use http::request::Parts;

use crate::broadcasts::MessageId;
use crate::http::header_names::LAST_EVENT_ID;

/// The same in a query: `last_event_id` of polyfills, `after` of WebSocket clients, which can send no header.
const QUERY_PARAMETERS: [&str; 2] = ["last_event_id", "after"];

/// Where a client that connects again wants to go on; also an extractor.
///
/// A browser that connects again sends the header `Last-Event-ID` and its first query, so the header takes precedence over
/// `last_event_id` and `after` in the query.
///
/// ```
/// use axum::response::Response;
/// use regatta::LastEventId;
/// use regatta::broadcast::Broadcast;
///
/// async fn events(broadcast: Broadcast, last: LastEventId) -> Result<Response, regatta::Error> {
///     Ok(broadcast.topic("news")?.sse(last).await?)
/// }
/// # let _: axum::Router = axum::Router::new().route("/events", axum::routing::get(events));
/// assert_eq!(LastEventId::from("1770000000000-0").as_str(), Some("1770000000000-0"));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LastEventId(Option<Box<str>>);

/// The same as a position in a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ResumePosition {
    /// From now on: the client names no message.
    Latest,
    /// From the message after this one.
    After(MessageId),
    /// The id is none of this fleet: a gap, then everything from now on.
    Unknown,
}

impl ResumePosition {
    /// The message, if the id is valid.
    pub(crate) fn id(self) -> Option<MessageId> {
        match self {
            Self::After(id) => Some(id),
            Self::Latest | Self::Unknown => None,
        }
    }
}

impl LastEventId {
    /// From now on.
    pub fn none() -> Self {
        Self::default()
    }

    /// The id, as the client sent it; `None`: from now on.
    pub fn as_str(&self) -> Option<&str> {
        self.0.as_deref()
    }

    pub(crate) fn position(&self) -> ResumePosition {
        match self.as_str() {
            None => ResumePosition::Latest,
            Some(text) => MessageId::from_str(text).map_or(ResumePosition::Unknown, ResumePosition::After),
        }
    }

    fn from_parts(parts: &Parts) -> Self {
        if let Some(value) = parts.headers.get(LAST_EVENT_ID).filter(|value| !value.is_empty()) {
            return Self::from(value.to_str().unwrap_or("?"));
        }
        let query = url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
        let parameter =
            query.into_iter().find(|(name, value)| QUERY_PARAMETERS.contains(&&**name) && !value.is_empty());
        parameter.map_or_else(Self::none, |(_, value)| Self::from(&*value))
    }
}

/// An empty text is [`LastEventId::none`].
impl From<&str> for LastEventId {
    fn from(text: &str) -> Self {
        Self(Some(text.trim()).filter(|text| !text.is_empty()).map(Box::from))
    }
}

impl<S: Sync> FromRequestParts<S> for LastEventId {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        Ok(Self::from_parts(parts))
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn last_event_id(target: &str, header: Option<&[u8]>) -> ResumePosition {
        let mut request = Request::get(target);
        if let Some(value) = header {
            request = request.header(LAST_EVENT_ID, value);
        }
        LastEventId::from_parts(&request.body(()).unwrap().into_parts().0).position()
    }

    #[test]
    fn the_header_counts_before_the_query_and_nonsense_is_a_gap() {
        let id = |text: &str| ResumePosition::After(text.parse().unwrap());
        assert_eq!(last_event_id("/events", None), ResumePosition::Latest);
        assert_eq!(last_event_id("/events?topic=a&after=5-1", None), id("5-1"));
        assert_eq!(last_event_id("/events?last_event_id=7-0", None), id("7-0"));
        assert_eq!(last_event_id("/events?after=5-1", Some(b"6-2")), id("6-2"));
        assert_eq!(last_event_id("/events?after=5-1", Some(b"")), id("5-1"));
        assert_eq!(last_event_id("/events?after=", None), ResumePosition::Latest);
        for nonsense in [&b"x"[..], b"5", b"-1-2", b"5-1-1", b"\xff", b"99999999999999999999-0"] {
            assert_eq!(last_event_id("/events", Some(nonsense)), ResumePosition::Unknown, "{nonsense:?}");
        }
    }
}
