//! One call for all that the requests of one turn of the worker's loop want of Redis at their start.
//!
//! A request puts its entry into the queue and waits for the answer. The first entry of a turn wakes one task, the
//! keeper, which the runtime therefore polls behind every task that was runnable by then: it sends what has gathered as
//! one call. So a request that is alone is sent in its own turn, without a timer, and 64 that come together cost one
//! call. What comes while a call is out waits for the next answer at most, or for enough company to be worth a call.
//!
//! Guarantees that a caller who leaves before the batch is sealed has sent nothing, that one who leaves later harms no
//! other entry and keeps no place in a limit on concurrency, and that a batch is executed once however often it is sent.

mod batch;
mod slots;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::task::Context;
use std::task::Poll;
use std::task::ready;

use futures_util::stream::FuturesUnordered;
use futures_util::stream::StreamExt;
use futures_util::task::AtomicWaker;

use crate::redis::Inner;
use crate::redis::Redis;
use crate::redis::begin::LimitArg;
use crate::redis::begin::LimitKind;
use crate::redis::begin::Reply;
use crate::redis::begin::Request;
use crate::redis::begin::batch::Entry;
use crate::redis::error::Error;
use crate::redis::standing::Gate;
use slots::Item;
use slots::OUT_MAX;
use slots::Slots;

/// What waits to be sent and what is out, of one worker.
pub(super) struct Gather {
    slots: Mutex<Slots<Wanted, Answer>>,
    keeper: AtomicWaker,
}

type Answer = Result<Reply, Error>;
type Batch = Vec<Item<Wanted>>;

/// One request's start, as it is sent.
struct Wanted {
    entry: Entry,
    /// Whether it changes anything if it is granted.
    changes: bool,
    /// Keys of limits on concurrency and the name of the place in them; none for most.
    places: Option<Box<Places>>,
}

struct Places {
    keys: Vec<String>,
    name: String,
}

impl Wanted {
    fn new(request: &Request<'_>) -> Self {
        let is_place =
            |limit: &&LimitArg| limit.cost > 0 && matches!(limit.kind, LimitKind::Concurrency { .. });
        let places = request.limits.iter().any(|limit| is_place(&limit)).then(|| {
            let keys = request.limits.iter().filter(is_place).map(|limit| limit.key.clone()).collect();
            Box::new(Places { keys, name: request.token.to_owned() })
        });
        Self { entry: Entry::new(request), changes: request.changes(), places }
    }
}

impl Gather {
    pub(super) fn new() -> Self {
        Self { slots: Mutex::new(Slots::new()), keeper: AtomicWaker::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Slots<Wanted, Answer>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a request's start into the queue.
    fn put(&self, request: &Request<'_>) -> Waiting<'_> {
        let wanted = Wanted::new(request);
        let bytes = wanted.entry.bytes();
        let (at, first) = self.lock().push(wanted, bytes);
        if first {
            self.keeper.wake();
        }
        Waiting { gather: self, at: Some(at) }
    }
}

/// A caller who waits for an answer. Dropped before it came it says that the caller has gone.
struct Waiting<'a> {
    gather: &'a Gather,
    /// Its slot, until the answer was taken from it.
    at: Option<usize>,
}

impl Future for Waiting<'_> {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        let Some(at) = self.at else { return Poll::Pending };
        let answer = ready!(self.gather.lock().poll(at, cx.waker()));
        self.at = None;
        Poll::Ready(answer)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(at) = self.at {
            self.gather.lock().leave(at);
        }
    }
}

impl Redis {
    /// A request's start, in one call with those of its turn.
    ///
    /// # Errors
    /// Its own; what fails the whole call is the error of each.
    pub(super) async fn begin_gathered(&self, request: &Request<'_>) -> Result<Reply, Error> {
        let _place = self.inner.place()?;
        self.inner.expected().await?;
        self.inner.gather.put(request).await
    }
}

impl Inner {
    /// Waits while calls are held; whatever there is to send on afterwards is the batch's matter.
    async fn expected(&self) -> Result<(), Error> {
        match &*self.gate.borrow() {
            Gate::Open(_) => return Ok(()),
            Gate::Shut(reason) => return Err(Error::unavailable(&**reason)),
            Gate::Held { .. } => {}
        }
        Box::pin(self.connection()).await.map(|_| ())
    }

    /// The number of the connection in use, if there is one.
    fn link(&self) -> Option<u64> {
        match &*self.gate.borrow() {
            Gate::Open(live) => Some(live.number),
            Gate::Held { .. } | Gate::Shut(_) => None,
        }
    }
}

/// Sends what gathers, for as long as the runtime lives. Without it no request of this worker would ever be answered, so
/// a worker whose keeper panics ends, and its successor serves.
pub(super) async fn keep(inner: Arc<Inner>) {
    let kept = tokio::spawn(gathering(inner)).await;
    if kept.is_err_and(|error| error.is_panic()) {
        tracing::error!("the task that sends to Redis panicked: this worker ends");
        std::process::abort();
    }
}

async fn gathering(inner: Arc<Inner>) {
    let redis = Redis { inner };
    let (inner, mut out) = (&*redis.inner, FuturesUnordered::new());
    // Each call that is out has a ledger of its own: a late first sending finds its own number there or a higher one.
    let mut ledgers: Vec<usize> = (0..OUT_MAX).collect();
    let mut links = [None; OUT_MAX];
    std::future::poll_fn(|cx| {
        inner.gather.keeper.register(cx.waker());
        let mut answered = false;
        loop {
            while let Poll::Ready(Some(ledger)) = out.poll_next_unpin(cx) {
                ledgers.push(ledger);
                links[ledger] = None;
                answered = true;
            }
            // There is one for each call that may be out. It is taken first: a batch without one would never be answered.
            let Some(ledger) = ledgers.pop() else { return Poll::<()>::Pending };
            let urgent = || answered || inner.may_be_long(links.iter().flatten());
            let batch = inner.gather.lock().seal(out.len(), urgent);
            let Some(batch) = batch else {
                ledgers.push(ledger);
                return Poll::Pending;
            };
            links[ledger] = Some(inner.link());
            out.push(batch::carry(&redis, batch, ledger));
        }
    })
    .await;
}

impl Inner {
    /// Whether a call that is out may be answered late or not at all while others are: one of them began with another
    /// connection than the present one, or breakers refuse, which need no answer for it.
    fn may_be_long<'a>(&self, mut links: impl Iterator<Item = &'a Option<u64>>) -> bool {
        let link = self.link();
        links.any(|begun| *begun != link) || !self.lanes.states().are_closed()
    }
}
