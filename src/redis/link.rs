//! One connection, kept: made, made ready, watched, and replaced as a whole whenever it is in doubt.
//!
//! The client library can reconnect by itself, but some of its failures leave a task that is wedged or dead while it
//! still says "connected". Therefore a client here lives exactly as long as its one connection, and this loop makes
//! the next. It never ends, and its pauses are random so that a fleet does not come back as one.
//!
//! A connection that is silent is kept, with its calls, for as long as requests wait: a server that stood still goes on
//! where it stopped, and nothing was lost. Meanwhile another one is tried beside it, and if the server answers there, the
//! silent one is dead.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use fred::clients::Client;
use fred::interfaces::ClientLike;
use fred::types::ConnectHandle;
use tokio::task::JoinError;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio::time::MissedTickBehavior;
use tokio::time::interval_at;

use crate::config::place::Peer;
use crate::config::schema::Mode;
use crate::redis::Inner;
use crate::redis::beside::Silenced;
use crate::redis::beside::Strict;
use crate::redis::beside::mind;
use crate::redis::beside::silent;
use crate::redis::caller::Caller;
use crate::redis::cluster;
use crate::redis::endpoint;
use crate::redis::error::Error;
use crate::redis::error::Refusal;
use crate::redis::greeting;
use crate::redis::library::Form;
use crate::redis::library::OURS;
use crate::redis::line;
use crate::redis::line::Line;
use crate::redis::migrations;
use crate::redis::pauses::Pauses;
use crate::redis::pauses::between;
use crate::redis::pauses::random;
use crate::redis::repeat;
use crate::redis::secret;
use crate::sys::time;

/// How often a connection at rest is asked whether it lives.
const PING_EVERY: Duration = time::TICK.saturating_mul(20);
/// The signing key is offered again at every n-th question: `FLUSHALL` must not split the fleet.
const SECRET_EVERY: u32 = 5;
/// Pause after a refusal that only another password or another setting ends: one attempt a second, and no more.
pub(super) const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// A connection that lived this long begins counting pauses anew.
pub(super) const SETTLED: Duration = Duration::from_millis(100);
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
    /// Whether calls can be noted, so that they may be sent again.
    pub(super) notes: bool,
}

impl Live {
    /// The same for calls whose answers may be large.
    pub(super) fn long(self) -> Self {
        Self { caller: self.caller.long(), ..self }
    }

    /// The same for calls that are made in pieces where their keys lie on two nodes: that is an answer to them.
    pub(super) fn torn(self) -> Self {
        Self { caller: self.caller.torn(), ..self }
    }
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
    /// It has ended, or was silent for too long; since when there is none.
    Lost(Instant, Error),
    /// Another one takes writes, and this one does not.
    For(Box<Ready>),
    /// Another one answers, and this one is silent: what is out on it is lost.
    Instead(Box<Ready>),
}

/// A connection and the task behind it, which ends with this value.
pub(super) struct Link {
    client: Client,
    task: ConnectHandle,
    line: Arc<Line>,
    watch: JoinHandle<()>,
    /// Ends the connection when it falls silent, until `mind` watches it.
    strict: Option<Strict>,
}

impl Drop for Link {
    fn drop(&mut self) {
        // A wedged client cannot be asked to quit; ending its task closes the connection.
        self.task.abort();
        self.watch.abort();
        self.line.end("the connection was given up");
    }
}

impl Link {
    /// Connects once: to the server, or to one node of a cluster.
    ///
    /// # Errors
    /// Why it could not, e.g. refused or wrong password.
    pub(super) async fn open(inner: &Inner, node: Option<&Peer>) -> Result<Self, Error> {
        let error = match Self::attempt(inner, node).await {
            Ok(link) if inner.greeted.load(Relaxed) => return Ok(link),
            // The client takes a connection that was closed in its greeting for one that is there.
            Ok(link) => match link.greet(inner.mode).await {
                Err(error) if error.is_unclear() => error,
                Ok(()) | Err(_) => {
                    inner.greeted.store(true, Relaxed);
                    return Ok(link);
                }
            },
            Err(error) => inner.endpoint.explained(error),
        };
        // What was Redis once is Redis, and a Redis in trouble is not to be asked more than need be.
        if !error.is_unclear() || inner.greeted.load(Relaxed) {
            return Err(error);
        }
        let (tls, login) = inner.endpoint.manner();
        let Some(door) = inner.endpoint.door(node) else { return Err(error) };
        Err(greeting::diagnose(&door, tls, login).await.map_or(error, Error::unavailable))
    }

    /// Asks what a worker's first questions are, to learn whether there are answers at all; nothing that a user of this
    /// mode may not ask, because the server writes that down (`ACL LOG`).
    async fn greet(&self, mode: Mode) -> Result<(), Error> {
        let caller = self.patient();
        caller.call("PING", []).await?;
        match mode {
            Mode::Auto => self.form(mode).await.map(|_| ()),
            Mode::Fcall => caller.call("FUNCTION", ["LIST", "LIBRARYNAME", OURS]).await.map(|_| ()),
            Mode::Evalsha => caller.call("EVAL", ["return 1", "0"]).await.map(|_| ()),
            Mode::Plain => Ok(()),
        }
    }

