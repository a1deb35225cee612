//! What no single value can be blamed for, and whether the files that settings name can be read.

use std::time::Duration;

use crate::config::error::{ConfigError, SettingOrigin};
use crate::config::inputs::ConfigInputs;
use crate::config::redis_url::{RedisAddress, RedisTopology};
use crate::config::setting::GivenSettings;
use crate::config::settings::{
    Config, DashboardConfig, ListenAddress, ProxyProtocolListeners, RedisConfig, RedisCredentials,
    ScriptingMode, SteeringMode, WorkerCount, WorkersConfig,
};
use crate::sys;

/// Finds out that the files which a configuration names can be read: keys, passwords, tokens.
///
/// # Errors
/// [`ConfigError::ReferencedFileUnavailable`] with the first that cannot.
pub fn check_readable(config: &Config) -> Result<(), ConfigError> {
    let access = &config.redis.credentials;
    let files = [
        ("redis.password_file", &access.password_file),
        ("redis.tls_ca", &access.tls_ca),
        ("redis.tls_cert", &access.tls_cert),
        ("redis.tls_key", &access.tls_key),
        ("dashboard.token_file", &config.dashboard.token_file),
    ];
    for (key, path) in files.into_iter().filter_map(|(key, path)| Some((key, path.as_ref()?))) {
        sys::path::read_secret(path).map_err(|error| ConfigError::ReferencedFileUnavailable {
            key,
            path: path.clone(),
            reason: error.to_string(),
        })?;
    }
    Ok(())
}

/// That the variables which name folders where no setting does can be read.
pub(super) fn check_folder_variables(
    inputs: &ConfigInputs,
    given: &GivenSettings,
) -> Result<(), ConfigError> {
    let variables = [("XDG_RUNTIME_DIR", "run_dir"), ("STATE_DIRECTORY", "data_dir")];
    let missing = variables.into_iter().filter(|(_, setting)| !given.has(setting));
    match missing.into_iter().find(|(name, _)| inputs.unreadable.iter().any(|known| known == name)) {
        Some((name, _)) => Err(ConfigError::NotUtf8 { origin: SettingOrigin::Environment(name.to_owned()) }),
        None => Ok(()),
    }
}

/// What no single value can be blamed for.
pub(super) fn check_consistency(given: &GivenSettings, config: &Config) -> Result<(), ConfigError> {
    check_addresses(given, config)?;
    check_workers(given, &config.workers)?;
    check_redis_credentials(given, &config.redis)?;
    if config.session.idle > config.session.absolute {
        return Err(given.contradiction("session.idle", "session.absolute is shorter".into()));
    }
    if config.session.idle < Duration::from_secs(1) {
        return Err(given.contradiction("session.idle", "sessions live at least 1s".into()));
    }
    let unknown = config.websocket.policy.as_ref().filter(|policy| !config.limits.contains_key(*policy));
    if let Some(policy) = unknown {
        return Err(given.contradiction("websocket.policy", format!("there is no policy limits.{policy}")));
    }
    if config.drain.grace + config.drain.idle_grace > config.drain.timeout {
        return Err(given
            .contradiction("drain.timeout", "drain.grace and drain.idle_grace together are longer".into()));
    }
    Ok(())
}

fn check_addresses(given: &GivenSettings, config: &Config) -> Result<(), ConfigError> {
    let pairs =
        config.admin.listen.iter().flat_map(|admin| config.listen.iter().map(move |public| (admin, public)));
    let shared = pairs.into_iter().find(|pair| match pair {
        (ListenAddress::Internet(admin), ListenAddress::Internet(public)) => {
            let same_host =
                public.ip() == admin.ip() || public.ip().is_unspecified() || admin.ip().is_unspecified();
            admin.port() != 0 && public.port() == admin.port() && same_host
        }
        (admin, public) => admin == public,
    });
    match shared {
        Some((_, public @ ListenAddress::Internet(_))) => {
            let reason = format!("listen has the same port ({public}); give the operators one of their own");
            return Err(given.contradiction("admin.listen", reason));
        }
        Some((_, public)) => {
            let reason =
                format!("listen has the same socket ({public}); give the operators one of their own");
            return Err(given.contradiction("admin.listen", reason));
        }
        None => {}
    }
    if let ProxyProtocolListeners::Some(listed) = &config.proxy_protocol.listeners
        && let Some(other) = listed.iter().find(|address| !config.listen.contains(address))
    {
        return Err(given.contradiction("proxy.protocol", format!("listen does not name {other}")));
    }
    let unix = config.listen.iter().find(|address| address.internet().is_none());
    match unix.filter(|_| config.steering == SteeringMode::ClientIp) {
        Some(unix) => {
            let reason = format!(
                "all slots share the queue of {unix} (listen), and its clients have no address: set it to kernel"
            );
            Err(given.contradiction("listen.steering", reason))
        }
        None => Ok(()),
    }
}

