//! One connection, kept: made, made ready, watched, and replaced as a whole whenever it is in doubt.
//!
//! The client library can reconnect by itself, but some of its failures leave a task that is wedged or dead while it
//! still says "connected". Therefore a client here lives exactly as long as its one connection, and this loop makes
//! the next. It never ends, its pauses are random so that a fleet does not come back as one, and none is longer
//! than a second.

use std::sync::Arc;
use std::time::Duration;

use fred::clients::Client;
use fred::clients::WithOptions;
use fred::interfaces::ClientLike;
use fred::types::ClusterHash;
use fred::types::ConnectHandle;
use fred::types::CustomCommand;
use fred::types::Value;
use fred::types::config::Options;
use rand::TryRngCore;
use rand::rngs::OsRng;
use tokio::time::Instant;
use tokio::time::MissedTickBehavior;
use tower_sessions_redis_store::RedisStore;

use crate::config::schema::Mode;
use crate::redis::Inner;
use crate::redis::endpoint;
use crate::redis::error::Error;
use crate::redis::error::Refusal;
use crate::redis::library::Form;
use crate::redis::migrations;
use crate::redis::secret;

/// Longest wait for one command while a connection is made ready.
const SETUP_TIMEOUT: Duration = Duration::from_millis(700);
/// How often a connection is asked whether it lives, and how long it may think.
const PING_EVERY: Duration = Duration::from_millis(500);
const PING_TIMEOUT: Duration = Duration::from_millis(200);
/// Unanswered questions in a row after which the connection is given up.
const MISSES: u32 = 3;
/// The signing key is offered again at every n-th question: `FLUSHALL` must not split the fleet.
const SECRET_EVERY: u32 = 10;
/// The digest of no script.
const NO_DIGEST: &str = "0000000000000000000000000000000000000000";
/// Pause before the n-th attempt: random up to 50 ms × 2^n, never longer than this.
const PAUSE_MAX: Duration = Duration::from_millis(800);
/// A connection that lived this long begins counting pauses anew.
const SETTLED: Duration = Duration::from_secs(2);

/// A client with its call options; cheap to clone.
#[derive(Clone)]
pub(super) struct Caller(WithOptions<Client>);

impl Caller {
    fn new(client: &Client, timeout: Duration) -> Self {
        let options =
            Options { timeout: Some(timeout), fail_fast: true, max_attempts: Some(1), ..Options::default() };
        Self(client.with_options(&options))
    }

    /// One command. `custom` and not `fcall`: the client sends no other command while an `fcall` of its own waits.
    pub(super) async fn send(&self, command: &'static str, args: Vec<Value>) -> Result<Value, Error> {
        let command = CustomCommand::new_static(command, ClusterHash::FirstKey, false);
        Ok(self.0.custom(command, args).await?)
    }

    /// Several commands in one write, each with its own answer; others' commands may come between them.
    ///
    /// # Errors
    /// When none was answered.
    pub(super) async fn together(
        &self,
        commands: Vec<(&'static str, Vec<Value>)>,
    ) -> Result<Vec<Result<Value, Error>>, Error> {
        let (count, pipeline) = (commands.len(), self.0.pipeline().with_options(self.0.options()));
        for (command, args) in commands {
            let command = CustomCommand::new_static(command, ClusterHash::FirstKey, false);
            let () = pipeline.custom(command, args).await?;
        }
        let answers = pipeline.try_all::<Value>().await;
        let complete = answers.len() == count;
        let mut answers: Vec<_> = answers.into_iter().map(|answer| answer.map_err(Error::from)).collect();
        match complete {
            true => Ok(answers),
            false => {
                answers.pop().unwrap_or(Ok(Value::Null)).and(Err(Error::protocol("answers are missing")))
            }
        }
    }

    /// tower-sessions' own store over this connection.
    pub(super) fn store(&self) -> RedisStore<WithOptions<Client>> {
        RedisStore::new(self.0.clone())
    }

    /// One command with text arguments, off a request's path.
    pub(super) async fn call<const N: usize>(
        &self,
        command: &'static str,
        args: [&str; N],
    ) -> Result<Value, Error> {
        self.send(command, args.into_iter().map(Value::from).collect()).await
    }
}

/// A connection on which requests may call.
#[derive(Clone)]
pub(super) struct Live {
    pub(super) caller: Caller,
    pub(super) form: Form,
}

/// A connection and the task behind it, which ends with this value.
pub(super) struct Link {
    client: Client,
    task: ConnectHandle,
}

impl Drop for Link {
    fn drop(&mut self) {
        // A wedged client cannot be asked to quit; ending its task closes the connection and fails what waits.
        self.task.abort();
    }
}

impl Link {
    /// Connects once.
    ///
    /// # Errors
    /// Why it could not, e.g. refused or wrong password.
    pub(super) async fn open(inner: &Inner) -> Result<Self, Error> {
        let performance = endpoint::performance(SETUP_TIMEOUT);
        let client =
            Client::new(inner.endpoint.clone(), Some(performance), Some(endpoint::connection()), None);
        let task = client.connect();
        let link = Self { client, task };
        let connected = link.client.wait_for_connect();
        match tokio::time::timeout(2 * endpoint::CONNECT_TIMEOUT, connected).await {
            Err(_) | Ok(Err(_)) if link.task.is_finished() => Err(link.reason().await),
            Err(_) => Err(Error::Timeout),
            Ok(outcome) => outcome.map(|()| link).map_err(Error::from),
        }
    }

