//! All slots, and what belongs to each: listeners, workers' status pipes, steering; more slots, or fewer, without losing
//! what is queued on them.

use std::collections::BTreeMap;

use crate::config::settings::SteeringMode;
use crate::control::event_kind::EventKind;
use crate::control::events::FleetEvent;
use crate::listener::shared_queue::SharedQueue;
use crate::listener::{ListenAddresses, Listener, SlotListeners};
use crate::scoreboard::Scoreboard;
use crate::supervisor::effects::event_now;
use crate::supervisor::monitor::HealthMonitor;
use crate::supervisor::slots::addresses_change::AddressesChange;
use crate::supervisor::slots::backoff::RestartBackoff;
use crate::supervisor::slots::slot::{Slot, SlotListening, WorkerHandle};
use crate::supervisor::slots::status_pipe::StatusPipe;
use crate::sys::process::Pid;

/// What the slots must be told so that new connections go to the right ones.
pub(in crate::supervisor) struct Steering<'a> {
    /// How they are chosen.
    pub(in crate::supervisor) mode: SteeringMode,
    /// Which says whether a slot is avoided although it serves: its worker may hang.
    pub(in crate::supervisor) monitor: &'a HealthMonitor,
    pub(in crate::supervisor) scoreboard: &'a Scoreboard,
}

/// What became of a step towards the desired number of slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::supervisor) enum Resize {
    /// It is reached, or something else comes first.
    Unchanged,
    /// A slot was opened, or retires.
    Changed,
    /// No slot can be opened: the desired number is what there is.
    Failed,
}

/// The slots of one fleet.
#[derive(Debug)]
pub(in crate::supervisor) struct SlotTable {
    pub(in crate::supervisor) entries: Vec<Slot>,
    /// The listeners of each slot; none once it has retired.
    pub(in crate::supervisor) sockets: Vec<Option<SlotListeners>>,
    pub(in crate::supervisor) status_pipes: BTreeMap<Pid, StatusPipe>,
    /// From which more slots are opened.
    pub(in crate::supervisor) addresses: ListenAddresses,
    /// How many slots are to serve.
    pub(in crate::supervisor) desired: usize,
    /// The same as the configuration names it.
    pub(in crate::supervisor) configured: usize,
    /// Which slots new connections may go to.
    pub(in crate::supervisor) steered: Vec<bool>,
    /// How they are chosen among those.
    pub(in crate::supervisor) steering_mode: SteeringMode,
    /// Connections on their way from one worker to another.
    pub(in crate::supervisor) shared_queue: Option<SharedQueue>,
    /// Other addresses, on their way through the slots.
    pub(in crate::supervisor) addresses_change: AddressesChange,
    /// Whether any worker was ever READY.
    pub(in crate::supervisor) ever_ready: bool,
    /// Why a worker last failed to become READY.
    pub(in crate::supervisor) last_failure: String,
    /// Workers that had to be killed.
    pub(in crate::supervisor) killed: usize,
}

impl SlotTable {
    /// One slot for each of these listeners.
    pub(in crate::supervisor) fn new(
        addresses: ListenAddresses,
        listeners: Vec<SlotListeners>,
        generation: u64,
        steering_mode: SteeringMode,
    ) -> Self {
        let count = listeners.len();
        Self {
            entries: vec![Slot::new(generation); count],
            sockets: listeners.into_iter().map(Some).collect(),
            status_pipes: BTreeMap::new(),
            addresses,
            desired: count,
            configured: count,
            steered: vec![true; count],
            steering_mode,
            shared_queue: open_shared_queue(),
            addresses_change: AddressesChange::default(),
            ever_ready: false,
            last_failure: no_failure(),
            killed: 0,
        }
    }

    /// Slots that are to serve.
    pub(in crate::supervisor) fn open_count(&self) -> usize {
        self.entries.iter().filter(|slot| slot.listening == SlotListening::Open).count()
    }

    /// Whether every slot that is wanted serves, and no other one listens.
    pub(in crate::supervisor) fn is_stable(&self) -> bool {
        self.open_count() == self.desired
            && self.entries.iter().all(|slot| match slot.listening {
                SlotListening::Open => slot.is_serving(),
                SlotListening::Retiring => false,
                SlotListening::Retired => true,
            })
    }

    /// Writes where the slot stands into its row.
    pub(in crate::supervisor) fn publish_state(&self, scoreboard: &Scoreboard, slot: usize) {
        let (state, incumbent) = self.entries[slot].scoreboard_state();
        scoreboard.row(slot).set_state(state, incumbent);
    }

    /// Sets the desired number of slots; the event of it, if that is another number.
    ///
    /// # Errors
    /// Why that cannot be.
    pub(in crate::supervisor) fn set_desired(
        &mut self,
        slots: usize,
        scoreboard: &Scoreboard,
    ) -> Result<Option<FleetEvent>, String> {
        let most = scoreboard.capacity();
        if slots == 0 {
            return Err("a fleet has at least one worker; `stop` ends it".to_owned());
        }
        if slots > most {
            return Err(format!(
                "this fleet has room for {most} workers; start it with more (workers.count)"
            ));
        }
        if slots == self.desired {
            return Ok(None);
        }
        let from = std::mem::replace(&mut self.desired, slots);
        tracing::info!(from, to = slots, "scaling from {from} to {slots} workers");
        scoreboard.set_slots(slots);
        Ok(Some(event_now(EventKind::Scaled, format!("from {from} to {slots} workers"))))
    }

