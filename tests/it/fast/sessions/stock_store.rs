//! The control: the same steps over tower-sessions' own Redis store, which is why we have one of our own.
//!
//! It also holds the three crates together: the store 0.16 compiles only beside tower-sessions 0.14 and fred 10.

use std::sync::Arc;

use fred::clients::Pool;
use fred::interfaces::ClientLike;
use fred::types::config::{Config, ServerConfig};
use tower_sessions::Session;
use tower_sessions::session::Id;
use tower_sessions_redis_store::RedisStore;

use crate::support::redis::TestRedis;

async fn store(server: &TestRedis) -> Arc<RedisStore<Pool>> {
    let unix = ServerConfig::Unix { path: server.socket().to_path_buf() };
    let pool = Pool::new(Config { server: unix, ..Config::default() }, None, None, None, 1).unwrap();
    pool.init().await.unwrap();
    Arc::new(RedisStore::new(pool))
}

async fn stored(store: &Arc<RedisStore<Pool>>) -> Id {
    let session = Session::new(None, Arc::clone(store), None);
    session.insert("a", 0).await.unwrap();
    session.save().await.unwrap();
    session.id().unwrap()
}

#[tokio::test]
async fn the_stock_store_loses_one_of_two_changes() {
    let server = TestRedis::start();
    let store = store(&server).await;
    let id = stored(&store).await;
    let request = || Session::new(Some(id), Arc::clone(&store), None);
    let (one, two) = (request(), request());
    one.insert("one", 1).await.unwrap();
    two.insert("two", 2).await.unwrap();
    one.save().await.unwrap();
    two.save().await.unwrap();
    assert_eq!(
        request().get::<u32>("one").await.unwrap(),
        None,
        "last writer wins: the other's change is lost"
    );
    assert_eq!(request().get::<u32>("two").await.unwrap(), Some(2));
}

#[tokio::test]
async fn the_stock_store_fails_when_a_session_ends_meanwhile_and_writes_its_id_in_the_clear() {
    let server = TestRedis::start();
    let store = store(&server).await;
    let id = stored(&store).await;
    assert_eq!(server.cli(&["EXISTS", &id.to_string()]), "1", "the key is the cookie's id");
    let session = Session::new(Some(id), Arc::clone(&store), None);
    session.insert("a", 1).await.unwrap();
    server.cli(&["DEL", &id.to_string()]);
    assert!(session.save().await.is_err(), "a request in flight at a logout ends in an error");
}
