//! The headers that this server reads and sets, by name: one row each of `docs/reference/http-headers.md`.

use http::HeaderName;

/// Who sends a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderDirection {
    /// The client, or a proxy for it.
    Request,
    /// This server.
    Response,
}

/// A header and what it means here.
#[derive(Debug)]
pub struct HeaderInfo {
    /// Its name as it is written.
    pub name: &'static str,
    /// Who sends it.
    pub direction: HeaderDirection,
    /// What it means, for the reference.
    pub meaning: &'static str,
}

/// A row, and for a name that the crate `http` does not have, a constant.
macro_rules! headers {
    ($($direction:ident $name:literal $(= $constant:ident $lower:literal)?: $meaning:literal;)+) => {
        $($(
            #[doc = $meaning]
            pub(super) const $constant: HeaderName = HeaderName::from_static($lower);
        )?)+

        /// Every header of the reference, in its order.
        pub const HEADERS: &[HeaderInfo] = &[
            $(HeaderInfo { name: $name, direction: HeaderDirection::$direction, meaning: $meaning }),+
        ];
    };
}

headers! {
    Request "Idempotency-Key" = IDEMPOTENCY_KEY "idempotency-key":
        "the request is carried out once; one string of 1 to 255 visible characters, bare or quoted";
    Request "Last-Event-ID" = LAST_EVENT_ID "last-event-id":
        "where a stream of events goes on; `?last_event_id=` and `?after=` for clients that can send no header";
    Request "X-Forwarded-For" = X_FORWARDED_FOR "x-forwarded-for":
        "the client's address, from a trusted proxy only (`proxy.trusted`); `proxy.header` selects it or `Forwarded`";
    Request "Forwarded": "the same (RFC 7239)";
    Request "X-Forwarded-Proto" = X_FORWARDED_PROTO "x-forwarded-proto":
        "`https` if the client came over TLS, from a trusted proxy only; it decides whether cookies are `Secure`";
    Request "X-Forwarded-Host" = X_FORWARDED_HOST "x-forwarded-host":
        "the name the client asked for, from a trusted proxy only; compared with `Origin`";
    Request "X-Request-Id" = X_REQUEST_ID "x-request-id":
        "the request's id in logs, from a trusted proxy only; 1 to 128 letters, digits and `-_.:/+=@`. Every response has one";
    Request "Sec-Fetch-Site" = SEC_FETCH_SITE "sec-fetch-site":
        "whether another site's page sent the request; `Origin` where it is missing";
    Request "Accept": "`text/html`: a page in place of text or JSON; at `/metrics` the format";
    Response "X-Worker-Id" = X_WORKER_ID "x-worker-id": "pid of the worker that answered";
    Response "X-Request-Id": "a new id, or the request's if a trusted proxy sent it";
    Response "RateLimit-Policy" = RATELIMIT_POLICY "ratelimit-policy":
        "the policies that apply (draft-ietf-httpapi-ratelimit-headers); `http.rate_limit_headers` selects these two or the next three, both or none";
    Response "RateLimit" = RATELIMIT "ratelimit": "what is left under each of them, and until when";
    Response "X-RateLimit-Limit" = X_RATELIMIT_LIMIT "x-ratelimit-limit": "requests that the strictest policy allows";
    Response "X-RateLimit-Remaining" = X_RATELIMIT_REMAINING "x-ratelimit-remaining": "what is left of them";
    Response "X-RateLimit-Reset" = X_RATELIMIT_RESET "x-ratelimit-reset": "seconds until all of them are there again";
    Response "Retry-After": "seconds; with 429, 503, and 409 while an idempotent request is under way";
    Response "Session-State" = SESSION_STATE "session-state":
        "Redis is in trouble: `stale` (the session as last known), `read-only`, `unknown`";
    Response "Session-Commit" = SESSION_COMMIT "session-commit": "`failed`: the session's changes were not stored";
    Response "Idempotency-Replayed" = IDEMPOTENCY_REPLAYED "idempotency-replayed":
        "`true`: the stored response of an earlier request";
    Response "X-Accel-Buffering" = X_ACCEL_BUFFERING "x-accel-buffering": "`no` on streams of events: nginx passes them on at once";
    Response "X-Content-Type-Options": "`nosniff`, unless the handler sets it";
    Response "Content-Security-Policy": "of documents, unless the handler sets it: own styles, images and forms, no script, no frame around it";
    Response "Referrer-Policy": "of documents, unless the handler sets it: `same-origin`";
    Response "X-Frame-Options": "of documents, unless the handler sets it: `DENY`";
    Response "Cross-Origin-Opener-Policy" = CROSS_ORIGIN_OPENER_POLICY "cross-origin-opener-policy":
        "of documents, unless the handler sets it: `same-origin`";
    Response "Permissions-Policy" = PERMISSIONS_POLICY "permissions-policy":
        "of documents, unless the handler sets it: no camera, microphone or location";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_and_its_row_have_one_name() {
        for (constant, name) in [(X_WORKER_ID, "X-Worker-Id"), (PERMISSIONS_POLICY, "Permissions-Policy")] {
            assert!(HEADERS.iter().any(|row| row.name == name), "{name}");
            assert_eq!(constant.as_str(), name.to_lowercase());
        }
    }
}
