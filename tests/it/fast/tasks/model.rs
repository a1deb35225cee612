//! Any order of steps, on a real server and on a model of fifty lines that has no streams, leases or scripts: both agree.

use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use regatta::__internals::config::settings::ScriptingMode;
use regatta::__internals::redis::RedisClient;
use regatta::__internals::tasks;
use regatta::__internals::tasks::{EnqueueOutcome, ExecutionResult, StartOutcome, TaskExecution, TaskPolicy};
use regatta::task::TaskState::{Cancelled, Dead, Done, Failed, Running, Waiting};
use regatta::task::{TaskId, TaskState};

use crate::support::redis::{TestRedis, connect};
use crate::support::{soak, wait};

const KIND: &str = "any";

/// So short that whatever was taken is overdue after a moment.
const RULES: TaskPolicy = TaskPolicy {
    queue_max: 4,
    max_attempts: 2,
    max_lifetime: Duration::from_secs(1000),
    retention: Duration::from_secs(100),
    lease: Duration::from_millis(1),
};

#[derive(Debug, Clone, Copy)]
enum Step {
    Enqueue,
    /// Whether what is overdue may be taken over.
    Take(bool),
    /// Of what was taken, or of an execution: which one, counted back from the last.
    Begin(usize),
    Renew(usize),
    /// Which execution, and one of the outcomes.
    End(usize, usize),
    /// Which task, counted back from the last.
    Cancel(usize),
}

fn outcomes() -> [ExecutionResult; 4] {
    let text = String::new;
    [
        ExecutionResult::Done("1".into()),
        ExecutionResult::Failed(text()),
        ExecutionResult::Retry(text(), Duration::ZERO),
        ExecutionResult::Released,
    ]
}

/// A task as it has to be.
#[derive(Debug, Clone)]
struct Model {
    id: TaskId,
    state: TaskState,
    attempts: u64,
    /// How often its entry was taken.
    taken: u64,
    /// Its present execution, or the last one.
    execution: Option<u64>,
}

/// Both sides, and what was taken and begun so far.
struct Play<'a> {
    redis: &'a RedisClient,
    tasks: Vec<Model>,
    executions: Vec<TaskExecution>,
}

fn back<T>(list: &[T], count: usize) -> Option<usize> {
    list.len().checked_sub(1 + count % list.len().max(1))
}

