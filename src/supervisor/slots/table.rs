//! All slots, and what belongs to each: listeners, workers' status pipes, steering.

use std::collections::BTreeMap;

use crate::config::settings::SteeringMode;
use crate::listener::shared_queue::SharedQueue;
use crate::listener::{ListenAddresses, SlotListeners};
use crate::scoreboard::Scoreboard;
use crate::supervisor::slots::slot::{Slot, SlotListening};
use crate::supervisor::slots::status_pipe::StatusPipe;
use crate::sys::process::Pid;
use crate::sys::tcp_socket;

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

    /// Public connections in a slot's accept queues.
    pub(in crate::supervisor) fn queued_connections(&self, slot: usize) -> u32 {
        let listeners = self.sockets.get(slot).and_then(Option::as_ref);
        let public = listeners.map_or(&[][..], |listeners| &listeners.public);
        public
            .iter()
            .filter_map(|listener| tcp_socket::read_accept_queue(listener).ok())
            .map(|queue| queue.waiting)
            .sum()
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
