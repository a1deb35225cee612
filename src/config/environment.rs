//! Which variables of the environment are settings, which a platform has put there, and which are mistakes. Pure.
//!
//! Kubernetes and Docker describe every service that a container may use in variables that begin with the service's
//! name. A service whose name begins with `regatta` must not keep the fleet from starting, and a mistake of an operator
//! must not pass for such a variable: both name and value have to be what these platforms write.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use crate::config::error::{ConfigError, SettingOrigin};
use crate::config::inputs::ConfigInputs;
use crate::config::lookup;

/// What variables of settings begin with in a program that says nothing else.
const STANDARD_PREFIX: &str = "REGATTA_";

/// The conventional variable of the public port.
const PORT: &str = "PORT";

/// Protocols of a service's ports, as these platforms write them.
const PROTOCOLS: [&str; 3] = ["tcp", "udp", "sctp"];

/// A variable that is a setting.
pub(super) struct SettingVariable {
    /// The setting's dotted path.
    pub(super) path: String,
    /// Its value.
    pub(super) value: String,
    /// The variable.
    pub(super) origin: SettingOrigin,
}

/// What every variable of a program begins with.
pub(super) struct VariablePrefix(Cow<'static, str>);

impl Default for VariablePrefix {
    fn default() -> Self {
        Self(Cow::Borrowed(STANDARD_PREFIX))
    }
}

impl VariablePrefix {
    /// The prefix that the program says, or the one of all others.
    pub(super) fn new(inputs: &ConfigInputs) -> Self {
        match &inputs.env_prefix {
            Some(own) => Self(Cow::Owned(format!("{own}_"))),
            None => Self::default(),
        }
    }

    /// Whether a variable is the program's.
    fn begins(&self, name: &str) -> bool {
        name.starts_with(&*self.0)
    }

    /// The same, in small letters too.
    fn resembles_start_of(&self, name: &str) -> bool {
        name.get(..self.0.len()).is_some_and(|start| start.eq_ignore_ascii_case(&self.0))
    }

    /// The setting that one of these variables stands for.
    fn setting_path(&self, name: &str) -> String {
        let rest = name.get(self.0.len()..).unwrap_or_default();
        rest.to_ascii_lowercase().replace("__", ".")
    }

    /// The variable of a setting.
    pub(super) fn variable_name(&self, path: &str) -> String {
        format!("{}{}", self.0, path.replace('.', "__").to_ascii_uppercase())
    }

    /// Whether a variable concerns us.
    fn is_ours(&self, name: &str) -> bool {
        let conventional = lookup::all().any(|setting| setting.variable == name && !name.is_empty());
        conventional || self.resembles_start_of(name)
    }

    /// The name that was meant by one that begins in small letters, if it would be a setting's.
    fn proper_name(&self, name: &str) -> Option<String> {
        let misspelt = self.resembles_start_of(name) && !self.begins(name);
        let path = misspelt.then(|| self.setting_path(name))?;
        lookup::lookup(&path).map(|_| self.variable_name(&path))
    }

    fn variable(&self, (name, value): (&str, &str)) -> SettingVariable {
        SettingVariable {
            path: self.setting_path(name),
            value: value.to_owned(),
            origin: SettingOrigin::Environment(name.to_owned()),
        }
    }

    /// Variables of the program, without those that a platform has put there.
    fn own_variables<'e>(&self, environment: &'e BTreeMap<String, String>) -> Vec<(&'e str, &'e str)> {
        let named = environment.iter().filter(|(name, _)| self.begins(name));
        let own = named.filter(|(name, value)| !self.is_injected(name, value, environment));
        own.map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }

    /// Two variables that differ in their letters' case only, with different values.
    fn find_duplicate<'e>(&self, own: &[(&'e str, &'e str)]) -> Option<[&'e str; 2]> {
        let mut seen: BTreeMap<String, (&str, &str)> = BTreeMap::new();
        own.iter().find_map(|(name, value)| match seen.insert(self.setting_path(name), (name, value)) {
            Some((other, before)) if before != *value => Some([other, *name]),
            _ => None,
        })
    }

    /// Whether Kubernetes (a Service) or Docker (a link) has written this.
    fn is_injected(&self, name: &str, value: &str, environment: &BTreeMap<String, String>) -> bool {
        let path = self.setting_path(name);
        if lookup::lookup(&path).is_some() || path.starts_with("app.") {
            return false;
        }
        looks_injected(name, value, environment)
    }
}

