//! What the shipped program is meant to reach, and whether it did.

use crate::load::Route;
use crate::peers;
use crate::rounds::{Figures, each};
use crate::tables::{megabytes, table};

/// What a figure must be.
#[derive(Debug, Clone, Copy)]
enum Must {
    AtLeast(f64),
    AtMost(f64),
}

/// A promise with its figure.
#[derive(Debug)]
pub(crate) struct Target {
    what: String,
    must: Must,
    unit: &'static str,
    reached: f64,
}

impl Target {
    fn is_kept(&self) -> bool {
        match self.must {
            Must::AtLeast(bound) => self.reached >= bound,
            Must::AtMost(bound) => self.reached <= bound,
        }
    }

    fn must(&self) -> String {
        match self.must {
            Must::AtLeast(bound) => format!("≥ {bound} {}", self.unit),
            Must::AtMost(bound) => format!("≤ {bound} {}", self.unit),
        }
    }

    fn reached(&self) -> String {
        let digits = if self.reached >= 1000.0 { 0 } else { 2 };
        format!("{:.digits$} {}", self.reached, self.unit)
    }

    fn cells(&self) -> Vec<String> {
        let verdict = if self.is_kept() { "kept" } else { "**MISSED**" };
        vec![self.what.clone(), self.must(), self.reached(), verdict.to_owned()]
    }
}

/// All whose figures were measured.
pub(crate) fn all(measured: &[Figures], hincrby_us: f64) -> Vec<Target> {
    let Some((own, peers)) = measured.split_first() else { return Vec::new() };
    let against = against(own, peers, hincrby_us);
    let alone = alone(own);
    let given = |(what, must, unit, reached): (&str, Must, &'static str, Option<f64>)| {
        Some(Target { what: what.to_owned(), must, unit, reached: reached? })
    };
    against.into_iter().chain(alone).filter_map(given).collect()
}

type Row = (&'static str, Must, &'static str, Option<f64>);

/// Figures that compare.
fn against(own: &Figures, peers: &[Figures], hincrby_us: f64) -> Vec<Row> {
    let peer = |name: &str| peers.iter().find(|peer| peer.name == name);
    let rate = |figures: &Figures, route| figures.median(route, |run| run.rate());
    let cpu = |figures: &Figures, route| {
        figures.median(route, each(|run| run.app_us + run.supervisor_us + run.redis_us))
    };
    let times = |name, route| Some(rate(own, Route::Visit)? / rate(peer(name)?, route)?);
    let spent = |name, route| Some(cpu(own, route)? / cpu(peer(name)?, route)?);
    let redis = own.median(Route::Visit, each(|run| run.redis_us));
    vec![
        (
            "visit, app + Redis CPU against actix's",
            Must::AtMost(0.55),
            "×",
            spent(peers::ACTIX, Route::Visit),
        ),
        ("visit, req/s against actix", Must::AtLeast(1.4), "×", times(peers::ACTIX, Route::Visit)),
        (
            "visit against actix's bare session (`/bare`: GET + SET, no limit, no total), req/s",
            Must::AtLeast(1.0),
            "×",
            times(peers::ACTIX, Route::Bare),
        ),
        (
            "Redis CPU a visit, in plain pipelined HINCRBYs",
            Must::AtMost(4.0),
            "",
            redis.map(|us| us / hincrby_us),
        ),
        (
            "`/hello`, CPU against stock axum on current-thread runtimes",
            Must::AtMost(1.05),
            "×",
            spent(peers::AXUM_CURRENT, Route::Hello),
        ),
        ("visit, req/s against Node's cluster", Must::AtLeast(8.0), "×", times(peers::NODE, Route::Visit)),
        (
            "visits a second that one Redis core carries (10⁶ / Redis µs a visit)",
            Must::AtLeast(180_000.0),
            "",
            redis.map(|us| 1e6 / us),
        ),
    ]
}

/// Figures of the program alone.
fn alone(own: &Figures) -> Vec<Row> {
    let cpu = |route| own.median(route, each(|run| run.app_us + run.redis_us));
    let times = || Some(cpu(Route::Visit)? / cpu(Route::Hello)?);
    let supervisor = own.total(|run| run.supervisor_us) / own.total(|run| run.seen.seconds * 1e6);
    let worker = own.at_rest.serving.iter().max();
    let crash = own.crashes.as_ref().map(|crashes| crashes.percentile(99));
    vec![
        ("visit, app + Redis CPU", Must::AtMost(28.0), "µs", cpu(Route::Visit)),
        ("… as a multiple of `/hello`", Must::AtMost(3.0), "×", times()),
        ("supervisor, CPU under load, of a core", Must::AtMost(0.5), "%", Some(supervisor * 100.0)),
        ("supervisor, private memory", Must::AtMost(8.0), "MB", own.at_rest.supervisor.map(megabytes)),
        ("worker, private memory at rest", Must::AtMost(7.0), "MB", worker.map(|kib| megabytes(*kib))),
        ("slot without a worker after a SIGKILL, p99", Must::AtMost(50.0), "ms", crash),
    ]
}

/// As a table, with the missed ones named once more below it.
pub(crate) fn page(targets: &[Target]) -> String {
    let rows = targets.iter().map(Target::cells).collect();
    let mut page = table(&["", "must", "measured", ""], rows);
    page.push_str(&format!("\n{}\n", missed(targets)));
    page
}

/// One sentence with all that are missed.
pub(crate) fn missed(targets: &[Target]) -> String {
    let missed: Vec<_> = targets.iter().filter(|target| !target.is_kept()).collect();
    if missed.is_empty() {
        return "None of these is missed.".to_owned();
    }
    let each =
        |target: &&Target| format!("{} ({}, must be {})", target.what, target.reached(), target.must());
    format!("Missed: {}.", missed.iter().map(each).collect::<Vec<_>>().join("; "))
}
