//! Settings by name: the present names, former ones, and what was probably meant by a name that is none.

use std::collections::BTreeMap;

use crate::config::setting::SettingInfo;
use crate::config::settings::TABLE;

/// Every setting there is; an unknown name is an error.
pub fn all() -> impl Iterator<Item = &'static SettingInfo> {
    TABLE.iter().flat_map(|rows| rows.iter()).filter(|setting| !setting.path.is_empty())
}

/// The same in the order of the reference: section by section.
pub fn by_section() -> Vec<&'static SettingInfo> {
    let section = |setting: &SettingInfo| setting.path.split('.').next().unwrap_or_default();
    let mut ranks = BTreeMap::new();
    for setting in all() {
        let rank = ranks.len();
        ranks.entry(section(setting)).or_insert(rank);
    }
    let mut settings: Vec<_> = all().collect();
    settings.sort_by_key(|setting| ranks.get(section(setting)));
    settings
}

/// The entry for a dotted path, matching `*` against one part.
pub fn lookup(path: &str) -> Option<&'static SettingInfo> {
    all().find(|setting| matches(setting.path, path))
}

/// The present name of a setting that had this one.
pub(super) fn present_name(path: &str) -> Option<String> {
    let former = |setting: &'static SettingInfo| {
        let former = setting.formerly.iter().find(|former| matches(former, path))?;
        // The part of the path that the operator chose is the same in both names.
        let chosen = former.split('.').zip(path.split('.')).find(|(part, _)| *part == "*");
        Some(chosen.map_or(setting.path.to_owned(), |(_, chosen)| setting.path.replacen('*', chosen, 1)))
    };
    all().find_map(former)
}

/// Settings that there were, and what to do without them.
const REMOVED: &[(&str, &str)] = &[(
    "redis.commit_timeout",
    "calls have no deadline of their own: redis.silence_timeout says when a silent connection is given up, and \
     redis.patience how long requests wait for Redis",
)];

/// What replaces a setting that there was; `None` if there never was one of this name.
pub(super) fn removal_hint(path: &str) -> Option<&'static str> {
    REMOVED.iter().find(|(known, _)| *known == path).map(|(_, instead)| *instead)
}

fn matches(pattern: &str, path: &str) -> bool {
    let mut expected = pattern.split('.');
    let mut given = path.split('.');
    loop {
        match (expected.next(), given.next()) {
            (None, None) => return true,
            (Some("*"), Some(name)) if !name.is_empty() => {}
            (Some(part), Some(name)) if part == name => {}
            _ => return false,
        }
    }
}

/// The known path that looks most like a mistyped one, if any is close.
pub(super) fn suggestion(path: &str) -> Option<String> {
    let flat = |path: &str| path.replace('.', "_");
    let known = |key: &&SettingInfo| flat(key.path) == flat(path);
    let meant = USUAL.iter().find(|(usual, _)| *usual == path).map(|(_, known)| (*known).to_owned());
    let meant = meant.or_else(|| all().find(known).map(|key| key.path.to_owned()));
    meant.or_else(|| all().find_map(|key| with_name(key.path, &flat(path)))).or_else(|| {
        let distances = all().map(|key| {
            let known = with_chosen_part(key.path, path);
            (distance(&known, path), key.path.len(), known)
        });
        let near = distances.min().filter(|(far, length, _)| *far <= 1 + length / 4);
        near.map(|(_, _, known)| known)
    })
}

/// The pattern with the part that the operator chose, if the path has as many parts; else as it stands.
fn with_chosen_part(pattern: &str, path: &str) -> String {
    let (parts, given): (Vec<_>, Vec<_>) = (pattern.split('.').collect(), path.split('.').collect());
    match parts.iter().position(|part| *part == "*") {
        Some(chosen) if parts.len() == given.len() => pattern.replacen('*', given[chosen], 1),
        _ => pattern.to_owned(),
    }
}

/// What others call it.
const USUAL: &[(&str, &str)] = &[
    ("host", "listen"),
    ("port", "listen"),
    ("listen_port", "listen"),
    ("redis_host", "redis.url"),
    ("redis_port", "redis.url"),
    ("redis_password", "redis.password_file"),
    ("workers", "workers.count"),
];

/// The path with a name of the operator's choice, if one underscore stands in it for every dot.
fn with_name(pattern: &str, flat: &str) -> Option<String> {
    let (before, after) = pattern.split_once(".*.")?;
    let name = flat.strip_prefix(before)?.strip_prefix('_')?.strip_suffix(after)?.strip_suffix('_')?;
    (!name.is_empty()).then(|| format!("{before}.{name}.{after}"))
}

/// Levenshtein's edit distance, one row at a time.
fn distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in right.bytes().enumerate() {
            let substituted = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_limits_are_free() {
        assert!(lookup("limits.login.rate").is_some());
        assert!(lookup("limits.rate").is_none());
        assert!(lookup("workers.count.x").is_none());
    }

    #[test]
    fn a_name_is_one_settings_and_a_former_name_is_none() {
        let mut names: Vec<_> = all().map(|setting| setting.path).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
        for (setting, former) in all().flat_map(|one| one.formerly.iter().map(move |former| (one, former))) {
            assert!(lookup(former).is_none(), "{former}");
            let present = setting.path.replacen('*', "x", 1);
            assert_eq!(present_name(&former.replacen('*', "x", 1)), Some(present));
        }
    }

    #[test]
    fn a_slip_is_recognised_and_nonsense_is_not() {
        let near = |path: &str| suggestion(path).unwrap_or_default();
        for (path, meant) in [
            ("workers.cuont", "workers.count"),
            ("workers_count", "workers.count"),
            ("_workers.count", "workers.count"),
            ("redis_url", "redis.url"),
            ("redis_silence_timeout", "redis.silence_timeout"),
            ("limits_default_rate", "limits.default.rate"),
            ("limits_my_api_on_redis_down", "limits.my_api.on_redis_down"),
            ("port", "listen"),
            ("limit.default.rate", "limits.default.rate"),
            ("limits.my_api.bursts", "limits.my_api.burst"),
            ("completely.else", ""),
            ("entirely.my_long_name.different", ""),
        ] {
            assert_eq!(near(path), meant, "{path}");
        }
    }
}
