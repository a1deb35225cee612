//! Many clients at once, either so many requests or as long as it takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two requests of one client, so that the clients leave the fleet something of two cores.
const PACE: Duration = Duration::from_millis(2);

/// `clients` threads do `each` things; everything they saw.
pub(crate) fn parallel<T: Send>(clients: usize, each: usize, act: impl Fn(usize) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let act = &act;
        let client = |client| scope.spawn(move || (0..each).map(|_| act(client)).collect::<Vec<_>>());
        let clients: Vec<_> = (0..clients).map(client).collect();
        clients.into_iter().flat_map(|client| client.join().expect("a client panicked")).collect()
    })
}

/// Clients that go on until they are stopped.
#[derive(Debug)]
pub(crate) struct ParallelClients<T> {
    is_stopped: Arc<AtomicBool>,
    seen: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<Vec<T>>>,
}

impl<T: Send + 'static> ParallelClients<T> {
    /// Each client acts by the closure that `client` makes for it.
    pub(crate) fn start<A: FnMut() -> T + Send + 'static>(
        clients: usize,
        client: impl Fn(usize) -> A,
    ) -> Self {
        let is_stopped = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(AtomicUsize::new(0));
        let spawn = |number| {
            let (is_stopped, seen, mut act) = (Arc::clone(&is_stopped), Arc::clone(&seen), client(number));
            thread::spawn(move || {
                let mut results = Vec::new();
                while !is_stopped.load(Ordering::Relaxed) {
                    results.push(act());
                    seen.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(PACE);
                }
                results
            })
        };
        let clients = (0..clients).map(spawn).collect();
        Self { is_stopped, seen, clients }
    }

    /// How many results there are by now.
    pub(crate) fn seen(&self) -> usize {
        self.seen.load(Ordering::Relaxed)
    }

    /// Ends the load; what each client saw, in its order.
    pub(crate) fn stop(self) -> Vec<Vec<T>> {
        self.is_stopped.store(true, Ordering::Relaxed);
        self.clients.into_iter().map(|client| client.join().expect("a client panicked")).collect()
    }
}
