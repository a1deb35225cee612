//! Text of one setting → its value; an error is the reason, without the setting's name.

mod address;
mod dashboard;
mod live;
mod state;

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

pub(super) use address::*;
pub(super) use dashboard::*;
use ipnet::IpNet;
pub(super) use live::*;
pub(super) use state::*;

use crate::config::settings::{
    AdvertisedAddress, AutoscaleMode, ClientConnectionLimit, ForwardedHeader, LogFormat, MAX_WORKERS,
    SteeringMode, WorkerCount,
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Why a text is not a value; completes the sentence "… is X, but …".
pub(in crate::config) type InvalidValue = String;

fn not_allowed() -> InvalidValue {
    "that is not allowed".into()
}

pub(super) fn duration(text: &str) -> Result<Duration, InvalidValue> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("a unit is missing".into());
    }
    let duration = humantime::parse_duration(text).map_err(|source| source.to_string())?;
    if duration > 3660 * DAY { Err("that is more than ten years".into()) } else { Ok(duration) }
}

pub(super) fn positive_duration(text: &str) -> Result<Duration, InvalidValue> {
    let duration = duration(text)?;
    if duration.is_zero() { Err("it must be longer than nothing".into()) } else { Ok(duration) }
}

/// Longest absence of a needed service that requests are made to wait for.
pub(super) fn reconnect_wait(text: &str) -> Result<Duration, InvalidValue> {
    let wait = duration(text)?;
    if wait > Duration::from_secs(60) { Err("that is more than a minute".into()) } else { Ok(wait) }
}

pub(super) fn size(text: &str) -> Result<usize, InvalidValue> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: usize = number.parse().map_err(|_| not_allowed())?;
    let unit = match unit.trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err("the unit is unknown".into()),
    };
    match number.checked_mul(unit) {
        Some(0) | None => Err("it is out of range".into()),
        Some(bytes) => Ok(bytes),
    }
}

/// hyper cannot read headers into a smaller buffer than 8 KiB.
pub(super) fn header_size(text: &str) -> Result<usize, InvalidValue> {
    let size = size(text)?;
    if (8 << 10..=1 << 30).contains(&size) { Ok(size) } else { Err("it is out of range".into()) }
}

pub(super) fn number(text: &str, max: u64) -> Result<u64, InvalidValue> {
    let number: u64 = text.parse().map_err(|_| "that is not a number in range".to_owned())?;
    if (1..=max).contains(&number) { Ok(number) } else { Err("it is out of range".into()) }
}

/// A part of all there are, or a number of them.
pub(super) fn share(text: &str) -> Result<ClientConnectionLimit, InvalidValue> {
    match text.ends_with('%') {
        true => percent(text).map(ClientConnectionLimit::Share),
        false => number(text, 1_000_000)
            .map(|number| ClientConnectionLimit::Number(usize::try_from(number).unwrap_or(usize::MAX))),
    }
}

/// A number, or 0 for none.
pub(super) fn number_or_none(text: &str) -> Result<Option<u64>, InvalidValue> {
    if text == "0" { Ok(None) } else { number(text, 1_000_000_000_000).map(Some) }
}

/// A size, or 0 for none.
pub(super) fn size_or_none(text: &str) -> Result<Option<u64>, InvalidValue> {
    if text == "0" { Ok(None) } else { size(text).map(|bytes| Some(bytes as u64)) }
}

/// A duration, or 0 for none.
pub(super) fn duration_or_none(text: &str) -> Result<Option<Duration>, InvalidValue> {
    duration(text).map(|duration| Some(duration).filter(|duration| !duration.is_zero()))
}

/// A share of a hundred as one of one.
pub(super) fn percent(text: &str) -> Result<f64, InvalidValue> {
    let number = number(text.strip_suffix('%').unwrap_or(text).trim_end(), 100)?;
    Ok(number as f64 / 100.0)
}

pub(super) fn slot_count(text: &str) -> Result<usize, InvalidValue> {
    usize::try_from(number(text, MAX_WORKERS as u64)?).map_err(|_| not_allowed())
}

/// A worker beats twice a second: with less patience every pause of a busy machine would be a hang.
pub(super) fn hang_timeout(text: &str) -> Result<Duration, InvalidValue> {
    let timeout = duration(text)?;
    match timeout < Duration::from_secs(1) && !timeout.is_zero() {
        true => Err("it is too short to tell a hang from a busy machine".into()),
        false => Ok(timeout),
    }
}

pub(super) fn autoscale_window(text: &str) -> Result<Duration, InvalidValue> {
    let window = duration(text)?;
    if window < Duration::from_secs(1) { Err("it is too short".into()) } else { Ok(window) }
}

pub(super) fn autoscale_mode(text: &str) -> Result<AutoscaleMode, InvalidValue> {
    choice(text, &[("on", AutoscaleMode::On), ("dry-run", AutoscaleMode::DryRun)])
}

pub(super) fn worker_count(text: &str) -> Result<WorkerCount, InvalidValue> {
    if text == "auto" {
        return Ok(WorkerCount::Auto);
    }
    slot_count(text).map(WorkerCount::Fixed)
}

