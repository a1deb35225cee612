//! Closed loops: kept connections, each of which asks again as soon as it was answered.

use std::time::Duration;

use crate::crowd::{ClientSwarm, SwarmPlan, SwarmReport, SwarmRequest};
use crate::fleet::Fleet;
use crate::options::Options;
use crate::table::Section;
use crate::{Outcome, table};

/// Time in which the connections are made and the caches are filled; it is not measured.
const WARM_UP: Duration = Duration::from_secs(2);

pub(crate) fn measure(options: &Options) -> Outcome<Section> {
    let mut rows = Vec::new();
    rows.extend(loops("`/` as text", SwarmRequest::View, options, false)?);
    rows.extend(loops("`/` as a page", SwarmRequest::Page, options, false)?);
    rows.extend(loops("a handler of 1 ms", SwarmRequest::Path("/spin/1"), options, true)?);
    Ok(Section {
        title: "Closed loops",
        text: "Every client asks again as soon as it was answered. Promised: no failure, every answer counted, and at \
               least 90 % of the best throughput of the same request. A page closes its connection.",
        head: vec![
            "asked for",
            "clients",
            "answers/s",
            "failures",
            "counted/answered",
            "p50 ms",
            "p99 ms",
            "longest ms",
            "MiB",
            "",
        ],
        rows,
    })
}

/// One kind of request with each number of clients.
fn loops(name: &str, ask: SwarmRequest, options: &Options, faulty: bool) -> Outcome<Vec<Vec<String>>> {
    let mut seen = Vec::new();
    for clients in &options.clients {
        let program = if faulty { options.faulty()? } else { options.program.clone() };
        let fleet = Fleet::start(&program, options)?;
        let before = fleet.workers();
        let crowd = ClientSwarm::start(SwarmPlan::closed(fleet.address, *clients, ask));
        std::thread::sleep(WARM_UP + Duration::from_secs(options.seconds));
        let memory = fleet.memory()?;
        let end = crowd.age();
        let report = crowd.finish();
        let same = fleet.workers() == before;
        seen.push((*clients, report.rate(WARM_UP, end), report, memory, same));
        println!(
            "{name}, {clients} clients: {}",
            seen.last().map(|row| row.2.to_string()).unwrap_or_default()
        );
    }
    let best = seen.iter().map(|row| row.1).fold(0.0, f64::max);
    Ok(seen
        .iter()
        .map(|(clients, rate, report, memory, same)| {
            let kept = is_kept(report, ask) && *rate >= 0.9 * best && *same;
            let mut row =
                vec![name.to_owned(), clients.to_string(), format!("{rate:.0}"), table::failures(report)];
            row.push(if matches!(ask, SwarmRequest::Path(_)) {
                "–".to_owned()
            } else {
                format!("{:.4}", table::counted(report))
            });
            row.extend([0.5, 0.99, 1.0].map(|share| table::ms(report.latency(share, WARM_UP))));
            row.push(format!("{memory:.0}"));
            row.push(table::verdict(kept, "no failure, all counted, 90 % of the best"));
            row
        })
        .collect())
}

fn is_kept(report: &SwarmReport, ask: SwarmRequest) -> bool {
    let exact = matches!(ask, SwarmRequest::Path(_)) || report.counted == report.answered();
    report.failed() == 0 && report.refused() == 0 && exact
}
