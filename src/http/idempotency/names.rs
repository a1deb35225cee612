//! Under which names a request with a key is found again. Pure.
//!
//! A client that repeats a request may have become somebody else meanwhile: without a cookie it got one, it logged in or
//! out, its session got another id. Each request has names *of its own*, which lead whoever comes with one of them to its
//! record, and looks under *weaker* ones, under which the same client may have sent it before; a record is found there
//! only by the same request. Nothing stands under a name that somebody else could come with: what a user sent is found
//! by that user, or with the very cookie it was sent with, and not by the session's earlier ids.

use crate::http::idempotency::key::sha256;
use crate::redis::keys;

/// A key of so many characters is taken for one that nobody guesses, such as a UUID: of a client that nothing else is
/// known of, it alone is the name.
const UNGUESSABLE: usize = 22;

/// Who sends a request, as far as a worker can tell.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sender<'a> {
    /// Tag of the user who is logged in.
    pub(super) user: Option<&'a str>,
    /// The value of `Authorization`, which the application judges.
    pub(super) authorization: Option<&'a [u8]>,
    /// Hashed id of the cookie's session, whether it lives or not.
    pub(super) session: Option<&'a str>,
    /// The session's first hashed id, if it is another.
    pub(super) lineage: Option<&'a str>,
    /// The client, as limits know it.
    pub(super) client: &'a str,
}

/// What a sender's request is told by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// A user who is logged in.
    User,
    /// A session or an `Authorization`, of which strangers may have any number.
    Visitor,
    /// Nothing but a key that nobody guesses.
    Anonymous,
    /// Nothing but an address and a key that somebody else there may have as well.
    Guessable,
}

/// A request's record and names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) standing: Standing,
    /// Key of the record it has if none is known under its names. For a session or an address it is the one that
    /// versions before names had: workers of both serve during a rolling deploy.
    pub(super) record: String,
    /// Keys of the names, its own first; none for a guessable one, whose record is all there is.
    pub(super) keys: Vec<String>,
    /// How many of them are its own.
    pub(super) own: usize,
}

/// Names for one key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Namer<'a> {
    pub(super) prefix: &'a str,
    pub(super) key: &'a str,
}

impl Namer<'_> {
    /// The names of a request of this sender.
    pub(super) fn of(&self, sender: &Sender<'_>) -> Names {
        let session = sender.session.map(|digest| sender.lineage.unwrap_or(digest));
        let later = sender.session.filter(|digest| Some(*digest) != session);
        let sessions = session.into_iter().chain(later).map(|digest| self.session(digest));
        let authorization = sender.authorization.map(|value| sha256(&[value]));
        let authorized = authorization.as_ref().map(|digest| self.name("authorization", digest));
        let anonymous = self.is_unguessable().then(|| self.name("anonymous", ""));
        // Many clients of a site may share an `Authorization`: under another name it is looked at only with a good key.
        let bearer = authorized.clone().filter(|_| self.is_unguessable());
        let (standing, mine, weaker): (_, _, Vec<String>) = match (sender.user, authorized) {
            (Some(user), _) => {
                (Standing::User, Some(self.name("user", user)), sessions.chain(bearer).collect())
            }
            (None, Some(name)) if self.is_unguessable() => {
                (Standing::Visitor, Some(name), sessions.collect())
            }
            (None, Some(name)) => (Standing::Visitor, Some(name), Vec::new()),
            (None, None) if session.is_some() => (Standing::Visitor, None, sessions.collect()),
            (None, None) if anonymous.is_some() => (Standing::Anonymous, None, Vec::new()),
            (None, None) => (Standing::Guessable, None, Vec::new()),
        };
        let keys: Vec<String> = mine.into_iter().chain(weaker).chain(anonymous).collect();
        let whose = match (sender.user, authorization, sender.session) {
            (None, Some(digest), _) => format!("authorization {digest}"),
            (_, _, Some(digest)) => format!("session {digest}"),
            (_, _, None) => format!("client {}", sender.client),
        };
        let record = keys::idempotency(self.prefix, &sha256(&[whose.as_bytes(), self.key.as_bytes()]));
        Names { standing, record, own: keys.len().min(1), keys }
    }

    /// The name under which the cookie that a response came with finds its record; `None`: it took the cookie away, and
    /// then it is found only by a key that nobody guesses.
    pub(super) fn afterwards(&self, session: Option<&str>) -> Option<String> {
        match session {
            Some(digest) => Some(self.session(digest)),
            None => self.is_unguessable().then(|| self.name("anonymous", "")),
        }
    }

    fn is_unguessable(&self) -> bool {
        self.key.len() >= UNGUESSABLE
    }

    fn session(&self, digest: &str) -> String {
        self.name("session", digest)
    }

    fn name(&self, kind: &str, whose: &str) -> String {
        let key = sha256(&[self.key.as_bytes()]);
        let digest = sha256(&[kind.as_bytes(), whose.as_bytes()]);
        keys::idempotency_name(self.prefix, &key[..32], &digest[..32])
    }
}

