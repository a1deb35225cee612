//! The calls of one connection: how many are out at once, what ends them, and the watch for its silence.
//!
//! A call has no deadline of its own. It ends with its answer or with the connection: its failure, or its silence, which
//! is judged for all calls together. So a call that waits behind others is not taken for one that gets no answer, and
//! no call costs a timer.

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::Semaphore;
use tokio::sync::SemaphorePermit;
use tokio::sync::TryAcquireError;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::redis::error::Error;
use crate::redis::silence::Look;
use crate::redis::silence::Silence;
use crate::sys::time;

/// Calls out at once on one connection; more wait for their turn, in order. It bounds the rush when Redis is back, and
/// what may be executed although its caller was told that it failed.
pub(super) const WINDOW: usize = 512;

/// Longest silence while a connection is made ready, or while a call is out whose answer may be large.
pub(super) const LONG: Duration = Duration::from_secs(1);

/// Passes through the run queue before an overdue answer is missed. Each follows a look at the sockets: in the first the
/// client writes what was queued, in the second it reads the answers, in the third they reach their callers. One more,
/// because the watch may stand before the client in its pass.
pub(super) const PASSES: usize = 4;

/// What is known of one connection's calls.
pub(super) struct Line {
    origin: Instant,
    window: Semaphore,
    silence: Mutex<Silence>,
    /// Whether it is silent at this moment.
    silent: watch::Sender<bool>,
    /// Told when a call is sent while the watch rests.
    sent: Notify,
    /// Why it is over, once it is.
    over: Mutex<Option<String>>,
    ended: Notify,
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").field("silence", &self.lock()).finish_non_exhaustive()
    }
}