/// The settings in the environment, the weaker before the stronger.
///
/// # Errors
/// A variable that looks like a setting and cannot be read, or is misspelt in a way that would have no effect.
pub(super) fn settings(inputs: &ConfigInputs) -> Result<Vec<SettingVariable>, ConfigError> {
    let (environment, prefix) = (&inputs.environment, VariablePrefix::new(inputs));
    if let Some(name) = inputs.unreadable.iter().find(|name| prefix.is_ours(name)) {
        return Err(ConfigError::NotUtf8 { origin: SettingOrigin::Environment(name.clone()) });
    }
    if let Some((name, proper)) = environment.keys().find_map(|name| Some((name, prefix.proper_name(name)?)))
    {
        return Err(ConfigError::Unknown {
            key: name.clone(),
            origin: SettingOrigin::Environment(name.clone()),
            hint: Some(proper),
        });
    }
    let own = prefix.own_variables(environment);
    if let Some([one, other]) = prefix.find_duplicate(&own) {
        return Err(ConfigError::Duplicate {
            key: prefix.setting_path(one),
            origins: [one, other].map(|name| SettingOrigin::Environment(name.to_owned())),
        });
    }
    Ok(conventional(environment).chain(own.into_iter().map(|own| prefix.variable(own))).collect())
}

/// The same without what would be an error.
pub(super) fn lenient_settings(inputs: &ConfigInputs) -> Vec<SettingVariable> {
    let prefix = VariablePrefix::new(inputs);
    let own = prefix.own_variables(&inputs.environment);
    conventional(&inputs.environment).chain(own.into_iter().map(|own| prefix.variable(own))).collect()
}

/// Variables that begin as the program's do and that Kubernetes or Docker has put there.
pub fn injected_variables(inputs: &ConfigInputs) -> impl Iterator<Item = &str> {
    let (environment, prefix) = (&inputs.environment, VariablePrefix::new(inputs));
    let injected = environment
        .iter()
        .filter(move |(name, value)| prefix.begins(name) && prefix.is_injected(name, value, environment));
    injected.map(|(name, _)| name.as_str())
}

/// The conventional variables; the form with the prefix of the same setting wins. An empty one counts as unset, because
/// platforms set them all.
fn conventional(environment: &BTreeMap<String, String>) -> impl Iterator<Item = SettingVariable> {
    let named = lookup::all().filter(|setting| !setting.variable.is_empty());
    named.filter_map(|setting| {
        let given = environment.get(setting.variable)?.trim();
        let is_port = setting.variable == PORT && given.bytes().all(|byte| byte.is_ascii_digit());
        let value = if is_port { format!("0.0.0.0:{given}") } else { given.to_owned() };
        let origin = SettingOrigin::Environment(setting.variable.to_owned());
        (!given.is_empty()).then(|| SettingVariable { path: setting.path.to_owned(), value, origin })
    })
}

/// Whether Kubernetes (a Service) or Docker (a link) could have written this.
fn looks_injected(name: &str, value: &str, environment: &BTreeMap<String, String>) -> bool {
    let is_number = |text: &str| text.parse::<u16>().is_ok_and(|port| port > 0);
    if name.ends_with("_SERVICE_HOST") {
        return is_ip(value);
    }
    if let Some((_, port)) = name.split_once("_SERVICE_PORT") {
        return is_number(value) && (port.is_empty() || port.len() > 1 && port.starts_with('_'));
    }
    // Of a link only: what the other container had in its environment, whatever that is.
    if let Some((link, variable)) = name.split_once("_ENV_") {
        let named = environment.get(&format!("{link}_NAME"));
        return !variable.is_empty() && named.is_some_and(|value| is_link(value));
    }
    if name.ends_with("_NAME") {
        return is_link(value);
    }
    name.ends_with("_PORT") && is_url(value) || is_of_port(name, value)
}

/// `…_PORT_6379_TCP`, and what stands behind it.
fn is_of_port(name: &str, value: &str) -> bool {
    let mut rest = name;
    while let Some((_, behind)) = rest.split_once("_PORT_") {
        let mut parts = behind.splitn(3, '_');
        let (port, protocol, part) = (parts.next(), parts.next(), parts.next());
        let is_port = port.is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
        let is_protocol = |text: &str| PROTOCOLS.iter().any(|known| known.eq_ignore_ascii_case(text));
        if is_port && protocol.is_some_and(is_protocol) {
            return match part {
                None | Some("START" | "END") => is_url(value),
                Some("PROTO") => PROTOCOLS.contains(&value),
                Some("PORT" | "PORT_START" | "PORT_END") => value.parse::<u16>().is_ok(),
                Some("ADDR") => is_ip(value),
                Some(_) => false,
            };
        }
        rest = behind;
    }
    false
}

/// Such as `tcp://10.0.0.1:6379`: these platforms always write the address itself.
fn is_url(value: &str) -> bool {
    let address = PROTOCOLS.iter().find_map(|protocol| value.strip_prefix(protocol)?.strip_prefix("://"));
    let address = address.and_then(|address| address.parse::<SocketAddr>().ok());
    address.is_some_and(|address| !address.ip().is_unspecified() && address.port() > 0)
}

