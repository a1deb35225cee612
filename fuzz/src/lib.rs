//! What strangers may send, as functions of bytes that panic when a promise is broken.
//!
//! A fuzzer calls them (`make fuzz`), and so does a test that replays `fuzz/corpus` and mutations of it (`fuzz.rs` in
//! `tests/it`), for those who have no fuzzer.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use http::{HeaderMap, HeaderValue};
use regatta::__internals::config;
use regatta::__internals::config::settings::{ForwardedHeader, ProxyConfig};
use regatta::__internals::config::{ConfigFile, ConfigInputs};
use regatta::__internals::control::protocol;
use regatta::__internals::http::real_ip::ClientTransport;
use regatta::__internals::http::{csrf, real_ip};
use regatta::__internals::listener::proxy_protocol;
use regatta::__internals::listener::proxy_protocol::ProxyHeader;
use regatta::__internals::sessions::cookie::CookieKeyring;
use regatta::__internals::sessions::user::UserTag;
use regatta::__internals::sessions::{cookie, cookie_header};

const SECRETS: [&[u8]; 2] = [b"a new secret with thirty-two bytes", b"an old secret of thirty-two bytes"];

/// `Cookie` headers, one a line; a byte 0xFE stands for a genuine cookie, 0xFD for one of a user who is logged in.
///
/// Nothing but what we signed is a session, and what we signed is the one we gave.
pub fn cookie(data: &[u8]) {
    let ring = CookieKeyring::new(SECRETS).expect("two secrets");
    let Ok(id) = cookie::new_id() else { return };
    let user = UserTag::from_name(SECRETS[0], "ann");
    let genuine = [(0xFE, None), (0xFD, Some(user))]
        .map(|(byte, user)| (byte, user, format!("sid={}", ring.sign("sid", id, user)).into_bytes()));
    let mut text = Vec::new();
    for byte in data {
        match genuine.iter().find(|(stands, ..)| stands == byte) {
            Some((.., cookie)) => text.extend_from_slice(cookie),
            None => text.push(*byte),
        }
    }
    let headers = || text.split(|byte| *byte == b'\n');
    let read = || cookie_header::find_session_cookies(&ring, headers(), [Some("sid"), Some("__Host-sid")]);
    let [own, moved] = read();
    assert_eq!(read(), [own, moved], "what is remembered is what was verified");
    if let Ok(Some(known)) = own {
        let found = known.cookie;
        let given = genuine.iter().any(|(byte, user, _)| data.contains(byte) && found.user == *user);
        assert!(given && found.id == id && !found.re_sign, "nobody signed it, or it is somebody else's");
    }
    assert!(!matches!(moved, Ok(Some(_))), "a cookie was moved to another name");
    if let Ok(value) = std::str::from_utf8(data) {
        assert!(ring.verify("sid", value).is_none(), "nobody signed it");
        assert!(!csrf::is_session_token(&ring, id, value), "nobody signed it");
    }
    // The two kinds of what we sign must not be taken for each other.
    assert!(csrf::session_token(&ring, id).is_some_and(|text| ring.verify("sid", &text).is_none()));
}

