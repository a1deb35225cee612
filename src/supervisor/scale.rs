//! More slots, or fewer, without losing what is queued on them.

use crate::supervisor::Supervisor;
use crate::supervisor::history::happened;
use crate::supervisor::plan::Target;
use crate::supervisor::slot::Occupant;
use crate::supervisor::slot::Seat;
use crate::supervisor::slot::Slot;

impl Supervisor<'_> {
    /// Wants this many slots from now on; says why not when that cannot be.
    pub(super) fn scale_to(&mut self, wanted: usize) -> Result<(), String> {
        let most = self.scoreboard.capacity();
        if wanted == 0 {
            return Err("a fleet has at least one worker; `stop` ends it".to_owned());
        }
        if wanted > most {
            return Err(format!(
                "this fleet has room for {most} workers; start it with more (workers.count)"
            ));
        }
        if wanted != self.wanted {
            tracing::info!(
                from = self.wanted,
                to = wanted,
                "scaling from {} to {wanted} workers",
                self.wanted
            );
            let text = format!("from {} to {wanted} workers", self.wanted);
            self.note(happened("scale", text));
            self.wanted = wanted;
            self.scoreboard.set_slots(wanted);
        }
        Ok(())
    }

    /// Slots that are to serve.
    pub(super) fn open_slots(&self) -> usize {
        self.slots.iter().filter(|slot| slot.seat == Seat::Open).count()
    }

    /// Whether every slot that is wanted serves, and no other one listens.
    pub(super) fn is_settled(&self) -> bool {
        self.open_slots() == self.wanted
            && self.slots.iter().all(|slot| match slot.seat {
                Seat::Open => slot.serves(),
                Seat::Closing => false,
                Seat::Closed => true,
            })
    }

    /// Brings the number of slots to what is wanted; true when it changed something.
    pub(super) fn resize(&mut self) -> bool {
        let open = self.open_slots();
        if self.target != Target::Serve || self.wanted == open {
            return false;
        }
        if self.wanted < open {
            // Slots retire from the highest index: the kernel moves a group's last socket into a gap.
            for slot in self.slots.iter_mut().skip(self.wanted).filter(|slot| slot.seat == Seat::Open) {
                slot.seat = Seat::Closing;
            }
            self.steer();
            return true;
        }
        // A retiring slot's socket is still a member of the group; the next one would get the wrong place.
        if self.slots.iter().any(|slot| slot.seat == Seat::Closing) {
            return false;
        }
        self.grow(open)
    }

    /// Opens the slot after the last open one.
    fn grow(&mut self, index: usize) -> bool {
        // Its socket joins the group at once; nobody is sent there before a worker is READY.
        self.steer_past(index);
        match self.addresses.open_slot() {
            Ok(listeners) => {
                let generation = self.rollout.as_ref().map_or(self.generation, |rollout| rollout.from);
                if index < self.slots.len() {
                    // Workers of its former life may still finish here.
                    let slot = &mut self.slots[index];
                    slot.workers.iter_mut().for_each(Occupant::passes);
                    (slot.seat, slot.proven, slot.generation) = (Seat::Open, false, generation);
                    (slot.backoff, slot.rest_until) = (crate::supervisor::backoff::Backoff::default(), None);
                    self.sockets[index] = Some(listeners);
                } else {
                    self.slots.push(Slot::new(generation));
                    self.sockets.push(Some(listeners));
                }
                tracing::info!(slot = index, "slot opened");
                true
            }
            Err(error) => {
                tracing::error!(%error, "cannot open another slot: {error}");
                self.senses.forget_scaling();
                self.wanted = self.open_slots();
                self.scoreboard.set_slots(self.wanted);
                self.steered.clear();
                false
            }
        }
    }

    /// Keeps new connections off slots that cannot serve them, as long as there are others: slots that retire, that
    /// have not served yet, or whose workers died early.
    pub(super) fn steer(&mut self) {
        if self.target != Target::Serve {
            return;
        }
        let open = |slot: &Slot| match slot.seat {
            Seat::Open if self.senses.avoids(slot) => false,
            Seat::Open => slot.serves() || (slot.backoff.early_deaths() == 0 && slot.proven),
            Seat::Closing | Seat::Closed => false,
        };
        let listening = self.slots.iter().zip(&self.sockets).filter(|(_, sockets)| sockets.is_some());
        let open: Vec<bool> = listening.map(|(slot, _)| open(slot)).collect();
        self.steer_to(open);
    }

    /// The same, with a slot that is about to begin to listen.
    fn steer_past(&mut self, index: usize) {
        let mut open: Vec<bool> = self.slots.iter().take(index).map(Slot::serves).collect();
        open.push(false);
        self.steer_to(open);
    }

    fn steer_to(&mut self, open: Vec<bool>) {
        let mode = self.settings.steering;
        if open == self.steered && mode == self.steered_by {
            return;
        }
        if let Some(Err(error)) = self.sockets.iter().flatten().next().map(|first| first.steer(mode, &open)) {
            tracing::warn!(%error, "cannot steer connections past a slot that waits: {error}");
        }
        for (slot, open) in open.iter().enumerate() {
            self.scoreboard.row(slot).set_avoided(!open);
        }
        (self.steered, self.steered_by) = (open, mode);
    }
}
