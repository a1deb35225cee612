//! Server-side code: applied once by a whole fleet, recorded, never replaced under its name.

use regatta::__internals::config::settings::ScriptingMode;
use regatta::__internals::redis::migrations::{MigrationStatus, SHIPPED};
use regatta::__internals::redis::{RedisClient, RedisError, RedisStatus, functions, migrations};

use crate::support::redis::{TestRedis, connect, eventually};

fn unstarted(server: &TestRedis, mode: ScriptingMode) -> RedisClient {
    RedisClient::new(&server.settings("p", mode), &server.url(), "cli").unwrap()
}

#[tokio::test]
async fn thirty_two_workers_that_boot_together_apply_once() {
    let server = TestRedis::start();
    let worker = |index| {
        let settings = server.settings("p", ScriptingMode::Auto);
        RedisClient::new(&settings, &server.url(), &format!("w{index}")).unwrap()
    };
    let workers: Vec<RedisClient> = (0..32).map(worker).collect();
    workers.iter().for_each(|worker| _ = worker.start());
    for redis in &workers {
        eventually("the worker is up", async || redis.status() == RedisStatus::Up).await;
    }
    assert_eq!(server.cli(&["GET", "p:mig:fence"]), "1");
    assert_eq!(server.cli(&["HLEN", "p:mig"]), functions::LIBRARIES.len().to_string());
    assert_eq!(server.cli(&["EXISTS", "p:mig:lock"]), "0");
    let secrets: Vec<_> = workers.iter().map(RedisClient::generated_signing_keys).collect();
    assert!(!secrets[0].is_empty() && secrets.iter().all(|secret| *secret == secrets[0]));
}

#[tokio::test]
async fn check_and_plan_change_nothing_and_apply_says_what_it_did() {
    for mode in [ScriptingMode::Fcall, ScriptingMode::Evalsha] {
        let server = TestRedis::start();
        let redis = unstarted(&server, mode);
        let plan = SHIPPED.plan(&redis).await.unwrap();
        assert_eq!(plan.len(), functions::LIBRARIES.len());
        assert_eq!(
            (plan[0].file.as_str(), &plan[0].status),
            ("migrations/0001_regatta_v1.lua", &MigrationStatus::Pending)
        );
        assert!(plan.iter().all(|step| step.status == MigrationStatus::Pending));
        assert_eq!((server.keys(), server.cli(&["FUNCTION", "LIST"])), (vec![], String::new()));

        let applied = SHIPPED.apply(&redis, |_| ()).await.unwrap();
        assert!(
            matches!(&applied[0].status, MigrationStatus::Applied { by, at_ms } if by == "cli" && *at_ms > 0)
        );
        assert_eq!(SHIPPED.plan(&redis).await.as_ref(), Ok(&applied));
        assert_eq!(SHIPPED.apply(&redis, |_| ()).await, Ok(applied));
    }
}

#[tokio::test]
async fn an_edited_file_is_refused_with_both_checksums_and_nothing_changes() {
    let server = TestRedis::start();
    let redis = unstarted(&server, ScriptingMode::Fcall);
    SHIPPED.apply(&redis, |_| ()).await.unwrap();
    let ours = migrations::checksum(functions::LIBRARIES[0].text);
    let theirs = migrations::checksum("an older text");
    let entry = server.cli(&["HGET", "p:mig", "0001"]).replace(&ours, &theirs);
    server.cli(&["HSET", "p:mig", "0001", &entry]);
    let before = server.cli(&["DEBUG", "DIGEST"]);

    let refused = SHIPPED.plan(&redis).await.unwrap_err();
    assert!(matches!(refused, RedisError::Diverged { .. }), "{refused:?}");
    for part in ["migrations/0001_regatta_v1.lua", &ours, &theirs] {
        assert!(refused.to_string().contains(part), "{refused}");
    }
    assert!(SHIPPED.apply(&redis, |_| ()).await.is_err());
    redis.start();
    assert!(matches!(redis.wait_for_first_attempt().await, RedisStatus::Down { .. }));
    assert_eq!(server.cli(&["DEBUG", "DIGEST"]), before);
}

#[tokio::test]
async fn a_library_with_our_name_and_another_text_is_never_replaced() {
    let server = TestRedis::start();
    let stranger =
        "#!lua name=regatta_v1\nredis.register_function('regatta_v1_begin', function() return 7 end)";
    server.cli(&["FUNCTION", "LOAD", stranger]);
    let refused = SHIPPED.apply(&unstarted(&server, ScriptingMode::Fcall), |_| ()).await;
    assert!(matches!(refused, Err(RedisError::Diverged { .. })), "{refused:?}");
    assert_eq!(server.cli(&["FCALL", "regatta_v1_begin", "0"]), "7");
}

#[tokio::test]
async fn what_a_dead_worker_began_is_finished_by_another() {
    let server = TestRedis::start();
    let redis = unstarted(&server, ScriptingMode::Fcall);
    SHIPPED.apply(&redis, |_| ()).await.unwrap();
    let begun = server.cli(&["HGET", "p:mig", "0001"]).replace("\"applied\"", "\"running\"");
    server.cli(&["HSET", "p:mig", "0001", &begun]);
    server.cli(&["FUNCTION", "FLUSH"]);
    assert_eq!(server.cli(&["SET", "p:mig:lock", "the-dead-one", "PX", "300"]), "OK");
    assert!(matches!(SHIPPED.plan(&redis).await.unwrap()[0].status, MigrationStatus::Started { .. }));
    let applied = SHIPPED.apply(&redis, |_| ()).await.unwrap();
    assert!(matches!(applied[0].status, MigrationStatus::Applied { .. }));
    assert_eq!(server.cli(&["GET", "p:mig:fence"]), "2");
}

#[tokio::test]
async fn a_server_without_functions_gets_scripts() {
    let server =
        TestRedis::start_with(&["--rename-command", "FUNCTION", "", "--rename-command", "FCALL", ""]);
    let redis = connect(&server, "p", ScriptingMode::Auto).await;
    assert_eq!(redis.increment("p:c:x", 1).await, Ok(1));
    let request = regatta::__internals::redis::begin::BeginRequest::default();
    assert!(redis.begin(&request).await.is_ok());
    assert!(server.commands().contains_key("evalsha"));
}
