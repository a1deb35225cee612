//! Under which names a request with a key is found again. Pure.
//!
//! A client that repeats a request may look like another one by then: without a cookie it got one, it logged in or out,
//! its session got another id. Each request has a name *of its own*, under which its record is found from then on, and
//! looks under *weaker* ones, under which the same client may have sent it before; a record is found there only by the
//! same request. No name of its own is one that another client could come with: what a user sent is found by that user,
//! or with the very cookie it was sent with, and not by the session's earlier ids. And what is kept says for which names
//! it is (`Names::readers`), because a weaker name may lead to a record that a stronger client has claimed anew.
//!
//! An `Authorization` may be all of a site's clients' (Basic authentication before it). With a key that cannot be guessed
//! it is a name all the same; with one that several of them may use it counts together with the session, or else with the
//! address, where it is no name: a neighbour may send the same.

use crate::http::idempotency::key::sha256;
use crate::redis::keys;

/// A key of so many characters is taken for one that cannot be guessed, such as a UUID: it alone names a client of which
/// nothing else is known.
const UNGUESSABLE: usize = 22;

/// The client that sends a request, as far as a worker can tell.
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
    /// Nothing but a key that cannot be guessed.
    Anonymous,
    /// An `Authorization`, an address, and a key that another client with both may have as well.
    Shared,
    /// Nothing but an address and a key that another client there may have as well.
    Guessable,
}

impl Standing {
    /// Whether another client may come with all that this one is told by, so that neither is told what the other got.
    pub(super) fn is_ambiguous(self) -> bool {
        matches!(self, Self::Shared | Self::Guessable)
    }
}

