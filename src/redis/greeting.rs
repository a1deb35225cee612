//! What answers where no connection to Redis could be made, found out by what it says.
//!
//! The client library knows only that its greeting failed. A proxy that closes the connection after a command it does not
//! know, a web server and a port with TLS all look alike to it, and each is mended by another setting. It is asked once a
//! failed attempt, by a worker that never had a connection: what was Redis before is Redis, and only away.

use std::path::PathBuf;
use std::time::Duration;

use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::config::place::Login;
use crate::config::place::Peer;

/// Longest wait for a connection, and for each answer.
const ANSWER: Duration = Duration::from_millis(250);

/// Longest time for all of it.
const ALL: Duration = Duration::from_secs(1);

/// What a worker sends before it can serve, in this order; none of it changes anything.
const GREETING: &[&[&str]] = &[
    &["CLIENT", "ID"],
    &["INFO", "server"],
    &["EVAL", "return 1", "0"],
    &["FUNCTION", "LIST"],
    &["SCRIPT", "EXISTS", "x"],
    &["TIME"],
];

/// How a record of TLS begins that makes every server of TLS answer, be it with an alert.
const TLS_HELLO: &[u8] = &[0x16, 0x03, 0x01, 0x00, 0x05, 0x01, 0x00, 0x00, 0x01, 0x00];

/// Bytes of a foreign answer that are shown.
const SHOWN: usize = 16;

/// Where it answers.
#[derive(Debug, Clone)]
pub(super) enum Door {
    /// At a host's port.
    Tcp(Peer),
    /// At a socket.
    Unix(PathBuf),
}

/// What came back.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Said(Vec<u8>),
    Closed,
    Silent,
}

/// Why the greeting failed, if what answers there tells; nothing is said where it cannot be reached at all.
pub(super) async fn diagnose(door: &Door, tls: bool, login: &Login) -> Option<String> {
    timeout(ALL, ask(door, tls, login)).await.ok().flatten()
}

async fn ask(door: &Door, tls: bool, login: &Login) -> Option<String> {
    let mut stream = connect(door).await?;
    let first = exchange(&mut stream, &command(&["PING"])).await;
    if tls {
        // What speaks TLS does not answer this; what does is told apart from a server with another certificate.
        return match first {
            Answer::Said(said) if !is_tls(&said) => {
                let advice =
                    if is_redis(&said) { "; redis.url would begin with redis, not rediss" } else { "" };
                Some(format!("nothing speaks TLS there: {}{advice}", described(&said)))
            }
            _ => None,
        };
    }
    match first {
        Answer::Said(said) if is_redis(&said) => refused_word(&mut stream, &said, login).await,
        Answer::Said(said) => Some(described(&said)),
        Answer::Silent => Some("it takes connections and answers nothing".to_owned()),
        Answer::Closed => {
            let said = exchange(&mut connect(door).await?, TLS_HELLO).await;
            let speaks_tls = matches!(&said, Answer::Said(said) if is_tls(said));
            Some(if speaks_tls { SPEAKS_TLS } else { "it closes connections without an answer" }.to_owned())
        }
    }
}

const SPEAKS_TLS: &str = "what answers there speaks TLS; redis.url would begin with rediss";

/// The first command of a worker's after which the connection is closed.
async fn refused_word(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    said: &[u8],
    login: &Login,
) -> Option<String> {
    if let (true, Some(password)) = (said.starts_with(b"-NOAUTH"), &login.password) {
        let words: Vec<_> =
            [Some("AUTH"), login.user.as_deref(), Some(password)].into_iter().flatten().collect();
        exchange(stream, &command(&words)).await;
    }
    for words in GREETING {
        if exchange(stream, &command(words)).await == Answer::Closed {
            return Some(format!(
                "it closed the connection after {}: a proxy, such as twemproxy, that passes on some commands only; \
                 redis.url has to lead to Redis itself",
                words[..words.len().min(2)].join(" ")
            ));
        }
    }
    None
}

