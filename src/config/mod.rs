//! Configuration: flags over environment over file over defaults, checked before anything starts.
//!
//! Guarantees that every value is within its bounds and that an error names key, value, source and what is allowed.
//! It is the only room that reads the environment, and it builds nothing.

mod app_settings;
mod checks;
pub mod diff;
mod environment;
mod error;
mod inputs;
pub mod key_prefix;
pub mod limits;
pub mod lookup;
pub mod path;
pub mod redis_url;
pub mod setting;
pub mod settings;
mod sources;
pub mod text;
mod value;

use std::collections::BTreeMap;
use std::path::PathBuf;

pub use checks::check_readable;
pub use environment::injected_variables;
pub use error::{ConfigError, SettingOrigin};
pub use inputs::{ConfigFile, ConfigInputs, handoff_variable, process_environment, process_handoff};
use settings::Config;
pub use value::address::parse_network;
pub use value::basic::DURATION_MAX;
pub use value::bounds::RECONNECT_WAIT_MAX;

/// Reads every source and checks every value.
///
/// # Errors
/// The first mistake found; nothing has been started or bound by then.
pub fn load(inputs: &ConfigInputs) -> Result<Config, ConfigError> {
    let given = sources::collect(inputs)?;
    let config = Config::read(&given)?;
    checks::check_folder_variables(inputs, &given)?;
    checks::check_consistency(&given, &config)?;
    checks::check_dashboard(&given, &config.dashboard, cfg!(feature = "dashboard"))?;
    Ok(config)
}

/// The defaults, without a file, an environment or a policy: what a program without a fleet begins with.
///
/// # Errors
/// None that a test of the defaults would not have found.
pub fn defaults() -> Result<Config, ConfigError> {
    let config = Config::read(&sources::built_in())?;
    Ok(Config { limits: BTreeMap::new(), ..config })
}

/// Where the running fleet is found: the one setting that is needed to ask it.
///
/// A fleet must be stoppable although its configuration has become wrong, so nothing else is checked.
///
/// # Errors
/// When neither a flag nor the environment says it and the file cannot be read.
pub fn run_dir(inputs: &ConfigInputs) -> Result<PathBuf, ConfigError> {
    let name = environment::VariablePrefix::new(inputs).variable_name("run_dir");
    let flag = inputs.flags.iter().rev().find(|(path, ..)| path == "run_dir");
    let flag = flag.map(|(_, value, typed)| (value, SettingOrigin::Flag(typed.clone())));
    let variable = || {
        let value = inputs.environment.get(&name).filter(|_| !inputs.hermetic)?;
        Some((value, SettingOrigin::Environment(name.clone())))
    };
    let given = flag.or_else(variable).map(|(value, origin)| (value.trim(), origin));
    if let Some((value, origin)) = given.filter(|(value, _)| !value.is_empty()) {
        return path::folder(value, &inputs.folder).map_err(|reason| ConfigError::Value {
            key: "run_dir".into(),
            value: value.into(),
            origin,
            reason,
            allowed: "a folder",
        });
    }
    sources::collect_lenient(inputs)?.run_dir("run_dir")
}

