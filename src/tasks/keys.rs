//! The names of tasks and their queues in Redis: made here and nowhere else.

use crate::redis::keys::KeySpace;
use crate::redis::notifications::NotificationChannel;

/// First part of a task's channel behind the prefix.
const CHANNELS: &str = "p";

/// A task: a hash; knowing `id` is the right to read it, as with a password.
///
/// All keys of tasks share a hash tag, because a claim changes several of them in one step.
pub fn task(prefix: &str, id: &str) -> String {
    KeySpace::new(prefix).key(["{t}", "task", id])
}

/// The queue of one kind of tasks: a stream.
pub fn task_queue(prefix: &str, kind: &str) -> String {
    KeySpace::new(prefix).key(["{t}", "queue", kind])
}

/// The waiting tasks of all kinds: a sorted set, scores ms by Redis's clock.
pub fn tasks_waiting(prefix: &str) -> String {
    KeySpace::new(prefix).key(["{t}", "waiting"])
}

/// The running tasks: a hash.
pub fn tasks_running(prefix: &str) -> String {
    KeySpace::new(prefix).key(["{t}", "running"])
}

/// The latest dead tasks: a list.
pub fn tasks_dead(prefix: &str) -> String {
    KeySpace::new(prefix).key(["{t}", "dead"])
}

/// Totals of all tasks so far: a hash of numbers.
pub fn tasks_totals(prefix: &str) -> String {
    KeySpace::new(prefix).key(["{t}", "totals"])
}

/// The workers that wait for tasks of one kind: a sorted set, scores ms by Redis's clock at which each polls by itself.
pub fn task_idle_workers(prefix: &str, kind: &str) -> String {
    KeySpace::new(prefix).key(["{t}", "idle", kind])
}

/// The channel of a task's changes, for workers on which it is watched.
pub fn channel(id: &str) -> NotificationChannel<'_> {
    NotificationChannel::new(CHANNELS, id)
}
