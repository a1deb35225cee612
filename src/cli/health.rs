//! Asks a running fleet whether it is alive, without a shell, curl or a runtime: for container health checks.

use std::io;
use std::io::Read;
use std::io::Write;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::net::ToSocketAddrs;
use std::time::Duration;

use crate::cli::exit;
use crate::cli::exit::Failure;
use crate::cli::exit::say;
use crate::config::schema::Config;

/// Longest wait for each step; a health check that hangs is a failed one.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why a fleet is not healthy.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{url} is not a URL such as http://127.0.0.1:3001/livez")]
    Url { url: String },
    #[error("nothing answers at {url}")]
    Silent { url: String, source: io::Error },
    #[error("{url} answers {status}")]
    Unhealthy { url: String, status: String },
}

/// Asks `url`, or `/livez` at the operators' address; anything but 2xx is a failure.
pub(super) fn health(config: &Config, url: Option<&str>) -> Result<u8, Failure> {
    let url = url.map_or_else(|| format!("http://{}/livez", reachable(config.admin.listen)), str::to_owned);
    match ask(&url) {
        Ok(status) => {
            say(format_args!("{url} answers {status}"));
            Ok(exit::OK)
        }
        Err(error @ Error::Url { .. }) => Err(Failure::new(exit::USAGE, &error)),
        Err(error) => Err(Failure::new(exit::FAILED, &error)),
    }
}

/// An address to connect to for one that was listened on.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

fn ask(url: &str) -> Result<String, Error> {
    let wrong = || Error::Url { url: url.to_owned() };
    let parsed = url::Url::parse(url).map_err(|_| wrong())?;
    let (Some(host), "http") = (parsed.host_str(), parsed.scheme()) else { return Err(wrong()) };
    let port = parsed.port_or_known_default().ok_or_else(wrong)?;
    let target = &parsed[url::Position::BeforePath..];
    let silent = |source| Error::Silent { url: url.to_owned(), source };
    let status = exchange((host.trim_matches(['[', ']']), port), host, target).map_err(silent)?;
    let code = status.split(' ').next().unwrap_or_default();
    if code.starts_with('2') { Ok(status) } else { Err(Error::Unhealthy { url: url.to_owned(), status }) }
}

/// A connection to the first of the host's addresses that takes one.
fn connect(address: (&str, u16)) -> io::Result<TcpStream> {
    let mut last = io::Error::other("the host has no address");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// One HTTP/1.1 exchange; returns the status line's code and reason.
fn exchange(address: (&str, u16), host: &str, target: &str) -> io::Result<String> {
    let mut stream = connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut head = [0; 256];
    let len = stream.read(&mut head)?;
    let text = String::from_utf8_lossy(&head[..len]);
    let status = text.lines().next().and_then(|line| line.strip_prefix("HTTP/1.1 "));
    status.map(str::to_owned).ok_or_else(|| io::Error::other("the answer is not HTTP"))
}