impl Line {
    /// A connection on which nothing is under way; `limit` is the longest silence.
    pub(super) fn new(limit: Duration) -> Arc<Self> {
        Arc::new(Self {
            origin: Instant::now(),
            window: Semaphore::new(WINDOW),
            silence: Mutex::new(Silence::new(limit, LONG)),
            silent: watch::Sender::new(false),
            sent: Notify::new(),
            over: Mutex::new(None),
            ended: Notify::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Silence> {
        self.silence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// Makes one call, in its turn; `long` if its answer may be large.
    ///
    /// # Errors
    /// `Unavailable` when the connection ended before the call was sent, `Lost` when it did after; else what was answered.
    pub(super) async fn call<T>(
        &self,
        long: bool,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        // Registered before anything is looked at: an end in between is not missed.
        let mut ended = pin!(self.ended.notified());
        ended.as_mut().enable();
        if let Some(reason) = self.reason() {
            return Err(Error::unavailable(reason));
        }
        let _turn = tokio::select! {
            biased;
            turn = self.turn() => turn?,
            () = ended.as_mut() => return Err(Error::unavailable(self.reason().unwrap_or_default())),
        };
        let call = Call::begin(self, long);
        tokio::select! {
            biased;
            answer = work => match answer {
                // It was handed over: whether it was executed is unknown.
                Err(Error::Unavailable { reason }) => Err(Error::Lost { reason }),
                answer => {
                    call.answered();
                    answer
                }
            },
            () = ended => Err(Error::Lost { reason: self.reason().unwrap_or_default() }),
        }
    }

    async fn turn(&self) -> Result<SemaphorePermit<'_>, Error> {
        match self.window.try_acquire() {
            Ok(turn) => Ok(turn),
            Err(TryAcquireError::NoPermits) => {
                self.window.acquire().await.map_err(|_| Error::unavailable("the connection has ended"))
            }
            Err(TryAcquireError::Closed) => Err(Error::unavailable("the connection has ended")),
        }
    }

    fn reason(&self) -> Option<String> {
        self.over.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The connection has ended: every call on it fails now. Only the first reason counts.
    pub(super) fn end(&self, reason: &str) {
        self.over.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| reason.to_owned());
        self.window.close();
        self.ended.notify_waiters();
    }

    /// Changes when a silence begins or ends.
    pub(super) fn silences(&self) -> watch::Receiver<bool> {
        self.silent.subscribe()
    }

    /// Since when calls wait for an answer.
    pub(super) fn since(&self) -> Instant {
        self.origin + self.lock().since()
    }
}

/// One call that is out. Dropped without an answer it says that its caller has gone.
struct Call<'a> {
    line: &'a Line,
    long: bool,
    answered: bool,
}

impl<'a> Call<'a> {
    fn begin(line: &'a Line, long: bool) -> Self {
        if line.lock().sent(long, line.now()) {
            line.sent.notify_one();
        }
        Self { line, long, answered: false }
    }

    fn answered(mut self) {
        self.answered = true;
        if self.line.lock().answered(self.long, self.line.now()) {
            self.line.silent.send_replace(false);
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.line.lock().left(self.long);
        }
    }
}

/// Watches for silence until the connection ends. It must be a task of its own: only then do its pauses let the queue,
/// and with it the client's task, run.
pub(super) async fn watch(line: Arc<Line>) {
    let mut silent = line.silences();
    loop {
        let look = line.lock().look(line.now());
        match look {
            Look::Idle => line.sent.notified().await,
            // At a tick: one wake-up and not two for a call at rest, whose answer is there by then.
            Look::At(due) => tokio::time::sleep(time::after_tick(due.saturating_sub(line.now()))).await,
            Look::Overdue(answers) => {
                for _ in 0..PASSES {
                    tokio::task::yield_now().await;
                }
                if line.lock().judge(answers) {
                    line.silent.send_replace(true);
                    // The connection's owner decides what a silence means; an answer ends it by itself.
                    let _ = silent.wait_for(|silent| !silent).await.is_ok();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(250);

    fn watched() -> Arc<Line> {
        let line = Line::new(LIMIT);
        tokio::spawn(watch(Arc::clone(&line)));
        line
    }

    async fn after(time: Duration) -> Result<u8, Error> {
        tokio::time::sleep(time).await;
        Ok(7)
    }

    #[tokio::test]
    async fn a_crowd_waits_for_its_turns_and_nobody_is_refused() {
        let line = watched();
        let calls: Vec<_> = (0..6000)
            .map(|_| Arc::clone(&line))
            .map(|line| tokio::spawn(async move { line.call(false, after(Duration::from_millis(20))).await }))
            .collect();
        for call in calls {
            assert_eq!(call.await.unwrap(), Ok(7));
        }
        // Twelve turns of 512 calls, and a silence at no time.
        assert!(!*line.silences().borrow());
    }

    #[tokio::test]
    async fn a_silence_is_told_once_and_ends_with_an_answer_that_loses_nothing() {
        let line = watched();
        let slow = Arc::clone(&line);
        let call = tokio::spawn(async move { slow.call(false, after(Duration::from_secs(1))).await });
        let (begun, mut silences) = (Instant::now(), line.silences());
        silences.wait_for(|silent| *silent).await.unwrap();
        assert!(begun.elapsed() >= LIMIT);
        silences.wait_for(|silent| !silent).await.unwrap();
        assert_eq!(call.await.unwrap(), Ok(7));
    }

    #[tokio::test]
    async fn an_end_fails_what_is_out_as_unknown_and_what_waits_as_never_sent() {
        let line = watched();
        let call = |line: Arc<Line>| async move { line.call(false, std::future::pending::<_>()).await };
        let calls: Vec<_> = (0..WINDOW + 3).map(|_| tokio::spawn(call(Arc::clone(&line)))).collect();
        tokio::time::sleep(Duration::from_millis(50)).await;
        line.end("reset");
        let mut unsent = 0;
        for call in calls {
            let answer: Result<(), Error> = call.await.unwrap();
            match answer {
                Err(Error::Unavailable { .. }) => unsent += 1,
                other => assert_eq!(other, Err(Error::Lost { reason: "reset".to_owned() })),
            }
        }
        assert_eq!(unsent, 3);
        let late: Result<(), Error> = call(Arc::clone(&line)).await;
        assert_eq!(late, Err(Error::unavailable("reset")));
    }
}
