//! Busy loops beside the fleet.

use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::crowd::{ClientSwarm, SwarmPace, SwarmPlan, SwarmRequest};
use crate::fleet::Fleet;
use crate::options::Options;
use crate::table::Section;
use crate::{Outcome, table};

/// Busy loops a core.
const LOOPS: usize = 4;

/// Programs that only burn time; they end with the value.
struct Burners(Vec<Child>);

impl Burners {
    fn start(count: usize) -> Outcome<Self> {
        let mut burners = Self(Vec::new());
        for _ in 0..count {
            let mut command = Command::new("sh");
            command.args(["-c", "while :; do :; done"]).stdin(Stdio::null()).stdout(Stdio::null());
            burners.0.push(command.spawn()?);
        }
        Ok(burners)
    }
}

impl Drop for Burners {
    fn drop(&mut self) {
        for burner in &mut self.0 {
            drop(burner.kill());
            drop(burner.wait());
        }
    }
}

pub(crate) fn measure(options: &Options) -> Outcome<Section> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let fleet = Fleet::start(&options.program, options)?;
    let before = fleet.workers();
    let burners = Burners::start(LOOPS * cores)?;
    let plan = SwarmPlan::closed(fleet.address, 32, SwarmRequest::View);
    let crowd = ClientSwarm::start(SwarmPlan { pace: SwarmPace::Paused(Duration::from_millis(20)), ..plan });
    let report = crowd.last(Duration::from_secs_f64(options.minutes * 60.0));
    drop(burners);
    println!("{LOOPS} busy loops a core: {report}");
    let killed = before.iter().filter(|pid| !fleet.workers().contains(pid)).count();
    let exact = report.counted == report.answered();
    let kept = killed == 0 && report.failed() == 0 && report.refused() == 0 && exact;
    let row = vec![
        options.minutes.to_string(),
        report.answered().to_string(),
        killed.to_string(),
        table::failures(&report),
        report.refused().to_string(),
        format!("{:.4}", table::counted(&report)),
        table::ms(report.latency(0.99, Duration::ZERO)),
        table::verdict(kept, "no kill, none stale, all counted"),
    ];
    Ok(Section {
        title: "Starved",
        text: "Four busy loops a core beside the fleet, 32 clients that ask every 20 ms.",
        head: vec![
            "minutes",
            "answered",
            "workers lost",
            "failures",
            "refused",
            "counted/answered",
            "p99 ms",
            "",
        ],
        rows: vec![row],
    })
}