/// First byte: who the peer is and which header is believed; then header values, one a line.
///
/// A stranger is believed nothing, and what a client writes to the left of trusted hops changes nothing.
pub fn identity(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    let header = if kind & 1 == 0 { ForwardedHeader::XForwardedFor } else { ForwardedHeader::Forwarded };
    let name = if kind & 1 == 0 { "x-forwarded-for" } else { "forwarded" };
    let peer = ["127.0.0.1", "::ffff:127.0.0.1", "::1", "203.0.113.9"][usize::from(kind >> 1) % 4];
    let peer: IpAddr = peer.parse().expect("an address");
    let trusted =
        ["127.0.0.0/8", "10.0.0.0/8", "::1/128", "fd00::/8"].map(|net| net.parse().expect("a network"));
    let proxy = ProxyConfig { trusted: trusted.to_vec(), header };
    let mut headers = HeaderMap::new();
    let values = rest.split(|byte| *byte == b'\n').filter_map(|value| HeaderValue::from_bytes(value).ok());
    for value in values.take(64) {
        headers.append(name, value);
    }
    let client = real_ip::client_from_headers(SocketAddr::new(peer, 9).into(), &headers, &proxy);
    assert_eq!(client.address, client.address.to_canonical());
    assert!(!client.limit_subject(56).is_empty());
    if !proxy.trusts(peer) {
        assert_eq!((client.address, client.transport), (peer.to_canonical(), ClientTransport::Plain));
    }
    if !proxy.trusts(client.address) {
        let mut longer = HeaderMap::new();
        longer.append(name, HeaderValue::from_static("for=10.0.0.6, 6.6.6.6, for=6.6.6.6;proto=https"));
        headers.get_all(name).iter().for_each(|value| _ = longer.append(name, value.clone()));
        assert_eq!(
            real_ip::client_from_headers(SocketAddr::new(peer, 9).into(), &longer, &proxy).address,
            client.address,
            "the client chose it"
        );
    }
}

/// A line of the control socket.
///
/// What is understood can be said again, and then means the same.
pub fn control(data: &[u8]) {
    if let Ok(request) = protocol::decode_request(data) {
        let line = protocol::encode_request(&request).expect("what was read can be written");
        let line = line.strip_suffix(b"\n").unwrap_or(&line);
        assert_eq!(protocol::decode_request(line).expect("what was written can be read"), request);
    }
    if let Ok(reply) = protocol::decode_reply(data) {
        let line = protocol::encode_reply(&reply).expect("what was read can be written");
        let line = line.strip_suffix(b"\n").unwrap_or(&line);
        assert!(protocol::decode_reply(line).is_ok(), "what was written cannot be read");
    }
}

/// A configuration file; after each byte 0 a variable, `NAME=value`.
///
/// It is taken or refused in one line, and the same every time.
pub fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut parts = text.split('\0');
    let file = parts.next().unwrap_or_default().to_owned();
    let variable = |part: &str| part.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    let environment: BTreeMap<_, _> = parts.filter_map(variable).collect();
    let folder = PathBuf::from("/nowhere");
    let content = ConfigFile::Contents { path: folder.join("regatta.toml"), text: file, real: None };
    let inputs = ConfigInputs { environment, content, folder, ..ConfigInputs::default() };
    let say = |inputs: &ConfigInputs| match config::load(inputs) {
        Ok(config) => format!("{config:?}"),
        Err(error) => {
            let sentence = error.to_string();
            assert!(!sentence.trim().is_empty(), "a mistake without a word");
            sentence
        }
    };
    assert_eq!(say(&inputs), say(&inputs));
    drop(config::run_dir(&inputs));
}

/// The first bytes of a connection at an address of the PROXY protocol.
///
/// A verdict is the same however many bytes follow, a header ends within the bytes and the bound, and nothing that begins
/// as HTTP does is one.
pub fn proxy_protocol(data: &[u8]) {
    let whole = proxy_protocol::parse(data);
    for cut in (0..data.len()).take(300) {
        match proxy_protocol::parse(&data[..cut]) {
            ProxyHeader::Incomplete => {}
            earlier => assert_eq!(earlier, whole, "{cut} bytes said otherwise"),
        }
    }
    if let ProxyHeader::Complete { length, .. } = whole {
        assert!(length <= data.len() && length <= proxy_protocol::HEADER_MAX);
        assert_eq!(proxy_protocol::parse(&data[..length]), whole);
        assert!(data.starts_with(b"PROXY ") || data.starts_with(b"\r\n\r\n\0\r\nQUIT\n"));
    }
    assert!(
        data.len() < proxy_protocol::HEADER_MAX || whole != ProxyHeader::Incomplete,
        "it would be read for ever"
    );
}
