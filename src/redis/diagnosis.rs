//! Finds out what answers at an address where Redis was expected.
//!
//! The client library only reports that its handshake failed. A proxy that closes the connection after an unknown
//! command, a web server and a TLS port look alike to it, and each needs another setting. It runs once after a failed
//! attempt, in a worker that never had a connection: an address that was Redis before is not diagnosed.

use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::config::redis_url::{HostPort, RedisLogin};

/// Longest wait for a connection, and for each answer.
const REPLY_TIMEOUT: Duration = Duration::from_millis(250);

/// Longest time for the whole diagnosis.
const DIAGNOSIS_TIMEOUT: Duration = Duration::from_secs(1);

/// The commands that a worker sends before it can serve, in this order; none of them changes anything.
const STARTUP_COMMANDS: &[&[&str]] = &[
    &["CLIENT", "ID"],
    &["INFO", "server"],
    &["EVAL", "return 1", "0"],
    &["FUNCTION", "LIST"],
    &["SCRIPT", "EXISTS", "x"],
    &["TIME"],
];

/// The start of a TLS record that every TLS server answers, at least with an alert.
const TLS_HELLO: &[u8] = &[0x16, 0x03, 0x01, 0x00, 0x05, 0x01, 0x00, 0x00, 0x01, 0x00];

/// Bytes of a foreign reply that are shown.
const SHOWN_BYTES: usize = 16;

/// The address to probe.
#[derive(Debug, Clone)]
pub(super) enum ProbeAddress {
    /// A host's port.
    Tcp(HostPort),
    /// A Unix socket.
    Unix(PathBuf),
}

/// What came back.
#[derive(Debug, PartialEq, Eq)]
enum ProbeReply {
    Received(Vec<u8>),
    Closed,
    Silent,
}

/// Why the handshake failed, if the replies show it; `None` if the address cannot be reached at all.
pub(super) async fn diagnose(address: &ProbeAddress, tls: bool, login: &RedisLogin) -> Option<String> {
    timeout(DIAGNOSIS_TIMEOUT, probe(address, tls, login)).await.ok().flatten()
}

async fn probe(address: &ProbeAddress, tls: bool, login: &RedisLogin) -> Option<String> {
    let mut stream = connect(address).await?;
    let first = exchange(&mut stream, &encode_command(&["PING"])).await;
    if tls {
        // A server that speaks plain text is distinguished from a TLS server with another certificate.
        return match first {
            ProbeReply::Received(received) if !is_tls(&received) => {
                let advice =
                    if is_redis(&received) { "; redis.url would begin with redis, not rediss" } else { "" };
                Some(format!("nothing speaks TLS there: {}{advice}", describe(&received)))
            }
            _ => None,
        };
    }
    match first {
        ProbeReply::Received(received) if is_redis(&received) => {
            rejected_command(&mut stream, &received, login).await
        }
        ProbeReply::Received(received) => Some(describe(&received)),
        ProbeReply::Silent => Some("it takes connections and answers nothing".to_owned()),
        ProbeReply::Closed => {
            let received = exchange(&mut connect(address).await?, TLS_HELLO).await;
            let speaks_tls = matches!(&received, ProbeReply::Received(received) if is_tls(received));
            Some(if speaks_tls { SPEAKS_TLS } else { "it closes connections without an answer" }.to_owned())
        }
    }
}

const SPEAKS_TLS: &str = "what answers there speaks TLS; redis.url would begin with rediss";

/// The first of a worker's commands after which the connection is closed.
async fn rejected_command(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    received: &[u8],
    login: &RedisLogin,
) -> Option<String> {
    if let (true, Some(password)) = (received.starts_with(b"-NOAUTH"), &login.password) {
        let words: Vec<_> =
            [Some("AUTH"), login.user.as_deref(), Some(password)].into_iter().flatten().collect();
        exchange(stream, &encode_command(&words)).await;
    }
    for words in STARTUP_COMMANDS {
        if exchange(stream, &encode_command(words)).await == ProbeReply::Closed {
            return Some(format!(
                "it closed the connection after {}: a proxy, such as twemproxy, that passes on some commands only; \
                 redis.url has to lead to Redis itself",
                words[..words.len().min(2)].join(" ")
            ));
        }
    }
    None
}

/// Describes a reply that is not from Redis.
fn describe(received: &[u8]) -> String {
    match received {
        received if is_redis(received) => "what answers there speaks Redis's protocol without TLS".to_owned(),
        received if is_tls(received) => SPEAKS_TLS.to_owned(),
        received if received.starts_with(b"HTTP/") || received.starts_with(b"<") => {
            "what answers there speaks HTTP and not Redis's protocol".to_owned()
        }
        received => {
            let start = received[..received.len().min(SHOWN_BYTES)].escape_ascii();
            format!("what answers there does not speak Redis's protocol; its answer begins with \"{start}\"")
        }
    }
}

