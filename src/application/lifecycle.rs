//! Hooks and background work: what an application does beside its requests, each with a deadline.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::task::{JoinHandle, JoinSet};
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
    /// Hooks that wait for nothing and are waited for by nothing.
    on_ready: Vec<(String, JoinHandle<()>)>,
    on_drain: Mutex<Vec<Hook>>,
    on_exit: Mutex<Vec<Hook>>,
    /// What the drain waits for: background work, and hooks of the drain once they have begun.
    draining: Mutex<NamedTasks>,
    /// Whether background work has panicked.
    panicked: watch::Receiver<bool>,
}

impl fmt::Debug for RunningApp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunningApp").field("panicked", &*self.panicked.borrow()).finish_non_exhaustive()
    }
}

/// Tasks that can be told apart.
#[derive(Default)]
struct NamedTasks {
    tasks: JoinSet<usize>,
    /// Those that run, in the order in which they began.
    names: BTreeMap<usize, String>,
    begun: usize,
}

impl NamedTasks {
    fn spawn(&mut self, name: String, work: impl Future<Output = ()> + Send + 'static) {
        let id = self.begun;
        self.begun += 1;
        self.names.insert(id, name);
        self.tasks.spawn(async move {
            work.await;
            id
        });
    }

    /// Returns when all have ended.
    async fn ended(&mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            if let Ok(id) = ended {
                self.names.remove(&id);
            }
        }
    }
}

/// What a hook is called in the log: its kind, and its number in the order in which they were added.
fn hook_name(kind: &str, index: usize) -> String {
    format!("{kind} hook {}", index + 1)
}

impl RunningApp {
    /// Starts the background work and the hooks that wait for READY.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(lifecycle: Lifecycle, shutdown: &Shutdown) -> Self {
        let Lifecycle { on_ready, on_drain, on_exit, background } = lifecycle;
        let start_hook = |(index, hook)| {
            let name = hook_name("on_ready", index);
            let named = name.clone();
            (name, tokio::spawn(async move { _ = run(&named, hook).await }))
        };
        let on_ready = on_ready.into_iter().enumerate().map(start_hook).collect();
        let (report, panicked) = watch::channel(false);
        let mut draining = NamedTasks::default();
        for BackgroundWork { name, start } in background {
            let (shutdown, report) = (shutdown.clone(), report.clone());
            draining.spawn(name.to_owned(), async move {
                // `start` is the application's, too: it may panic before there is a future.
                if run(name, async move { start(shutdown).await }).await.is_err() {
                    report.send_replace(true);
                }
            });
        }
        // The last sender, if there is no background work: nothing is reported then.
        drop(report);
        Self {
            on_ready,
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
        for (index, hook) in self.on_drain.lock().await.drain(..).enumerate() {
            let name = hook_name("on_drain", index);
            let named = name.clone();
            draining.spawn(name, async move { _ = run(&named, hook).await });
        }
        if timeout_at(deadline, draining.ended()).await.is_err() {
            let names: Vec<_> = draining.names.values().map(String::as_str).collect();
            let (count, names) = (names.len(), names.join(", "));
            tracing::warn!(
                count,
                names,
                "hooks or background work of the application abandoned at drain timeout: {count} ({names})"
            );
        }
    }

    /// Runs the hooks of the end one by one, the last one added first; all of them within this time.
    ///
    /// # Cancel safety
    /// The hook that runs goes on, and the others are never begun.
    pub async fn exit(&self, within: Duration) {
        self.report_late_starters();
        let mut hooks = self.on_exit.lock().await;
        let all = async {
            while let Some(hook) = hooks.pop() {
                let name = hook_name("on_exit", hooks.len());
                // A task of its own: a hook that is abandoned is not cut in the middle of a step.
                _ = tokio::spawn(async move { _ = run(&name, hook).await }).await;
            }
        };
        if timeout(within, all).await.is_err() {
            let (name, not_begun) = (hook_name("on_exit", hooks.len()), hooks.len());
            tracing::warn!(
                count = not_begun + 1,
                name,
                not_begun,
                "hooks of the application abandoned at the end of drain.exit: {name} took too long, and {not_begun} \
                 more were not begun"
            );
        }
    }

    /// Names the hooks of READY that the worker's end cuts.
    fn report_late_starters(&self) {
        let late = self.on_ready.iter().filter(|(_, hook)| !hook.is_finished());
        let names: Vec<_> = late.map(|(name, _)| name.as_str()).collect();
        if !names.is_empty() {
            let (count, names) = (names.len(), names.join(", "));
            tracing::warn!(
                count,
                names,
                "hooks of the application abandoned at the end of the drain: {count} ({names})"
            );
        }
    }
}

/// Runs a hook; a panic is logged and is the error.
async fn run(name: &str, hook: impl Future<Output = ()> + Send + 'static) -> Result<(), ()> {
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

    /// Where the log of a test goes.
    #[derive(Clone, Default)]
    struct LogText(Arc<Lock<Vec<u8>>>);

    impl std::io::Write for LogText {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn what_overstays_is_named_and_counted() {
        let log = LogText::default();
        let written = log.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || written.clone());
        let _guard = tracing::subscriber::set_default(subscriber.finish());
        let steps = Steps::default();
        let for_ever = || -> Hook { Box::pin(std::future::pending()) };
        let lifecycle = Lifecycle {
            on_ready: vec![step(&steps, "ready"), for_ever()],
            on_drain: vec![step(&steps, "drain"), for_ever()],
            on_exit: vec![step(&steps, "never"), for_ever(), step(&steps, "exit")],
            background: vec![
                work("done", |_| Box::pin(async {})),
                work("deaf", |_| Box::pin(std::future::pending())),
            ],
        };
        let running = RunningApp::start(lifecycle, &DrainState::default().shutdown());
        running.drain(Instant::now() + Duration::from_millis(50)).await;
        running.exit(Duration::from_millis(50)).await;
        assert_eq!(*steps.lock().unwrap(), ["ready", "drain", "exit"]);
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        for part in [
            "abandoned at drain timeout: 2 (deaf, on_drain hook 2)",
            "abandoned at the end of the drain: 1 (on_ready hook 2)",
            "on_exit hook 2 took too long, and 1 more were not begun",
        ] {
            assert!(text.contains(part), "{text}");
        }
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
