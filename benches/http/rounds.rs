//! The order of a run: every contender at rest, then rounds that alternate between them, then what remains to check.

use std::path::Path;

use crate::accounting::Accounting;
use crate::contender::{Contender, Shape};
use crate::crash::Crashes;
use crate::load::{Route, Run, Seen, float};
use crate::options::Options;
use crate::{Outcome, accounting, crash, exact, load, process};

/// Requests of each route that are counted one by one.
const SAMPLE: usize = 500;

/// Private memory, kibibytes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Memory {
    /// The supervisor's; none for a stack without one.
    pub(crate) supervisor: Option<u64>,
    /// Of each serving process.
    pub(crate) serving: Vec<u64>,
}

/// Everything known about one contender.
#[derive(Debug, Clone)]
pub(crate) struct Figures {
    /// Its name.
    pub(crate) name: &'static str,
    /// Cookies of its pool.
    cookies: Vec<String>,
    /// Memory before the first load.
    pub(crate) at_rest: Memory,
    /// Memory after the last.
    pub(crate) after_load: Memory,
    /// Commands and round trips of one request.
    pub(crate) accounting: Vec<(Route, Accounting)>,
    /// Measurements, in the order they were made.
    pub(crate) runs: Vec<(Route, Run)>,
    /// Of 200 parallel visits with one cookie, those that were counted.
    pub(crate) exact: u64,
    /// Visits answered to the pool's sessions.
    answered: u64,
    /// Visits that may have been counted although no one read the answer: wrk cuts what is under way at its end.
    pub(crate) cut: u64,
    /// Visits counted beyond those answered; negative: answered visits that were lost.
    pub(crate) surplus: i64,
    /// The shared total before the first visit that is counted here; none where it is not known.
    total: Option<u64>,
    /// By how much the shared total grew beyond the answered visits; none where it is not known.
    pub(crate) total_surplus: Option<i64>,
    /// What a SIGKILL of a worker costs; none for a stack that cannot lose one.
    pub(crate) crashes: Option<Crashes>,
}

impl Figures {
    /// Nothing but its name and its memory.
    fn new(name: &'static str, at_rest: Memory) -> Self {
        Self {
            name,
            cookies: Vec::new(),
            at_rest,
            after_load: Memory::default(),
            accounting: Vec::new(),
            runs: Vec::new(),
            exact: 0,
            answered: 0,
            cut: 0,
            surplus: 0,
            total: None,
            total_surplus: None,
            crashes: None,
        }
    }

    /// The median over the rounds of a figure of one route; none when the route was not measured.
    pub(crate) fn median(&self, route: Route, figure: impl Fn(&Run) -> f64) -> Option<f64> {
        let of_route = self.runs.iter().filter(|(known, _)| *known == route);
        let mut figures: Vec<f64> = of_route.map(|(_, run)| figure(run)).collect();
        figures.sort_by(f64::total_cmp);
        let middle = figures.len() / 2;
        if figures.len() % 2 == 1 {
            return figures.get(middle).copied();
        }
        Some(f64::midpoint(*figures.get(middle.checked_sub(1)?)?, *figures.get(middle)?))
    }

    /// Notes visits that were answered, and those that may have been counted although they were not.
    fn note(&mut self, route: Route, seen: &Seen, options: &Options) {
        if route != Route::Hello {
            // Whole numbers, as wrk printed them. A refusal after a deadline leaves open whether it was counted.
            self.answered += (seen.requests - seen.refused) as u64;
            self.cut += options.connections as u64 + seen.refused as u64;
        }
    }

    /// The sum over all measurements of a figure.
    pub(crate) fn total(&self, figure: impl Fn(&Run) -> f64) -> f64 {
        self.runs.iter().map(|(_, run)| figure(run)).sum()
    }

    /// Whether the shared total grew by every answered visit, and by none that was not made.
    fn total_is_exact(&self) -> bool {
        self.total_surplus
            .is_none_or(|surplus| u64::try_from(surplus).is_ok_and(|surplus| surplus <= self.cut))
    }

    /// Whether every answered visit of the pool was counted, and none that no one made.
    pub(crate) fn pool_is_exact(&self) -> bool {
        u64::try_from(self.surplus).is_ok_and(|surplus| surplus <= self.cut)
    }
}

/// Memory at rest, the pool of sessions, and what one request costs.
pub(crate) fn prepare(contender: &Contender, options: &Options) -> Outcome<Figures> {
    println!("{}: at rest, pool of {} sessions, commands of a request", contender.name, options.sessions);
    let (at_rest, total) = (memory(contender)?, contender.total()?);
    if !contender.has(Route::Visit) {
        return Ok(Figures::new(contender.name, at_rest));
    }
    let cookies = exact::pool(contender, options.sessions)?;
    let sample = cookies.get(..SAMPLE).unwrap_or(&cookies);
    let mut accounting = Vec::new();
    let mut answered = options.sessions as u64 * exact::POOL_VISITS;
    for route in [Route::Hello, Route::Visit] {
        accounting.push((route, accounting::count(contender, route, sample)?));
        if route == Route::Visit {
            // Each was asked once before, which is a visit too.
            answered += 2 * sample.len() as u64;
        }
    }
    Ok(Figures { cookies, accounting, answered, total, ..Figures::new(contender.name, at_rest) })
}

