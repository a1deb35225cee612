//! How long a slot is without a worker after a SIGKILL.
//!
//! From just before the kill, connections of their own are opened one after the other, each asking `/hello`. The
//! kernel spreads them over the slots' queues: one that lands on a living worker is answered at once, one that lands
//! on the dead worker's queue waits there for the successor. The clock stops at the first answer by a process that
//! was not there before, which can only be the victim's successor in its slot.

use std::collections::VecDeque;
use std::time::{Duration, Instant};
use std::{io, thread};

use nix::sys::signal::Signal;

use crate::contender::Contender;
use crate::{Outcome, client, process};

/// A worker is killed only after it has served for longer than this: at once after its start, back-off is right.
const SERVED: Duration = Duration::from_millis(1100);

/// A probe that gets no answer for so long is given up and counted as hanging; the next one is opened.
const PROBE: Duration = Duration::from_millis(250);

/// Longest wait for a successor.
const PATIENCE: Duration = Duration::from_secs(30);

/// The crash figures of one contender.
#[derive(Debug, Clone)]
pub(crate) struct Crashes {
    /// From each kill to the first answer of the successor, milliseconds, ascending.
    pub(crate) gaps_ms: Vec<f64>,
    /// Connections that broke: those the victim had accepted.
    pub(crate) broken: u64,
    /// Connections that were taken and not answered within 250 ms.
    pub(crate) hanging: u64,
    /// Connections that were refused.
    pub(crate) refused: u64,
}

impl Crashes {
    /// The smallest gap that this share of the kills did not exceed (nearest rank), milliseconds.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let rank = (self.gaps_ms.len() * percent).div_ceil(100).max(1);
        self.gaps_ms.get(rank - 1).copied().unwrap_or(f64::NAN)
    }
}

/// Kills this many workers, one after the other, always the one that has served longest.
pub(crate) fn kill_workers(contender: &Contender, kills: usize) -> Outcome<Crashes> {
    let mut workers: VecDeque<u32> = contender.workers().into();
    let mut crashes = Crashes { gaps_ms: Vec::with_capacity(kills), broken: 0, hanging: 0, refused: 0 };
    for _ in 0..kills {
        // Not a wait for something: the age of the next victim is part of the measurement.
        thread::sleep(SERVED);
        let known: Vec<u32> = workers.iter().copied().collect();
        let victim = workers.pop_front().ok_or_else(|| format!("{} has no workers", contender.name))?;
        let (gap, successor) = kill_one(contender, victim, &known, &mut crashes)?;
        crashes.gaps_ms.push(gap.as_secs_f64() * 1e3);
        workers.push_back(successor);
    }
    crashes.gaps_ms.sort_by(f64::total_cmp);
    Ok(crashes)
}

fn kill_one(
    contender: &Contender,
    victim: u32,
    known: &[u32],
    crashes: &mut Crashes,
) -> Outcome<(Duration, u32)> {
    let killed = Instant::now();
    process::kill(victim, Signal::SIGKILL)?;
    while killed.elapsed() < PATIENCE {
        match client::ask_within(contender.address, "/hello", PROBE) {
            Ok(answer) => match answer.pid() {
                Some(pid) if !known.contains(&pid) => return Ok((killed.elapsed(), pid)),
                _ => {}
            },
            Err(error) => match error.kind() {
                io::ErrorKind::ConnectionRefused => crashes.refused += 1,
                // A read that times out is the former on Linux, a connect that does is the latter.
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => crashes.hanging += 1,
                _ => crashes.broken += 1,
            },
        }
    }
    Err(format!("{}: no successor of {victim} answered", contender.name).into())
}
