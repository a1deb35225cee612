//! The state of a worker and its drain order, as words of its cell.

/// Where a worker stands, as the supervisor sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u64)]
pub enum CellState {
    /// No worker writes this cell.
    Vacant = 0,
    /// Forked, not READY yet.
    Booting = 1,
    /// It serves.
    Ready = 2,
    /// It finishes what it has and leaves.
    Draining = 3,
    /// Its event loop does not turn; a spare worker serves its slot beside it.
    Hung = 4,
    /// It was sent SIGKILL.
    Killed = 5,
}

impl CellState {
    pub(super) fn from_word(word: u64) -> Self {
        match word {
            1 => Self::Booting,
            2 => Self::Ready,
            3 => Self::Draining,
            4 => Self::Hung,
            5 => Self::Killed,
            _ => Self::Vacant,
        }
    }

    /// The state's name, as logs and status spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vacant => "vacant",
            Self::Booting => "booting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Hung => "hung",
            Self::Killed => "killed",
        }
    }
}

/// How a worker has to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u64)]
pub enum DrainOrder {
    /// The supervisor has given no order: what signals the worker is another process.
    #[serde(rename = "untold")]
    None = 0,
    /// A successor takes the slot: listeners and queue stay as they are.
    #[serde(rename = "pass")]
    HandOver = 1,
    /// The slot ends and the fleet goes on: its queue runs dry, then its listeners close.
    #[serde(rename = "close")]
    Retire = 2,
    /// The fleet ends, and the slot with it.
    Stop = 3,
    /// It was ordered before, and has to cut what it still has.
    #[serde(rename = "cut")]
    Abort = 4,
}

impl DrainOrder {
    pub(super) fn from_word(word: u64) -> Self {
        match word {
            1 => Self::HandOver,
            2 => Self::Retire,
            3 => Self::Stop,
            4 => Self::Abort,
            _ => Self::None,
        }
    }
}
