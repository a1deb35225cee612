//! A fleet whose program opens and draws things before its workers exist: its tests want to see what each worker makes
//! of them.
//!
//! `main` opens a log (`HEIRS_LOG`), a UDP socket and a TCP listener, and uses every thread generator in reach.

#![allow(clippy::disallowed_methods, reason = "what a fork does to these generators is what is tested")]

use std::fs::{File, OpenOptions};
use std::hash::BuildHasher;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Command, ExitCode};
use std::sync::Arc;

use axum::extract::{Path, State as Extract};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use regatta::{Context, Fleet};
use serde_json::{Value, json};

/// What was opened before the fleet began.
struct Opened {
    log: File,
    udp: UdpSocket,
    tcp: TcpListener,
}

fn main() -> std::io::Result<ExitCode> {
    let opened = std::env::var_os("HEIRS_LOG").map(open).transpose()?.map(Arc::new);
    // From here on each of them has a state, which a fork copies.
    drawn();
    let fleet = Fleet::new(move |_: Context| {
        let routes = Router::new()
            .route("/hello", get(|| async { "hello\n" }))
            .route("/drawn", get(|| async { Json(drawn()) }))
            .route("/self/{file}", get(own))
            .route("/program", get(program));
        let routes = match &opened {
            Some(opened) => routes.merge(heirlooms(Arc::clone(opened))),
            None => routes,
        };
        std::future::ready(routes)
    });
    Ok(fleet.run())
}

fn open(log: std::ffi::OsString) -> std::io::Result<Opened> {
    Ok(Opened {
        log: OpenOptions::new().append(true).create(true).open(log)?,
        udp: UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?,
        tcp: TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?,
    })
}

fn heirlooms(opened: Arc<Opened>) -> Router<()> {
    Router::new()
        .route("/log/{word}", get(log))
        .route("/send/{port}/{word}", get(send))
        .route("/numbers", get(numbers))
        .with_state(opened)
}

/// One number of each thread generator.
fn drawn() -> Value {
    json!({
        "rand 0.9": rand::random::<u64>().to_string(),
        "rand 0.10": rand_0_10::random::<u64>().to_string(),
        "fastrand": fastrand::u64(..).to_string(),
        "hash": std::hash::RandomState::new().hash_one(0).to_string(),
    })
}

/// Writes a line into the log that `main` opened.
async fn log(Extract(opened): Extract<Arc<Opened>>, Path(word): Path<String>) -> Result<(), StatusCode> {
    writeln!(&opened.log, "{word}").map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}

/// Sends a word from the socket that `main` opened.
async fn send(
    Extract(opened): Extract<Arc<Opened>>,
    Path((port, word)): Path<(u16, String)>,
) -> Result<(), StatusCode> {
    let sent = opened.udp.send_to(word.as_bytes(), (Ipv4Addr::LOCALHOST, port));
    sent.map(drop).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}

/// Numbers of the descriptors that `main` opened, and the ports behind two of them.
async fn numbers(Extract(opened): Extract<Arc<Opened>>) -> Json<Value> {
    let port = |address: std::io::Result<std::net::SocketAddr>| address.map_or(0, |address| address.port());
    Json(json!({
        "open": [opened.log.as_raw_fd(), opened.udp.as_raw_fd(), opened.tcp.as_raw_fd()],
        "udp": port(opened.udp.local_addr()),
        "tcp": port(opened.tcp.local_addr()),
    }))
}

/// A file of this worker's in `/proc/self`, or the list of its descriptors.
async fn own(Path(file): Path<String>) -> Result<String, StatusCode> {
    let missing = |_| StatusCode::NOT_FOUND;
    if file == "fd" {
        let entries = std::fs::read_dir("/proc/self/fd").map_err(missing)?.flatten();
        let line = |entry: std::fs::DirEntry| {
            let target = std::fs::read_link(entry.path()).ok()?;
            Some(format!("{} {}\n", entry.file_name().display(), target.display()))
        };
        return Ok(entries.filter_map(line).collect());
    }
    std::fs::read_to_string(format!("/proc/self/{file}")).map_err(missing)
}

/// What a program that a handler starts finds: its signals and its descriptors.
async fn program() -> Result<String, StatusCode> {
    let script = "cat /proc/self/status; umask; for fd in /proc/self/fd/*; do echo \"fd $fd\"; done";
    let output = Command::new("sh").args(["-c", script]).output();
    output
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}
