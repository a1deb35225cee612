//! The text of an nginx upstream block. Pure; what machines say of themselves is trusted with nothing but an address.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::registry::{InstanceRecord, ListedInstance};

/// Largest weight: nginx adds them up in a signed number.
const WEIGHT_MAX: usize = 65_536;

/// Fewest idle connections that one nginx worker keeps open.
const KEEPALIVE_MIN: usize = 64;

/// Hosts by address: an order that does not change when a supervisor is replaced.
pub(super) type UpstreamServers = BTreeMap<String, UpstreamServer>;

/// One host that serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UpstreamServer {
    /// Name of the host, for readers of the file.
    pub(super) host: String,
    /// Its share.
    pub(super) weight: usize,
    /// When its fleet started: of two at one address the younger one has the port.
    started_ms: u64,
}

/// The hosts that serve: each by the first of its addresses. A Unix socket is reached on `own_host` alone, where nginx
/// runs.
pub(super) fn upstream_servers(seen: &[ListedInstance], own_host: &str) -> UpstreamServers {
    let mut servers = UpstreamServers::new();
    let serving = seen.iter().map(|seen| &seen.instance).filter(|instance| instance.ready_slots() > 0);
    for (address, server) in serving.filter_map(|instance| upstream_server(instance, own_host)) {
        match servers.get(&address) {
            Some(other) if other.started_ms > server.started_ms => {}
            _ => _ = servers.insert(address, server),
        }
    }
    servers
}

fn upstream_server(instance: &InstanceRecord, own_host: &str) -> Option<(String, UpstreamServer)> {
    let is_here = instance.host == own_host;
    let fits = |address: &&String| is_address(address) || is_here && is_socket_file(address);
    let address = instance.addresses.iter().find(fits)?;
    let harmless = |letter: &char| letter.is_ascii_alphanumeric() || "-_.".contains(*letter);
    let host = instance.host.chars().filter(harmless).collect();
    let weight = instance.weight.clamp(1, WEIGHT_MAX);
    Some((address.clone(), UpstreamServer { host, weight, started_ms: instance.started_ms }))
}

/// Whether a text can be nothing but an address: it came from another machine and goes into a configuration.
fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_host = match bare {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            let letters = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte));
            !host.is_empty() && host.len() <= 253 && letters
        }
    };
    is_host && port.parse::<u16>().is_ok_and(|port| port > 0)
}

/// Whether a text can be nothing but the file of a Unix socket.
fn is_socket_file(text: &str) -> bool {
    let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_.".contains(&byte);
    let path = text.strip_prefix("unix:").filter(|path| path.starts_with('/'));
    path.is_some_and(|path| path.len() > 1 && path.bytes().all(harmless))
}

/// Whether a text can be an upstream's name.
pub(in crate::cli) fn is_name(text: &str) -> bool {
    let letters = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !text.is_empty() && text.len() <= 64 && text.bytes().all(letters)
}

/// The block; the same text for the same hosts.
pub(super) fn render_upstream(upstream: &str, prefix: &str, servers: &UpstreamServers) -> String {
    let mut text = format!(
        "# Written by `regatta nginx` from the heartbeats in Redis under the prefix {prefix}: changes made here are lost.\n\
         upstream {upstream} {{\n    zone {upstream} 256k;\n    least_conn;\n\n\
         \x20   # A host's weight is the number of its workers. Two entries each, so that a request which a crashed worker\n\
         \x20   # dropped has somewhere to go even if there is no other host; the weight counts for both.\n"
    );
    for (address, UpstreamServer { host, weight, .. }) in servers {
        let _ = writeln!(text, "    # {host}");
        for _ in 0..2 {
            let _ = writeln!(text, "    server {address} weight={weight} max_fails=3 fail_timeout=2s;");
        }
    }
    let keepalive = (4 * servers.len()).max(KEEPALIVE_MIN);
    let _ = write!(
        text,
        "\n    keepalive {keepalive};\n    # Less than http.keep_alive_timeout: the side that opens new requests closes first.\n\
         \x20   keepalive_timeout 60s;\n}}\n"
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::SlotRecord;

    fn seen(host: &str, address: &str, weight: usize, state: &str) -> ListedInstance {
        let slot = SlotRecord { state: state.into(), ..SlotRecord::default() };
        let instance = InstanceRecord {
            host: host.into(),
            addresses: vec![address.into()],
            weight,
            slots: vec![slot],
            ..InstanceRecord::default()
        };
        ListedInstance { age_ms: 0, instance }
    }

    #[test]
    fn hosts_that_serve_are_listed_with_their_weights() {
        let found = [
            seen("b", "10.0.0.2:3000", 2, "ready"),
            seen("a", "10.0.0.1:3000", 8, "ready"),
            seen("boots", "10.0.0.3:3000", 8, "booting"),
            seen("six", "[2001:db8::1]:3000", 0, "ready"),
        ];
        let servers = upstream_servers(&found, "here");
        let text = render_upstream("regatta", "p", &servers);
        let entries: Vec<&str> = text.lines().filter(|line| line.contains(" server ")).collect();
        assert_eq!(entries.len(), 6, "{text}");
        assert_eq!(entries[0].trim(), "server 10.0.0.1:3000 weight=8 max_fails=3 fail_timeout=2s;");
        assert_eq!(entries[0], entries[1]);
        assert!(entries[4].contains("[2001:db8::1]:3000 weight=1 "), "{text}");
        assert!(text.contains("upstream regatta {") && text.contains("keepalive 64;"), "{text}");
        assert_eq!(text, render_upstream("regatta", "p", &servers), "nothing in it changes by itself");
    }

    #[test]
    fn a_unix_socket_is_an_entry_on_its_own_host_alone() {
        let found =
            [seen("here", "unix:/run/shop.sock", 2, "ready"), seen("b", "unix:/run/shop.sock", 2, "ready")];
        let servers = upstream_servers(&found, "here");
        assert_eq!(servers.len(), 1);
        assert_eq!(servers["unix:/run/shop.sock"].host, "here");
        for bad in ["unix:", "unix:/", "unix:run", "unix:/run/a;", "unix:/a b", "unix:@a", "unix:/a\n}"] {
            assert!(upstream_servers(&[seen("here", bad, 1, "ready")], "here").is_empty(), "{bad}");
        }
    }

    #[test]
    fn of_two_fleets_at_one_address_the_younger_one_has_the_port() {
        let mut old = seen("old", "h:1", 2, "ready");
        let mut young = seen("young", "h:1", 4, "ready");
        (old.instance.started_ms, young.instance.started_ms) = (1, 2);
        for found in [[old.clone(), young.clone()], [young, old]] {
            assert_eq!(upstream_servers(&found, "here")["h:1"].weight, 4);
        }
    }

    #[test]
    fn what_an_instance_reports_cannot_become_another_directive() {
        for bad in ["h:1; deny all", "h:1\n}", "h", "h:0", ":1", "[x]:1", "a b:1", "{h}:1", "h:70000"] {
            assert!(upstream_servers(&[seen("x", bad, 1, "ready")], "here").is_empty(), "{bad}");
        }
        let found = upstream_servers(&[seen("evil\n}\nserver", "h:1", 1, "ready")], "here");
        assert_eq!(found["h:1"].host, "evilserver");
        assert!(is_name("regatta_2") && !is_name("") && !is_name("a b") && !is_name("a;") && !is_name("a{"));
    }
}
