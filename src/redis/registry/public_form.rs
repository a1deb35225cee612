//! Records of instances as programs read them: base units, and the names of the status document.
//!
//! The stored form keeps the names that instances of earlier releases read and write. A field that is not listed here
//! leaves as it is stored.

use serde_json::{Map, Value};

use crate::units;

/// How a stored value becomes a public one.
#[derive(Clone, Copy)]
enum Conversion {
    /// Only its name is another one.
    Same,
    /// So many of its unit are one of the base unit.
    Per(f64),
    /// Unix milliseconds, as RFC 3339.
    Moment,
}

/// Stored name, public name, conversion.
const RENAMED: [(&str, &str, Conversion); 8] = [
    ("started_ms", "started_at", Conversion::Moment),
    ("age_ms", "heartbeat_age_seconds", Conversion::Per(1e3)),
    ("latency_p99_us", "latency_p99_seconds", Conversion::Per(1e6)),
    ("busy_percent", "busy_ratio", Conversion::Per(1e2)),
    ("requests_per_s", "requests_per_second", Conversion::Same),
    ("limited", "rate_limited", Conversion::Same),
    ("ends", "exits", Conversion::Same),
    ("redis_held_back", "redis_degraded", Conversion::Same),
];

/// The public form of a stored record, and of what is in it.
pub(super) fn from_stored(stored: Value) -> Value {
    match stored {
        Value::Object(fields) => Value::Object(fields.into_iter().map(convert).collect::<Map<_, _>>()),
        Value::Array(items) => Value::Array(items.into_iter().map(from_stored).collect()),
        other => other,
    }
}

fn convert((name, value): (String, Value)) -> (String, Value) {
    let Some((_, public, conversion)) = RENAMED.iter().find(|(stored, ..)| *stored == name) else {
        return (name, from_stored(value));
    };
    let value = match (conversion, value.as_f64(), value.as_u64()) {
        (Conversion::Per(parts), Some(number), _) => Value::from(number / parts),
        (Conversion::Moment, _, Some(unix_ms)) => Value::from(units::format_moment(unix_ms)),
        _ => value,
    };
    ((*public).to_owned(), value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_leave_in_base_units_under_their_public_names() {
        let figures =
            json!({"requests_per_s": 2.5, "latency_p99_us": 1500, "busy_percent": 50.0, "limited": 3});
        let slot = json!({"slot": 0, "figures": {"latency_p99_us": null, "ends": {"signal": 1}, "redis_held_back": true}});
        let stored = json!({"age_ms": 1500, "started_ms": 1000, "figures": figures, "slots": [slot]});
        let figures = json!({"requests_per_second": 2.5, "latency_p99_seconds": 0.0015, "busy_ratio": 0.5, "rate_limited": 3});
        let slot = json!({"slot": 0, "figures": {"latency_p99_seconds": null, "exits": {"signal": 1}, "redis_degraded": true}});
        let started = "1970-01-01T00:00:01.000Z";
        let expected =
            json!({"heartbeat_age_seconds": 1.5, "started_at": started, "figures": figures, "slots": [slot]});
        assert_eq!(from_stored(stored), expected);
    }
}