/// A request's record and names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) standing: Standing,
    /// Key of the record it has if none is known under its names. For a session or an address it is the one that
    /// versions before names had: workers of both serve during a rolling deploy.
    pub(super) record: String,
    /// Keys of the names, its own first; none where the standing is ambiguous: the record is all there is.
    pub(super) keys: Vec<String>,
    /// How many of them are its own.
    pub(super) own: usize,
    /// What comes of the request is for clients that have one of these names: a record may be claimed anew by another
    /// client than the one that its names were made for, once it has expired or was given up.
    pub(super) readers: Vec<String>,
    /// Digest of the `Authorization`, if a session's name is one only together with it.
    pub(super) beside: Option<String>,
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
        let is_good = self.is_unguessable();
        let authorization = sender.authorization.map(|value| sha256(&[value]));
        let bearer =
            authorization.as_ref().filter(|_| is_good).map(|digest| self.name("authorization", digest));
        let beside = authorization.clone().filter(|_| !is_good);
        let sessions = |beside: Option<&str>| -> Vec<String> {
            session.into_iter().chain(later).map(|digest| self.session(digest, beside)).collect()
        };
        let (standing, mine, weaker) = match (sender.user, &bearer, &beside) {
            // A user may have sent it before the login, with the `Authorization` or without.
            (Some(user), _, _) => {
                let with = beside.as_deref().map_or_else(Vec::new, |digest| sessions(Some(digest)));
                let weaker = [sessions(None), with, bearer.into_iter().collect()].concat();
                (Standing::User, Some(self.name("user", user)), weaker)
            }
            (None, Some(name), _) => (Standing::Visitor, Some(name.clone()), sessions(None)),
            (None, None, beside) if session.is_some() => {
                (Standing::Visitor, None, sessions(beside.as_deref()))
            }
            (None, None, Some(_)) => (Standing::Shared, None, Vec::new()),
            (None, None, None) if is_good => (Standing::Anonymous, None, Vec::new()),
            (None, None, None) => (Standing::Guessable, None, Vec::new()),
        };
        let anonymous = is_good.then(|| self.name("anonymous", ""));
        let keys: Vec<String> = mine.into_iter().chain(weaker).chain(anonymous).collect();
        let own = keys.len().min(1);
        let readers = self.readers(sender, keys.first(), beside.as_deref());
        let record = self.record(sender, authorization.as_deref());
        Names { standing, record, own, keys, readers, beside }
    }

    /// What a user sent is theirs, and the very cookie's; what came with an `Authorization` is for nothing without it.
    fn readers(&self, sender: &Sender<'_>, own: Option<&String>, beside: Option<&str>) -> Vec<String> {
        let cookie = match (sender.user, sender.authorization, beside) {
            (Some(_), _, _) | (None, None, _) => sender.session.map(|digest| self.session(digest, None)),
            (None, Some(_), Some(_)) => sender.session.map(|digest| self.session(digest, beside)),
            (None, Some(_), None) => None,
        };
        let mut readers: Vec<String> = own.cloned().into_iter().chain(cookie).collect();
        readers.dedup();
        readers
    }

    fn record(&self, sender: &Sender<'_>, authorization: Option<&str>) -> String {
        let cookie_or_client = match sender.session {
            Some(digest) => format!("session {digest}"),
            None => format!("client {}", sender.client),
        };
        let whose = match authorization.filter(|_| sender.user.is_none()) {
            Some(digest) if self.is_unguessable() => format!("authorization {digest}"),
            Some(digest) => format!("authorization {digest} {cookie_or_client}"),
            None => cookie_or_client,
        };
        keys::idempotency(self.prefix, &sha256(&[whose.as_bytes(), self.key.as_bytes()]))
    }

    /// The name under which the cookie that a response came with finds its record, where `beside` counts together with
    /// it; `None`: it took the cookie away, and then it is found only by a key that cannot be guessed.
    pub(super) fn afterwards(&self, session: Option<&str>, beside: Option<&str>) -> Option<String> {
        match session {
            Some(digest) => Some(self.session(digest, beside)),
            None => self.is_unguessable().then(|| self.name("anonymous", "")),
        }
    }

    fn is_unguessable(&self) -> bool {
        self.key.len() >= UNGUESSABLE
    }

    fn session(&self, digest: &str, beside: Option<&str>) -> String {
        match beside {
            Some(authorization) => {
                self.name("session and authorization", &format!("{digest} {authorization}"))
            }
            None => self.name("session", digest),
        }
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
        let bearer_a = Sender { session: Some("a"), lineage: Some("a"), ..bearer };
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
                (bearer, bearer),
                (bearer_a, Sender { client: "192.0.2.2", ..bearer_a }),
                (bearer_a, Sender { session: Some("z"), ..bearer_a }),
                (bearer_a, Sender { authorization: Some(b"Bearer x"), ..B }),
            ] {
                assert!(meet(key, first, second), "{key}: {first:?} then {second:?}");
            }
        }
        for second in [A, B, bearer, Sender { client: "192.0.2.2", ..NOBODY }] {
            assert!(meet(LONG, NOBODY, second), "{second:?}");
        }
        for second in [Sender { session: Some("n"), ..bearer }, Sender { client: "192.0.2.2", ..bearer }] {
            assert!(meet(LONG, bearer, second) && !meet("1", bearer, second), "{second:?}");
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
                (one, Sender { authorization: None, ..one }),
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
    fn an_authorization_that_many_have_names_none_of_them_without_a_good_key() {
        let basic = Sender { authorization: Some(b"Basic x"), ..NOBODY };
        let (one, two) = (Sender { session: Some("a"), ..basic }, Sender { session: Some("b"), ..basic });
        for (first, second) in [(one, two), (one, basic), (basic, one)] {
            assert!(!meet("1", first, second) && meet(LONG, first, second));
        }
        // Two that nothing tells apart: what one got is for neither without the cookie that it came with.
        let found = names("1", basic);
        assert!(found.standing.is_ambiguous() && found.keys.is_empty() && found.readers.is_empty());
        let namer = Namer { prefix: "p", key: "1" };
        let afterwards = namer.afterwards(Some("a"), found.beside.as_deref()).unwrap();
        assert!(names("1", one).keys.contains(&afterwards));
        let user = Sender { user: Some("ann"), ..one };
        assert!(names("1", user).keys.contains(&afterwards), "it was a login");
        let other = Sender { authorization: Some(b"Basic y"), ..one };
        for second in [A, two, other] {
            assert!(!names("1", second).keys.contains(&afterwards), "{second:?}");
        }
        assert_eq!(names(LONG, basic).beside, None);
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
        assert_eq!(namer.afterwards(None, None), None);
        assert_eq!(namer.afterwards(Some("a"), None), Some(namer.session("a", None)));
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
                (None, None) if key == "1" && first.authorization.is_some()
                    && first.session.is_none() && second.session.is_none() => {
                    prop_assert_eq!(met, first.client == second.client);
                    prop_assert!(names(key, first).readers.is_empty());
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
