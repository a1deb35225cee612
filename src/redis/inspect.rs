//! Asks the server for its settings and its memory, to warn before state is lost.

use fred::types::Value;

use crate::redis::breakers::CallKind;
use crate::redis::client::RedisClient;
use crate::redis::error::RedisError;
use crate::redis::one_shot::OneShotConnection;
use crate::redis::server_info::{ServerMemory, ServerWarnings};
use crate::redis::transport::{ActiveConnection, RedisTransport};

impl RedisClient {
    /// Reads how the server is configured.
    ///
    /// # Errors
    /// See [`RedisError`]; settings that the server does not reveal are skipped.
    pub async fn inspect(&self) -> Result<ServerWarnings, RedisError> {
        let query = |active: ActiveConnection| async move {
            query_warnings(&active.transport).await.map(|(findings, _)| findings)
        };
        Ok(self.send(CallKind::Read, query).await?.union(self.notification_warnings()))
    }

    /// The same over a separate connection, with the server's memory. Needs no started connection.
    ///
    /// # Errors
    /// See [`RedisError`].
    pub async fn inspect_once(&self) -> Result<(ServerWarnings, Option<ServerMemory>), RedisError> {
        query_warnings(&OneShotConnection::open(&self.inner).await?.setup_transport()).await
    }

    /// The server's memory; `None` if it does not report it.
    ///
    /// # Errors
    /// See [`RedisError`].
    pub async fn memory(&self) -> Result<Option<ServerMemory>, RedisError> {
        let query = |active: ActiveConnection| async move {
            let info = active.transport.call("INFO", ["memory"]).await?.as_string().unwrap_or_default();
            Ok(ServerMemory::from_info(&info))
        };
        self.send(CallKind::Read, query).await
    }
}

async fn query_warnings(
    transport: &RedisTransport,
) -> Result<(ServerWarnings, Option<ServerMemory>), RedisError> {
    let info = transport.call("INFO", []).await?.as_string().unwrap_or_default();
    let save = match transport.call("CONFIG", ["GET", "save"]).await {
        Ok(answer) => config_value(answer),
        Err(error) if error.is_unknown_command() => None,
        Err(error) => return Err(error),
    };
    Ok((ServerWarnings::from_info(&info, save.as_deref()), ServerMemory::from_info(&info)))
}

/// The value in the reply to `CONFIG GET` of one name.
fn config_value(answer: Value) -> Option<String> {
    let Value::Array(pair) = answer else { return None };
    pair.into_iter().nth(1)?.as_string()
}
