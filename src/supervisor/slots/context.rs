//! What the slots are told of the rest of the fleet.

use std::time::Duration;

use crate::scoreboard::Scoreboard;
use crate::supervisor::deployment::rollout::Rollout;
use crate::supervisor::settings::SupervisorSettings;
use crate::supervisor::slots::plan::DesiredState;
use crate::supervisor::slots::slot::WorkerHandle;

/// The fleet around the slots at one moment.
#[derive(Debug)]
pub(in crate::supervisor) struct SlotContext<'a> {
    /// Where it is written what becomes of slots and workers.
    pub(in crate::supervisor) scoreboard: &'a Scoreboard,
    pub(in crate::supervisor) settings: SupervisorSettings,
    pub(in crate::supervisor) desired_state: DesiredState,
    /// The generation every slot is to have.
    pub(in crate::supervisor) generation: u64,
    /// The rollout that goes forward.
    pub(in crate::supervisor) rolling_out: Option<Rollout>,
    /// The generation that a failed rollout goes back to.
    pub(in crate::supervisor) rolling_back_to: Option<u64>,
    /// Monotonic time.
    pub(in crate::supervisor) now: Duration,
}

impl SlotContext<'_> {
    /// Whether the end of this worker means that the generation on its way is no good.
    pub(super) fn is_failed_by(&self, worker: &WorkerHandle) -> bool {
        let canary_period = self.settings.canary_period;
        self.rolling_out.as_ref().is_some_and(|rollout| rollout.is_failed_by(worker, canary_period, self.now))
    }
}
