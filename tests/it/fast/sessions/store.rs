//! Sessions as applications see them: tower-sessions' `Session` over one request's store.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use regatta::__internals::config::settings::ScriptingMode;
use regatta::__internals::request_state::begin;
use regatta::__internals::request_state::begin::BeginReply;
use regatta::__internals::request_state::tracked_session::{
    CommitStatus, LoadedSession, NewSessionSeed, TrackedSession,
};
use regatta::__internals::sessions;
use regatta::__internals::sessions::query::{SessionAccess, SessionQuery};
use regatta::__internals::sessions::{SessionError, SessionLifetimes, SessionSettings, cookie};
use tower_sessions::session::{Id, Record};
use tower_sessions::session_store::SessionStore;
use tower_sessions::{Session, session_store};

use crate::support::redis::{TestRedis, connect, new_session};
use regatta::__internals::request_state::StateClient;

const LIFETIMES: SessionLifetimes =
    SessionLifetimes { idle: Duration::from_secs(3600), absolute: Duration::from_secs(86_400) };

/// What the HTTP room does for a request, without HTTP: each request reads its session by itself.
#[derive(Debug)]
struct TestStore {
    redis: StateClient,
    session: TrackedSession,
    create: bool,
}

impl TestStore {
    async fn loaded(&self, id: Id) -> Result<LoadedSession, SessionError> {
        if let Some(known) = self.session.known(id) {
            return Ok(known);
        }
        let arg = SessionQuery {
            generation: None,
            key: sessions::session_key("p", id),
            access: SessionAccess::Read,
            provisional: self.create.then(new_session),
            idle_ms: LIFETIMES.idle_ms(),
            absolute_ms: LIFETIMES.absolute_ms(),
        };
        let request = begin::BeginRequest { session: Some(&arg), ..Default::default() };
        match self.redis.begin(&request).await.map_err(SessionError::Redis)? {
            BeginReply::Granted { session, .. } => self.session.record_lookup(id, session),
            BeginReply::Denied { .. } => Err(SessionError::Denied),
        }
    }

    async fn released(&self) -> Option<Result<LoadedSession, SessionError>> {
        match self.session.released_id() {
            Some(id) => Some(self.loaded(id).await),
            None => None,
        }
    }

    fn commit_status(&self) -> CommitStatus {
        self.session.commit_status()
    }
}

#[async_trait]
impl SessionStore for TestStore {
    async fn create(&self, record: &mut Record) -> session_store::Result<()> {
        self.session.create(record, self.released().await, NewSessionSeed::default()).await
    }

    async fn save(&self, record: &Record) -> session_store::Result<()> {
        match self.session.current_id(record.id) {
            Some(id) => self.session.save(record, self.loaded(id).await).await,
            None => Ok(()),
        }
    }

    async fn load(&self, id: &Id) -> session_store::Result<Option<Record>> {
        match self.session.current_id(*id) {
            Some(present) => self.session.load(*id, self.loaded(present).await),
            None => Ok(None),
        }
    }

    async fn delete(&self, id: &Id) -> session_store::Result<()> {
        self.session.release(*id);
        Ok(())
    }
}

fn setup() -> Arc<SessionSettings> {
    let strict = vec!["strict".to_owned()];
    Arc::new(SessionSettings {
        prefix: Arc::from("p"),
        lifetimes: LIFETIMES,
        cipher: None,
        strict,
        max_per_user: 0,
    })
}

fn request(redis: &StateClient, id: Option<Id>) -> (Session, Arc<TestStore>) {
    let session = TrackedSession::new(redis.clone(), setup());
    let store = Arc::new(TestStore { redis: redis.clone(), session, create: false });
    (Session::new(id, Arc::clone(&store), None), store)
}

async fn stored(redis: &StateClient, fields: &[(&str, u32)]) -> Id {
    let (session, store) = request(redis, None);
    for (name, value) in fields {
        session.insert(name, value).await.unwrap();
    }
    session.save().await.unwrap();
    let id = session.id().unwrap();
    assert_eq!(store.commit_status(), CommitStatus::Stored(id));
    id
}

#[tokio::test]
async fn a_session_is_read_back_by_the_next_request_and_its_id_is_stored_nowhere() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Auto).await;
    let id = stored(&redis, &[("cart", 1), ("_csrf", 2)]).await;
    let (session, _) = request(&redis, Some(id));
    assert_eq!(session.get::<u32>("cart").await.unwrap(), Some(1));
    assert_eq!(session.get::<u32>("_csrf").await.unwrap(), Some(2));
    assert_eq!(session.get::<u32>("_c").await.unwrap(), None);
    let everything = server.keys().join(" ") + &server.cli(&["HGETALL", &sessions::session_key("p", id)]);
    assert!(!everything.contains(&id.to_string()));
}

#[tokio::test]
async fn requests_that_change_different_fields_keep_both_changes() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Auto).await;
    let id = stored(&redis, &[("a", 0), ("b", 0), ("old", 0)]).await;
    let ((one, _), (two, _)) = (request(&redis, Some(id)), request(&redis, Some(id)));
    one.insert("a", 1).await.unwrap();
    two.insert("b", 2).await.unwrap();
    two.remove::<u32>("old").await.unwrap();
    one.save().await.unwrap();
    two.save().await.unwrap();
    let (after, _) = request(&redis, Some(id));
    assert_eq!(after.get::<u32>("a").await.unwrap(), Some(1));
    assert_eq!(after.get::<u32>("b").await.unwrap(), Some(2));
    assert_eq!(after.get::<u32>("old").await.unwrap(), None);
}

