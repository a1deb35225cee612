//! The page's stylesheet, script and icon, embedded in the program.

use std::sync::LazyLock;

use axum::Router;
use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::digest::fnv1a64;

const STYLE: &str = include_str!("assets/fleet.css");
const SCRIPT: &str = include_str!("assets/fleet.js");
const ICON: &str = include_str!("assets/icon.svg");

/// Each path has the hash of its content, so browsers may cache it for ever.
pub(super) static ASSET_PATHS: LazyLock<AssetPaths> = LazyLock::new(|| AssetPaths {
    style: format!("/fleet/assets/{:016x}.css", fnv1a64(STYLE.as_bytes())),
    script: format!("/fleet/assets/{:016x}.js", fnv1a64(SCRIPT.as_bytes())),
    icon: format!("/fleet/assets/{:016x}.svg", fnv1a64(ICON.as_bytes())),
});

/// Paths of the page's files.
#[derive(Debug)]
pub(super) struct AssetPaths {
    pub(super) style: String,
    pub(super) script: String,
    pub(super) icon: String,
}

const IMMUTABLE: &str = "public, max-age=31536000, immutable";

pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new().route("/fleet/assets/{name}", get(async |Path(name): Path<String>| asset(&name)))
}

/// A file by its name. Under another version's hash it is this version's file and must not be cached: during a rollout a
/// page may come from one version and its files from another.
fn asset(name: &str) -> Response {
    let (path, kind, text) = match name.split_once('.') {
        Some((_, "css")) => (&ASSET_PATHS.style, "text/css; charset=utf-8", STYLE),
        Some((_, "js")) => (&ASSET_PATHS.script, "text/javascript; charset=utf-8", SCRIPT),
        Some((_, "svg")) => (&ASSET_PATHS.icon, "image/svg+xml", ICON),
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    let cache_control =
        if path.strip_prefix("/fleet/assets/") == Some(name) { IMMUTABLE } else { "no-store" };
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, cache_control)], text).into_response()
}
