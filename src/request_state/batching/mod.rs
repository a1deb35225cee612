//! Joins the calls that the requests of one turn of a worker's event loop make: one call for their begins, one for
//! their commits.
//!
//! A request queues an entry and waits for the reply. The first entry of a turn wakes one task, the sender, which the
//! runtime polls after every task that was runnable by then; it sends what is queued as one call. So a request that is
//! alone is sent in its own turn, without a timer, and 64 that arrive together cost one call. Entries that arrive while
//! a call is under way wait for the next reply at most, or until enough of them are queued.
//!
//! Guarantees that a caller who leaves before the batch is sealed has sent nothing, and that one who leaves later harms
//! no other entry. It must not know what begins and commits mean.

mod begin_sender;
mod call_pacer;
mod caller_table;
mod cluster_queue;
mod cluster_sender;
mod commit_sender;
mod hash_slot_queues;
mod queue;
mod reply_sizes;
mod sender;

pub(super) use cluster_queue::{ClusterBeginQueue, PendingPart};
pub(super) use queue::{BeginQueue, CommitQueue, MAX_SHARED_COMMIT_BYTES};
pub(super) use sender::run;
