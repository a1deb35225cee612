//! Which setting was probably meant by a name that is none.

use crate::config::setting_info::{SETTINGS, SettingInfo};

/// The known path that looks most like a mistyped one, if any is close.
pub(super) fn suggestion(path: &str) -> Option<String> {
    let flat = |path: &str| path.replace('.', "_");
    let known = |key: &&SettingInfo| flat(key.path) == flat(path);
    let meant = USUAL.iter().find(|(usual, _)| *usual == path).map(|(_, known)| (*known).to_owned());
    let meant = meant.or_else(|| SETTINGS.iter().find(known).map(|key| key.path.to_owned()));
    meant.or_else(|| SETTINGS.iter().find_map(|key| with_name(key.path, &flat(path)))).or_else(|| {
        let distances = SETTINGS.iter().map(|key| (distance(key.path, path), key.path));
        let near = distances.min().filter(|(far, known)| *far <= 1 + known.len() / 4);
        near.map(|(_, known)| known.to_owned())
    })
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
            ("completely.else", ""),
        ] {
            assert_eq!(near(path), meant, "{path}");
        }
    }
}
