//! The names of sessions in Redis: made here and nowhere else.

use crate::redis::keys::{self, KeySpace};

/// A session's hash; `digest` is the hashed id, never the id itself.
pub fn session(prefix: &str, digest: &str) -> String {
    KeySpace::new(prefix).key(["s", digest])
}

/// The quarantined value of a session's key that was no session.
pub fn quarantine(prefix: &str, digest: &str) -> String {
    KeySpace::new(prefix).key(["q", digest])
}

/// The index of a user's sessions; `user` is a tag, never the name.
pub fn user_sessions(prefix: &str, user: &str) -> String {
    KeySpace::new(prefix).key(["u", user])
}

/// When everything of a user was last logged out.
pub fn user_generation(prefix: &str, user: &str) -> String {
    KeySpace::new(prefix).key(["g", user])
}

/// How many sessions one client may still create. It is stored beside sessions, because both change in one step.
pub fn new_session_limit(prefix: &str, client: &str) -> String {
    KeySpace::new(prefix).key(["n", client])
}

/// Mode plain: the window of a limit on new sessions, beside the limit's own key.
pub fn new_session_window(limit: &str) -> String {
    keys::beside(limit, ["w"])
}

/// The sessions that were active in a minute; all minutes are in one hash slot.
pub fn active_sessions(prefix: &str, minute: u64) -> String {
    KeySpace::new(prefix).key(["{seen}", "sessions", &minute.to_string()])
}

/// Mode plain: a session's views.
pub fn session_views(session: &str) -> String {
    keys::beside(session, ["v"])
}
