//! Configuration: flags over environment over file over defaults, checked before anything starts.
//!
//! Guarantees that every value is within its bounds and that an error names key, value, source and what is allowed.
//! It is the only room that reads the environment, and it builds nothing.

pub mod diff;
mod environment;
mod error;
mod inputs;
pub mod keys;
mod layers;
pub mod limit;
mod near;
mod parse;
pub mod path;
pub mod place;
pub(crate) mod prefix;
pub mod schema;
mod sections;
pub mod text;

use std::path::PathBuf;
use std::time::Duration;

pub use environment::injected;
pub use error::Error;
pub use error::Origin;
pub use inputs::Content;
pub use inputs::Inputs;
pub use inputs::environment_of_process;
pub use inputs::handoff_of_process;
pub use inputs::handoff_variable;
use layers::Layers;
use schema::Admin;
use schema::Config;
use schema::Count;
use schema::Log;
use schema::Proxy;
use schema::Workers;

/// Reads every source and checks every value.
///
/// # Errors
/// The first mistake found; nothing has been started or bound by then.
pub fn load(inputs: &Inputs) -> Result<Config, Error> {
    let layers = Layers::collect(inputs)?;
    let config = Config {
        listen: layers.list("listen", parse::addresses)?,
        steering: layers.one("listen.steering", parse::steering)?,
        balance: layers.one("listen.balance", parse::flag)?,
        advertise: layers.list("advertise", parse::advertised)?,
        heartbeat: layers.one("fleet.heartbeat", parse::heartbeat)?,
        admin: Admin {
            listen: layers.list("admin.listen", parse::addresses)?,
            hosts: layers.list("admin.hosts", parse::hosts)?,
        },
        workers: sections::workers(&layers)?,
        drain: sections::drain(&layers)?,
        redis: sections::redis(&layers)?,
        maxmemory: layers.one("redis.maxmemory", parse::maxmemory)?,
        session: sections::session(&layers)?,
        limits: layers
            .names("limits")
            .into_iter()
            .map(|name| limit::read(&layers, name))
            .collect::<Result<_, _>>()?,
        ipv6_prefix: layers.one("limits.ipv6_prefix", limit::ipv6_prefix)?,
        proxy: Proxy {
            trusted: layers.list("proxy.trusted", parse::networks)?,
            header: layers.one("proxy.header", parse::forward_header)?,
        },
        http: sections::http(&layers)?,
        idempotency: sections::idempotency(&layers)?,
        broadcast: sections::broadcast(&layers)?,
        websocket: sections::websocket(&layers)?,
        tasks: sections::tasks(&layers)?,
        dashboard: sections::dashboard(&layers)?,
        run_dir: layers.folder_at("run_dir")?.unwrap_or_else(|| inputs.default_run_dir()),
        data_dir: layers.folder_at("data_dir")?.unwrap_or_else(|| inputs.default_data_dir()),
        log: Log {
            format: layers.one("log.format", parse::log_format)?,
            level: layers.one("log.level", |text| Ok(text.to_owned()))?,
            file: layers.file_at("log.file")?,
            stats_interval: layers.one("log.stats_interval", parse::duration)?,
        },
    };
    folders_are_text(inputs, &layers)?;
    agree(&layers, &config)?;
    Ok(config)
}

/// Where the running fleet is found: the one setting that is needed to ask it.
///
/// A configuration that has become wrong must not keep anybody from stopping a fleet, so nothing else is checked.
///
/// # Errors
/// When neither a flag nor the environment says it and the file cannot be read.
pub fn run_dir(inputs: &Inputs) -> Result<PathBuf, Error> {
    const VARIABLE: &str = "REGATTA_RUN_DIR";
    let flag = inputs.flags.iter().rev().find(|(path, ..)| path == "run_dir");
    let flag = flag.map(|(_, value, typed)| (value, Origin::Flag(typed.clone())));
    let variable = || Some((inputs.environment.get(VARIABLE)?, Origin::Environment(VARIABLE.into())));
    let given = flag.or_else(variable).map(|(value, origin)| (value.trim(), origin));
    if let Some((value, origin)) = given.filter(|(value, _)| !value.is_empty()) {
        return path::folder(value, &inputs.folder).map_err(|reason| Error::Value {
            key: "run_dir".into(),
            value: value.into(),
            origin,
            reason,
            allowed: "a folder",
        });
    }
    let found = Layers::collect_known(inputs)?.folder_at("run_dir")?;
    Ok(found.unwrap_or_else(|| inputs.default_run_dir()))
}

/// Reads what a file with an operator's token holds.
///
/// # Errors
/// Why it is no token, in a sentence without it.
pub fn operators_token(text: &str) -> Result<schema::Secret, String> {
    parse::token(text)
}

