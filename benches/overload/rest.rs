//! A fleet to which no client sends a request.

use std::fs;
use std::time::Duration;

use crate::fleet::Fleet;
use crate::options::Options;
use crate::table::Section;
use crate::{Outcome, table};

/// How long it is watched.
const WATCHED: Duration = Duration::from_secs(20);

/// Wake-ups a second that a worker may have.
const PROMISED: f64 = 5.0;

pub(crate) fn measure(options: &Options) -> Outcome<Section> {
    let fleet = Fleet::start(&options.program, options)?;
    std::thread::sleep(Duration::from_secs(3));
    let before: Vec<_> = fleet.workers().into_iter().map(|pid| (pid, wakeups(pid))).collect();
    std::thread::sleep(WATCHED);
    let each = before.iter().map(|(pid, before)| {
        Ok((wakeups(*pid)? - before.as_ref().map_err(ToString::to_string)?) as f64 / WATCHED.as_secs_f64())
    });
    let each: Vec<f64> = each.collect::<Outcome<_>>()?;
    let rows = each.iter().enumerate().map(|(number, rate)| {
        vec![
            number.to_string(),
            format!("{rate:.1}"),
            table::verdict(*rate <= PROMISED, "5 wake-ups a second"),
        ]
    });
    Ok(Section {
        title: "At rest",
        text: "Wake-ups a second of each worker (voluntary context switches of all its threads) without any client, \
               with the default settings and one Redis.",
        head: vec!["worker", "wake-ups/s", ""],
        rows: rows.collect(),
    })
}

/// How often a process has gone to sleep so far.
fn wakeups(pid: u32) -> Outcome<u64> {
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(thread?.path().join("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        sum += line.ok_or("no voluntary_ctxt_switches")?.trim().parse::<u64>()?;
    }
    Ok(sum)
}
