//! Other addresses on their way through the slots: a rollout's new workers serve what is added, and when the last old
//! worker accepts no more, what is named no more ends.

use std::time::Duration;

use crate::listener::{ClosingListeners, ListenAddresses, ListenChange, SlotListeners};
use crate::supervisor::slots::slot::Slot;

/// The change under way, and sockets of earlier ones whose queues are emptied.
#[derive(Debug, Default)]
pub(in crate::supervisor) struct AddressesChange {
    under_way: Option<UnderWay>,
    closing: Vec<ClosingListeners>,
}

#[derive(Debug)]
struct UnderWay {
    /// The generation that brings it.
    generation: u64,
    change: ListenChange,
    /// Which slots serve what is added.
    steered: Vec<bool>,
}

impl AddressesChange {
    /// Begins one, with the workers of this generation; one that was under way is taken back.
    pub(in crate::supervisor) fn start(&mut self, generation: u64, change: Option<ListenChange>) {
        self.cancel();
        if let Some(change) = change {
            tracing::info!(generation, "listen: {}", change.describe());
            self.under_way = Some(UnderWay { generation, change, steered: Vec::new() });
        }
    }

    /// The listeners of a slot for a worker of this generation; none: the slot's own.
    pub(in crate::supervisor) fn listeners_for(
        &self,
        slot: usize,
        generation: u64,
        own: &SlotListeners,
    ) -> Option<SlotListeners> {
        let UnderWay { change, .. } = self.under_way.as_ref().filter(|one| one.generation == generation)?;
        let listeners = change.listeners_for(slot, own);
        let failed = |error: &std::io::Error| {
            tracing::error!(slot, %error, "a worker does without the added addresses: {error}");
        };
        listeners.inspect_err(failed).ok()
    }

    /// One slot more is opened.
    pub(super) fn open_slot(&mut self, index: usize) {
        let Some(UnderWay { change, .. }) = &mut self.under_way else { return };
        while change.slot_count() <= index {
            if let Err(error) = change.open_slot() {
                tracing::error!(slot = index, %error, "a slot does without the added addresses: {error}");
                return;
            }
        }
    }

    /// Has connections to what is added go to slots with a worker that serves it.
    pub(super) fn steer(&mut self, slots: &[Slot]) {
        let Some(UnderWay { generation, change, steered }) = &mut self.under_way else { return };
        let serves =
            |slot: &Slot| slot.workers.iter().any(|one| one.generation == *generation && one.is_ready());
        let open: Vec<bool> = slots.iter().map(serves).collect();
        if open != *steered {
            change.steer(&open);
            *steered = open;
        }
    }

    /// Takes the change under way back: what was added ends.
    pub(in crate::supervisor) fn cancel(&mut self) {
        if let Some(UnderWay { change, .. }) = self.under_way.take() {
            self.closing.push(change.cancel());
        }
    }

    /// Ends sockets whose queues are empty; when to look again.
    pub(in crate::supervisor) fn poll(&mut self, now: Duration) -> Option<Duration> {
        let polled: Vec<_> = self.closing.iter_mut().map(|closing| closing.poll(now)).collect();
        let mut open = polled.iter();
        self.closing.retain(|_| open.next().is_some_and(Option::is_some));
        polled.into_iter().flatten().min()
    }

    /// The rollout has reached every slot: what is added belongs to them from now on, and what ends is closed; what it
    /// was, and where the fleet listens now. None: there was none.
    pub(super) fn complete(
        &mut self,
        sockets: &mut [Option<SlotListeners>],
    ) -> Option<(String, ListenAddresses)> {
        let UnderWay { change, .. } = self.under_way.take()?;
        let what = change.describe();
        let (addresses, closing) = change.commit(sockets);
        self.closing.push(closing);
        Some((what, addresses))
    }
}
