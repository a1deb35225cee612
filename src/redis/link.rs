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
use fred::interfaces::ClientLike;
use fred::types::ConnectHandle;
use tokio::task::JoinError;
use tokio::time::Instant;
use tokio::time::MissedTickBehavior;

use crate::config::place::Peer;
use crate::config::schema::Mode;
use crate::redis::Inner;
use crate::redis::caller::Caller;
use crate::redis::cluster;
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
pub(super) const SETUP_TIMEOUT: Duration = Duration::from_millis(700);
/// How often a connection is asked whether it lives, and how long it may think.
const PING_EVERY: Duration = Duration::from_millis(500);
const PING_TIMEOUT: Duration = Duration::from_millis(200);
/// Unanswered questions in a row after which the connection is given up.
const MISSES: u32 = 3;
/// The signing key is offered again at every n-th question: `FLUSHALL` must not split the fleet.
const SECRET_EVERY: u32 = 10;
/// Pause after a refusal that only another password or another setting ends: one attempt a second, and no more.
pub(super) const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// A connection that lived this long begins counting pauses anew.
pub(super) const SETTLED: Duration = Duration::from_millis(100);
/// A server that made a connection ready is well, however short it lived: pauses grow no further than this attempt's.
const HURRY: u32 = 1;
/// Pause before another connection is looked for while this one only reads: at most two attempts a second.
const SEEK: [Duration; 2] = [Duration::from_millis(500), Duration::from_millis(800)];
/// A connection that was replaced stays for the calls that are under way on it.
pub(super) const FAREWELL: Duration = Duration::from_secs(1);

/// A connection on which requests may call.
#[derive(Clone)]
pub(super) struct Live {
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
    /// Connects once: to the server, or to one node of a cluster.
    ///
    /// # Errors
    /// Why it could not, e.g. refused or wrong password.
    pub(super) async fn open(inner: &Inner, node: Option<&Peer>) -> Result<Self, Error> {
        Self::attempt(inner, node).await.map_err(|error| inner.endpoint.explained(error))
    }

    async fn attempt(inner: &Inner, node: Option<&Peer>) -> Result<Self, Error> {
        let config = inner.endpoint.config(node)?;
        let performance = endpoint::performance(SETUP_TIMEOUT);
        let client = Client::new(config, Some(performance), Some(endpoint::connection()), None);
        let task = client.connect();
        let link = Self { client, task };
        let connected = link.client.wait_for_connect();
        match tokio::time::timeout(inner.endpoint.patience(), connected).await {
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
            error = probe(inner, Some(&patient), &prober) => Left::Lost(error),
            ready = seek(inner, only_reads) => Left::For(Box::new(ready)),
            ended = &mut self.task => Left::Lost(end(ended)),
        }
    }

    /// Returns when the connection to one node among several can no longer be trusted, with the reason.
    pub(super) async fn lives(&mut self, inner: &Inner) -> Error {
        let prober = Caller::new(&self.client, PING_TIMEOUT);
        tokio::select! {
            error = probe(inner, None, &prober) => error,
            ended = &mut self.task => end(ended),
        }
    }
}

/// Why a connection's task has ended.
fn end(ended: Result<Result<(), fred::error::Error>, JoinError>) -> Error {
    match ended {
        Ok(Err(error)) => error.into(),
        Ok(Ok(())) | Err(_) => Error::unavailable("the connection was closed"),
    }
}

/// Asks for ever whether the connection lives; returns when it does not. `patient` offers the signing key meanwhile.
async fn probe(inner: &Inner, patient: Option<&Caller>, prober: &Caller) -> Error {
    let mut ticks = tokio::time::interval(PING_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut misses, mut count) = (0, 0u32);
    loop {
        ticks.tick().await;
        count = count.wrapping_add(1);
        let answer = match patient.filter(|_| count.is_multiple_of(SECRET_EVERY)) {
            Some(patient) => secret::offer(patient, inner).await.map(|_| ()),
            None => prober.call("PING", []).await.map(|_| ()),
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
    if let Some(seeds) = inner.endpoint.cluster().map(<[Peer]>::to_vec) {
        return cluster::keep(inner, seeds).await;
    }
    let mut attempt = 0u32;
    loop {
        let mut refused = false;
        match establish(&inner).await {
            Ok(ready) => {
                let since = Instant::now();
                let reason = live(&inner, ready).await;
                inner.down(&reason);
                attempt = if since.elapsed() >= SETTLED { 0 } else { (attempt + 1).min(HURRY) };
            }
            Err(error) => {
                inner.down(&error);
                refused = error.misconfigured();
                attempt += 1;
            }
        }
        let pause = if refused { REFUSED_PAUSE } else { pause(attempt, random()) };
        tokio::time::sleep(pause).await;
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
    Link::open(inner, None).await?.prepare(inner).await
}

/// Whether a server that said this no longer takes what it took: a new connection may find the new primary.
pub(super) fn doubts(error: &Error) -> bool {
    matches!(error, Error::Refused { refusal: Refusal::ReadOnly, .. })
}