pub(super) fn heartbeat_interval(text: &str) -> Result<Option<Duration>, InvalidValue> {
    let interval = duration_or_none(text)?;
    let allowed = Duration::from_millis(200)..=Duration::from_secs(60);
    match interval {
        Some(interval) if !allowed.contains(&interval) => Err("it is out of range".into()),
        interval => Ok(interval),
    }
}

pub(super) fn advertised_addresses(items: &[String]) -> Result<Vec<AdvertisedAddress>, InvalidValue> {
    items
        .iter()
        .map(|item| advertised_address(item).ok_or_else(|| format!("{item} is no such address")))
        .collect()
}

fn advertised_address(text: &str) -> Option<AdvertisedAddress> {
    let reachable = |ip: IpAddr| (!ip.is_unspecified()).then(|| SocketAddr::new(ip, 0));
    if let Ok(address) = text.parse::<SocketAddr>() {
        reachable(address.ip())?;
        let host = text.rsplit_once(':')?.0.to_owned();
        return (address.port() > 0).then_some(AdvertisedAddress { host, port: Some(address.port()) });
    }
    if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        // As it stands before a port.
        let host = reachable(ip)?.to_string();
        return Some(AdvertisedAddress { host: host.rsplit_once(':')?.0.to_owned(), port: None });
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port.parse().ok().filter(|port| *port > 0)?)),
        None => (text, None),
    };
    let letters = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte));
    (letters && (1..=253).contains(&host.len())).then(|| AdvertisedAddress { host: host.to_owned(), port })
}

pub(super) fn networks(items: &[String]) -> Result<Vec<IpNet>, InvalidValue> {
    let network = |item: &String| {
        let net = IpNet::from_str(item).or_else(|_| item.parse::<IpAddr>().map(IpNet::from));
        net.map_err(|_| format!("{item} is not a network"))
    };
    items.iter().map(network).collect()
}

pub(in crate::config) fn word(text: &str, max: usize, also: &str) -> Result<String, InvalidValue> {
    let fits = |c: char| c.is_ascii_alphanumeric() || also.contains(c);
    match text.len() {
        0 => Err("it is empty".into()),
        len if len > max => Err("it is too long".into()),
        _ if !text.chars().all(fits) => Err("it has a character that is not allowed".into()),
        _ => Ok(text.to_owned()),
    }
}

/// One word of a fixed set.
pub(super) fn choice<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, InvalidValue> {
    let found = choices.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
    found.map(|(_, value)| *value).ok_or_else(not_allowed)
}

pub(super) fn forwarded_header(text: &str) -> Result<ForwardedHeader, InvalidValue> {
    let choices =
        [("x-forwarded-for", ForwardedHeader::XForwardedFor), ("forwarded", ForwardedHeader::Forwarded)];
    choice(text, &choices)
}

pub(super) fn steering_mode(text: &str) -> Result<SteeringMode, InvalidValue> {
    choice(text, &[("kernel", SteeringMode::Kernel), ("client-ip", SteeringMode::ClientIp)])
}

pub(super) fn log_format(text: &str) -> Result<LogFormat, InvalidValue> {
    choice(text, &[("auto", LogFormat::Auto), ("pretty", LogFormat::Pretty), ("json", LogFormat::Json)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_advertised_is_a_host_with_or_without_a_port() {
        let read = |text: &str| advertised_address(text).map(|one| (one.host, one.port));
        let expected = |host: &str, port| Some((host.to_owned(), port));
        assert_eq!(read("10.0.0.5"), expected("10.0.0.5", None));
        assert_eq!(read("web-1.example.com:3000"), expected("web-1.example.com", Some(3000)));
        assert_eq!(read("[2001:db8::1]:80"), expected("[2001:db8::1]", Some(80)));
        assert_eq!(read("2001:db8::1"), expected("[2001:db8::1]", None));
        for bad in ["", ":80", "web:0", "web:x", "0.0.0.0:80", "::", "a b", "a;b", "web:1:2", "10.0.0.5:0"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn passwords_and_secrets_never_print() {
        let url = redis_url("redis://user:hunter22@h/0").unwrap();
        assert!(!format!("{url} {url:?}").contains("hunter22"));
        let secret = secret("correct horse battery staple and more").unwrap();
        assert!(!format!("{secret:?}").contains("horse"));
    }

    #[test]
    fn sizes_and_durations_refuse_what_is_ambiguous() {
        assert_eq!(size("64KiB").unwrap(), 65536);
        assert!(size("64kb").is_err() && size("0").is_err() && size("").is_err());
        assert!(duration("5").is_err() && duration("-1s").is_err());
        assert_eq!(duration("1m 30s").unwrap(), Duration::from_secs(90));
        assert_eq!((size_or_none("0"), duration_or_none("0s")), (Ok(None), Ok(None)));
        assert_eq!((number_or_none("0"), number_or_none("7")), (Ok(None), Ok(Some(7))));
        assert_eq!((percent("50%"), percent("7")), (Ok(0.5), Ok(0.07)));
        assert!(percent("0%").is_err() && percent("101%").is_err() && percent("x").is_err());
        assert!(hang_timeout("0").is_ok() && hang_timeout("999ms").is_err() && hang_timeout("1s").is_ok());
    }
}
