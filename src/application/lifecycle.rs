//! Hooks and background work: what an application does beside its requests, each with a deadline.

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use crate::http::Shutdown;
use crate::panics::panic_message;

/// A hook, or background work that has begun.
pub(super) type Hook = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Work that goes on beside the requests.
pub(super) struct BackgroundWork {
    pub(super) name: &'static str,
    pub(super) start: Box<dyn FnOnce(Shutdown) -> Hook + Send>,
}

/// What an application has registered besides its routes.
#[derive(Default)]
pub struct Lifecycle {
    pub(super) on_ready: Vec<Hook>,
    pub(super) on_drain: Vec<Hook>,
    pub(super) on_exit: Vec<Hook>,
    pub(super) background: Vec<BackgroundWork>,
}

impl fmt::Debug for Lifecycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lifecycle")
            .field("on_ready", &self.on_ready.len())
            .field("on_drain", &self.on_drain.len())
            .field("on_exit", &self.on_exit.len())
            .field("background", &self.background.len())
            .finish()
    }
}

/// An application of a worker that is READY.
///
/// Hooks and background work are tasks of the runtime: what is abandoned at its deadline goes on until the process ends
/// and holds up nothing.
pub struct RunningApp {
    on_drain: Mutex<Vec<Hook>>,
    on_exit: Mutex<Vec<Hook>>,
    /// What the drain waits for: background work, and hooks of the drain once they have begun.
    draining: Mutex<JoinSet<()>>,
    /// Whether background work has panicked.
    panicked: watch::Receiver<bool>,
}

impl fmt::Debug for RunningApp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunningApp").field("panicked", &*self.panicked.borrow()).finish_non_exhaustive()
    }
}

impl RunningApp {
    /// Starts the background work and the hooks that wait for READY.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(lifecycle: Lifecycle, shutdown: &Shutdown) -> Self {
        let Lifecycle { on_ready, on_drain, on_exit, background } = lifecycle;
        for hook in on_ready {
            tokio::spawn(async move { _ = run("on_ready", hook).await });
        }
        let (report, panicked) = watch::channel(false);
        let mut draining = JoinSet::new();
        for BackgroundWork { name, start } in background {
            let (shutdown, report) = (shutdown.clone(), report.clone());
            draining.spawn(async move {
                // `start` is the application's, too: it may panic before there is a future.
                if run(name, async move { start(shutdown).await }).await.is_err() {
                    report.send_replace(true);
                }
            });
        }
        // The last sender, if there is no background work: nothing is reported then.
        drop(report);
        Self {
            on_drain: Mutex::new(on_drain),
            on_exit: Mutex::new(on_exit),
            draining: Mutex::new(draining),
            panicked,
        }
    }

    /// Returns when background work has panicked.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn background_panicked(&self) {
        if self.panicked.clone().wait_for(|panicked| *panicked).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Starts the hooks of the drain, and waits for them and for background work until `deadline`.
    ///
    /// # Cancel safety
    /// What has begun goes on; another call waits for it, and begins no hook twice.
    pub async fn drain(&self, deadline: Instant) {
        let mut draining = self.draining.lock().await;
        for hook in self.on_drain.lock().await.drain(..) {
            draining.spawn(async move { _ = run("on_drain", hook).await });
        }
        let ended = async { while draining.join_next().await.is_some() {} };
        if timeout_at(deadline, ended).await.is_err() {
            tracing::warn!("hooks or background work of the application abandoned at drain timeout");
        }
    }

    /// Runs the hooks of the end one by one, the last one added first; all of them within this time.
    ///
    /// # Cancel safety
    /// The hook that runs goes on, and the others are never begun.
    pub async fn exit(&self, within: Duration) {
        let mut hooks = self.on_exit.lock().await;
        let all = async {
            while let Some(hook) = hooks.pop() {
                // A task of its own: a hook that is abandoned is not cut in the middle of a step.
                _ = tokio::spawn(async move { _ = run("on_exit", hook).await }).await;
            }
        };
        if timeout(within, all).await.is_err() {
            tracing::warn!("hooks of the application abandoned at the end of drain.exit");
        }
    }
}

