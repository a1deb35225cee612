//! Pages: what they weigh, and how soon they begin.

use std::net::SocketAddr;

use crate::host::Site;
use crate::options::Options;
use crate::table::{Section, share};
use crate::{Outcome, web};

/// How often each page is asked for.
const TIMES: usize = 200;

pub(crate) fn measure(options: &Options) -> Outcome<Section> {
    let site = Site::start(1, options)?;
    let host = &site.hosts[0];
    let mut rows = Vec::new();
    for (address, path) in [(host.address, "/"), (host.admin, "/fleet")] {
        rows.push(page(address, path)?);
    }
    let text = format!(
        "Uncompressed, with everything a first visit loads from the same host; the first byte after the request, {TIMES} \
         requests one after the other over connections of their own. nginx compresses on the way."
    );
    let head = vec!["page", "HTML KB", "with assets KB", "requests", "first byte p50 ms", "p99 ms"];
    Ok(Section { title: "Pages", text, head, rows })
}

fn page(address: SocketAddr, path: &str) -> Outcome<Vec<String>> {
    let html = web::page(address, path)?.body;
    let assets = assets(&html);
    let mut weight = html.len();
    for asset in &assets {
        weight += web::page(address, asset)?.body.len();
    }
    let mut times = Vec::new();
    for _ in 0..TIMES {
        times.push(web::page(address, path)?.first_byte.as_secs_f64() * 1000.0);
    }
    times.sort_by(f64::total_cmp);
    Ok(vec![
        format!("`{path}`"),
        format!("{:.1}", html.len() as f64 / 1000.0),
        format!("{:.1}", weight as f64 / 1000.0),
        (1 + assets.len()).to_string(),
        format!("{:.2}", share(&times, 0.5)),
        format!("{:.2}", share(&times, 0.99)),
    ])
}

/// Style sheets, scripts and pictures that a page names.
fn assets(html: &str) -> Vec<String> {
    let tags =
        html.split('<').filter(|tag| ["link ", "script ", "img "].iter().any(|name| tag.starts_with(name)));
    let value = |tag: &str| {
        let rest = tag.split_once("href=\"").or_else(|| tag.split_once("src=\""))?.1;
        Some(rest.split('"').next()?.to_owned())
    };
    let mut found: Vec<_> = tags.filter_map(value).filter(|path| path.starts_with('/')).collect();
    found.sort();
    found.dedup();
    found
}