    /// Brings the number of slots to what is desired, one step; a new slot begins with this generation.
    pub(in crate::supervisor) fn resize(&mut self, generation: u64, steering: &Steering<'_>) -> Resize {
        let open = self.open_count();
        if self.desired == open {
            return Resize::Unchanged;
        }
        if self.desired < open {
            // Slots retire from the highest index: the kernel moves a group's last socket into a gap.
            let surplus = self.entries.iter_mut().skip(self.desired);
            for slot in surplus.filter(|slot| slot.listening == SlotListening::Open) {
                slot.listening = SlotListening::Retiring;
            }
            self.steer(steering);
            return Resize::Changed;
        }
        // A retiring slot's socket is still a member of the group; the next one would get the wrong place.
        if self.entries.iter().any(|slot| slot.listening == SlotListening::Retiring) {
            return Resize::Unchanged;
        }
        self.open_slot(open, generation, steering)
    }

    /// Opens the slot after the last open one.
    fn open_slot(&mut self, index: usize, generation: u64, steering: &Steering<'_>) -> Resize {
        // Its socket joins the group at once; no connection is steered there before a worker is READY.
        let mut open: Vec<bool> = self.entries.iter().take(index).map(Slot::is_serving).collect();
        open.push(false);
        self.apply_steering(open, steering);
        match self.addresses.open_slot() {
            Ok(listeners) => {
                self.addresses_change.open_slot(index);
                if index < self.entries.len() {
                    // Workers of its former life may still finish here.
                    let slot = &mut self.entries[index];
                    slot.workers.iter_mut().for_each(WorkerHandle::cancel_slot_retirement);
                    (slot.listening, slot.was_ready, slot.generation) =
                        (SlotListening::Open, false, generation);
                    (slot.backoff, slot.backoff_until) = (RestartBackoff::default(), None);
                    self.sockets[index] = Some(listeners);
                } else {
                    self.entries.push(Slot::new(generation));
                    self.sockets.push(Some(listeners));
                }
                tracing::info!(slot = index, "slot opened");
                Resize::Changed
            }
            Err(error) => {
                tracing::error!(%error, "cannot open another slot: {error}");
                self.desired = self.open_count();
                steering.scoreboard.set_slots(self.desired);
                self.steered.clear();
                Resize::Failed
            }
        }
    }

    /// Keeps new connections off slots that cannot serve them, as long as there are others: slots that retire, that
    /// have not served yet, or whose workers died early.
    pub(in crate::supervisor) fn steer(&mut self, steering: &Steering<'_>) {
        let open = |slot: &Slot| match slot.listening {
            SlotListening::Open if steering.monitor.avoids_slot(slot) => false,
            SlotListening::Open => slot.is_serving() || (slot.backoff.early_deaths() == 0 && slot.was_ready),
            SlotListening::Retiring | SlotListening::Retired => false,
        };
        let listening = self.entries.iter().zip(&self.sockets).filter(|(_, sockets)| sockets.is_some());
        let open: Vec<bool> = listening.map(|(slot, _)| open(slot)).collect();
        self.apply_steering(open, steering);
        self.addresses_change.steer(&self.entries);
    }

    fn apply_steering(&mut self, open: Vec<bool>, steering: &Steering<'_>) {
        let mode = steering.mode;
        if open == self.steered && mode == self.steering_mode {
            return;
        }
        if let Some(Err(error)) = self.sockets.iter().flatten().next().map(|first| first.steer(mode, &open)) {
            tracing::warn!(%error, "cannot steer connections around a slot: {error}");
        }
        for (slot, open) in open.iter().enumerate() {
            steering.scoreboard.row(slot).set_avoided(!open);
        }
        (self.steered, self.steering_mode) = (open, mode);
    }

    /// The rollout has reached every slot: other addresses that came with it are the fleet's; what was changed, if
    /// anything was.
    pub(in crate::supervisor) fn complete_addresses_change(&mut self) -> Option<String> {
        let (what, addresses) = self.addresses_change.complete(&mut self.sockets)?;
        self.addresses = addresses;
        // The added groups have not heard of it yet.
        self.steered.clear();
        Some(what)
    }

    /// The fleet has ended, and with it the sockets that all slots shared.
    pub(in crate::supervisor) fn close_shared(&mut self) {
        self.addresses_change.cancel();
        self.addresses.close_shared();
    }

    /// Whether new connections may go to a slot.
    pub(in crate::supervisor) fn is_steered_to(&self, slot: usize) -> bool {
        self.steered.get(slot).copied().unwrap_or(true)
    }

    /// Public connections in a slot's accept queues.
    pub(in crate::supervisor) fn queued_connections(&self, slot: usize) -> u32 {
        let listeners = self.sockets.get(slot).and_then(Option::as_ref);
        let public = listeners.map_or(&[][..], |listeners| &listeners.public);
        public.iter().filter_map(Listener::queued_connections).sum()
    }
}

/// The queue of connections that workers pass on; without one each keeps what it accepts.
pub(in crate::supervisor) fn open_shared_queue() -> Option<SharedQueue> {
    let opened = SharedQueue::open();
    let warn = |error: &std::io::Error| {
        tracing::warn!(%error, "workers keep every connection the kernel gives them (listen.balance): {error}");
    };
    opened.inspect_err(warn).ok()
}

/// Why no worker became READY, as long as none has failed.
pub(in crate::supervisor) fn no_failure() -> String {
    String::from("no worker was started")
}
