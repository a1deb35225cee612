//! The fuzz targets without a fuzzer: the corpus and mutations of it.

#[allow(unreachable_pub, reason = "public for the fuzzer")]
#[path = "../../../../fuzz/src/lib.rs"]
mod targets;

use std::fs;
use std::path::Path;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::support::soak;

/// Pieces that mean something to someone.
const PIECES: &[&[u8]] = &[
    b"\xfe",
    b"\xfd",
    b"sid=",
    b";",
    b"=",
    b",",
    b"\n",
    b"\0",
    b"\"",
    b"[",
    b"]",
    b"{",
    b"}",
    b":",
    b"%",
    b"for=",
    b"10.0.0.1",
    b"::ffff:",
    b"unknown",
    b"v1.",
    b"-1",
    b"99999999999999999999",
    b"REGATTA_LISTEN=",
    b"\xff\xff",
    b"PROXY ",
    b"TCP4 ",
    b"\r\n",
    b"\r\n\r\n\0\r\nQUIT\n",
    b"\\u0000",
    b"\"wait\":",
    b"\"details\":",
    b"[limits.",
    b" = ",
];

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// One to eight small changes.
fn mutate(mut data: Vec<u8>, others: &[Vec<u8>], random: &mut StdRng) -> Vec<u8> {
    for _ in 0..random.random_range(1..=8) {
        let at = random.random_range(0..=data.len());
        let end = random.random_range(at..=data.len().min(at + 8));
        match random.random_range(0..6) {
            0 => drop(data.drain(at..end)),
            1 => data.insert(at, random.random()),
            2 if at < data.len() => data[at] ^= 1 << random.random_range(0..8),
            3 => drop(data.splice(at..end, PIECES.choose(random).unwrap().iter().copied())),
            4 => drop(data.splice(at..end, others.choose(random).unwrap().iter().copied())),
            _ => data.truncate(at.max(1)),
        }
    }
    data
}

fn fuzz(name: &str, target: fn(&[u8])) {
    let corpus = corpus(name);
    corpus.iter().for_each(|data| target(data));
    // The same every time: a test that fails is to fail again.
    let mut random = StdRng::seed_from_u64(4);
    for _ in 0..soak::length(2_000, 500_000) {
        let data = mutate(corpus.choose(&mut random).unwrap().clone(), &corpus, &mut random);
        let outcome = std::panic::catch_unwind(|| target(&data));
        assert!(outcome.is_ok(), "{name} fails for {:?}", data.escape_ascii().to_string());
    }
}

#[test]
fn cookies() {
    fuzz("cookie", targets::cookie);
}

#[test]
fn client_identity() {
    fuzz("identity", targets::identity);
}

#[test]
fn control_frames() {
    fuzz("control", targets::control);
}

#[test]
fn proxy_protocol_headers() {
    fuzz("proxy_protocol", targets::proxy_protocol);
}

#[test]
fn configurations() {
    fuzz("config", targets::config);
}
