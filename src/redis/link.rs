//! One connection, kept: made, made ready, watched, and replaced as a whole whenever it is in doubt.
//!
//! The client library can reconnect by itself, but some of its failures leave a task that is wedged or dead while it
//! still says "connected". Therefore a client here lives exactly as long as its one connection, and this loop makes
//! the next. It never ends, its pauses are random so that a fleet does not come back as one, and none is longer
//! than 1.2 s.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use fred::clients::Client;
use fred::clients::WithOptions;
use fred::interfaces::ClientLike;
use fred::types::ClusterHash;
use fred::types::ConnectHandle;
use fred::types::CustomCommand;
use fred::types::Value;
use fred::types::config::Options;
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
use crate::redis::pauses::between;
use crate::redis::pauses::pause;
use crate::redis::pauses::random;
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
/// A connection that lived this long begins counting pauses anew.
const SETTLED: Duration = Duration::from_millis(100);
/// A server that made a connection ready is well, however short it lived: pauses grow no further than this attempt's.
const HURRY: u32 = 1;
/// Pause before another connection is looked for while this one only reads: at most two attempts a second.
const SEEK: [Duration; 2] = [Duration::from_millis(500), Duration::from_millis(800)];
/// A connection that was replaced stays for the calls that are under way on it.
const FAREWELL: Duration = Duration::from_secs(1);

/// A client with its call options; cheap to clone.
#[derive(Clone)]
pub(super) struct Caller(WithOptions<Client>);

impl Caller {
    pub(super) fn new(client: &Client, timeout: Duration) -> Self {
        let options =
            Options { timeout: Some(timeout), fail_fast: true, max_attempts: Some(1), ..Options::default() };
        Self(client.with_options(&options))
    }

    /// One command. `custom` and not `fcall`: the client sends no other command while an `fcall` of its own waits.
    pub(super) async fn send(&self, command: &'static str, args: Vec<Value>) -> Result<Value, Error> {
        let command = CustomCommand::new_static(command, ClusterHash::FirstKey, false);
        // Boxed: the client's futures are nested so deep that whoever awaits one of ours in his own crate would meet
        // the compiler's limit.
        Ok(Box::pin(self.0.custom(command, args)).await?)
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
    pub(super) client: Client,
    pub(super) caller: Caller,
    pub(super) form: Form,
    /// Which of this worker's connections it is, from 1.
    pub(super) number: u64,
}

/// A connection that is ready, and what the server said if it takes no writes.
struct Ready {
    link: Link,
    live: Live,
    refused: Option<Error>,
}

impl Ready {
    fn only_reads(&self) -> bool {
        self.refused.as_ref().is_some_and(doubts)
    }
}

/// Why a connection is left.
enum Left {
    /// It can no longer be trusted.
    Lost(Error),
    /// Another one takes writes, and this one does not.
    For(Box<Ready>),
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

    /// Makes a connection ready for requests: name, code, ledger, signing key.
    async fn prepare(self, inner: &Inner) -> Result<Ready, Error> {
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
        let refused = secret::offer(&patient, inner).await?;
        inner.warn_of_form(form);
        let live = Live {
            client: self.client.clone(),
            caller: Caller::new(&self.client, inner.command_timeout),
            form,
            number: inner.connections.fetch_add(1, Relaxed) + 1,
        };
        Ok(Ready { link: self, live, refused })
    }

    /// Returns when the connection can no longer be trusted, or there is a better one.
    async fn watch(&mut self, inner: &Inner, only_reads: bool) -> Left {
        let (patient, prober) = (self.patient(), Caller::new(&self.client, PING_TIMEOUT));
        tokio::select! {
            error = probe(inner, &patient, &prober) => Left::Lost(error),
            ready = seek(inner, only_reads) => Left::For(Box::new(ready)),
            ended = &mut self.task => Left::Lost(match ended {
                Ok(Err(error)) => error.into(),
                Ok(Ok(())) | Err(_) => Error::unavailable("the connection was closed"),
            }),
        }
    }
}

/// Asks for ever whether the connection lives; returns when it does not.
async fn probe(inner: &Inner, patient: &Caller, prober: &Caller) -> Error {
    let mut ticks = tokio::time::interval(PING_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut misses, mut count) = (0, 0u32);
    loop {
        ticks.tick().await;
        count = count.wrapping_add(1);
        let answer = match count % SECRET_EVERY {
            0 => secret::offer(patient, inner).await.map(|_| ()),
            _ => prober.call("PING", []).await.map(|_| ()),
        };
        match answer {
            Err(Error::Timeout) => misses += 1,
            Err(error @ Error::Unavailable { .. }) => return error,
            // An answer is an answer: reconnecting to a server that is busy or full makes it worse.
            Ok(()) | Err(_) => {
                misses = 0;
                inner.answered();
            }
        }
        if misses == MISSES {
            return Error::unavailable("it does not answer although the connection is open");
        }
    }
}

/// While this connection only reads, looks for one that writes too: the same server after its promotion, or the one
/// that the name now leads to. Reading goes on meanwhile.
async fn seek(inner: &Inner, only_reads: bool) -> Ready {
    if !only_reads {
        inner.doubt.notified().await;
    }
    loop {
        tokio::time::sleep(between(SEEK, random())).await;
        match establish(inner).await {
            Ok(ready) if !ready.only_reads() => return ready,
            Ok(_) | Err(_) => {}
        }
    }
}

/// Keeps a connection for as long as the runtime lives.
pub(super) async fn keep(inner: Arc<Inner>) {
    let mut attempt = 0u32;
    loop {
        match establish(&inner).await {
            Ok(ready) => {
                let since = Instant::now();
                let reason = live(&inner, ready).await;
                inner.down(&reason);
                attempt = if since.elapsed() >= SETTLED { 0 } else { (attempt + 1).min(HURRY) };
            }
            Err(error) => {
                inner.down(&error);
                attempt += 1;
            }
        }
        tokio::time::sleep(pause(attempt, random())).await;
    }
}

/// Uses a connection, and whichever takes its place without a gap, until one is lost.
async fn live(inner: &Inner, mut ready: Ready) -> Error {
    loop {
        inner.up(ready.live.clone(), ready.refused.as_ref());
        let only_reads = ready.only_reads();
        match ready.link.watch(inner, only_reads).await {
            Left::Lost(reason) => return reason,
            Left::For(next) => {
                let before = std::mem::replace(&mut ready, *next);
                tokio::spawn(async move {
                    tokio::time::sleep(FAREWELL).await;
                    drop(before);
                });
            }
        }
    }
}

async fn establish(inner: &Inner) -> Result<Ready, Error> {
    Link::open(inner).await?.prepare(inner).await
}

/// Whether a server that said this no longer takes what it took: a new connection may find the new primary.
pub(super) fn doubts(error: &Error) -> bool {
    matches!(error, Error::Refused { refusal: Refusal::ReadOnly, .. })
}