/// That the variables which name folders where no setting does can be read.
fn folders_are_text(inputs: &Inputs, layers: &Layers) -> Result<(), Error> {
    let wanted = [("XDG_RUNTIME_DIR", "run_dir"), ("STATE_DIRECTORY", "data_dir")];
    let missing = wanted.into_iter().filter(|(_, setting)| !layers.has(setting));
    match missing.into_iter().find(|(name, _)| inputs.unreadable.iter().any(|known| known == name)) {
        Some((name, _)) => Err(Error::NotText { origin: Origin::Environment(name.to_owned()) }),
        None => Ok(()),
    }
}

/// What no single value can be blamed for.
fn agree(layers: &Layers, config: &Config) -> Result<(), Error> {
    let pairs =
        config.admin.listen.iter().flat_map(|admin| config.listen.iter().map(move |public| (admin, public)));
    let shared = pairs.into_iter().find(|(admin, public)| {
        let same_host =
            public.ip() == admin.ip() || public.ip().is_unspecified() || admin.ip().is_unspecified();
        admin.port() != 0 && public.port() == admin.port() && same_host
    });
    if let Some((_, public)) = shared {
        let reason = format!("listen has the same port ({public}); give the operators one of their own");
        return Err(layers.contradiction("admin.listen", reason));
    }
    workers_agree(layers, &config.workers)?;
    if config.session.idle > config.session.absolute {
        return Err(layers.contradiction("session.idle", "session.absolute is shorter".into()));
    }
    if config.session.idle < Duration::from_secs(1) {
        return Err(layers.contradiction("session.idle", "sessions live at least 1s".into()));
    }
    let unknown = config.websocket.policy.as_ref().filter(|policy| !config.limits.contains_key(*policy));
    if let Some(policy) = unknown {
        return Err(layers.contradiction("websocket.policy", format!("there is no policy limits.{policy}")));
    }
    if config.drain.grace + config.drain.idle > config.drain.timeout {
        return Err(
            layers.contradiction("drain.timeout", "drain.grace and drain.idle together are longer".into())
        );
    }
    Ok(())
}

