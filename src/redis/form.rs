//! How server-side code is called on this server by this user: found out by asking.

use fred::types::Value;

use crate::config::schema::Mode;
use crate::redis::error::Error;
use crate::redis::library::Form;
use crate::redis::library::OURS;
use crate::redis::link::Link;

/// The digest of no script.
const NO_DIGEST: &str = "0000000000000000000000000000000000000000";

impl Link {
    /// Finds out how code is called here: by name, else by digest, else not at all. Changes nothing but the cache of
    /// scripts.
    pub(super) async fn form(&self, wanted: Mode) -> Result<Form, Error> {
        match wanted {
            Mode::Fcall => return Ok(Form::Function),
            Mode::Evalsha => return Ok(Form::Script),
            Mode::Plain => return Ok(Form::Plain),
            Mode::Auto => {}
        }
        let caller = self.patient();
        // The ledger is written by EVAL in each form.
        if !allowed(caller.call("EVAL", ["return 1", "0"]).await)? {
            return Ok(Form::Plain);
        }
        let named = allowed(caller.call("FUNCTION", ["LIST", "LIBRARYNAME", OURS]).await)?
            && allowed(caller.call("FCALL", ["regatta_none", "0"]).await)?;
        if named {
            return Ok(Form::Function);
        }
        let by_digest = allowed(caller.call("SCRIPT", ["LOAD", "return 1"]).await)?
            && allowed(caller.call("EVALSHA", [NO_DIGEST, "0"]).await)?;
        Ok(if by_digest { Form::Script } else { Form::Plain })
    }
}

/// Whether a command may be called here; that it names code which is not there is an answer as good as any.
fn allowed(answer: Result<Value, Error>) -> Result<bool, Error> {
    match answer {
        Ok(_) => Ok(true),
        Err(error) if error.code_missing() => Ok(true),
        Err(error) if error.unsupported() => Ok(false),
        Err(error) => Err(error),
    }
}
