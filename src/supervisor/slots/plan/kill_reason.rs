//! Why a worker is killed.

use crate::scoreboard::ExitReason;

/// Why a worker is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KillReason {
    /// It was not READY in time.
    BootTimeout,
    /// It did not leave in time.
    DrainTimeout,
    /// It does not answer.
    Hang,
    /// It holds more memory than it may.
    Memory,
    /// The operator requested an immediate stop.
    StopNow,
}

impl KillReason {
    /// The reason under which its end is counted.
    pub fn exit_reason(self) -> ExitReason {
        match self {
            Self::BootTimeout => ExitReason::Boot,
            Self::DrainTimeout => ExitReason::DrainTimeout,
            Self::Hang => ExitReason::Hang,
            Self::Memory => ExitReason::Memory,
            Self::StopNow => ExitReason::Stop,
        }
    }
}

impl std::fmt::Display for KillReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::BootTimeout => "not ready within workers.boot_timeout",
            Self::DrainTimeout => "still there after drain.timeout",
            Self::Hang => "it hangs for too long (workers.hang_kill), or its slot needs the room",
            Self::Memory => "it holds more memory than workers.memory_hard",
            Self::StopNow => "stop at once",
        })
    }
}