    async fn attempt(inner: &Inner, node: Option<&Peer>) -> Result<Self, Error> {
        let config = inner.endpoint.config(node)?;
        let performance = endpoint::performance();
        let client = Client::new(config, Some(performance), Some(endpoint::connection()), None);
        let task = client.connect();
        let line = Line::new(inner.command_timeout);
        let watch = tokio::spawn(line::watch(Arc::clone(&line)));
        let strict = Some(Strict::new(&line));
        let link = Self { client, task, line, watch, strict };
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

    /// A caller for requests, whose calls end when another connection proves that this one is silent.
    pub(super) fn caller(&self) -> Caller {
        Caller::new(&self.client, &self.line)
    }

    /// A caller for work outside requests, some of which takes longer. Before `mind` watches the connection its
    /// calls end when it falls silent.
    pub(super) fn patient(&self) -> Caller {
        self.caller().long()
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
        let notes = repeat::may_note(&patient, form).await?;
        let number = inner.connections.fetch_add(1, Relaxed) + 1;
        let live = Live { caller: self.caller(), form, number, notes };
        Ok(Ready { link: self, live, refused })
    }

    /// Returns when the connection can no longer be used, or there is a better one.
    async fn watch(&mut self, inner: &Arc<Inner>, live: &Live, only_reads: bool) -> Left {
        self.strict = None;
        let patient = self.patient();
        let (line, prober) = (Arc::clone(&self.line), self.caller());
        let fell = |since: Option<Instant>| match since {
            Some(since) => inner.lost(since, true, &silent()),
            None => inner.resume(live),
        };
        tokio::select! {
            biased;
            ended = &mut self.task => Left::Lost(Instant::now(), end(ended)),
            left = mind(inner, &line, fell, || establish(inner)) => match left {
                Silenced::Instead(ready) => Left::Instead(Box::new(ready)),
                Silenced::GivenUp(since) => Left::Lost(since, silent()),
            },
            ready = seek(inner, only_reads) => Left::For(Box::new(ready)),
            error = tend(inner, &line, Some(&patient), &prober) => Left::Lost(Instant::now(), error),
        }
    }

    /// Returns when the connection to one node among several has ended, with since when and the reason; or with another
    /// one, made by `beside`, when that answers and this one is silent. `fell` is told when a silence begins and ends.
    pub(super) async fn lives<T, F>(
        &mut self,
        inner: &Inner,
        fell: impl Fn(Option<Instant>),
        beside: impl Fn() -> F,
    ) -> Result<T, (Instant, Error)>
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.strict = None;
        let (line, prober) = (Arc::clone(&self.line), self.caller());
        tokio::select! {
            biased;
            ended = &mut self.task => Err((Instant::now(), end(ended))),
            left = mind(inner, &line, fell, beside) => match left {
                Silenced::Instead(next) => Ok(next),
                Silenced::GivenUp(since) => Err((since, silent())),
            },
            error = tend(inner, &line, None, &prober) => Err((Instant::now(), error)),
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

/// Asks for ever whether a connection at rest lives; returns when it has ended. `patient` offers the signing key
/// meanwhile.
async fn tend(inner: &Inner, line: &Line, patient: Option<&Caller>, prober: &Caller) -> Error {
    let mut ticks = interval_at(Instant::now() + time::until_tick(PING_EVERY), PING_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    for count in 1_u32.. {
        ticks.tick().await;
        let answer = match patient.filter(|_| count.is_multiple_of(SECRET_EVERY)) {
            Some(patient) => secret::offer(patient, inner).await.map(|_| ()),
            // An answer that came lately proves that the connection lives: no PING is sent.
            None if line.since().elapsed() < PING_EVERY => continue,
            None => prober.call("PING", []).await.map(|_| ()),
        };
        match answer {
            Err(error @ (Error::Unavailable { .. } | Error::Lost { .. })) => return error,
            // An answer is an answer: reconnecting to a server that is busy or full makes it worse.
            Ok(()) | Err(_) => inner.answered(),
        }
    }
    std::future::pending().await
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
    let mut pauses = Pauses::new(inner.hold, Instant::now());
    loop {
        let mut refused = false;
        match establish(&inner).await {
            Ok(ready) => {
                let since = Instant::now();
                let (lost, reason) = live(&inner, ready).await;
                inner.lost(lost, false, &reason);
                pauses.lost(lost, since.elapsed() >= SETTLED);
            }
            Err(error) => {
                refused = error.misconfigured();
                inner.failed(&error);
            }
        }
        let pause = match refused {
            true => REFUSED_PAUSE,
            false => pauses.next(Instant::now(), random()),
        };
        tokio::time::sleep(pause).await;
    }
}

/// Uses a connection, and whichever takes its place without a gap, until one is lost; since when, and why.
async fn live(inner: &Arc<Inner>, mut ready: Ready) -> (Instant, Error) {
    loop {
        inner.up(ready.live.clone(), ready.refused.as_ref());
        let (live, only_reads) = (ready.live.clone(), ready.only_reads());
        match ready.link.watch(inner, &live, only_reads).await {
            Left::Lost(since, reason) => return (since, reason),
            Left::Instead(next) => ready = *next,
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
