//! Who may do what in Redis: the rules that the manual gives are enough, and a password may change under way.

use std::time::{Duration, Instant};

use regatta::__internals::config;
use regatta::__internals::config::ConfigInputs;
use regatta::__internals::redis::RedisClient;
use regatta::__internals::tasks::TaskQueue;
use regatta::RedisStatus;
use regatta::task::{TaskContext, TaskFailure, TaskState};

use crate::support::client::Request;
use crate::support::fleet::TestFleetBuilder;
use crate::support::redis_tcp::TestRedisTcp;
use crate::support::{client, wait};

const MANUAL: &str = include_str!("../../../../docs/operations/redis.md");

/// Makes the user by the very line of the manual.
fn admit(server: &TestRedisTcp, password: &str) {
    let line = MANUAL.lines().find(|line| line.starts_with("ACL SETUSER regatta ")).unwrap();
    let line = line.replace("PASSWORD", password);
    assert_eq!(server.cli(&line.split(' ').collect::<Vec<_>>()), "OK");
}

#[test]
fn the_manual_s_rules_are_enough() {
    for mode in ["fcall", "evalsha", "auto"] {
        let server = TestRedisTcp::plain();
        admit(&server, "secret");
        let url = format!("redis://regatta:secret@127.0.0.1:{}/1", server.port);
        let plan = TestFleetBuilder::new().set("REGATTA_REDIS__URL", &url).set("REGATTA_REDIS__MODE", mode);
        let fleet = plan.start();
        assert_eq!(fleet.get("/").status, 200);
        assert_eq!(client::once(fleet.listen, Request::post("/counters/hits")).unwrap().status, 200);
        assert_eq!(fleet.get("/counters/hits").status, 200);
        let (code, said) = plan.args(&["migrate", "--check"]).run();
        assert_eq!(code, 0, "{said}");
        // Everything the server ever refused is in its log.
        assert_eq!(server.cli(&["ACL", "LOG"]), "", "{mode}");
    }
}

/// Tasks need keys of more types than a visit does.
#[tokio::test]
async fn the_manual_s_rules_are_enough_for_tasks() {
    for mode in ["fcall", "evalsha"] {
        let server = TestRedisTcp::plain();
        admit(&server, "secret");
        let url = format!("redis://regatta:secret@127.0.0.1:{}", server.port);
        let flag = |name: &str, value: &str| (name.to_owned(), value.to_owned(), "test".to_owned());
        let flags = vec![flag("redis.url", &url), flag("redis.mode", mode), flag("tasks.max_attempts", "1")];
        let config = config::load(&ConfigInputs { flags, ..ConfigInputs::default() }).unwrap();
        let redis = RedisClient::new(&config.redis, config.redis.url.as_ref().unwrap(), "test").unwrap();
        redis.start();
        let tasks = TaskQueue::with_client(redis.clone(), &config.tasks, "test:1");
        let registered = tasks.register("echo", |text: String, _: &TaskContext| match text.as_str() {
            "again" => Err(TaskFailure::retry(text)),
            _ => Ok(text),
        });
        registered.unwrap();
        tasks.start();
        assert_eq!(redis.wait_for_first_attempt().await, RedisStatus::Up);
        for (text, expected) in [("again", TaskState::Dead), ("fine", TaskState::Done)] {
            let id = tasks.enqueue("echo", text).await.unwrap();
            let mut following = tasks.watch(&id).await.unwrap();
            let mut last = None;
            while let Some(task) = following.next().await {
                last = Some(task.state);
            }
            assert_eq!(last, Some(expected), "{mode}");
            tasks.cancel(&id).await.unwrap();
        }
        assert_eq!(tasks.stats().await.unwrap().dead.len(), 1);
        assert_eq!(redis.overdue_tasks(Duration::from_secs(1)).await, Ok(Vec::new()));
        assert_eq!(server.cli(&["ACL", "LOG"]), "", "{mode}");
    }
}

#[test]
fn a_changed_password_is_taken_from_its_file() {
    const WORKERS: u64 = 2;
    let server = TestRedisTcp::plain();
    admit(&server, "first");
    let plan = TestFleetBuilder::new().workers(2);
    let file = plan.folder().join("password");
    std::fs::write(&file, "first\n").unwrap();
    let plan = plan
        .set("REGATTA_REDIS__URL", &format!("redis://regatta@127.0.0.1:{}", server.port))
        .set("REGATTA_REDIS__PASSWORD_FILE", file.to_str().unwrap());
    let fleet = plan.start();
    assert_eq!(fleet.get("/").status, 200);

    assert_eq!(server.cli(&["ACL", "SETUSER", "regatta", "resetpass", ">second"]), "OK");
    server.cli(&["CLIENT", "KILL", "USER", "regatta"]);
    let begin = Instant::now();
    wait::until("the log says what is wrong", wait::LONG, || {
        fleet.log().contains("WRONGPASS") && fleet.log().contains("redis.password_file")
    });
    wait::let_pass(Duration::from_secs(3));
    assert_eq!(fleet.get("/").status, 503);
    let (attempts, seconds) = (failed(&server), begin.elapsed().as_secs());
    assert!(attempts >= WORKERS && attempts <= WORKERS * (seconds + 1), "{attempts} attempts in {seconds} s");

    std::fs::write(&file, "second\n").unwrap();
    let begin = Instant::now();
    wait::until("visits are served again", wait::LONG, || fleet.get("/").status == 200);
    eprintln!(
        "password changed: {attempts} refused attempts in {seconds} s, served {:?} after the file",
        begin.elapsed()
    );
}

/// How often someone came with a wrong password.
fn failed(server: &TestRedisTcp) -> u64 {
    let stats = server.cli(&["INFO", "commandstats"]);
    let of = |command: &str| {
        let line = stats.lines().find(|line| line.starts_with(&format!("cmdstat_{command}:")))?;
        line.trim().rsplit_once("failed_calls=")?.1.parse::<u64>().ok()
    };
    of("auth").unwrap_or(0) + of("hello").unwrap_or(0)
}
