//! Why a worker ended: one word for log, status and metrics.

/// Why a worker ended or was replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u64)]
pub enum ExitReason {
    /// It was not READY in time, or reported why it could not be.
    Boot = 0,
    /// It ended by itself with an exit code.
    ExitCode = 1,
    /// A signal that the supervisor did not send ended it.
    Signal = 2,
    /// The kernel killed it for want of memory.
    OutOfMemory = 3,
    /// It stopped answering.
    Hang = 4,
    /// It held more private memory than `workers.memory_soft` or `workers.memory_hard` allows.
    Memory = 5,
    /// It reached `workers.max_age`.
    Age = 6,
    /// It reached `workers.max_requests`.
    Requests = 7,
    /// An operator restarted it.
    Operator = 8,
    /// A reload replaced it, or rolled it back.
    Reload = 9,
    /// An upgrade replaced it, or rolled it back.
    Upgrade = 10,
    /// The fleet got smaller.
    Scale = 11,
    /// The fleet stopped.
    Stop = 12,
    /// It was still there at the drain's deadline, or too many older ones were.
    DrainTimeout = 13,
}

impl ExitReason {
    /// Every reason, in the order of its number.
    pub const ALL: [Self; 14] = [
        Self::Boot,
        Self::ExitCode,
        Self::Signal,
        Self::OutOfMemory,
        Self::Hang,
        Self::Memory,
        Self::Age,
        Self::Requests,
        Self::Operator,
        Self::Reload,
        Self::Upgrade,
        Self::Scale,
        Self::Stop,
        Self::DrainTimeout,
    ];

    /// The reason's name, as logs, status and metrics spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Boot => "boot",
            Self::ExitCode => "exit_code",
            Self::Signal => "signal",
            Self::OutOfMemory => "out_of_memory",
            Self::Hang => "hang",
            Self::Memory => "memory",
            Self::Age => "age",
            Self::Requests => "requests",
            Self::Operator => "operator",
            Self::Reload => "reload",
            Self::Upgrade => "upgrade",
            Self::Scale => "scale",
            Self::Stop => "stop",
            Self::DrainTimeout => "drain_timeout",
        }
    }

    /// Whether the worker failed, so that it counts as a crash and not as an orderly leave.
    pub fn is_failure(self) -> bool {
        matches!(
            self,
            Self::Boot | Self::ExitCode | Self::Signal | Self::OutOfMemory | Self::Hang | Self::DrainTimeout
        )
    }

    pub(super) fn from_word(word: u64) -> Option<Self> {
        Self::ALL.get(usize::try_from(word).ok()?).copied()
    }
}

impl std::fmt::Display for ExitReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_a_reason_is_its_place() {
        for (number, reason) in (0_u64..).zip(ExitReason::ALL) {
            assert_eq!(reason as u64, number);
            assert_eq!(ExitReason::from_word(number), Some(reason));
        }
    }
}
