//! The header of the PROXY protocol at the beginning of a connection, read before HTTP begins.

use std::io;

use tokio::net::TcpStream;

use crate::http::real_ip::ConnectionPeer;
use crate::listener::proxy_protocol;
use crate::listener::proxy_protocol::{HEADER_MAX, ProxiedClient, ProxyHeader};
use crate::scoreboard::refusal_reason::ConnectionCloseReason;
use crate::worker::connection::guard::ConnectionGuard;
use crate::worker::connection::record::ConnectionCommand;

/// Looked at at once; headers without many TLVs are shorter.
const FIRST_READ: usize = 256;

/// What has come of a header.
#[derive(Debug, Default)]
struct PartialHeader(Vec<u8>);

/// Reads the header; the connection's client from then on. None: the connection is to be closed, which is counted.
///
/// The time it may take is that of the first request's header.
pub(super) async fn read_client(
    stream: &TcpStream,
    peer: ConnectionPeer,
    guard: &ConnectionGuard,
) -> Option<ConnectionPeer> {
    let mut partial = PartialHeader::default();
    loop {
        tokio::select! {
            biased;
            client = partial.read(stream) => return match client {
                Ok(ProxiedClient::Internet(client)) => Some(ConnectionPeer::Internet(client)),
                Ok(ProxiedClient::Unspecified) => Some(peer),
                Err(error) => {
                    tracing::debug!(?peer, %error, "a connection begins without a header of the PROXY protocol");
                    guard.count_closed(ConnectionCloseReason::ProxyProtocol);
                    None
                }
            },
            command = guard.connection.next_command() => match command {
                ConnectionCommand::Continue | ConnectionCommand::RefuseHeader => guard.clear_header_refusal(),
                ConnectionCommand::CloseIfExpired => if let Some(why) = guard.check_expired() {
                    guard.count_closed(why);
                    return None;
                },
                // One that has begun to come is waited for, as the header of a request is.
                ConnectionCommand::CloseWhenIdle if !partial.0.is_empty() => {}
                ConnectionCommand::CloseWhenIdle | ConnectionCommand::Abort => return None,
            },
        }
    }
}

impl PartialHeader {
    /// Reads the rest of the header, and nothing behind it.
    ///
    /// # Cancel safety
    /// What was read is kept for the next call.
    async fn read(&mut self, stream: &TcpStream) -> io::Result<ProxiedClient> {
        loop {
            let mut bytes = [0; FIRST_READ];
            let count = stream.peek(&mut bytes).await?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let before = self.0.len();
            self.0.extend_from_slice(&bytes[..count]);
            match proxy_protocol::parse(&self.0) {
                ProxyHeader::Complete { client, length } => {
                    discard(stream, &mut bytes[..length.saturating_sub(before)])?;
                    return Ok(client);
                }
                ProxyHeader::Incomplete if self.0.len() < HEADER_MAX => discard(stream, &mut bytes[..count])?,
                ProxyHeader::Incomplete | ProxyHeader::Invalid => {
                    return Err(io::ErrorKind::InvalidData.into());
                }
            }
        }
    }
}

/// Takes out of the kernel's queue what was peeked at.
fn discard(stream: &TcpStream, bytes: &mut [u8]) -> io::Result<()> {
    match stream.try_read(bytes) {
        Ok(count) if count == bytes.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Duration;

    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;

    async fn pair() -> (std::net::TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn a_header_is_read_in_pieces_and_what_follows_is_left() {
        let (mut client, mut stream) = pair().await;
        let mut partial = PartialHeader::default();
        let header = b"PROXY TCP4 203.0.113.9 192.0.2.1 56324 443\r\n";
        let (last, begin) = header.split_last().unwrap();
        for byte in begin {
            client.write_all(&[*byte]).unwrap();
            // Given up in between, as a command does.
            assert!(timeout(Duration::from_millis(1), partial.read(&stream)).await.is_err());
        }
        client.write_all(&[*last]).unwrap();
        client.write_all(b"GET /").unwrap();
        let read = timeout(Duration::from_secs(5), partial.read(&stream)).await.unwrap().unwrap();
        assert_eq!(read, ProxiedClient::Internet("203.0.113.9:56324".parse().unwrap()));
        let mut rest = [0; 5];
        stream.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"GET /");
    }

    #[tokio::test]
    async fn half_a_header_and_a_wrong_one_are_errors() {
        for wrong in [&b"PROXY TCP4 203"[..], b"GET / HTTP/1.1\r\n\r\n", b""] {
            let (mut client, stream) = pair().await;
            client.write_all(wrong).unwrap();
            drop(client);
            let read = timeout(Duration::from_secs(5), PartialHeader::default().read(&stream)).await.unwrap();
            assert!(read.is_err(), "{wrong:?}");
        }
    }
}