/// Reads what a file with an operator's token holds.
///
/// # Errors
/// Why it is no token, in a sentence without it.
pub fn parse_dashboard_token(text: &str) -> Result<settings::Secret, String> {
    value::secret::dashboard_token(text)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::settings::WorkerCount;
    use super::*;

    fn with(env: &[(&str, &str)], file: Option<&str>) -> Result<Config, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("regatta.toml");
        if let Some(text) = file {
            std::fs::write(&path, text).unwrap();
        }
        let environment = env.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        load(&ConfigInputs {
            environment,
            file: file.map(|_| path),
            folder: folder.path().into(),
            ..ConfigInputs::default()
        })
    }

    fn message(env: &[(&str, &str)], file: Option<&str>) -> String {
        with(env, file).unwrap_err().to_string()
    }

    #[test]
    fn a_mistake_in_what_no_operator_can_change_names_the_program() {
        let overrides = vec![("workers.count".to_owned(), "0".to_owned())];
        let inputs = ConfigInputs { overrides, hermetic: true, ..ConfigInputs::default() };
        let message = load(&inputs).unwrap_err().to_string();
        assert!(message.contains("(from the program's Config::set_override)"), "{message}");
    }

    #[test]
    fn defaults_stand_alone() {
        let config = with(&[], None).unwrap();
        assert_eq!(config.listen, [settings::ListenAddress::Internet("0.0.0.0:3000".parse().unwrap())]);
        let default = config.limits["default"].kind;
        assert!(matches!(default, limits::LimitKind::Rate { burst: 2000, .. }));
        assert!(config.redis.url.is_none());
    }

    #[test]
    fn the_number_of_workers_moves_only_if_it_may() {
        let bounds = |text: &str, count| {
            with(&[], Some(&format!("[workers]\n{text}"))).unwrap().workers.autoscale.slot_bounds(count)
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
        assert_eq!(config.workers.count, WorkerCount::Fixed(5));
        assert_eq!(config.drain.grace, Duration::from_secs(1));
        let both = [("WEB_CONCURRENCY", "5"), ("REGATTA_WORKERS__COUNT", "7")];
        assert_eq!(with(&both, file).unwrap().workers.count, WorkerCount::Fixed(7));
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
    fn a_former_name_is_answered_with_the_present_one_and_where_it_was_found() {
        let moved = "`drain.leaving` (from";
        let text = message(&[], Some("[drain]\nleaving = 2"));
        assert!(text.starts_with(moved) && text.contains("regatta.toml"), "{text}");
        assert!(text.ends_with("is now `drain.max_draining_workers`"), "{text}");
        let text = message(&[("REGATTA_DRAIN__LEAVING", "2")], None);
        assert!(text.starts_with(moved) && text.contains("variable REGATTA_DRAIN__LEAVING"), "{text}");
        assert!(text.contains("REGATTA_DRAIN__MAX_DRAINING_WORKERS"), "{text}");
        let flags = vec![("drain.leaving".into(), "2".into(), "--set".into())];
        let text = load(&ConfigInputs { flags, ..ConfigInputs::default() }).unwrap_err().to_string();
        assert!(text.starts_with(moved) && text.contains("the flag --set"), "{text}");
        let text = message(&[], Some("[limits.api]\nrate = \"1/s\"\nlease = true"));
        assert!(text.contains("`limits.api.lease`") && text.contains("`limits.api.prefetch`"), "{text}");
        assert!(message(&[], Some("[workers]\nwindow = \"5s\"")).contains("`autoscale.window`"));
        let route = message(&[], Some("[limits.x]\nrate = \"1/s\"\nper = \"route\""));
        assert!(route.contains("per = \"global\" with routes"), "{route}");
        assert!(with(&[], Some("[limits.x]\nrate = \"1/s\"\non_redis_down = \"insured\"")).is_ok());
    }

    #[test]
    fn a_running_fleet_is_found_whatever_else_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("regatta.toml");
        std::fs::write(&file, "run_dir = \"/run/here\"\ncuont = 3\nlisten = \"nowhere\"").unwrap();
        let mut inputs = ConfigInputs { folder: folder.path().into(), ..ConfigInputs::default() };
        let found = |inputs: &ConfigInputs| run_dir(inputs).unwrap().display().to_string();
        assert_eq!(found(&inputs), "/run/here");
        std::fs::write(&file, "run_dir = [").unwrap();
        assert!(run_dir(&inputs).is_err());
        inputs.environment.insert("REGATTA_RUN_DIR".into(), "/run/there".into());
        assert_eq!(found(&inputs), "/run/there");
        inputs.flags.push(("run_dir".into(), "/run/flag".into(), "--run-dir".into()));
        assert_eq!(found(&inputs), "/run/flag");
    }

    #[test]
    fn a_folder_of_the_environment_that_is_no_text_is_reported_where_it_would_be_used() {
        let inputs = ConfigInputs { unreadable: vec!["XDG_RUNTIME_DIR".into()], ..ConfigInputs::default() };
        assert!(load(&inputs).unwrap_err().to_string().contains("XDG_RUNTIME_DIR"));
        let flags = vec![("run_dir".into(), "/run/here".into(), "--run-dir".into())];
        assert!(load(&ConfigInputs { flags, ..inputs }).is_ok());
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
        assert!(message(&[("REGATTA_AUTOSCALE__BUSY_MIN", "60%")], None).contains("autoscale.busy_max"));
        assert!(workers("memory_soft = \"2GiB\"\nmemory_hard = \"1GiB\"").contains("workers.memory_hard"));
    }
}