    /// Why the task ended; the message of its end says more than that of the wait.
    async fn reason(mut self) -> Error {
        match (&mut self.task).await {
            Ok(Err(error)) => error.into(),
            Ok(Ok(())) | Err(_) => Error::unavailable("the connection was closed"),
        }
    }

    /// A caller with the patience of set-up.
    pub(super) fn patient(&self) -> Caller {
        Caller::new(&self.client, SETUP_TIMEOUT)
    }

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
        let named = allowed(caller.call("FUNCTION", ["LIST", "LIBRARYNAME", "regatta_*"]).await)?
            && allowed(caller.call("FCALL", ["regatta_none", "0"]).await)?;
        if named {
            return Ok(Form::Function);
        }
        let by_digest = allowed(caller.call("SCRIPT", ["LOAD", "return 1"]).await)?
            && allowed(caller.call("EVALSHA", [NO_DIGEST, "0"]).await)?;
        Ok(if by_digest { Form::Script } else { Form::Plain })
    }

    /// Makes a connection ready for requests: name, code, ledger, signing key.
    async fn prepare(&self, inner: &Inner) -> Result<Live, Error> {
        let patient = self.patient();
        // The name only helps people who read CLIENT LIST; a server that forbids it is usable all the same.
        let _ = patient.call("CLIENT", ["SETNAME", &inner.name]).await;
        let mut form = self.form(inner.mode).await?;
        match migrations::bring_up(&patient, form, &inner.prefix, &inner.name).await {
            // Functions may be called but not loaded, and nobody has loaded them.
            Err(error) if error.unsupported() && inner.mode == Mode::Auto && form == Form::Function => {
                form = Form::Script;
                migrations::bring_up(&patient, form, &inner.prefix, &inner.name).await?;
            }
            other => other?,
        }
        secret::offer(&patient, inner).await?;
        inner.warn_of_form(form);
        Ok(Live { caller: Caller::new(&self.client, inner.command_timeout), form })
    }

    /// Returns when the connection can no longer be trusted, with the reason.
    async fn watch(&mut self, inner: &Inner) -> Error {
        let patient = self.patient();
        let prober = Caller::new(&self.client, PING_TIMEOUT);
        let mut ticks = tokio::time::interval(PING_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut misses, mut count) = (0, 0u32);
        let probe = async {
            loop {
                ticks.tick().await;
                count = count.wrapping_add(1);
                let answer = match count % SECRET_EVERY {
                    0 => secret::offer(&patient, inner).await,
                    _ => prober.call("PING", []).await.map(|_| ()),
                };
                match answer {
                    Err(Error::Timeout) => misses += 1,
                    Err(error @ Error::Unavailable { .. }) => return error,
                    // An answer is an answer: reconnecting to a server that is busy or full makes it worse.
                    Ok(()) | Err(_) => misses = 0,
                }
                if misses == MISSES {
                    return Error::unavailable("it does not answer although the connection is open");
                }
            }
        };
        tokio::select! {
            error = probe => error,
            () = inner.doubt.notified() => Error::unavailable("the server became a read-only replica"),
            ended = &mut self.task => match ended {
                Ok(Err(error)) => error.into(),
                Ok(Ok(())) | Err(_) => Error::unavailable("the connection was closed"),
            },
        }
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

/// Keeps a connection for as long as the runtime lives.
pub(super) async fn keep(inner: Arc<Inner>) {
    let mut attempt = 0u32;
    loop {
        match establish(&inner).await {
            Ok((mut link, live)) => {
                let since = Instant::now();
                inner.up(live);
                let reason = link.watch(&inner).await;
                inner.down(&reason);
                attempt = if since.elapsed() >= SETTLED { 0 } else { attempt + 1 };
            }
            Err(error) => {
                inner.down(&error);
                attempt += 1;
            }
        }
        tokio::time::sleep(pause(attempt, random())).await;
    }
}

async fn establish(inner: &Inner) -> Result<(Link, Live), Error> {
    let link = Link::open(inner).await?;
    let live = link.prepare(inner).await?;
    Ok((link, live))
}

/// From 0 to 1, by the operating system: workers forked from one supervisor share the state of any other generator.
fn random() -> f64 {
    OsRng.try_next_u32().map_or(0.5, |number| f64::from(number) / f64::from(u32::MAX))
}

/// Full jitter: anything from nothing to the cap, which doubles; `random` is from 0 to 1.
fn pause(attempt: u32, random: f64) -> Duration {
    let cap = Duration::from_millis(50).saturating_mul(1 << attempt.min(8));
    cap.min(PAUSE_MAX).mul_f64(random.clamp(0.0, 1.0))
}

/// Whether a server that said this no longer takes what it took: a new connection may find the new primary.
pub(super) fn doubts(error: &Error) -> bool {
    matches!(error, Error::Refused { refusal: Refusal::ReadOnly, .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_cap_and_are_random_from_nothing() {
        assert_eq!(pause(0, 1.0), Duration::from_millis(50));
        assert_eq!(pause(2, 1.0), Duration::from_millis(200));
        assert_eq!(pause(u32::MAX, 1.0), PAUSE_MAX);
        assert_eq!(pause(9, 0.0), Duration::ZERO);
    }
}
