//! Redis is killed and comes back after a moment.

use std::time::Duration;

use crate::crowd::{ClientSwarm, SwarmPace, SwarmPlan, SwarmRequest};
use crate::fleet::Fleet;
use crate::options::Options;
use crate::table::Section;
use crate::{Outcome, table};

/// How long Redis is away, milliseconds.
const AWAY_MS: [u64; 3] = [300, 1000, 1900];

pub(crate) fn measure(options: &Options) -> Outcome<Section> {
    let mut rows = Vec::new();
    for away_ms in AWAY_MS {
        let mut fleet = Fleet::start(&options.program, options)?;
        let plan = SwarmPlan::closed(fleet.address, 64, SwarmRequest::View);
        let crowd =
            ClientSwarm::start(SwarmPlan { pace: SwarmPace::Paused(Duration::from_millis(5)), ..plan });
        std::thread::sleep(Duration::from_secs(2));
        fleet.kill_redis()?;
        std::thread::sleep(Duration::from_millis(away_ms).saturating_sub(Duration::from_millis(30)));
        fleet.start_redis()?;
        std::thread::sleep(Duration::from_secs(3));
        let report = crowd.finish();
        println!("away for {away_ms} ms: {report}");
        let stale = report.failures.iter().filter(|(how, _)| how.contains("Session-State"));
        let stale: u64 = stale.map(|(_, count)| count).sum();
        let failed = report.failed() + report.refused() - stale;
        let exact = report.counted == report.answered();
        rows.push(vec![
            format!("{:.1}", away_ms as f64 / 1e3),
            report.answered().to_string(),
            failed.to_string(),
            stale.to_string(),
            format!("{:.4}", table::counted(&report)),
            table::ms(report.latency(1.0, Duration::ZERO)),
            table::verdict(failed + stale == 0 && exact, "no failure, none stale, all counted"),
        ]);
    }
    Ok(Section {
        title: "Redis restarts",
        text: "Redis (append-only file) is ended by SIGKILL under 64 clients and started again. Promised: within \
               `redis.patience` it costs latency and nothing else.",
        head: vec!["away s", "answered", "failed", "stale", "counted/answered", "longest wait ms", ""],
        rows,
    })
}
