//! How full the server's memory is: beyond a bound of its own it refuses every write.

use crate::redis::breakers::CallKind;
use crate::redis::connection::ActiveConnection;
use crate::redis::error::RedisError;
use crate::redis::{RedisClient, inspect};

/// The server's memory. In a Cluster that of the node that was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerMemory {
    /// Bytes in use.
    pub used: u64,
    /// Bytes beyond which writes are refused; none: there is no such bound.
    pub max: Option<u64>,
}

impl ServerMemory {
    /// The used part, thousandths; 0 without a bound.
    pub fn permille(&self) -> u64 {
        let part = |most: u64| self.used.saturating_mul(1000) / most.max(1);
        self.max.map_or(0, part).min(1000)
    }

    pub(super) fn from_info(info: &str) -> Option<Self> {
        let field = |name: &str| inspect::info_field(info, name)?.parse::<u64>().ok();
        Some(Self { used: field("used_memory")?, max: field("maxmemory").filter(|most| *most > 0) })
    }
}

impl RedisClient {
    /// How full the server is; none if it does not say.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn memory(&self) -> Result<Option<ServerMemory>, RedisError> {
        let query = |live: ActiveConnection| async move {
            let info = live.transport.call("INFO", ["memory"]).await?.as_string().unwrap_or_default();
            Ok(ServerMemory::from_info(&info))
        };
        self.send(CallKind::Read, query).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_without_a_bound_is_never_full() {
        let info = "# Memory\r\nused_memory:900\r\nused_memory_human:900B\r\nmaxmemory:1000\r\nmaxmemory_human:1000B\r\n";
        assert_eq!(ServerMemory::from_info(info).map(|memory| memory.permille()), Some(900));
        let unbounded = ServerMemory::from_info("used_memory:900\r\nmaxmemory:0\r\n").unwrap();
        assert_eq!((unbounded.max, unbounded.permille()), (None, 0));
        assert_eq!(ServerMemory::from_info("used_memory:2000\r\nmaxmemory:1000").unwrap().permille(), 1000);
        assert_eq!(ServerMemory::from_info(""), None);
    }
}
