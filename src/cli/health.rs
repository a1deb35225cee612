//! Asks a running fleet whether it is alive, without a shell, curl or a runtime: for container health checks.

use std::io;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::bootstrap::exit_code;
use crate::bootstrap::exit_code::{CommandFailure, print_line};
use crate::config::settings::{Config, ListenAddress, UnixSocketName};
use crate::sys::unix_listener;

/// Longest wait for each step; a health check that hangs is a failed one.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Why a fleet is not healthy.
#[derive(Debug, thiserror::Error)]
enum HealthCheckError {
    #[error("{url} is not a URL such as http://127.0.0.1:3001/livez")]
    Url { url: String },
    #[error("nothing answers at {url}")]
    NoAnswer { url: String, source: io::Error },
    #[error("{url} answers {status}")]
    Unhealthy { url: String, status: String },
}

/// Asks `url`, or `/livez` at the operators' addresses until one answers; anything but 2xx is a failure.
pub(super) fn health(config: &Config, url: Option<&str>) -> Result<u8, CommandFailure> {
    let checked = match url {
        Some(url) => check_url(url),
        None => check_own(&config.admin.listen),
    };
    match checked {
        Ok((url, status)) => {
            print_line(format_args!("{url} answers {status}"));
            Ok(exit_code::OK)
        }
        Err(error @ HealthCheckError::Url { .. }) => Err(CommandFailure::new(exit_code::USAGE, &error)),
        Err(error) => Err(CommandFailure::new(exit_code::FAILED, &error)),
    }
}

/// Where nothing answers at one of the fleet's own addresses another one may do: IPv6 may be switched off here.
fn check_own(listen: &[ListenAddress]) -> Result<(String, String), HealthCheckError> {
    let mut silent = HealthCheckError::Url { url: String::new() };
    for address in listen.iter().flat_map(reachable) {
        let (url, answer) = match &address {
            ListenAddress::Internet(address) => {
                let host = SocketAddr::new(address.ip(), address.port()).to_string();
                let answer =
                    connect(&[*address]).and_then(|stream| fetch_status_line(stream, &host, "/livez"));
                (format!("http://{address}/livez"), answer)
            }
            ListenAddress::Unix(name) => {
                let answer =
                    connect_unix(name).and_then(|stream| fetch_status_line(stream, "localhost", "/livez"));
                (format!("{address}/livez"), answer)
            }
        };
        match answer {
            Ok(status) => return require_success(url, status),
            Err(source) => silent = HealthCheckError::NoAnswer { url, source },
        }
    }
    Err(silent)
}

/// Addresses to connect to for one that was listened on: for every one of IPv6 the loopback ones, of IPv4 too, which it
/// serves unless another socket does.
fn reachable(listen: &ListenAddress) -> Vec<ListenAddress> {
    let Some(listen) = listen.internet() else { return vec![listen.clone()] };
    let ips: Vec<IpAddr> = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => vec![Ipv4Addr::LOCALHOST.into()],
        IpAddr::V6(ip) if ip.is_unspecified() => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        ip => vec![ip],
    };
    let at = |ip| if ip == listen.ip() { listen } else { SocketAddr::new(ip, listen.port()) };
    ips.into_iter().map(|ip| at(ip).into()).collect()
}

fn check_url(url: &str) -> Result<(String, String), HealthCheckError> {
    let wrong = || HealthCheckError::Url { url: url.to_owned() };
    let parsed = url::Url::parse(url).map_err(|_| wrong())?;
    let (Some(host), "http") = (parsed.host_str(), parsed.scheme()) else { return Err(wrong()) };
    let port = parsed.port_or_known_default().ok_or_else(wrong)?;
    let target = &parsed[url::Position::BeforePath..];
    let silent = |source| HealthCheckError::NoAnswer { url: url.to_owned(), source };
    let addresses = (host.trim_matches(['[', ']']), port).to_socket_addrs().map_err(silent)?;
    let stream = connect(&addresses.collect::<Vec<_>>()).map_err(silent)?;
    let status = fetch_status_line(stream, host, target).map_err(silent)?;
    require_success(url.to_owned(), status)
}

fn require_success(url: String, status: String) -> Result<(String, String), HealthCheckError> {
    let code = status.split(' ').next().unwrap_or_default();
    if code.starts_with('2') { Ok((url, status)) } else { Err(HealthCheckError::Unhealthy { url, status }) }
}

/// A connection to the first of the host's addresses that takes one.
fn connect(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut last = io::Error::other("the host has no address");
    for address in addresses {
        match TcpStream::connect_timeout(address, TIMEOUT) {
            Ok(stream) => {
                stream.set_read_timeout(Some(TIMEOUT))?;
                stream.set_write_timeout(Some(TIMEOUT))?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn connect_unix(name: &UnixSocketName) -> io::Result<UnixStream> {
    let stream = unix_listener::connect(name, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

/// One HTTP/1.1 exchange; returns the status line's code and reason.
fn fetch_status_line(mut stream: impl Read + Write, host: &str, target: &str) -> io::Result<String> {
    write!(stream, "GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut head = [0; 256];
    let len = stream.read(&mut head)?;
    let text = String::from_utf8_lossy(&head[..len]);
    let status = text.lines().next().and_then(|line| line.strip_prefix("HTTP/1.1 "));
    status.map(str::to_owned).ok_or_else(|| io::Error::other("the answer is not HTTP"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_is_reached_at_loopback_of_either_family() {
        let of = |text: &str| {
            reachable(&ListenAddress::Internet(text.parse().unwrap()))
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(of("[::]:7"), ["127.0.0.1:7", "[::1]:7"]);
        assert_eq!(of("0.0.0.0:7"), ["127.0.0.1:7"]);
        assert_eq!(of("[fd00::1]:7"), ["[fd00::1]:7"]);
    }
}