/// Whether it starts as a reply of Redis does.
fn is_redis(received: &[u8]) -> bool {
    let word = |rest: &[u8]| rest.first().is_some_and(u8::is_ascii_uppercase);
    match received.split_first() {
        Some((b'+' | b'-', rest)) => word(rest),
        Some((b'$' | b'*' | b':', rest)) => rest.first().is_some_and(u8::is_ascii_digit),
        _ => false,
    }
}

/// Whether it is a TLS record: an alert or a part of a handshake.
fn is_tls(received: &[u8]) -> bool {
    matches!(received, [0x15 | 0x16, 0x03, ..])
}

fn encode_command(words: &[&str]) -> Vec<u8> {
    let word = |word: &&str| format!("${}\r\n{word}\r\n", word.len());
    format!("*{}\r\n{}", words.len(), words.iter().map(word).collect::<String>()).into_bytes()
}

/// A TCP or Unix stream.
trait ProbeStream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> ProbeStream for T {}

async fn connect(address: &ProbeAddress) -> Option<Box<dyn ProbeStream>> {
    let connected = async {
        Some(match address {
            ProbeAddress::Tcp(peer) => {
                Box::new(TcpStream::connect((peer.host.as_str(), peer.port)).await.ok()?)
                    as Box<dyn ProbeStream>
            }
            ProbeAddress::Unix(path) => Box::new(UnixStream::connect(path).await.ok()?),
        })
    };
    timeout(REPLY_TIMEOUT, connected).await.ok().flatten()
}

async fn exchange(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), sent: &[u8]) -> ProbeReply {
    let answered = async {
        stream.write_all(sent).await?;
        let mut received = vec![0; 4096];
        let len = stream.read(&mut received).await?;
        received.truncate(len);
        std::io::Result::Ok(received)
    };
    match timeout(REPLY_TIMEOUT, answered).await {
        Err(_) => ProbeReply::Silent,
        Ok(Ok(received)) if !received.is_empty() => ProbeReply::Received(received),
        Ok(Ok(_) | Err(_)) => ProbeReply::Closed,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    /// A server that gives these replies to what is sent on every connection, and then closes it.
    fn server(answers: &'static [&'static [u8]]) -> ProbeAddress {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming().take(2) {
                let mut stream = stream.unwrap();
                for answer in answers {
                    if stream.read(&mut [0; 4096]).unwrap_or(0) == 0 || stream.write_all(answer).is_err() {
                        break;
                    }
                }
                // The command that it refuses was read.
                let _ = stream.read(&mut [0; 4096]);
            }
        });
        ProbeAddress::Tcp(HostPort { host: "127.0.0.1".into(), port })
    }

    #[tokio::test]
    async fn a_foreign_server_is_identified_by_its_reply() {
        let cases: [(&[&[u8]], bool, &str); 10] = [
            (&[b"+PONG\r\n"], false, "after CLIENT ID: a proxy"),
            (&[b"+PONG\r\n", b":1\r\n"], false, "after INFO server: a proxy"),
            (
                &[b"-NOAUTH x\r\n", b"+OK\r\n", b":1\r\n", b"$-1\r\n", b":1\r\n"],
                false,
                "after FUNCTION LIST: a proxy",
            ),
            (&[b"HTTP/1.1 400 Bad Request\r\n\r\n"], false, "speaks HTTP"),
            (&[b"SSH-2.0-OpenSSH_9.2p1\r\n"], false, "begins with \"SSH-2.0-OpenSSH_\""),
            (&[b"ERROR\r\n"], false, "begins with \"ERROR"),
            (&[b"\x15\x03\x01\x00\x02\x02\x28"], false, "begin with rediss"),
            (&[], false, "without an answer"),
            (&[b"+PONG\r\n"], true, "without TLS"),
            (&[b"HTTP/1.1 400 Bad Request\r\n\r\n"], true, "speaks HTTP"),
        ];
        for (answers, tls, part) in cases {
            let login = RedisLogin { user: None, password: Some("hunter22".into()) };
            let message = diagnose(&server(answers), tls, &login).await.unwrap_or_default();
            assert!(
                message.contains(part) && !message.contains("hunter22"),
                "{part:?} is not in {message:?}"
            );
        }
    }

    #[tokio::test]
    async fn without_a_reply_there_is_no_diagnosis() {
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let address = ProbeAddress::Tcp(HostPort { host: "127.0.0.1".into(), port: gone.port() });
        assert_eq!(diagnose(&address, false, &RedisLogin::default()).await, None);
        assert_eq!(
            diagnose(&ProbeAddress::Unix("/nonexistent/x".into()), false, &RedisLogin::default()).await,
            None
        );
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = ProbeAddress::Tcp(HostPort {
            host: "127.0.0.1".into(),
            port: silent.local_addr().unwrap().port(),
        });
        let message = diagnose(&address, false, &RedisLogin::default()).await.unwrap();
        assert!(message.contains("answers nothing"), "{message}");
    }
}