#[cfg(test)]
mod tests {
    use proptest::option;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    const LONG: &str = "8e03978e-40d5-43e8-bc93-6894a57f9324";

    fn names(key: &str, sender: Sender<'_>) -> Names {
        Namer { prefix: "p", key }.of(&sender)
    }

    /// Whether a request of the second sender finds the record of the same request of the first, and the other way on.
    fn meet(key: &str, first: Sender<'_>, second: Sender<'_>) -> bool {
        let (one, two) = (names(key, first), names(key, second));
        one.record == two.record || two.keys.iter().any(|name| one.keys[..one.own].contains(name))
    }

    const NOBODY: Sender<'_> =
        Sender { user: None, authorization: None, session: None, lineage: None, client: "192.0.2.1" };
    const A: Sender<'_> = Sender { session: Some("a"), ..NOBODY };
    /// `A` after a login, and after one more id.
    const B: Sender<'_> = Sender { user: Some("ann"), session: Some("b"), lineage: Some("a"), ..NOBODY };
    const C: Sender<'_> = Sender { user: Some("ann"), session: Some("c"), lineage: Some("a"), ..NOBODY };

    #[test]
    fn a_repetition_is_found_whatever_its_client_has_become() {
        let rotated = Sender { session: Some("z"), lineage: Some("a"), ..NOBODY };
        // The session of an id that was replaced is not read any more, so nothing is known but the id.
        let forgotten = Sender { session: Some("z"), ..NOBODY };
        let other_device = Sender { user: Some("ann"), session: Some("q"), ..NOBODY };
        let bearer = Sender { authorization: Some(b"Bearer x"), ..NOBODY };
        for key in ["1", LONG] {
            for (first, second) in [
                (A, A),
                (A, B),
                (A, C),
                (A, rotated),
                (rotated, A),
                (rotated, forgotten),
                (rotated, B),
                (B, B),
                (B, C),
                (B, Sender { user: None, lineage: None, ..B }),
                (B, other_device),
                (NOBODY, NOBODY),
                (bearer, Sender { session: Some("n"), ..bearer }),
                (bearer, Sender { client: "192.0.2.2", ..bearer }),
            ] {
                assert!(meet(key, first, second), "{key}: {first:?} then {second:?}");
            }
        }
        for second in [A, B, bearer, Sender { client: "192.0.2.2", ..NOBODY }] {
            assert!(meet(LONG, NOBODY, second), "{second:?}");
        }
    }

