//! The state of a slot, as a word of its row.

/// Where a slot stands, as the supervisor sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u64)]
pub enum SlotState {
    /// No worker, and none wanted.
    Empty = 0,
    /// A worker was forked and is not READY yet.
    Booting = 1,
    /// A worker serves.
    Ready = 2,
    /// Its worker takes no new connections and finishes what it has.
    Draining = 3,
    /// The last worker died early; the next one waits for its delay.
    BackedOff = 4,
}

impl SlotState {
    /// Every state, in the order of a slot's life.
    pub const ALL: [Self; 5] = [Self::Empty, Self::Booting, Self::Ready, Self::Draining, Self::BackedOff];

    pub(super) fn from_word(word: u64) -> Self {
        match word {
            1 => Self::Booting,
            2 => Self::Ready,
            3 => Self::Draining,
            4 => Self::BackedOff,
            _ => Self::Empty,
        }
    }

    /// The state's name, as logs and metrics spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Booting => "booting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::BackedOff => "backed_off",
        }
    }
}
