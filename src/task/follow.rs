//! Those who want to see a task change: one look at Redis for all of a worker's, however many they are.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio::time::timeout;

use crate::redis;
use crate::redis::Redis;
use crate::redis::news::Channel;
use crate::redis::task::Task;
use crate::redis::task::TaskId;

/// Shortest time between two looks at one task.
const PAUSE: Duration = Duration::from_millis(100);

/// Longest time between two looks: news may be lost. Shorter while none can be heard.
const BACKSTOP: Duration = Duration::from_secs(1);
const BLIND: Duration = Duration::from_millis(250);
/// Longest wait for a task's channel to be heard before the first look.
const CONFIRM: Duration = Duration::from_millis(250);

/// A task as it was seen last.
#[derive(Debug, Clone)]
enum Seen {
    /// No one has looked yet.
    NotYet,
    /// The first look failed.
    Failed(redis::Error),
    /// Like this.
    Is(Arc<Task>),
    /// There is none, or no longer.
    Gone,
}

/// All tasks that someone on this worker follows.
#[derive(Debug, Default)]
pub(super) struct Follows(Mutex<HashMap<TaskId, Followed>>);

#[derive(Debug, Clone)]
struct Followed {
    seen: watch::Sender<Seen>,
    news: Arc<Notify>,
}

/// A task as it changes.
#[derive(Debug)]
pub struct Following {
    seen: watch::Receiver<Seen>,
    begun: bool,
    ended: bool,
}

impl Following {
    /// The task as it is, and then at each change; `None` after its end, and where there is none any more.
    ///
    /// Changes that come faster than every tenth of a second are seen as one.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn next(&mut self) -> Option<Arc<Task>> {
        if self.ended || (self.begun && self.seen.changed().await.is_err()) {
            return None;
        }
        self.begun = true;
        let Seen::Is(task) = &*self.seen.borrow_and_update() else {
            self.ended = true;
            return None;
        };
        self.ended = task.state.is_end();
        Some(Arc::clone(task))
    }
}

impl Follows {
    fn lock(&self) -> MutexGuard<'_, HashMap<TaskId, Followed>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A task has changed, says the news.
    pub(super) fn changed(&self, id: TaskId) {
        if let Some(followed) = self.lock().get(&id) {
            followed.news.notify_one();
        }
    }

    /// How many tasks are followed.
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Follows a task, together with everybody who does already.
    ///
    /// # Errors
    /// Why Redis could not be asked.
    pub(super) async fn follow(
        self: &Arc<Self>,
        redis: &Redis,
        id: TaskId,
    ) -> Result<Following, redis::Error> {
        let mut seen = self.join(redis, id);
        // The one who looks ends only after someone was told, so this is no error.
        let first = seen.wait_for(|seen| !matches!(seen, Seen::NotYet)).await;
        let failed = first.ok().and_then(|seen| match &*seen {
            Seen::Failed(error) => Some(error.clone()),
            _ => None,
        });
        match failed {
            Some(error) => Err(error),
            None => Ok(Following { seen, begun: false, ended: false }),
        }
    }

    fn join(self: &Arc<Self>, redis: &Redis, id: TaskId) -> watch::Receiver<Seen> {
        let mut all = self.lock();
        if let Some(followed) = all.get(&id) {
            return followed.seen.subscribe();
        }
        let (sender, seen) = watch::channel(Seen::NotYet);
        let followed = Followed { seen: sender, news: Arc::default() };
        all.insert(id, followed.clone());
        tokio::spawn(Arc::clone(self).watch(redis.clone(), id, followed));
        seen
    }

    /// Looks at a task until it ends or no one follows it.
    async fn watch(self: Arc<Self>, redis: Redis, id: TaskId, followed: Followed) {
        let (news, name) = (Arc::clone(&followed.news), id.to_string());
        let _heard = redis.hear(Channel::Task(&name), Arc::new(move |_: &str| news.notify_one()));
        // What changes after the first look has to be heard; what is not is seen at the next one.
        let _ = timeout(CONFIRM, redis.confirmed(Channel::Task(&name))).await.is_ok();
        loop {
            let ended = tell(&followed.seen, redis.look_at_task(id).await);
            {
                // Under the same lock as joining: no one joins what is no longer watched.
                let mut all = self.lock();
                if ended || followed.seen.is_closed() {
                    all.remove(&id);
                    return;
                }
            }
            sleep(PAUSE).await;
            let most = if redis.news_since().is_some() { BACKSTOP } else { BLIND };
            let _ = timeout(most, followed.news.notified()).await.is_ok();
        }
    }
}

/// Tells the followers what was seen; whether there is nothing more to see.
fn tell(followers: &watch::Sender<Seen>, looked: Result<Option<Task>, redis::Error>) -> bool {
    let seen = match looked {
        Ok(Some(task)) => Seen::Is(Arc::new(task)),
        Ok(None) => Seen::Gone,
        // Redis is away for a moment: the one who follows waits. The one who begins to is told.
        Err(_) if !matches!(&*followers.borrow(), Seen::NotYet) => return false,
        Err(error) => Seen::Failed(error),
    };
    let ended = match &seen {
        Seen::Is(task) => task.state.is_end(),
        _ => true,
    };
    followers.send_if_modified(|last| {
        let same = matches!((&*last, &seen), (Seen::Is(last), Seen::Is(now)) if is_same(last, now));
        *last = seen;
        !same
    });
    ended
}

/// Whether nothing has changed that is shown.
fn is_same(last: &Task, now: &Task) -> bool {
    let shown = |task: &Task| (task.state, task.percent, task.attempts, task.started_ms);
    shown(last) == shown(now) && last.worker == now.worker
}