    #[test]
    fn nobody_finds_what_somebody_else_sent() {
        let bob = Sender { user: Some("bob"), session: Some("d"), lineage: Some("a"), ..NOBODY };
        let one = Sender { authorization: Some(b"Bearer one"), session: Some("jar"), ..NOBODY };
        let two = Sender { authorization: Some(b"Bearer two"), ..one };
        for key in ["1", LONG] {
            for (first, second) in [
                // An id from before the login finds nothing of what its user did later.
                (B, A),
                (C, A),
                (B, bob),
                (bob, B),
                (A, Sender { session: Some("other"), ..NOBODY }),
                (one, two),
                (A, NOBODY),
                (B, NOBODY),
                (one, NOBODY),
            ] {
                assert!(!meet(key, first, second), "{key}: {first:?} then {second:?}");
            }
        }
        let elsewhere = Sender { client: "192.0.2.2", ..NOBODY };
        assert!(!meet("1", NOBODY, elsewhere) && !meet("1", NOBODY, A));
        assert_eq!(names("1", NOBODY).standing, Standing::Guessable);
        assert_eq!(names(&"x".repeat(21), NOBODY).standing, Standing::Guessable);
        assert_eq!(names(&"x".repeat(22), NOBODY).standing, Standing::Anonymous);
    }

    #[test]
    fn all_names_of_a_key_lie_in_one_slot_and_no_key_has_anothers() {
        let found = names(LONG, Sender { authorization: Some(b"x"), ..C });
        assert_eq!((found.keys.len(), found.own), (5, 1), "user, lineage, id, authorization, anonymous");
        let tag = |name: &String| name[name.find('{').unwrap()..=name.find('}').unwrap()].to_owned();
        assert!(found.keys.iter().all(|name| tag(name) == tag(&found.keys[0])));
        let other = names("another key that nobody guesses", C);
        assert!(other.keys.iter().all(|name| !found.keys.contains(name)) && other.record != found.record);
        assert_eq!(names("1", NOBODY).keys, Vec::<String>::new());
        let namer = Namer { prefix: "p", key: "1" };
        assert_eq!((namer.afterwards(None), namer.afterwards(Some("a"))), (None, Some(namer.session("a"))));
    }

    fn senders() -> impl Strategy<Value = Sender<'static>> {
        let session = option::of(select(vec!["a", "b", "c"]));
        let more = (option::of(select(vec!["a", "b"])), option::of(select(vec!["ann", "bob"])));
        let authorization = option::of(select(vec![&b"one"[..], b"two"]));
        let client = select(vec!["192.0.2.1", "192.0.2.2"]);
        (session, more, authorization, client).prop_map(
            |(session, (lineage, user), authorization, client)| {
                let (lineage, user) = (session.and(lineage), session.and(user));
                Sender { user, authorization, session, lineage, client }
            },
        )
    }

    proptest! {
        #[test]
        fn whoever_is_somebody_else_finds_nothing(
            first in senders(),
            second in senders(),
            key in select(vec!["1", LONG]),
        ) {
            prop_assert!(meet(key, first, first));
            let met = meet(key, first, second);
            let same_cookie = first.session.is_some() && first.session == second.session;
            match (first.user, second.user) {
                // A cookie names one user, so the same cookie with another is no case.
                (Some(one), Some(other)) if one != other && !same_cookie => prop_assert!(!met),
                (Some(_), None) if !same_cookie => prop_assert!(!met),
                (None, None) if first.authorization != second.authorization && first.authorization.is_some() => {
                    prop_assert!(!met);
                }
                (None, None) if key == "1" && first.session.is_none() && second.session.is_none()
                    && first.authorization.is_none() && second.authorization.is_none() => {
                    prop_assert_eq!(met, first.client == second.client);
                }
                _ => {}
            }
        }

        /// The records of sessions and addresses are those of versions before names.
        #[test]
        fn workers_of_an_older_release_know_the_same_record(sender in senders(), key in select(vec!["1", LONG])) {
            let whose = match sender.session {
                Some(digest) => format!("session {digest}"),
                None => format!("client {}", sender.client),
            };
            let older = keys::idempotency("p", &sha256(&[whose.as_bytes(), key.as_bytes()]));
            let is_bearer = sender.user.is_none() && sender.authorization.is_some();
            prop_assert_eq!(names(key, sender).record == older, !is_bearer);
        }
    }
}
