//! How server-side code is called on this server by this user: found out by asking.

use fred::types::Value;

use crate::config::settings::ScriptingMode;
use crate::redis::connection::RedisConnection;
use crate::redis::error::RedisError;
use crate::redis::functions::{InvocationMode, LIBRARY_PATTERN};

/// The digest of no script.
const NO_DIGEST: &str = "0000000000000000000000000000000000000000";

impl RedisConnection {
    /// Finds out how code is called here: by name, else by digest, else not at all. Changes nothing but the cache of
    /// scripts.
    pub(super) async fn detect_mode(&self, requested: ScriptingMode) -> Result<InvocationMode, RedisError> {
        match requested {
            ScriptingMode::Fcall => return Ok(InvocationMode::Function),
            ScriptingMode::Evalsha => return Ok(InvocationMode::Script),
            ScriptingMode::Plain => return Ok(InvocationMode::Plain),
            ScriptingMode::Auto => {}
        }
        let caller = self.setup_transport();
        // The ledger is written by EVAL in each form.
        if !is_permitted(caller.call("EVAL", ["return 1", "0"]).await)? {
            return Ok(InvocationMode::Plain);
        }
        let named = is_permitted(caller.call("FUNCTION", ["LIST", "LIBRARYNAME", LIBRARY_PATTERN]).await)?
            && is_permitted(caller.call("FCALL", ["regatta_none", "0"]).await)?;
        if named {
            return Ok(InvocationMode::Function);
        }
        let by_digest = is_permitted(caller.call("SCRIPT", ["LOAD", "return 1"]).await)?
            && is_permitted(caller.call("EVALSHA", [NO_DIGEST, "0"]).await)?;
        Ok(if by_digest { InvocationMode::Script } else { InvocationMode::Plain })
    }
}

/// Whether a command may be called here; that it names code which is not there is an answer as good as any.
fn is_permitted(answer: Result<Value, RedisError>) -> Result<bool, RedisError> {
    match answer {
        Ok(_) => Ok(true),
        Err(error) if error.is_function_missing() => Ok(true),
        Err(error) if error.is_unknown_command() => Ok(false),
        Err(error) => Err(error),
    }
}