impl Play<'_> {
    fn waiting(&self) -> usize {
        self.tasks.iter().filter(|task| task.state == Waiting).count()
    }

    fn model(&mut self, id: TaskId) -> &mut Model {
        self.tasks.iter_mut().find(|task| task.id == id).unwrap()
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Enqueue => {
                let id = TaskId::new().unwrap();
                let room = self.waiting() < 4;
                let made = self.redis.enqueue_task(id, KIND, "1", &RULES).await.unwrap();
                assert_eq!(made, if room { EnqueueOutcome::Queued } else { EnqueueOutcome::QueueFull });
                if room {
                    self.tasks.push(Model { id, state: Waiting, attempts: 0, taken: 0, execution: None });
                }
            }
            Step::Take(over) => self.take(over).await,
            Step::Begin(which) => {
                if let Some(at) = back(&self.executions, which) {
                    self.begin(at).await;
                }
            }
            Step::Renew(which) => {
                let Some(at) = back(&self.executions, which) else { return };
                let execution = self.executions[at].clone();
                let task = self.model(execution.delivery.id);
                let present = task.state == Running && task.execution == Some(execution.id);
                assert_eq!(self.redis.renew_task(&execution, None).await, Ok(present));
            }
            Step::End(which, outcome) => {
                if let Some(at) = back(&self.executions, which) {
                    self.end(at, outcome % 4).await;
                }
            }
            Step::Cancel(which) => {
                let Some(at) = back(&self.tasks, which) else { return };
                let task = &mut self.tasks[at];
                let expected = match task.state {
                    Waiting => tasks::Cancelled::Waiting,
                    Running => tasks::Cancelled::Running,
                    _ => tasks::Cancelled::Late,
                };
                if !task.state.is_final() {
                    task.state = Cancelled;
                }
                assert_eq!(self.redis.cancel_task(task.id, KIND, &RULES).await, Ok(Some(expected)));
            }
        }
    }

    async fn take(&mut self, over: bool) {
        wait::paced(Duration::from_millis(3)).await;
        let open = |task: &&mut Model| !task.state.is_final();
        let overdue = self.tasks.iter_mut().filter(open).find(|task| over && task.taken > 0);
        let expected = match overdue {
            Some(task) => Some(task),
            None => self.tasks.iter_mut().filter(open).find(|task| task.taken == 0),
        };
        let expected = expected.map(|task| {
            task.taken += 1;
            (task.id, task.taken)
        });
        let taken = self.redis.claim_task(&[KIND], over.then_some(RULES.lease)).await.unwrap();
        assert_eq!(taken.as_ref().map(|taken| (taken.id, taken.delivery_count)), expected);
        self.executions.extend(taken.map(|taken| TaskExecution::new(taken).unwrap()));
    }

    async fn begin(&mut self, at: usize) {
        let execution = self.executions[at].clone();
        let task = self.model(execution.delivery.id);
        let same = task.execution == Some(execution.id);
        let last = task.taken == execution.delivery.delivery_count;
        let expected = match task.state {
            Running if same => StartOutcome::Started { attempt: task.attempts, input: "1".into() },
            // Said late: it was given back, or others have taken it since.
            Waiting | Running if same || !last => StartOutcome::NothingToDo,
            Waiting | Running if task.attempts == 2 => {
                (task.state, task.execution) = (Dead, None);
                StartOutcome::Dead
            }
            Waiting | Running => {
                (task.state, task.attempts, task.execution) =
                    (Running, task.attempts + 1, Some(execution.id));
                StartOutcome::Started { attempt: task.attempts, input: "1".into() }
            }
            _ => StartOutcome::NothingToDo,
        };
        assert_eq!(self.redis.start_task(&execution, "web:1", &RULES).await, Ok(expected));
    }

    async fn end(&mut self, at: usize, outcome: usize) {
        let execution = self.executions[at].clone();
        let task = self.model(execution.delivery.id);
        let own = task.execution == Some(execution.id);
        if own && task.state == Running {
            (task.state, task.attempts) = match outcome {
                0 => (Done, task.attempts),
                1 => (Failed, task.attempts),
                2 if task.attempts == 2 => (Dead, 2),
                2 => (Waiting, task.attempts),
                _ => (Waiting, task.attempts - 1),
            };
        }
        let so: &[TaskState] = [&[Done][..], &[Failed], &[Waiting, Dead], &[Waiting]][outcome];
        let expected = own && so.contains(&task.state);
        let ended = self.redis.finish_task(&execution, &outcomes()[outcome], &RULES).await;
        assert_eq!(ended, Ok(expected));
    }

    /// Everything that anyone can see is as the model has it.
    async fn compare(&self) {
        let count = |state: TaskState| self.tasks.iter().filter(|task| task.state == state).count();
        for task in &self.tasks {
            let seen = self.redis.get_task(task.id).await.unwrap().unwrap();
            assert_eq!((seen.state, seen.attempts), (task.state, task.attempts));
            assert_eq!(seen.result.is_some(), task.state == Done);
        }
        let survey = self.redis.task_stats().await.unwrap();
        assert_eq!((survey.waiting, survey.running.len()), (count(Waiting) as u64, count(Running)));
        let totals = survey.totals;
        let ends = [totals.done, totals.failed, totals.dead, totals.cancelled].map(|total| total as usize);
        assert_eq!(ends, [Done, Failed, Dead, Cancelled].map(count));
        assert_eq!(survey.dead.len(), count(Dead));
    }
}

#[test]
fn any_order_of_steps_is_as_the_model_has_it() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = TestRedis::start();
    let step = prop_oneof![
        2 => Just(Step::Enqueue),
        3 => any::<bool>().prop_map(Step::Take),
        4 => (0..4_usize).prop_map(Step::Begin),
        1 => (0..4_usize).prop_map(Step::Renew),
        3 => (0..4_usize, 0..4_usize).prop_map(|(which, outcome)| Step::End(which, outcome)),
        1 => (0..4_usize).prop_map(Step::Cancel),
    ];
    for mode in [ScriptingMode::Fcall, ScriptingMode::Evalsha] {
        let redis = runtime.block_on(connect(&server, "p", mode));
        let config = ProptestConfig { cases: soak::length(60, 2000), ..ProptestConfig::default() };
        let played = TestRunner::new(config).run(&prop::collection::vec(step.clone(), 1..40), |steps| {
            let keys: Vec<_> = server.keys().into_iter().filter(|key| key.contains("{t}")).collect();
            for key in keys {
                server.cli(&["DEL", &key]);
            }
            runtime.block_on(async {
                let mut play = Play { redis: &redis, tasks: Vec::new(), executions: Vec::new() };
                for step in steps {
                    play.step(step).await;
                }
                play.compare().await;
            });
            Ok(())
        });
        played.unwrap();
    }
}
