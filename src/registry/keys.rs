//! The names of the registry in Redis: made here and nowhere else.

use crate::redis::keys::KeySpace;

/// The fleet's instances: a hash with one field for each supervisor, its latest report.
///
/// These two and [`crate::redis::keys::libraries_in_use`] are written in one step, so they share a hash tag.
pub fn instances(prefix: &str) -> String {
    KeySpace::new(prefix).key(["{fleet}", "machines"])
}

/// When each instance expires: a sorted set, by Redis's clock.
pub fn instance_deadlines(prefix: &str) -> String {
    KeySpace::new(prefix).key(["{fleet}", "deaths"])
}