#[tokio::test]
async fn a_change_travels_alone_and_no_change_does_not_travel() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Auto).await;
    let id = stored(&redis, &[("a", 1), ("b", 2)]).await;
    let (session, store) = request(&redis, Some(id));
    session.insert("a", 1).await.unwrap();
    server.cli(&["CONFIG", "RESETSTAT"]);
    session.save().await.unwrap();
    assert_eq!((store.commit_status(), server.commands().get("fcall")), (CommitStatus::Stored(id), None));
    session.insert("a", 5).await.unwrap();
    session.save().await.unwrap();
    let commands = server.commands();
    assert_eq!((commands.get("fcall"), commands.get("hset")), (Some(&1), Some(&1)), "{commands:?}");
}

#[tokio::test]
async fn a_session_deleted_while_a_request_runs_is_not_brought_back() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Auto).await;
    let id = stored(&redis, &[("a", 1)]).await;
    let (late, store) = request(&redis, Some(id));
    late.insert("a", 2).await.unwrap();
    let (ending, ended) = request(&redis, Some(id));
    ending.flush().await.unwrap();
    ended.session.destroy_released(ended.released().await.as_ref()).await.unwrap();
    assert!(late.save().await.is_err());
    assert_eq!(store.commit_status(), CommitStatus::Gone);
    // What may be left is a mark, by which no ticket makes it anew.
    assert_eq!(server.cli(&["HEXISTS", &sessions::session_key("p", id), "_c"]), "0");
    let (next, _) = request(&redis, Some(id));
    assert_eq!(next.get::<u32>("a").await.unwrap(), None);
    assert_eq!(next.id(), None);
}

#[tokio::test]
async fn a_replaced_id_keeps_fields_views_and_age_and_the_old_id_is_dead() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Auto).await;
    let id = stored(&redis, &[("a", 1)]).await;
    let hash = sessions::session_key("p", id);
    let created = (now_ms(&server) - 3_600_000).to_string();
    server.cli(&["HSET", &hash, "_v", "7", "_c", &created]);
    let (session, _) = request(&redis, Some(id));
    session.cycle_id().await.unwrap();
    session.save().await.unwrap();
    let new = session.id().unwrap();
    assert_ne!(new, id);
    assert_eq!(server.cli(&["HKEYS", &sessions::session_key("p", id)]), "_r", "nothing but a mark");
    assert_eq!(request(&redis, Some(id)).0.get::<u32>("a").await.unwrap(), None);
    assert_eq!(server.cli(&["HGET", &sessions::session_key("p", new), "_v"]), "7");
    assert_eq!(server.cli(&["HGET", &sessions::session_key("p", new), "_c"]), created);
    assert_eq!(server.cli(&["HGET", &sessions::session_key("p", new), "a"]), "1");
}

fn now_ms(server: &TestRedis) -> u64 {
    server.cli(&["TIME"]).lines().next().unwrap().parse::<u64>().unwrap() * 1000
}

#[tokio::test]
async fn clearing_an_unread_session_removes_every_field() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Auto).await;
    let id = stored(&redis, &[("a", 1), ("b", 2)]).await;
    let (session, _) = request(&redis, Some(id));
    session.clear().await;
    session.save().await.unwrap();
    assert_eq!(server.cli(&["HLEN", &sessions::session_key("p", id)]), "3");
}

#[tokio::test]
async fn a_field_that_nobody_can_read_counts_as_absent() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Auto).await;
    let id = stored(&redis, &[("a", 1), ("b", 2)]).await;
    server.cli(&["HSET", &sessions::session_key("p", id), "a", "{not json"]);
    let (session, _) = request(&redis, Some(id));
    assert_eq!(session.get::<u32>("a").await.unwrap(), None);
    assert_eq!(session.get::<u32>("b").await.unwrap(), Some(2));
    session.insert("a", 3).await.unwrap();
    session.save().await.unwrap();
    assert_eq!(request(&redis, Some(id)).0.get::<u32>("a").await.unwrap(), Some(3));
}

#[tokio::test]
async fn a_session_that_would_be_too_large_is_refused_and_stays_as_it_was() {
    let server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Auto).await;
    let id = stored(&redis, &[("a", 1)]).await;
    let (session, store) = request(&redis, Some(id));
    session.insert("big", "x".repeat(sessions::SESSION_BYTES_MAX)).await.unwrap();
    assert!(session.save().await.is_err());
    assert_eq!(store.commit_status(), CommitStatus::TooLarge);
    let (many, store) = request(&redis, Some(id));
    for index in 0..sessions::SESSION_FIELDS_MAX {
        many.insert(&index.to_string(), 1).await.unwrap();
    }
    assert!(many.save().await.is_err());
    assert_eq!(store.commit_status(), CommitStatus::TooLarge);
    assert_eq!(server.cli(&["HLEN", &sessions::session_key("p", id)]), "4");
}

#[tokio::test]
async fn an_unreachable_redis_is_an_error_and_never_an_empty_session() {
    let mut server = TestRedis::start();
    let redis = connect(&server, "p", ScriptingMode::Auto).await;
    let id = cookie::new_id().unwrap();
    server.kill();
    let (session, _) = request(&redis, Some(id));
    assert!(session.get::<u32>("a").await.is_err());
    assert_eq!(session.id(), Some(id));
}