/// Runs a hook; a panic is logged and is the error.
async fn run(name: &'static str, hook: impl Future<Output = ()> + Send + 'static) -> Result<(), ()> {
    // The runtime catches the panic of a task.
    match tokio::spawn(hook).await {
        Ok(()) => Ok(()),
        Err(error) if error.is_panic() => {
            let panic = error.into_panic();
            let reason = panic_message(&*panic);
            tracing::error!(hook = name, %reason, "the application panicked in {name}: {reason}");
            Err(())
        }
        // The runtime ends.
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex as Lock};

    use super::*;
    use crate::http::DrainState;

    type Steps = Arc<Lock<Vec<&'static str>>>;

    fn step(steps: &Steps, name: &'static str) -> Hook {
        let steps = Arc::clone(steps);
        Box::pin(async move { steps.lock().unwrap().push(name) })
    }

    fn work(name: &'static str, start: impl FnOnce(Shutdown) -> Hook + Send + 'static) -> BackgroundWork {
        BackgroundWork { name, start: Box::new(start) }
    }

    #[tokio::test]
    async fn hooks_run_in_their_order_and_none_twice() {
        let steps = Steps::default();
        let (drain, ends) = (DrainState::default(), Arc::clone(&steps));
        let release = Arc::new(tokio::sync::Notify::new());
        let released = Arc::clone(&release);
        let lifecycle = Lifecycle {
            on_ready: vec![step(&steps, "ready")],
            on_drain: vec![step(&steps, "drain")],
            on_exit: vec![step(&steps, "exit: first added"), step(&steps, "exit: last added")],
            background: vec![work("bell", |shutdown| {
                Box::pin(async move {
                    shutdown.wait().await;
                    released.notified().await;
                    ends.lock().unwrap().push("background");
                })
            })],
        };
        let running = RunningApp::start(lifecycle, &drain.shutdown());
        while steps.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(*steps.lock().unwrap(), ["ready"]);
        drain.start_drain();
        let deadline = Instant::now() + Duration::from_secs(60);
        assert!(timeout(Duration::from_millis(2), running.drain(deadline)).await.is_err(), "it waits");
        release.notify_one();
        running.drain(deadline).await;
        running.exit(Duration::from_secs(60)).await;
        assert_eq!(
            *steps.lock().unwrap(),
            ["ready", "drain", "background", "exit: last added", "exit: first added"]
        );
    }

    #[tokio::test]
    async fn what_panics_or_overstays_holds_up_nothing() {
        let steps = Steps::default();
        let lifecycle = Lifecycle {
            on_ready: vec![Box::pin(async { panic!("ready") })],
            on_drain: vec![Box::pin(async { panic!("drain") }), Box::pin(std::future::pending())],
            on_exit: vec![
                Box::pin(std::future::pending()),
                Box::pin(async { panic!("exit") }),
                step(&steps, "exit"),
            ],
            background: vec![work("deaf", |_| Box::pin(std::future::pending()))],
        };
        let running = RunningApp::start(lifecycle, &DrainState::default().shutdown());
        running.drain(Instant::now() + Duration::from_millis(50)).await;
        running.exit(Duration::from_millis(50)).await;
        assert_eq!(*steps.lock().unwrap(), ["exit"], "a panic does not keep the others from running");
    }

    #[tokio::test]
    async fn a_panic_of_background_work_is_reported_and_its_end_is_not() {
        let quiet =
            Lifecycle { background: vec![work("done", |_| Box::pin(async {}))], ..Lifecycle::default() };
        let shutdown = DrainState::default().shutdown();
        let waited = async |lifecycle, time| {
            let running = RunningApp::start(lifecycle, &shutdown);
            timeout(time, running.background_panicked()).await.is_ok()
        };
        let (short, long) = (Duration::from_millis(50), Duration::from_secs(60));
        assert!(!waited(Lifecycle::default(), short).await);
        assert!(!waited(quiet, short).await);
        let panics: Vec<BackgroundWork> = vec![
            work("later", |_| Box::pin(async { panic!("overboard") })),
            work("at once", |_| panic!("overboard")),
        ];
        for one in panics {
            assert!(waited(Lifecycle { background: vec![one], ..Lifecycle::default() }, long).await);
        }
    }
}
