//! More slots, or fewer, without losing what is queued on them.

use crate::control::event_kind::EventKind;
use crate::supervisor::Supervisor;
use crate::supervisor::effects::event_now;
use crate::supervisor::slots::plan::DesiredState;
use crate::supervisor::slots::slot::{Slot, SlotListening, WorkerHandle};

impl Supervisor<'_> {
    /// Sets the desired number of slots.
    ///
    /// # Errors
    /// Why that cannot be.
    pub(in crate::supervisor) fn scale_to(&mut self, slots: usize) -> Result<(), String> {
        let most = self.scoreboard.capacity();
        if slots == 0 {
            return Err("a fleet has at least one worker; `stop` ends it".to_owned());
        }
        if slots > most {
            return Err(format!(
                "this fleet has room for {most} workers; start it with more (workers.count)"
            ));
        }
        if slots != self.slots.desired {
            tracing::info!(
                from = self.slots.desired,
                to = slots,
                "scaling from {} to {slots} workers",
                self.slots.desired
            );
            let text = format!("from {} to {slots} workers", self.slots.desired);
            self.record_event(event_now(EventKind::Scaled, text));
            self.slots.desired = slots;
            self.scoreboard.set_slots(slots);
        }
        Ok(())
    }

    /// Brings the number of slots to what is wanted; true when it changed something.
    pub(in crate::supervisor) fn resize(&mut self) -> bool {
        let open = self.slots.open_count();
        if self.lifecycle.desired_state != DesiredState::Running || self.slots.desired == open {
            return false;
        }
        if self.slots.desired < open {
            // Slots retire from the highest index: the kernel moves a group's last socket into a gap.
            for slot in self
                .slots
                .entries
                .iter_mut()
                .skip(self.slots.desired)
                .filter(|slot| slot.listening == SlotListening::Open)
            {
                slot.listening = SlotListening::Retiring;
            }
            self.steer();
            return true;
        }
        // A retiring slot's socket is still a member of the group; the next one would get the wrong place.
        if self.slots.entries.iter().any(|slot| slot.listening == SlotListening::Retiring) {
            return false;
        }
        self.open_slot(open)
    }

    /// Opens the slot after the last open one.
    fn open_slot(&mut self, index: usize) -> bool {
        // Its socket joins the group at once; no connection is steered there before a worker is READY.
        self.steer_around(index);
        match self.slots.addresses.open_slot() {
            Ok(listeners) => {
                let generation = self.deployment.base_generation();
                if index < self.slots.entries.len() {
                    // Workers of its former life may still finish here.
                    let slot = &mut self.slots.entries[index];
                    slot.workers.iter_mut().for_each(WorkerHandle::cancel_slot_retirement);
                    (slot.listening, slot.was_ready, slot.generation) =
                        (SlotListening::Open, false, generation);
                    (slot.backoff, slot.backoff_until) =
                        (crate::supervisor::slots::backoff::RestartBackoff::default(), None);
                    self.slots.sockets[index] = Some(listeners);
                } else {
                    self.slots.entries.push(Slot::new(generation));
                    self.slots.sockets.push(Some(listeners));
                }
                tracing::info!(slot = index, "slot opened");
                true
            }
            Err(error) => {
                tracing::error!(%error, "cannot open another slot: {error}");
                self.monitor.reset_autoscaler();
                self.slots.desired = self.slots.open_count();
                self.scoreboard.set_slots(self.slots.desired);
                self.slots.steered.clear();
                false
            }
        }
    }

    /// Keeps new connections off slots that cannot serve them, as long as there are others: slots that retire, that
    /// have not served yet, or whose workers died early.
    pub(in crate::supervisor) fn steer(&mut self) {
        if self.lifecycle.desired_state != DesiredState::Running {
            return;
        }
        let open = |slot: &Slot| match slot.listening {
            SlotListening::Open if self.monitor.avoids_slot(slot) => false,
            SlotListening::Open => slot.is_serving() || (slot.backoff.early_deaths() == 0 && slot.was_ready),
            SlotListening::Retiring | SlotListening::Retired => false,
        };
        let listening =
            self.slots.entries.iter().zip(&self.slots.sockets).filter(|(_, sockets)| sockets.is_some());
        let open: Vec<bool> = listening.map(|(slot, _)| open(slot)).collect();
        self.apply_steering(open);
    }

    /// The same, with a slot that is about to begin to listen.
    fn steer_around(&mut self, index: usize) {
        let mut open: Vec<bool> = self.slots.entries.iter().take(index).map(Slot::is_serving).collect();
        open.push(false);
        self.apply_steering(open);
    }

    fn apply_steering(&mut self, open: Vec<bool>) {
        let mode = self.settings.steering;
        if open == self.slots.steered && mode == self.slots.steering_mode {
            return;
        }
        if let Some(Err(error)) =
            self.slots.sockets.iter().flatten().next().map(|first| first.steer(mode, &open))
        {
            tracing::warn!(%error, "cannot steer connections around a slot: {error}");
        }
        for (slot, open) in open.iter().enumerate() {
            self.scoreboard.row(slot).set_avoided(!open);
        }
        (self.slots.steered, self.slots.steering_mode) = (open, mode);
    }
}