/// What an answer is that is none of Redis's.
fn described(said: &[u8]) -> String {
    match said {
        said if is_redis(said) => "what answers there speaks Redis's protocol without TLS".to_owned(),
        said if is_tls(said) => SPEAKS_TLS.to_owned(),
        said if said.starts_with(b"HTTP/") || said.starts_with(b"<") => {
            "what answers there speaks HTTP and not Redis's protocol".to_owned()
        }
        said => {
            let start = said[..said.len().min(SHOWN)].escape_ascii();
            format!("what answers there does not speak Redis's protocol; its answer begins with \"{start}\"")
        }
    }
}

/// Whether it begins as an answer of Redis does.
fn is_redis(said: &[u8]) -> bool {
    let word = |rest: &[u8]| rest.first().is_some_and(u8::is_ascii_uppercase);
    match said.split_first() {
        Some((b'+' | b'-', rest)) => word(rest),
        Some((b'$' | b'*' | b':', rest)) => rest.first().is_some_and(u8::is_ascii_digit),
        _ => false,
    }
}

/// Whether it is a record of TLS: an alert or a part of a handshake.
fn is_tls(said: &[u8]) -> bool {
    matches!(said, [0x15 | 0x16, 0x03, ..])
}

fn command(words: &[&str]) -> Vec<u8> {
    let word = |word: &&str| format!("${}\r\n{word}\r\n", word.len());
    format!("*{}\r\n{}", words.len(), words.iter().map(word).collect::<String>()).into_bytes()
}

/// A connection to either kind of door.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

async fn connect(door: &Door) -> Option<Box<dyn Stream>> {
    let connected = async {
        Some(match door {
            Door::Tcp(peer) => {
                Box::new(TcpStream::connect((peer.host.as_str(), peer.port)).await.ok()?) as Box<dyn Stream>
            }
            Door::Unix(path) => Box::new(UnixStream::connect(path).await.ok()?),
        })
    };
    timeout(ANSWER, connected).await.ok().flatten()
}

async fn exchange(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), sent: &[u8]) -> Answer {
    let answered = async {
        stream.write_all(sent).await?;
        let mut said = vec![0; 4096];
        let len = stream.read(&mut said).await?;
        said.truncate(len);
        std::io::Result::Ok(said)
    };
    match timeout(ANSWER, answered).await {
        Err(_) => Answer::Silent,
        Ok(Ok(said)) if !said.is_empty() => Answer::Said(said),
        Ok(Ok(_) | Err(_)) => Answer::Closed,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::io::Write;
    use std::net::TcpListener;

    use super::*;

    /// A server that gives each of these answers to what is sent on every connection, and then closes it.
    fn server(answers: &'static [&'static [u8]]) -> Door {
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
                // What it refuses was read.
                let _ = stream.read(&mut [0; 4096]);
            }
        });
        Door::Tcp(Peer { host: "127.0.0.1".into(), port })
    }

    #[tokio::test]
    async fn what_is_no_redis_is_told_by_what_it_says() {
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
            let login = Login { user: None, password: Some("hunter22".into()) };
            let told = diagnose(&server(answers), tls, &login).await.unwrap_or_default();
            assert!(told.contains(part) && !told.contains("hunter22"), "{part:?} is not in {told:?}");
        }
    }

    #[tokio::test]
    async fn where_nothing_answers_nothing_is_said() {
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let door = Door::Tcp(Peer { host: "127.0.0.1".into(), port: gone.port() });
        assert_eq!(diagnose(&door, false, &Login::default()).await, None);
        assert_eq!(diagnose(&Door::Unix("/nonexistent/x".into()), false, &Login::default()).await, None);
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let door = Door::Tcp(Peer { host: "127.0.0.1".into(), port: silent.local_addr().unwrap().port() });
        let told = diagnose(&door, false, &Login::default()).await.unwrap();
        assert!(told.contains("answers nothing"), "{told}");
    }
}