fn workers_agree(layers: &Layers, workers: &Workers) -> Result<(), Error> {
    let Workers { count, scaling, recycling, hang_timeout, hang_kill, .. } = workers;
    if !hang_kill.is_zero() && hang_kill <= hang_timeout {
        return Err(layers.contradiction("workers.hang_kill", "workers.hang_timeout is not shorter".into()));
    }
    if let (Some(min), Some(max)) = (scaling.min, scaling.max)
        && min > max
    {
        return Err(layers.contradiction("workers.min", format!("workers.max is {max}")));
    }
    if let Count::Fixed(count) = *count
        && (scaling.min.is_some_and(|min| min > count) || scaling.max.is_some_and(|max| max < count))
    {
        let reason = "it must be from workers.min to workers.max".to_owned();
        return Err(layers.contradiction("workers.count", reason));
    }
    if scaling.busy_min >= scaling.busy_max {
        return Err(layers.contradiction("workers.busy_min", "workers.busy_max is not more".into()));
    }
    match (recycling.memory_soft, recycling.memory_hard) {
        (Some(soft), Some(hard)) if soft >= hard => {
            Err(layers.contradiction("workers.memory_soft", "workers.memory_hard is not more".into()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(env: &[(&str, &str)], file: Option<&str>) -> Result<Config, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("regatta.toml");
        if let Some(text) = file {
            std::fs::write(&path, text).unwrap();
        }
        let environment = env.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        load(&Inputs {
            environment,
            file: file.map(|_| path),
            folder: folder.path().into(),
            ..Inputs::default()
        })
    }

    fn message(env: &[(&str, &str)], file: Option<&str>) -> String {
        with(env, file).unwrap_err().to_string()
    }

    #[test]
    fn defaults_stand_alone() {
        let config = with(&[], None).unwrap();
        assert_eq!(config.listen, ["0.0.0.0:3000".parse().unwrap()]);
        let default = config.limits["default"].measure;
        assert!(matches!(default, limit::Measure::Rate { burst: 2000, .. }));
        assert!(config.redis.url.is_none());
    }

    #[test]
    fn the_number_of_workers_moves_only_if_it_may() {
        let bounds = |text: &str, count| {
            with(&[], Some(&format!("[workers]\n{text}"))).unwrap().workers.scaling.bounds(count)
        };
        assert_eq!(bounds("count = 2", 4), (4, 4, 4));
        assert_eq!(bounds("min = 2", 4), (2, 4, 4));
        assert_eq!(bounds("max = 8", 4), (4, 4, 8));
        assert_eq!(bounds("min = 2\nmax = 3", 16), (2, 3, 3));
        assert_eq!(bounds("max = 2", 16), (2, 2, 2));
        assert_eq!(bounds("min = 6", 4), (6, 6, 6));
    }

    #[test]
    fn flags_beat_environment_beats_file() {
        let file = Some("[workers]\ncount = 3\n[drain]\ngrace = \"1s\"");
        let config = with(&[("WEB_CONCURRENCY", "5")], file).unwrap();
        assert_eq!(config.workers.count, Count::Fixed(5));
        assert_eq!(config.drain.grace, Duration::from_secs(1));
        let both = [("WEB_CONCURRENCY", "5"), ("REGATTA_WORKERS__COUNT", "7")];
        assert_eq!(with(&both, file).unwrap().workers.count, Count::Fixed(7));
    }

    #[test]
    fn mistakes_name_key_value_source_and_what_is_allowed() {
        let text = message(&[("WEB_CONCURRENCY", "0")], None);
        for part in ["workers.count", "\"0\"", "WEB_CONCURRENCY", "1 to 1024"] {
            assert!(text.contains(part), "{text}");
        }
        let text = message(&[], Some("[workers]\ncuont = 3"));
        assert!(text.contains("workers.cuont") && text.contains("did you mean workers.count?"), "{text}");
        let text = message(&[("REGATTA_LIMITS__X__BURST", "3")], None);
        assert!(text.contains("limits.x.rate is missing"), "{text}");
        assert!(message(&[("REGATTA_SESSION__SECRETS", "short")], None).contains("5 bytes"));
        assert!(!message(&[("REGATTA_SESSION__SECRETS", "short")], None).contains("\"short\""));
        assert!(message(&[], Some("listen = [")).contains("regatta.toml"));
        assert!(message(&[], Some("workers = 3")).contains("workers"));
    }

    #[test]
    fn a_running_fleet_is_found_whatever_else_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("regatta.toml");
        std::fs::write(&file, "run_dir = \"/run/here\"\ncuont = 3\nlisten = \"nowhere\"").unwrap();
        let mut inputs = Inputs { folder: folder.path().into(), ..Inputs::default() };
        let found = |inputs: &Inputs| run_dir(inputs).unwrap().display().to_string();
        assert_eq!(found(&inputs), "/run/here");
        std::fs::write(&file, "run_dir = [").unwrap();
        assert!(run_dir(&inputs).is_err());
        inputs.environment.insert("REGATTA_RUN_DIR".into(), "/run/there".into());
        assert_eq!(found(&inputs), "/run/there");
        inputs.flags.push(("run_dir".into(), "/run/flag".into(), "--run-dir".into()));
        assert_eq!(found(&inputs), "/run/flag");
    }

    #[test]
    fn a_folder_of_the_environment_s_that_is_no_text_is_told_where_it_would_be_used() {
        let inputs = Inputs { unreadable: vec!["XDG_RUNTIME_DIR".into()], ..Inputs::default() };
        assert!(load(&inputs).unwrap_err().to_string().contains("XDG_RUNTIME_DIR"));
        let flags = vec![("run_dir".into(), "/run/here".into(), "--run-dir".into())];
        assert!(load(&Inputs { flags, ..inputs }).is_ok());
    }

    #[test]
    fn contradictions_are_named() {
        assert!(message(&[("PORT", "3001")], None).contains("admin.listen"));
        assert!(message(&[("REGATTA_SESSION__IDLE", "60d")], None).contains("session.absolute"));
        let redis = |text: &str| message(&[], Some(&format!("[redis]\n{text}")));
        assert!(redis("password_file = \"/p\"").contains("redis.url is not set"));
        assert!(redis("url = \"redis://:x@h\"\npassword_file = \"/p\"").contains("give one of them"));
        assert!(redis("url = \"redis://h\"\ntls_ca = \"/ca\"").contains("rediss"));
        assert!(redis("url = \"rediss://h\"\ntls_cert = \"/c\"").contains("redis.tls_key"));
        assert!(redis("url = \"rediss-cluster://h\"\ntls_key = \"/k\"").contains("redis.tls_cert"));
        let workers = |text: &str| message(&[], Some(&format!("[workers]\n{text}")));
        assert!(workers("min = 4\nmax = 2").contains("workers.max is 2"));
        assert!(workers("count = 8\nmax = 4").contains("workers.count is 8"));
        assert!(workers("busy_min = \"60%\"").contains("workers.busy_max"));
        assert!(workers("memory_soft = \"2GiB\"\nmemory_hard = \"1GiB\"").contains("workers.memory_hard"));
    }

    #[test]
    fn every_setting_is_documented_with_its_default() {
        let text = include_str!("../../docs/CONFIGURATION.md");
        for key in keys::KEYS {
            let row = text.lines().find(|line| line.starts_with(&format!("| `{}` |", key.path)));
            let row = row.unwrap_or_else(|| panic!("{} is not in docs/CONFIGURATION.md", key.path));
            assert!(row.contains(key.default), "{}: its default is {}", key.path, key.default);
        }
    }
}
