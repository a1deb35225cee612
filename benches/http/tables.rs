//! The figures as tables in Markdown.

use crate::exact;
use crate::growth::Point;
use crate::load::{Route, Run};
use crate::rounds::{Figures, Memory, each, mib};

/// A table: its head and its rows, one cell a column.
pub(crate) fn table(head: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut lines = vec![format!("| {} |", head.join(" | "))];
    lines.push(format!("|{}", "---|".repeat(head.len())));
    lines.extend(rows.into_iter().map(|row| format!("| {} |", row.join(" | "))));
    lines.join("\n") + "\n"
}

/// The machine and the versions.
pub(crate) fn machine(rows: &[(&'static str, String)]) -> String {
    table(&["", ""], rows.iter().map(|(name, value)| vec![(*name).to_owned(), value.clone()]).collect())
}

/// Speed and cost of each route of each contender, medians over the rounds.
pub(crate) fn routes(measured: &[Figures]) -> String {
    let head = [
        "",
        "route",
        "req/s",
        "p50 ms",
        "p99 ms",
        "app µs",
        "supervisor µs",
        "redis µs",
        "Redis commands",
        "visits a call",
        "Redis reads",
        "4xx/5xx",
        "broken",
    ];
    let mut rows = Vec::new();
    for figures in measured {
        for route in Route::ALL {
            rows.extend(speed(figures, route));
        }
    }
    table(&head, rows)
}

fn speed(figures: &Figures, route: Route) -> Option<Vec<String>> {
    let of_route = figures.runs.iter().filter(|(known, _)| *known == route);
    let refused: f64 = of_route.clone().map(|(_, run)| run.seen.refused).sum();
    let broken: f64 = of_route.map(|(_, run)| run.seen.broken).sum();
    Some(vec![
        figures.name.to_owned(),
        format!("`{}`", route.label()),
        format!("{:.0}", figures.median(route, |run| run.rate())?),
        format!("{:.2}", figures.median(route, |run| run.seen.p50_ms)?),
        format!("{:.2}", figures.median(route, |run| run.seen.p99_ms)?),
        format!("{:.1}", figures.median(route, each(|run| run.app_us))?),
        format!("{:.2}", figures.median(route, each(|run| run.supervisor_us))?),
        format!("{:.1}", figures.median(route, each(|run| run.redis_us))?),
        format!("{:.2}", figures.median(route, each(|run| run.commands))?),
        figures
            .median(route, a_call)
            .filter(|visits| visits.is_finite())
            .map_or_else(none, |visits| format!("{visits:.1}")),
        format!("{:.2}", figures.median(route, each(|run| run.reads))?),
        format!("{refused:.0}"),
        format!("{broken:.0}"),
    ])
}

/// Visits that a call of server-side code brought; not a number where there was none.
fn a_call(run: &Run) -> f64 {
    if run.calls * 1000.0 < run.seen.requests { f64::NAN } else { run.seen.requests / run.calls }
}

/// Growth of one thing, a row a point.
pub(crate) fn growth(what: &'static str, points: &[Point]) -> String {
    let number =
        |value: Option<f64>, digits: usize| value.map_or_else(none, |value| format!("{value:.digits$}"));
    let row = |point: &Point| {
        let Point { run, .. } = point;
        let redis_us = run.redis_us / run.seen.requests;
        vec![
            point.at.clone(),
            format!("{:.1}", run.app_us / run.seen.requests),
            format!("{redis_us:.2}"),
            format!("{:.0}", 1e6 / redis_us),
            format!("{:.2}", run.commands / run.seen.requests),
            format!("{:.1}", a_call(run)),
            format!("{:.2}", run.seen.p50_ms),
            number(point.rest.map(|rest| rest.worker_mib), 1),
            number(point.rest.map(|rest| rest.commands), 0),
            number(point.session_bytes, 0),
            number(point.hincrby_us, 2),
            number(point.hincrby_us.map(|us| redis_us / us), 1),
        ]
    };
    let head = [
        what,
        "app µs",
        "Redis µs",
        "visits/s a Redis core",
        "Redis commands",
        "visits a call",
        "p50 ms",
        "MiB a worker at rest",
        "commands/s at rest",
        "bytes a session",
        "HINCRBY µs",
        "in HINCRBYs",
    ];
    let rows: Vec<_> = points.iter().map(row).collect();
    // A column in which nothing was measured is left out.
    let kept: Vec<_> =
        (0..head.len()).filter(|column| rows.iter().any(|row| row[*column] != none())).collect();
    let pick = |row: &Vec<String>| kept.iter().map(|column| row[*column].clone()).collect();
    table(&kept.iter().map(|column| head[*column]).collect::<Vec<_>>(), rows.iter().map(pick).collect())
}

fn none() -> String {
    "–".to_owned()
}

/// Each round by itself, so that the spread can be seen.
pub(crate) fn rounds(measured: &[Figures]) -> String {
    let mut rows = Vec::new();
    for figures in measured {
        for route in Route::ALL {
            let of_route = figures.runs.iter().filter(|(known, _)| *known == route);
            let rates: Vec<String> = of_route.map(|(_, run)| format!("{:.0}", run.rate())).collect();
            if !rates.is_empty() {
                rows.push(vec![figures.name.to_owned(), format!("`{}`", route.label()), rates.join(", ")]);
            }
        }
    }
    table(&["", "route", "req/s of each round"], rows)
}

/// Commands and round trips of one request.
pub(crate) fn accounting(measured: &[Figures]) -> String {
    let mut rows = Vec::new();
    for figures in measured {
        for (route, counted) in &figures.accounting {
            rows.push(vec![
                figures.name.to_owned(),
                format!("`{}`", route.label()),
                format!("{:.2}", counted.round_trips),
                format!("{:.2}", counted.sent),
                format!("{:.2}", counted.inside),
                counted.names.clone(),
            ]);
        }
    }
    table(&["", "route", "round trips", "commands sent", "commands in scripts", "which"], rows)
}

/// How the shipped program compares, from the medians of the visit as text.
pub(crate) fn ratios(measured: &[Figures]) -> Option<String> {
    let (own, peers) = measured.split_first()?;
    let rate = |figures: &Figures, route| figures.median(route, |run| run.rate());
    let cpu = |figures: &Figures| figures.median(Route::Visit, each(|run| run.app_us + run.supervisor_us));
    let redis = |figures: &Figures| figures.median(Route::Visit, each(|run| run.redis_us));
    let both = |figures: &Figures| Some(cpu(figures)? + redis(figures)?);
    let row = |peer: &Figures| {
        Some(vec![
            peer.name.to_owned(),
            format!("{:.2} ×", rate(own, Route::Visit)? / rate(peer, Route::Visit)?),
            format!("{:.2} ×", rate(own, Route::Hello)? / rate(peer, Route::Hello)?),
            format!("{:.2} ×", cpu(peer)? / cpu(own)?),
            format!("{:.2} ×", redis(peer)? / redis(own)?),
            format!("{:.2} ×", both(peer)? / both(own)?),
        ])
    };
    let rows: Vec<_> = peers.iter().filter_map(row).collect();
    let head =
        ["Regatta against", "req/s of `/`", "req/s of `/hello`", "its app CPU", "its Redis CPU", "both CPU"];
    (!rows.is_empty()).then(|| table(&head, rows))
}

/// Megabytes of a number of kibibytes.
pub(crate) fn megabytes(kib: u64) -> f64 {
    mib(kib) * 1.048_576
}

/// Private memory before and after the load.
pub(crate) fn memory(measured: &[Figures]) -> String {
    let line = |name: &str, moment: &str, memory: &Memory| {
        let supervisor = memory.supervisor.map_or("–".to_owned(), |kib| format!("{:.1}", mib(kib)));
        let serving: Vec<String> = memory.serving.iter().map(|kib| format!("{:.1}", mib(*kib))).collect();
        vec![name.to_owned(), moment.to_owned(), supervisor, serving.join(", ")]
    };
    let both = |figures: &Figures| {
        [
            line(figures.name, "at rest", &figures.at_rest),
            line(figures.name, "after the load", &figures.after_load),
        ]
    };
    table(&["", "", "supervisor MiB", "each serving process MiB"], measured.iter().flat_map(both).collect())
}

/// Whether every visit counts.
pub(crate) fn exactness(measured: &[Figures]) -> String {
    let row = |figures: &Figures| {
        let pool = if figures.pool_is_exact() {
            format!("none (+{}, of at most {} cut by wrk)", figures.surplus, figures.cut)
        } else {
            format!("{} or more", figures.surplus.min(0).abs())
        };
        let total = figures.total_surplus.map_or_else(none, |surplus| format!("{surplus:+}"));
        vec![figures.name.to_owned(), format!("{} of {}", figures.exact, exact::VISITS), pool, total]
    };
    let head = [
        "",
        "one session, 20 visits at a time: counted",
        "pool under load: answered visits lost",
        "shared total against answers",
    ];
    table(&head, measured.iter().map(row).collect())
}

/// What a SIGKILL of a worker costs.
pub(crate) fn crashes(measured: &[Figures]) -> Option<String> {
    let row = |figures: &Figures| {
        let crashes = figures.crashes.as_ref()?;
        Some(vec![
            figures.name.to_owned(),
            crashes.gaps_ms.len().to_string(),
            format!("{:.1}", crashes.percentile(50)),
            format!("{:.1}", crashes.percentile(99)),
            format!("{:.1}", crashes.percentile(100)),
            crashes.broken.to_string(),
            crashes.hanging.to_string(),
            crashes.refused.to_string(),
        ])
    };
    let rows: Vec<_> = measured.iter().filter_map(row).collect();
    let head = ["", "kills", "p50 ms", "p99 ms", "max ms", "broken", "hanging", "refused"];
    (!rows.is_empty()).then(|| table(&head, rows))
}
