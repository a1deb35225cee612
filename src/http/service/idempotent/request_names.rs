//! Under which names a request with a key is found again. Pure.
//!
//! A client that repeats a request may look like another one by then: without a cookie it got one, it logged in or out,
//! its session got another id. Each request has a name *of its own*, under which its record is found from then on, and
//! looks under *weaker* ones, under which the same client may have sent it before; a record is found there only by the
//! same request. No name of its own is one that another client could come with: what a user sent is found by that user,
//! or with the very cookie it was sent with, and not by the session's earlier ids. And a stored response lists the names
//! that it is for (`RequestNames::readers`), because a weaker name may lead to a record that a stronger client has claimed anew.
//!
//! An `Authorization` may be all of a site's clients' (Basic authentication before it). With a key that cannot be guessed
//! it is a name all the same; with a key that several of them may use it counts together with the session, or else with
//! the address, where it is no name: another client at that address may send the same.

use crate::digest::sha256_of_parts;
use crate::idempotency::keys;

/// A key of so many characters is taken for one that cannot be guessed, such as a UUID: it alone names a client of which
/// nothing else is known.
const UNGUESSABLE_KEY_LENGTH: usize = 22;

/// The client that sends a request, as far as a worker can tell.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct SenderIdentity<'a> {
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

/// How a sender is identified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SenderIdentification {
    /// A user who is logged in.
    User,
    /// A session or an `Authorization`, of which a client may have any number.
    Visitor,
    /// Nothing but a key that cannot be guessed.
    Anonymous,
    /// An `Authorization`, an address, and a key that another client with both may have as well.
    Shared,
    /// Nothing but an address and a key that another client there may have as well.
    Guessable,
}

impl SenderIdentification {
    /// Whether another client may send the same identification, so that neither may get the other's response.
    pub(super) fn is_ambiguous(self) -> bool {
        matches!(self, Self::Shared | Self::Guessable)
    }
}

/// A request's record and names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RequestNames {
    pub(super) identification: SenderIdentification,
    /// Key of the record it has if none is known under its names. For a session or an address it is the one that
    /// versions before names had: workers of both serve during a rolling deploy.
    pub(super) record: String,
    /// Keys of the names, its own first; none where the standing is ambiguous: the record is all there is.
    pub(super) keys: Vec<String>,
    /// How many of them are its own.
    pub(super) own_count: usize,
    /// What comes of the request is for clients that have one of these names: a record may be claimed anew by another
    /// client than the one that its names were made for, once it has expired or was given up.
    pub(super) readers: Vec<String>,
    /// Digest of the `Authorization`, if a session's name is one only together with it.
    pub(super) bound_authorization: Option<String>,
}

/// Names for one key.
#[derive(Debug, Clone, Copy)]
pub(super) struct RequestNamer<'a> {
    pub(super) prefix: &'a str,
    pub(super) key: &'a str,
}