/// The rounds: in each of them every route, and of every route every contender in turn.
pub(crate) fn run(
    contenders: &[Contender],
    figures: &mut [Figures],
    folder: &Path,
    options: &Options,
) -> Outcome<()> {
    for round in 1..=options.rounds {
        for route in Route::ALL {
            for (contender, figures) in contenders.iter().zip(&mut *figures) {
                if !contender.has(route) {
                    continue;
                }
                one(contender, figures, route, folder, options).map_err(|error| {
                    format!("{}, {}, round {round}: {error}", contender.name, route.label())
                })?;
            }
        }
    }
    Ok(())
}

fn one(
    contender: &Contender,
    figures: &mut Figures,
    route: Route,
    folder: &Path,
    options: &Options,
) -> Outcome<()> {
    let cookies = folder.join(contender.name).join("cookies");
    std::fs::write(&cookies, figures.cookies.join("\n"))?;
    if options.warm_up > 0 {
        let seen = load::drive(contender, route, &cookies, options.warm_up, options)?;
        figures.note(route, &seen, options);
    }
    let run = load::measure(contender, route, &cookies, options)?;
    figures.note(route, &run.seen, options);
    println!(
        "{:<12} {:<9} {:>8.0} req/s  p50 {:>7.2} ms  p99 {:>7.2} ms  app {:>6.1} us  redis {:>5.1} us  4xx/5xx {}  stale {}  broken {}",
        contender.name,
        route.label(),
        run.rate(),
        run.seen.p50_ms,
        run.seen.p99_ms,
        run.app_us / run.seen.requests,
        run.redis_us / run.seen.requests,
        run.seen.refused,
        run.stale,
        run.seen.broken,
    );
    if run.seen.refused + run.stale + run.seen.broken > 0.0 {
        println!("{}", contender.last_words());
    }
    figures.runs.push((route, run));
    Ok(())
}

/// Memory after the load, exactness, and last the kills, which give the worker's memory a new beginning.
pub(crate) fn finish(contender: &Contender, figures: &mut Figures, options: &Options) -> Outcome<()> {
    println!("{}: exactness and crashes", contender.name);
    figures.after_load = memory(contender)?;
    if !contender.has(Route::Visit) {
        return Ok(());
    }
    figures.exact = exact::parallel(contender)?;
    let counted = exact::sum(contender, &figures.cookies)?;
    let answered = figures.answered + figures.cookies.len() as u64;
    figures.surplus = counted.cast_signed() - answered.cast_signed();
    // Those with the one cookie count in the total and not in the pool.
    let all = answered + exact::VISITS + exact::BESIDES;
    let grown = |(before, after): (u64, u64)| after.cast_signed() - before.cast_signed() - all.cast_signed();
    figures.total_surplus = figures.total.zip(contender.total()?).map(grown);
    if options.kills > 0 && contender.shape != Shape::Threads {
        figures.crashes = Some(crash::kill_workers(contender, options.kills)?);
    }
    Ok(())
}

fn memory(contender: &Contender) -> Outcome<Memory> {
    let supervisor = contender.supervisor().map(process::private_kib).transpose()?;
    let serving = contender.serving().into_iter().map(process::private_kib).collect::<Outcome<_>>()?;
    Ok(Memory { supervisor, serving })
}

/// What must hold for the shipped program whatever the figures: no failed request and no visit lost or invented.
pub(crate) fn verdict(measured: &[Figures]) -> Outcome<()> {
    let Some(own) = measured.first() else { return Err("nothing was measured".into()) };
    let failed = own.total(|run| run.seen.refused + run.stale + run.seen.broken);
    if failed > 0.0 {
        return Err(format!("{failed} requests failed, or were answered with a stale session").into());
    }
    if own.exact != exact::VISITS {
        return Err(format!("{} of {} parallel visits were counted", own.exact, exact::VISITS).into());
    }
    if !own.pool_is_exact() {
        return Err(
            format!("{} visits more counted than answered, at most {} may be", own.surplus, own.cut).into()
        );
    }
    if !own.total_is_exact() {
        return Err(format!(
            "the total grew by {:?} more than was answered, at most {}",
            own.total_surplus, own.cut
        )
        .into());
    }
    Ok(())
}

/// A figure of a run, for each of its requests.
pub(crate) fn each(figure: impl Fn(&Run) -> f64) -> impl Fn(&Run) -> f64 {
    move |run| figure(run) / run.seen.requests
}

/// Mebibytes of a number of kibibytes.
pub(crate) fn mib(kib: u64) -> f64 {
    float(kib) / 1024.0
}
