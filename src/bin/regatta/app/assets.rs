//! The pages' stylesheet, script and icon, embedded in the program.

use axum::Router;
use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

const STYLE: &str = include_str!("assets/style.css");
const SCRIPT: &str = include_str!("assets/live.js");
const FAVICON: &str = include_str!("assets/favicon.svg");

/// The policy of pages with the script: the library's default policy for documents allows none.
pub(super) const LIVE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Of files with the hash of their content in their name: they never change.
const CACHE_FOREVER: &str = "public, max-age=31536000, immutable";

/// Of files of another version than was requested.
const CACHE_NEVER: &str = "no-store";

/// Of files with a fixed name.
const CACHE_ONE_DAY: &str = "public, max-age=86400";

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

/// A file by its name. Under another version's hash it is this version's file and must not be cached: during a rollout a
/// page may come from one version and its files from another.
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

/// The stylesheet's path.
pub(super) fn style_path() -> String {
    format!("/assets/style.{:016x}.css", fnv1a64(STYLE.as_bytes()))
}

/// The script's path.
pub(super) fn script_path() -> String {
    format!("/assets/live.{:016x}.js", fnv1a64(SCRIPT.as_bytes()))
}

/// FNV-1a, 64 bits: names a version of a file, and protects nothing.
const fn fnv1a64(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325;
    let mut at = 0;
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0100_0000_01b3);
        at += 1;
    }
    hash
}