fn check_workers(given: &GivenSettings, workers: &WorkersConfig) -> Result<(), ConfigError> {
    let WorkersConfig { count, autoscale: scaling, recycling, hang_timeout, hang_kill, .. } = workers;
    if !hang_kill.is_zero() && hang_kill <= hang_timeout {
        return Err(given.contradiction("workers.hang_kill", "workers.hang_timeout is not shorter".into()));
    }
    if let (Some(min), Some(max)) = (scaling.min, scaling.max)
        && min > max
    {
        return Err(given.contradiction("workers.min", format!("workers.max is {max}")));
    }
    if let WorkerCount::Fixed(count) = *count
        && (scaling.min.is_some_and(|min| min > count) || scaling.max.is_some_and(|max| max < count))
    {
        let reason = "it must be from workers.min to workers.max".to_owned();
        return Err(given.contradiction("workers.count", reason));
    }
    if scaling.busy_min >= scaling.busy_max {
        return Err(given.contradiction("autoscale.busy_min", "autoscale.busy_max is not more".into()));
    }
    match (recycling.memory_soft, recycling.memory_hard) {
        (Some(soft), Some(hard)) if soft >= hard => {
            Err(given.contradiction("workers.memory_soft", "workers.memory_hard is not more".into()))
        }
        _ => Ok(()),
    }
}

/// Files that the address has no use for would be settings without an effect.
fn check_redis_credentials(given: &GivenSettings, redis: &RedisConfig) -> Result<(), ConfigError> {
    let RedisCredentials { password_file, tls_ca, tls_cert, tls_key } = &redis.credentials;
    let refuse = |name: &str, reason: &str| Err(given.contradiction(name, reason.to_owned()));
    let place = redis.url.as_ref().and_then(|url| RedisAddress::parse(url.expose()).ok());
    if password_file.is_some() {
        match &place {
            None => return refuse("redis.password_file", "redis.url is not set"),
            Some(place) if place.login.password.is_some() => {
                return refuse("redis.password_file", "redis.url has a password too; give one of them");
            }
            Some(_) => {}
        }
    }
    let clustered = place.as_ref().is_some_and(|place| matches!(place.topology, RedisTopology::Cluster(_)));
    let files = [("redis.tls_ca", tls_ca), ("redis.tls_cert", tls_cert), ("redis.tls_key", tls_key)];
    if let Some((name, _)) = files.iter().find(|(_, file)| file.is_some())
        && !place.is_some_and(|place| place.tls)
    {
        return refuse(name, "redis.url does not ask for TLS; it would begin with rediss");
    }
    if redis.scripting == ScriptingMode::Plain && clustered {
        return refuse("redis.mode", "a cluster needs server-side code");
    }
    match (tls_cert, tls_key) {
        (Some(_), None) => refuse("redis.tls_cert", "its key is missing (redis.tls_key)"),
        (None, Some(_)) => refuse("redis.tls_key", "its certificate is missing (redis.tls_cert)"),
        _ => Ok(()),
    }
}

/// Refuses what a program built without the dashboard would ignore: its token, and its place at the public addresses.
fn refuse_missing_dashboard(given: &GivenSettings, dashboard: &DashboardConfig) -> Result<(), ConfigError> {
    let used = [
        ("dashboard.public", dashboard.public),
        ("dashboard.token", dashboard.token.is_some()),
        ("dashboard.token_file", dashboard.token_file.is_some()),
    ];
    match used.into_iter().find(|(_, is_used)| *is_used) {
        Some((name, _)) => {
            let reason = "this program is built without the dashboard (cargo feature \"dashboard\")";
            Err(given.contradiction(name, reason.to_owned()))
        }
        None => Ok(()),
    }
}

/// What the settings of the operators' page contradict: each other, or that the program has no such page.
///
/// # Errors
/// [`ConfigError::Contradiction`].
pub(super) fn check_dashboard(
    given: &GivenSettings,
    dashboard: &DashboardConfig,
    is_built_in: bool,
) -> Result<(), ConfigError> {
    if !is_built_in {
        return refuse_missing_dashboard(given, dashboard);
    }
    match (&dashboard.token, &dashboard.token_file) {
        (Some(_), Some(_)) => {
            let reason = "dashboard.token is set too; give one of them".to_owned();
            Err(given.contradiction("dashboard.token_file", reason))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::sources;

    fn refusal_without_dashboard(name: &str, value: &str) -> Option<String> {
        let flags = vec![(name.to_owned(), value.to_owned(), "--set".to_owned())];
        let given = sources::collect(&ConfigInputs { flags, ..ConfigInputs::default() }).unwrap();
        let config = Config::read(&given).unwrap();
        refuse_missing_dashboard(&given, &config.dashboard).err().map(|error| error.to_string())
    }

    #[test]
    fn a_program_without_the_dashboard_refuses_its_settings() {
        let token = "0123456789abcdef";
        let used = [("public", "true"), ("token", token), ("token_file", "/etc/token")];
        for (name, value) in used {
            let name = format!("dashboard.{name}");
            let text = refusal_without_dashboard(&name, value).unwrap();
            assert!(text.contains(&name) && text.contains("built without the dashboard"), "{text}");
            assert!(!text.contains(token), "{text}");
        }
        assert_eq!(refusal_without_dashboard("dashboard.public", "false"), None);
    }
}
