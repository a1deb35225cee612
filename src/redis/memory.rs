//! How full the server's memory is: beyond a bound of its own it refuses every write.

use crate::redis::Redis;
use crate::redis::error::Error;
use crate::redis::inspect;
use crate::redis::lanes::Kind;
use crate::redis::link::Live;

/// The server's memory. In a Cluster that of the node that was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Bytes in use.
    pub used: u64,
    /// Bytes beyond which writes are refused; none: there is no such bound.
    pub most: Option<u64>,
}

impl Memory {
    /// The used part, thousandths; 0 without a bound.
    pub fn permille(&self) -> u64 {
        let part = |most: u64| self.used.saturating_mul(1000) / most.max(1);
        self.most.map_or(0, part).min(1000)
    }

    pub(super) fn of(info: &str) -> Option<Self> {
        let field = |name: &str| inspect::field(info, name)?.parse::<u64>().ok();
        Some(Self { used: field("used_memory")?, most: field("maxmemory").filter(|most| *most > 0) })
    }
}

impl Redis {
    /// How full the server is; none if it does not say.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn memory(&self) -> Result<Option<Memory>, Error> {
        let told = |live: Live| async move {
            let info = live.caller.call("INFO", ["memory"]).await?.as_string().unwrap_or_default();
            Ok(Memory::of(&info))
        };
        self.guard_as(Kind::Read, told).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_without_a_bound_is_never_full() {
        let told = "# Memory\r\nused_memory:900\r\nused_memory_human:900B\r\nmaxmemory:1000\r\nmaxmemory_human:1000B\r\n";
        assert_eq!(Memory::of(told).map(|memory| memory.permille()), Some(900));
        let unbounded = Memory::of("used_memory:900\r\nmaxmemory:0\r\n").unwrap();
        assert_eq!((unbounded.most, unbounded.permille()), (None, 0));
        assert_eq!(Memory::of("used_memory:2000\r\nmaxmemory:1000").unwrap().permille(), 1000);
        assert_eq!(Memory::of(""), None);
    }
}
