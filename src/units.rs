//! Units of JSON: moments are RFC 3339, durations are seconds, shares are ratios. In memory they are the whole numbers of
//! the scoreboard.

/// A moment: Unix milliseconds here, RFC 3339 with milliseconds in JSON.
pub mod rfc3339_ms {
    use std::borrow::Cow;
    use std::time::{Duration, UNIX_EPOCH};

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes it.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(unix_ms: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&crate::units::format_moment(*unix_ms))
    }

    /// Reads it.
    ///
    /// # Errors
    /// When it is no moment since 1970.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        let moment = humantime::parse_rfc3339(&text).map_err(D::Error::custom)?;
        let since: Duration = moment.duration_since(UNIX_EPOCH).map_err(D::Error::custom)?;
        u64::try_from(since.as_millis()).map_err(D::Error::custom)
    }
}

/// A moment that may be missing, as 0 or none: Unix milliseconds here, RFC 3339 in JSON.
pub mod optional_rfc3339_ms {
    use serde::{Serialize, Serializer};

    /// Writes it, or null.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(unix_ms: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
        unix_ms.filter(|ms| *ms > 0).map(crate::units::format_moment).serialize(serializer)
    }
}

/// Milliseconds here, seconds in JSON.
pub mod millis {
    use serde::{Serialize, Serializer};

    /// Writes it.
    ///
    /// # Errors
    /// The serializer's.
    #[allow(clippy::cast_precision_loss, reason = "numbers of this size are exact")]
    pub fn serialize<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        (*number as f64 / 1e3).serialize(serializer)
    }
}

/// Microseconds here, seconds in JSON.
pub mod micros {
    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes it.
    ///
    /// # Errors
    /// The serializer's.
    #[allow(clippy::cast_precision_loss, reason = "numbers of this size are exact")]
    pub fn serialize<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(*number as f64 / 1e6)
    }

    /// Reads it.
    ///
    /// # Errors
    /// When it is no number.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "what does not fit is a mistake of the writer, and becomes the nearest number"
    )]
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let scaled = f64::deserialize(deserializer)? * 1e6;
        Ok(((scaled * 1e6).round() / 1e6) as u64)
    }
}

/// A number, which may be missing, that is a `$per`th of its unit here and a fraction of the unit in JSON.
macro_rules! scaled {
    ($optional:ident, $number:ty, $per:literal, $doc:literal) => {
        #[doc = $doc]
        pub mod $optional {
            use serde::{Deserialize, Deserializer, Serialize, Serializer};

            /// Writes it, or null.
            ///
            /// # Errors
            /// The serializer's.
            #[allow(clippy::cast_precision_loss, reason = "numbers of this size are exact")]
            pub fn serialize<S: Serializer>(
                number: &Option<$number>,
                serializer: S,
            ) -> Result<S::Ok, S::Error> {
                number.map(|number| number as f64 / $per).serialize(serializer)
            }

            /// Reads it, or null.
            ///
            /// # Errors
            /// When it is neither.
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "what does not fit is a mistake of the writer, and becomes the nearest number"
            )]
            pub fn deserialize<'de, D: Deserializer<'de>>(
                deserializer: D,
            ) -> Result<Option<$number>, D::Error> {
                let scaled = Option::<f64>::deserialize(deserializer)?;
                Ok(scaled.map(|scaled| ((scaled * $per * 1e6).round() / 1e6) as $number))
            }
        }
    };
}

scaled!(optional_micros, u64, 1e6, "Microseconds here, seconds in JSON; may be missing.");
scaled!(optional_millis, u64, 1e3, "Milliseconds here, seconds in JSON; may be missing.");
scaled!(optional_percent, f64, 1e2, "Per cent here, a ratio from 0 to 1 in JSON; may be missing.");

/// Seconds, to a millisecond.
pub fn rounded_seconds(time: std::time::Duration) -> f64 {
    (time.as_secs_f64() * 1e3).round() / 1e3
}

/// The moment so many milliseconds after the beginning of 1970.
pub fn since_1970(unix_ms: u64) -> std::time::SystemTime {
    std::time::UNIX_EPOCH + std::time::Duration::from_millis(unix_ms)
}

/// RFC 3339 with milliseconds.
pub fn format_moment(unix_ms: u64) -> String {
    let moment = std::time::UNIX_EPOCH.checked_add(std::time::Duration::from_millis(unix_ms));
    humantime::format_rfc3339_millis(
        moment.filter(|_| unix_ms < YEAR_10000_MS).unwrap_or(std::time::UNIX_EPOCH),
    )
    .to_string()
}

/// The first moment that RFC 3339 cannot write, Unix milliseconds.
const YEAR_10000_MS: u64 = 253_402_300_800_000;

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Sample {
        #[serde(with = "super::rfc3339_ms")]
        at: u64,
        #[serde(with = "super::micros")]
        cpu: u64,
        #[serde(with = "super::optional_micros")]
        latency: Option<u64>,
        #[serde(with = "super::optional_millis")]
        age: Option<u64>,
        #[serde(with = "super::optional_percent")]
        busy: Option<f64>,
    }

    #[test]
    fn numbers_leave_in_base_units_and_come_back() {
        let sample =
            Sample { at: 1_700_000_000_123, cpu: 1_234_567, latency: Some(901), age: None, busy: Some(37.5) };
        let json = serde_json::to_string(&sample).unwrap();
        assert_eq!(
            json,
            r#"{"at":"2023-11-14T22:13:20.123Z","cpu":1.234567,"latency":0.000901,"age":null,"busy":0.375}"#
        );
        assert_eq!(serde_json::from_str::<Sample>(&json).unwrap(), sample);
        assert!(serde_json::from_str::<Sample>(&json.replace("2023", "soon")).is_err());
        assert_eq!(super::format_moment(u64::MAX), "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn a_moment_that_never_came_is_null() {
        #[derive(Serialize)]
        struct Moments(
            #[serde(serialize_with = "super::optional_rfc3339_ms::serialize")] Option<u64>,
            #[serde(serialize_with = "super::optional_rfc3339_ms::serialize")] Option<u64>,
            #[serde(serialize_with = "super::millis::serialize")] u64,
        );
        let json = serde_json::to_string(&Moments(None, Some(1_700_000_000_123), 1500)).unwrap();
        assert_eq!(json, r#"[null,"2023-11-14T22:13:20.123Z",1.5]"#);
    }
}