fn is_ip(value: &str) -> bool {
    value.parse::<IpAddr>().is_ok_and(|ip| !ip.is_unspecified())
}

/// Such as `/app/regatta-redis`: the two ends of a link.
fn is_link(value: &str) -> bool {
    let ends = value.strip_prefix('/').and_then(|value| value.split_once('/'));
    let is_name = |text: &str| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    ends.is_some_and(|(one, other)| is_name(one) && is_name(other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn inputs(pairs: &[(&str, &str)]) -> ConfigInputs {
        let environment = pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        ConfigInputs { environment, ..ConfigInputs::default() }
    }

    fn paths(pairs: &[(&str, &str)]) -> Vec<String> {
        let settings = settings(&inputs(pairs)).unwrap_or_else(|error| panic!("{error}"));
        settings.into_iter().map(|variable| variable.path).collect()
    }

    #[test]
    fn what_kubernetes_and_docker_inject_is_no_setting() {
        let injected_ones = [
            ("REGATTA_PORT", "tcp://10.0.0.1:80"),
            ("REGATTA_PORT_80_TCP", "tcp://10.0.0.1:80"),
            ("REGATTA_PORT_80_TCP_PROTO", "tcp"),
            ("REGATTA_PORT_80_TCP_PORT", "80"),
            ("REGATTA_PORT_80_TCP_ADDR", "10.0.0.1"),
            ("REGATTA_SERVICE_HOST", "10.0.0.1"),
            ("REGATTA_SERVICE_PORT", "80"),
            ("REGATTA_SERVICE_PORT_HTTP", "80"),
            ("REGATTA_REDIS_PORT", "tcp://10.96.0.7:6379"),
            ("REGATTA_REDIS_PORT_6379_TCP", "tcp://[fd00::7]:6379"),
            ("REGATTA_REDIS_PORT_6379_TCP_ADDR", "fd00::7"),
            ("REGATTA_REDIS_SERVICE_HOST", "fd00::7"),
            ("REGATTA_REDIS_SERVICE_PORT_REDIS", "6379"),
            ("REGATTA_DNS_PORT", "udp://10.96.0.7:53"),
            ("REGATTA_DNS_PORT_53_UDP_PROTO", "udp"),
            ("REGATTA_SIG_PORT_9_SCTP", "sctp://10.96.0.7:9"),
            ("REGATTA_PORT_80_PORT_80_TCP_PORT", "80"),
            ("REGATTA_DB_NAME", "/app/regatta-db"),
            ("REGATTA_DB_ENV_PASSWORD", "anything"),
            ("REGATTA_DB_PORT_80_TCP_START", "tcp://172.17.0.2:80"),
            ("REGATTA_DB_PORT_80_TCP_PORT_END", "90"),
        ];
        assert_eq!(paths(&injected_ones), [""; 0]);
        assert_eq!(
            injected_variables(&inputs(&injected_ones)).count(),
            injected_ones.len(),
            "they can be told"
        );
    }

    #[test]
    fn a_mistake_never_passes_for_an_injected_variable() {
        let mistakes = [
            ("REGATTA_PORT", "8080"),
            ("REGATTA_PORT", "tcp://0.0.0.0:80"),
            ("REGATTA_PORT", "tcp://regatta:80"),
            ("REGATTA_REDIS_PORT", "6379"),
            ("REGATTA_REDIS_PORT", "redis://10.0.0.1:6379"),
            ("REGATTA_REDIS_PORT", ""),
            ("REGATTA_REDIS_URL", "tcp://10.0.0.1:6379"),
            ("REGATTA_REDIS_SERVICE_HOST", "redis.internal"),
            ("REGATTA_SERVICE_PORT", "http"),
            ("REGATTA_SERVICE_PORTS", "80"),
            ("REGATTA_SERVICE_NAME", "shop"),
            ("REGATTA_PORT_80_TCP_PROTO", "http"),
            ("REGATTA_PORT_X_TCP", "tcp://10.0.0.1:80"),
            ("REGATTA_APP_ENV_MODE", "production"),
            ("REGATTA_WORKERS_COUNT", "4"),
            ("REGATTA__WORKERS__COUNT", "4"),
        ];
        for (name, value) in mistakes {
            assert_eq!(
                paths(&[(name, value)]),
                [VariablePrefix::default().setting_path(name)],
                "{name}={value}"
            );
        }
        // A link that is none: what would make it one is a setting's mistake itself.
        assert_eq!(paths(&[("REGATTA_A_NAME", "shop"), ("REGATTA_A_ENV_B", "c")]).len(), 2);
    }

    #[test]
    fn a_real_setting_is_never_taken_for_an_injected_variable() {
        assert_eq!(paths(&[("REGATTA_LIMITS__A_PORT__RATE", "tcp://10.0.0.1:1")]), ["limits.a_port.rate"]);
    }

    #[test]
    fn the_conventional_variables_come_first_and_may_be_empty() {
        let given = [("PORT", " 80\n"), ("REDIS_URL", ""), ("WEB_CONCURRENCY", "2"), ("REGATTA_LISTEN", "x")];
        let settings = settings(&inputs(&given)).unwrap();
        let found: Vec<_> = settings.iter().map(|one| (one.path.as_str(), one.value.as_str())).collect();
        assert_eq!(found, [("listen", "0.0.0.0:80"), ("workers.count", "2"), ("listen", "x")]);
    }

    #[test]
    fn a_name_in_small_letters_is_reported_if_it_would_be_a_setting() {
        for name in ["regatta_workers__count", "Regatta_Workers__Count", "regatta_WORKERS__COUNT"] {
            let error = settings(&inputs(&[(name, "4")])).err().unwrap().to_string();
            assert!(error.contains(name) && error.contains("REGATTA_WORKERS__COUNT?"), "{error}");
        }
        assert!(paths(&[("regatta_home", "/srv"), ("regatta_", "")]).is_empty(), "a shell's own variables");
        assert_eq!(paths(&[("REGATTA_workers__count", "4")]), ["workers.count"]);
        let twice = [("REGATTA_WORKERS__COUNT", "4"), ("REGATTA_workers__count", "5")];
        let error = settings(&inputs(&twice)).err().unwrap().to_string();
        assert!(twice.iter().all(|(name, _)| error.contains(name)), "{error}");
    }

    #[test]
    fn a_program_with_a_prefix_of_its_own_reads_and_names_its_own_variables() {
        let with = |pairs: &[(&str, &str)]| ConfigInputs { env_prefix: Some("SHOP".into()), ..inputs(pairs) };
        let others = ("REGATTA_WORKERS__COUNT", "many");
        let found = settings(&with(&[("SHOP_WORKERS__COUNT", "4"), others, ("regatta_workers__count", "4")]));
        let found: Vec<_> = found.unwrap().into_iter().map(|one| (one.path, one.value)).collect();
        assert_eq!(found, [("workers.count".to_owned(), "4".to_owned())]);
        let mistake = |pairs| config::load(&with(pairs)).unwrap_err().to_string();
        for (pairs, part) in [
            (&[("SHOP_WORKERS__COUNT", "many")], "variable SHOP_WORKERS__COUNT"),
            (&[("Shop_workers__count", "4")], "Shop_workers__count; did you mean SHOP_WORKERS__COUNT?"),
            (&[("SHOP_WORKERS__CUONT", "4")], "did you mean workers.count (SHOP_WORKERS__COUNT)?"),
            (&[("SHOP_DRAIN__LEAVING", "4")], "(SHOP_DRAIN__MAX_DRAINING_WORKERS)"),
        ] {
            let text = mistake(pairs);
            assert!(text.contains(part) && !text.contains("REGATTA"), "{text}");
        }
        let injected = with(&[("SHOP_SERVICE_HOST", "10.0.0.1"), ("REGATTA_SERVICE_HOST", "10.0.0.1")]);
        assert_eq!(injected_variables(&injected).collect::<Vec<_>>(), ["SHOP_SERVICE_HOST"]);
    }

    #[test]
    fn what_is_no_text_is_named_and_never_shown() {
        use std::ffi::OsString;
        use std::os::unix::ffi::OsStringExt;

        use crate::config::inputs::split;

        let raw = |text: &[u8]| OsString::from_vec(text.to_vec());
        let pairs: [(&[u8], &[u8], bool); 8] = [
            (b"REGATTA_SESSION__SECRETS", b"hunter22\xff", true),
            (b"REGATTA_\xff", b"hunter22", true),
            (b"regatta_x", b"hunter22\xff", true),
            (b"PORT", b"80\xff", true),
            (b"REDIS_URL", b"redis://:hunter22\xff@h", true),
            (b"WEB_CONCURRENCY", b"\xc3", true),
            (b"RUST_LOG", b"\xf0\x9f", true),
            (b"LS_COLORS", b"\xff", false),
        ];
        for (name, value, is_ours) in pairs {
            let (environment, unreadable) = split([(raw(name), raw(value))]);
            assert!(environment.is_empty() && unreadable.len() == 1);
            match settings(&ConfigInputs { unreadable, ..ConfigInputs::default() }) {
                Ok(settings) => assert!(!is_ours && settings.is_empty()),
                Err(error) => {
                    let message = error.to_string();
                    assert!(message.contains(&name.escape_ascii().to_string()) && is_ours, "{message}");
                    assert!(message.contains("UTF-8") && !message.contains("hunter"), "{message}");
                }
            }
        }
    }
}
