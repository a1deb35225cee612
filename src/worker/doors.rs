//! What a worker listens on, and what its connections share.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::config::schema::Config;
use crate::http::Face;
use crate::listener::Listener;
use crate::listener::SlotListeners;
use crate::sys::fd;
use crate::sys::proc;
use crate::sys::socket;
use crate::worker::Start;
use crate::worker::accept;
use crate::worker::accept::Door;
use crate::worker::accept::Hall;
use crate::worker::balance::Balance;
use crate::worker::connection::Connections;
use crate::worker::connection::Patience;
use crate::worker::connection::TICK;
use crate::worker::gate::Gate;
use crate::worker::linger;
use crate::worker::refusals::Refusals;

/// Connections that operators may have open at once.
const OPERATORS: usize = 64;

/// Bytes that the kernel keeps for a client beyond what is on its way; enough that a fast one never waits for us.
const UNSENT: u32 = 128 << 10;

/// How long at least a client may be out of reach, or take nothing, before its connection is given up.
const UNTAKEN: Duration = Duration::from_secs(30);

/// Refused connections that are waited for at once until they are closed.
const TURNED_AWAY: usize = 64;

/// Descriptors a worker needs besides its connections.
const RESERVED: usize = 64;

/// The worker's listeners: the public ones, whose requests wait at the gate, and the operators'.
pub(super) fn doors(
    listeners: SlotListeners,
    hall: &Hall,
    [public, admin]: [Face; 2],
    balance: Option<&Arc<Balance>>,
    config: &Config,
) -> io::Result<Vec<Door<Face>>> {
    let untaken = config.http.keep_alive.max(UNTAKEN);
    let door = |Listener { socket, owner }, answer: &Face, permits: &Arc<Semaphore>, gated| {
        if let Err(error) = socket::bound_unsent(&socket, UNSENT, untaken) {
            tracing::warn!(%error, "clients that read nothing may take much of the kernel's memory");
        }
        let listener = Arc::new(TcpListener::from_std(socket)?);
        let (answer, permits, hall) = (answer.clone(), Arc::clone(permits), hall.clone());
        let balance = balance.filter(|_| gated).cloned();
        Ok(Door { listener, owner, answer, permits, balance, gated, hall })
    };
    let visitors = Arc::new(Semaphore::new(places(config)));
    let operators = Arc::new(Semaphore::new(OPERATORS));
    let public_doors = listeners.public.into_iter().map(|listener| door(listener, &public, &visitors, true));
    let admin_doors = listeners.admin.into_iter().map(|listener| door(listener, &admin, &operators, false));
    public_doors.chain(admin_doors).collect()
}

/// Connections of visitors that may be open at once.
fn places(config: &Config) -> usize {
    // What the process may open at all, less what it needs for itself: Redis, its listeners, its operators.
    let limit = fd::limit().map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let openable = limit.saturating_sub(OPERATORS + TURNED_AWAY + RESERVED).max(1);
    config.http.connections.min(openable).min(Semaphore::MAX_PERMITS)
}

/// What every connection shares, and the tasks that end turns and ticks.
pub(super) fn hall(start: &Start, tasks: &mut JoinSet<()>) -> Hall {
    let config = &start.config;
    let scoreboard = Arc::clone(&start.scoreboard);
    let patience = Patience {
        header: config.http.header_timeout,
        idle: config.http.keep_alive,
        header_memory: config.http.header_memory,
        per_client: config.http.connections_per_client.of(places(config)),
    };
    let gate = Arc::new(Gate::new(Arc::clone(&scoreboard), start.slot, start.cell));
    let connections = Arc::new(Connections::new(patience, scoreboard, start.slot, start.cell));
    let kept = Arc::clone(&gate);
    tasks.spawn(async move { poll_fn(|context| kept.poll_keep(context)).await });
    tasks.spawn(sweep(Arc::clone(&connections), Arc::clone(&gate)));
    Hall {
        builder: Arc::new(accept::builder(config.http.header_limit)),
        connections,
        gate,
        proxy: Arc::new(config.proxy.clone()),
        ipv6_prefix: config.ipv6_prefix,
        turning_away: Arc::new(Semaphore::new(TURNED_AWAY)),
        discarded_max: linger::Bound::new(config.http.body_limit),
        refusals: Arc::new(Refusals::new(proc::pid().as_raw().unsigned_abs())),
    }
}

/// Ends a tick again and again, while there is a connection whose clock runs or a crowd that is not over.
async fn sweep(connections: Arc<Connections>, gate: Arc<Gate>) {
    let mut interval = tokio::time::interval(TICK);
    // Ticks missed in a pause of the whole process are not made up for, or clients would be closed as idle for it.
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        connections.sweep();
        gate.tick();
        if connections.len() == 0 && gate.is_at_rest() {
            connections.any().await;
            interval.reset();
        }
    }
}
