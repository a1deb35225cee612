//! Tasks in Redis: plain data, its wire form, described at the head of `migrations/0019_regatta_task_v3.lua`, and the
//! calls.
//!
//! Without server-side code there are none: every call is `Unsupported`.

mod attempt;
mod claim;
mod operations;
mod stats;
mod task_status;

pub use attempt::{
    Cancelled, EnqueueOutcome, ExecutionResult, StartOutcome, TaskDelivery, TaskExecution, TaskPolicy,
};
pub use claim::{FinishOutcome, IdleWorker, NextClaim};
pub use stats::{DeadTask, RunningTask, TaskQueueStats, TaskTotals};
pub use task_status::{InvalidTaskId, TaskId, TaskRandomSourceError, TaskState, TaskStatus};

/// A task is queued; its text is the kind. The first letter of notifications to one worker, and of those of earlier
/// releases on the common channel.
pub const TASK_QUEUED: char = 't';

/// A task has changed; its text is the id, a space, and the state.
pub const TASK_CHANGED: char = 'p';
