//! The begins that wait to be sent to a cluster, by hash slot.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

use crate::redis::RedisError;
use crate::request_state::batching::hash_slot_queues::{HashSlotQueues, QueuePosition};
use crate::request_state::batching::reply_sizes::ReplySizes;
use crate::request_state::begin::batch::BeginEntry as Begin;
use crate::request_state::begin::{BeginReply, BeginRequest};

type Answer = Result<BeginReply, RedisError>;

/// Entries of one worker that wait to be sent to a cluster or are under way.
pub(in crate::request_state) struct ClusterBeginQueue {
    queues: Mutex<HashSlotQueues<Begin, Answer>>,
    pub(super) sender_waker: AtomicWaker,
    pub(super) sizes: ReplySizes,
}

impl ClusterBeginQueue {
    pub(in crate::request_state) fn new() -> Self {
        Self {
            queues: Mutex::new(HashSlotQueues::new()),
            sender_waker: AtomicWaker::new(),
            sizes: ReplySizes::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, HashSlotQueues<Begin, Answer>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues one part for each hash slot. Keys have their names in a cluster.
    pub(in crate::request_state) fn enqueue<'a>(
        &self,
        parts: impl Iterator<Item = (u16, BeginRequest<'a>)>,
    ) -> Vec<PendingPart> {
        let mut wake = false;
        let put = |(slot, request): (u16, BeginRequest<'_>)| {
            let entry = Begin::new(&request);
            let bytes = entry.bytes();
            let (position, first) = self.lock().push(slot, entry, bytes);
            wake |= first;
            PendingPart::Waiting(position)
        };
        let parts = parts.map(put).collect();
        if wake {
            self.sender_waker.wake();
        }
        parts
    }

    /// Collects the replies; returns whether all have arrived.
    pub(in crate::request_state) fn poll(&self, parts: &mut [PendingPart], cx: &Context<'_>) -> bool {
        let (mut queues, mut all) = (self.lock(), true);
        for part in parts {
            if let PendingPart::Waiting(position) = part {
                match queues.poll(*position, cx.waker()) {
                    Poll::Ready(answer) => *part = PendingPart::Answered(answer),
                    Poll::Pending => all = false,
                }
            }
        }
        all
    }

    /// Takes a request's parts out of the queues unless one of them may have been sent. A request is all or nothing, so
    /// in that case the others are sent too. Returns whether they were taken out.
    pub(in crate::request_state) fn withdraw(&self, parts: &[PendingPart]) -> bool {
        let mut queues = self.lock();
        let waiting = parts
            .iter()
            .all(|part| matches!(part, PendingPart::Waiting(position) if queues.is_waiting(*position)));
        if waiting {
            Self::abandon_waiting(&mut queues, parts);
        }
        waiting
    }

    /// Gives up the replies that have not arrived yet.
    pub(in crate::request_state) fn abandon(&self, parts: &[PendingPart]) {
        Self::abandon_waiting(&mut self.lock(), parts);
    }

    fn abandon_waiting(queues: &mut HashSlotQueues<Begin, Answer>, parts: &[PendingPart]) {
        for part in parts {
            if let PendingPart::Waiting(position) = part {
                queues.abandon(*position);
            }
        }
    }
}

/// A part of a request's begin.
#[derive(Debug)]
pub(in crate::request_state) enum PendingPart {
    /// It is queued, or in a call that is under way.
    Waiting(QueuePosition),
    /// Its node's reply, or why there is none.
    Answered(Answer),
}