impl RequestNamer<'_> {
    /// The names of a request of this sender.
    pub(super) fn for_sender(&self, sender: &SenderIdentity<'_>) -> RequestNames {
        let session = sender.session.map(|digest| sender.lineage.unwrap_or(digest));
        let current_session = sender.session.filter(|digest| Some(*digest) != session);
        let is_unguessable = self.is_unguessable();
        let authorization = sender.authorization.map(|value| sha256_of_parts(&[value]));
        let bearer = authorization
            .as_ref()
            .filter(|_| is_unguessable)
            .map(|digest| self.name("authorization", digest));
        let bound_authorization = authorization.clone().filter(|_| !is_unguessable);
        let sessions = |bound_authorization: Option<&str>| -> Vec<String> {
            session
                .into_iter()
                .chain(current_session)
                .map(|digest| self.session_name(digest, bound_authorization))
                .collect()
        };
        let (identification, own_name, weaker) = match (sender.user, &bearer, &bound_authorization) {
            // A user may have sent it before the login, with the `Authorization` or without.
            (Some(user), _, _) => {
                let with_authorization =
                    bound_authorization.as_deref().map_or_else(Vec::new, |digest| sessions(Some(digest)));
                let weaker = [sessions(None), with_authorization, bearer.into_iter().collect()].concat();
                (SenderIdentification::User, Some(self.name("user", user)), weaker)
            }
            (None, Some(name), _) => (SenderIdentification::Visitor, Some(name.clone()), sessions(None)),
            (None, None, beside) if session.is_some() => {
                (SenderIdentification::Visitor, None, sessions(beside.as_deref()))
            }
            (None, None, Some(_)) => (SenderIdentification::Shared, None, Vec::new()),
            (None, None, None) if is_unguessable => (SenderIdentification::Anonymous, None, Vec::new()),
            (None, None, None) => (SenderIdentification::Guessable, None, Vec::new()),
        };
        let anonymous = is_unguessable.then(|| self.name("anonymous", ""));
        let keys: Vec<String> = own_name.into_iter().chain(weaker).chain(anonymous).collect();
        let own_count = keys.len().min(1);
        let readers = self.readers(sender, keys.first(), bound_authorization.as_deref());
        let record = self.record_key(sender, authorization.as_deref());
        RequestNames { identification, record, own_count, keys, readers, bound_authorization }
    }

    /// What a user sent is theirs, and the very cookie's; what came with an `Authorization` is for nothing without it.
    fn readers(
        &self,
        sender: &SenderIdentity<'_>,
        own_name: Option<&String>,
        bound_authorization: Option<&str>,
    ) -> Vec<String> {
        let cookie = match (sender.user, sender.authorization, bound_authorization) {
            (Some(_), _, _) | (None, None, _) => sender.session.map(|digest| self.session_name(digest, None)),
            (None, Some(_), Some(_)) => {
                sender.session.map(|digest| self.session_name(digest, bound_authorization))
            }
            (None, Some(_), None) => None,
        };
        let mut readers: Vec<String> = own_name.cloned().into_iter().chain(cookie).collect();
        readers.dedup();
        readers
    }

    fn record_key(&self, sender: &SenderIdentity<'_>, authorization: Option<&str>) -> String {
        let cookie_or_client = match sender.session {
            Some(digest) => format!("session {digest}"),
            None => format!("client {}", sender.client),
        };
        let owner = match authorization.filter(|_| sender.user.is_none()) {
            Some(digest) if self.is_unguessable() => format!("authorization {digest}"),
            Some(digest) => format!("authorization {digest} {cookie_or_client}"),
            None => cookie_or_client,
        };
        keys::idempotency(self.prefix, &sha256_of_parts(&[owner.as_bytes(), self.key.as_bytes()]))
    }

    /// The name under which the cookie that a response came with finds its record, where `beside` counts together with
    /// it; `None`: it took the cookie away, and then it is found only by a key that cannot be guessed.
    pub(super) fn name_after_response(
        &self,
        session: Option<&str>,
        bound_authorization: Option<&str>,
    ) -> Option<String> {
        match session {
            Some(digest) => Some(self.session_name(digest, bound_authorization)),
            None => self.is_unguessable().then(|| self.name("anonymous", "")),
        }
    }

    fn is_unguessable(&self) -> bool {
        self.key.len() >= UNGUESSABLE_KEY_LENGTH
    }

    fn session_name(&self, digest: &str, bound_authorization: Option<&str>) -> String {
        match bound_authorization {
            Some(authorization) => {
                self.name("session and authorization", &format!("{digest} {authorization}"))
            }
            None => self.name("session", digest),
        }
    }

    fn name(&self, kind: &str, owner: &str) -> String {
        let key = sha256_of_parts(&[self.key.as_bytes()]);
        let digest = sha256_of_parts(&[kind.as_bytes(), owner.as_bytes()]);
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

    fn names(key: &str, sender: SenderIdentity<'_>) -> RequestNames {
        RequestNamer { prefix: "p", key }.for_sender(&sender)
    }

    /// Whether a request of the second sender finds the record of the same request of the first, and the other way on.
    fn finds_same_record(key: &str, first: SenderIdentity<'_>, second: SenderIdentity<'_>) -> bool {
        let (one, two) = (names(key, first), names(key, second));
        one.record == two.record || two.keys.iter().any(|name| one.keys[..one.own_count].contains(name))
    }

    const UNIDENTIFIED: SenderIdentity<'_> =
        SenderIdentity { user: None, authorization: None, session: None, lineage: None, client: "192.0.2.1" };
    const A: SenderIdentity<'_> = SenderIdentity { session: Some("a"), ..UNIDENTIFIED };
    /// `A` after a login, and after one more id.
    const B: SenderIdentity<'_> =
        SenderIdentity { user: Some("ann"), session: Some("b"), lineage: Some("a"), ..UNIDENTIFIED };
    const C: SenderIdentity<'_> =
        SenderIdentity { user: Some("ann"), session: Some("c"), lineage: Some("a"), ..UNIDENTIFIED };

    #[test]
    fn a_repetition_is_found_whatever_its_client_has_become() {
        let rotated = SenderIdentity { session: Some("z"), lineage: Some("a"), ..UNIDENTIFIED };
        // The session of an id that was replaced is not read any more, so nothing is known but the id.
        let replaced = SenderIdentity { session: Some("z"), ..UNIDENTIFIED };
        let other_device = SenderIdentity { user: Some("ann"), session: Some("q"), ..UNIDENTIFIED };
        let bearer = SenderIdentity { authorization: Some(b"Bearer x"), ..UNIDENTIFIED };
        let bearer_a = SenderIdentity { session: Some("a"), lineage: Some("a"), ..bearer };
        for key in ["1", LONG] {
            for (first, second) in [
                (A, A),
                (A, B),
                (A, C),
                (A, rotated),
                (rotated, A),
                (rotated, replaced),
                (rotated, B),
                (B, B),
                (B, C),
                (B, SenderIdentity { user: None, lineage: None, ..B }),
                (B, other_device),
                (UNIDENTIFIED, UNIDENTIFIED),
                (bearer, bearer),
                (bearer_a, SenderIdentity { client: "192.0.2.2", ..bearer_a }),
                (bearer_a, SenderIdentity { session: Some("z"), ..bearer_a }),
                (bearer_a, SenderIdentity { authorization: Some(b"Bearer x"), ..B }),
            ] {
                assert!(finds_same_record(key, first, second), "{key}: {first:?} then {second:?}");
            }
        }
        for second in [A, B, bearer, SenderIdentity { client: "192.0.2.2", ..UNIDENTIFIED }] {
            assert!(finds_same_record(LONG, UNIDENTIFIED, second), "{second:?}");
        }
        for second in [
            SenderIdentity { session: Some("n"), ..bearer },
            SenderIdentity { client: "192.0.2.2", ..bearer },
        ] {
            assert!(
                finds_same_record(LONG, bearer, second) && !finds_same_record("1", bearer, second),
                "{second:?}"
            );
        }
    }

    #[test]
    fn a_sender_does_not_find_requests_of_another() {
        let bob =
            SenderIdentity { user: Some("bob"), session: Some("d"), lineage: Some("a"), ..UNIDENTIFIED };
        let one = SenderIdentity { authorization: Some(b"Bearer one"), session: Some("jar"), ..UNIDENTIFIED };
        let two = SenderIdentity { authorization: Some(b"Bearer two"), ..one };
        for key in ["1", LONG] {
            for (first, second) in [
                // An id from before the login finds nothing of what its user did later.
                (B, A),
                (C, A),
                (B, bob),
                (bob, B),
                (A, SenderIdentity { session: Some("other"), ..UNIDENTIFIED }),
                (one, two),
                (A, UNIDENTIFIED),
                (B, UNIDENTIFIED),
                (one, UNIDENTIFIED),
                (one, SenderIdentity { authorization: None, ..one }),
            ] {
                assert!(!finds_same_record(key, first, second), "{key}: {first:?} then {second:?}");
            }
        }
        let elsewhere = SenderIdentity { client: "192.0.2.2", ..UNIDENTIFIED };
        assert!(!finds_same_record("1", UNIDENTIFIED, elsewhere) && !finds_same_record("1", UNIDENTIFIED, A));
        assert_eq!(names("1", UNIDENTIFIED).identification, SenderIdentification::Guessable);
        assert_eq!(names(&"x".repeat(21), UNIDENTIFIED).identification, SenderIdentification::Guessable);
        assert_eq!(names(&"x".repeat(22), UNIDENTIFIED).identification, SenderIdentification::Anonymous);
    }

    #[test]
    fn an_authorization_that_many_have_names_none_of_them_without_a_good_key() {
        let basic = SenderIdentity { authorization: Some(b"Basic x"), ..UNIDENTIFIED };
        let (one, two) =
            (SenderIdentity { session: Some("a"), ..basic }, SenderIdentity { session: Some("b"), ..basic });
        for (first, second) in [(one, two), (one, basic), (basic, one)] {
            assert!(!finds_same_record("1", first, second) && finds_same_record(LONG, first, second));
        }
        // Two that cannot be distinguished: what one got is for neither without the cookie that it came with.
        let found = names("1", basic);
        assert!(found.identification.is_ambiguous() && found.keys.is_empty() && found.readers.is_empty());
        let namer = RequestNamer { prefix: "p", key: "1" };
        let new_name = namer.name_after_response(Some("a"), found.bound_authorization.as_deref()).unwrap();
        assert!(names("1", one).keys.contains(&new_name));
        let user = SenderIdentity { user: Some("ann"), ..one };
        assert!(names("1", user).keys.contains(&new_name), "it was a login");
        let other = SenderIdentity { authorization: Some(b"Basic y"), ..one };
        for second in [A, two, other] {
            assert!(!names("1", second).keys.contains(&new_name), "{second:?}");
        }
        assert_eq!(names(LONG, basic).bound_authorization, None);
    }

    #[test]
    fn all_names_of_a_key_lie_in_one_slot_and_no_key_has_anothers() {
        let found = names(LONG, SenderIdentity { authorization: Some(b"x"), ..C });
        assert_eq!(
            (found.keys.len(), found.own_count),
            (5, 1),
            "user, lineage, id, authorization, anonymous"
        );
        let tag = |name: &String| name[name.find('{').unwrap()..=name.find('}').unwrap()].to_owned();
        assert!(found.keys.iter().all(|name| tag(name) == tag(&found.keys[0])));
        let other = names("another key that nobody guesses", C);
        assert!(other.keys.iter().all(|name| !found.keys.contains(name)) && other.record != found.record);
        assert_eq!(names("1", UNIDENTIFIED).keys, Vec::<String>::new());
        let namer = RequestNamer { prefix: "p", key: "1" };
        assert_eq!(namer.name_after_response(None, None), None);
        assert_eq!(namer.name_after_response(Some("a"), None), Some(namer.session_name("a", None)));
    }

    fn senders() -> impl Strategy<Value = SenderIdentity<'static>> {
        let session = option::of(select(vec!["a", "b", "c"]));
        let more = (option::of(select(vec!["a", "b"])), option::of(select(vec!["ann", "bob"])));
        let authorization = option::of(select(vec![&b"one"[..], b"two"]));
        let client = select(vec!["192.0.2.1", "192.0.2.2"]);
        (session, more, authorization, client).prop_map(
            |(session, (lineage, user), authorization, client)| {
                let (lineage, user) = (session.and(lineage), session.and(user));
                SenderIdentity { user, authorization, session, lineage, client }
            },
        )
    }

    proptest! {
        #[test]
        fn another_sender_finds_nothing(
            first in senders(),
            second in senders(),
            key in select(vec!["1", LONG]),
        ) {
            prop_assert!(finds_same_record(key, first, first));
            let met = finds_same_record(key, first, second);
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
            let owner = match sender.session {
                Some(digest) => format!("session {digest}"),
                None => format!("client {}", sender.client),
            };
            let older = keys::idempotency("p", &sha256_of_parts(&[owner.as_bytes(), key.as_bytes()]));
            let is_bearer = sender.user.is_none() && sender.authorization.is_some();
            prop_assert_eq!(names(key, sender).record == older, !is_bearer);
        }
    }
}
