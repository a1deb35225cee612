//! The pages' stylesheet, script and picture, part of the binary.

use axum::Router;
use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

const STYLE: &str = include_str!("assets/style.css");
const SCRIPT: &str = include_str!("assets/live.js");
const FAVICON: &str = include_str!("assets/favicon.svg");

/// What a browser may do with a page that has the script: the library's policy for documents allows none.
pub(super) const LIVE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// For what has its content's hash in its name: it never changes.
const CACHE_FOREVER: &str = "public, max-age=31536000, immutable";

/// For what is another version than was asked for.
const CACHE_NEVER: &str = "no-store";

/// For what browsers look for under a fixed name.
const CACHE_ONE_DAY: &str = "public, max-age=86400";

/// Generic over the state because it needs none.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let file = |kind: &'static str, keep: &'static str, text: &'static str| {
        get(move || async move {
            ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, keep)], text).into_response()
        })
    };
    Router::new()
        .route("/assets/{name}", get(async |Path(name): Path<String>| asset(&name)))
        .route("/favicon.svg", file("image/svg+xml", CACHE_ONE_DAY, FAVICON))
}

/// A file by its name; with another version's hash it is this one's, and not to be kept: while a fleet is replaced, a
/// page may come from one version and its files from another, and a page without style is worse than one with another.
fn asset(name: &str) -> Response {
    let parts = name.split_once('.').and_then(|(name, rest)| Some((name, rest.split_once('.')?)));
    let (path, kind, text) = match parts {
        Some(("style", (_, "css"))) => (style_path(), "text/css; charset=utf-8", STYLE),
        Some(("live", (_, "js"))) => (script_path(), "text/javascript; charset=utf-8", SCRIPT),
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    let keep = if path.strip_prefix("/assets/") == Some(name) { CACHE_FOREVER } else { CACHE_NEVER };
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, keep)], text).into_response()
}

/// Where the stylesheet lies; another stylesheet lies elsewhere, so it may be kept for ever.
pub(super) fn style_path() -> String {
    format!("/assets/style.{:016x}.css", fnv1a64(STYLE.as_bytes()))
}

/// Where the script lies, likewise.
pub(super) fn script_path() -> String {
    format!("/assets/live.{:016x}.js", fnv1a64(SCRIPT.as_bytes()))
}

/// FNV-1a (Fowler, Noll, Vo), 64 bits: names a version of a file, and protects nothing.
const fn fnv1a64(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325;
    let mut at = 0;
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0100_0000_01b3);
        at += 1;
    }
    hash
}
