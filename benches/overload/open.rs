//! Open loops: requests come at a rate, whatever was answered.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::crowd::{ClientSwarm, SwarmPlan, SwarmReport, SwarmRequest};
use crate::fleet::Fleet;
use crate::options::Options;
use crate::table::Section;
use crate::{Outcome, table};

/// Clients over which the requests are spread.
const CLIENTS: usize = 10_000;

/// When shedding must have found its measure.
const SETTLED: Duration = Duration::from_secs(10);

/// What is served by then takes no longer than this.
const P99: Duration = Duration::from_secs(1);

/// Parts of the capacity at which requests come.
const RATES: [f64; 4] = [0.5, 1.0, 2.0, 4.0];

pub(crate) fn measure(options: &Options) -> Outcome<Section> {
    let mut rows = Vec::new();
    let kinds = [
        ("`/` as text", SwarmRequest::View, false),
        ("a handler of 1 ms", SwarmRequest::Path("/spin/1"), false),
        ("the same, new connections", SwarmRequest::Path("/spin/1"), true),
    ];
    for (name, ask, fresh) in kinds {
        let program = if ask == SwarmRequest::View { options.program.clone() } else { options.faulty()? };
        let fleet = Fleet::start(&program, options)?;
        let crowd = ClientSwarm::start(SwarmPlan::closed(fleet.address, 64, ask));
        let report = crowd.last(Duration::from_secs(options.seconds.min(5) + 1));
        let second = Duration::from_secs(1);
        let capacity = report.rate(second, Duration::from_secs(options.seconds.min(5)));
        drop(fleet);
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        for rate in RATES {
            let plan = SwarmPlan { fresh, ..SwarmPlan::open(free, CLIENTS, ask, capacity * rate) };
            rows.push(one(name, plan, &program, rate, capacity, options)?);
        }
    }
    Ok(Section {
        title: "Open loops",
        text: "Requests come at parts of the capacity (what 64 clients in a closed loop get) over 10,000 clients, \
               each with a kept connection or a new one for each request. Figures from the tenth second on. Promised: below the capacity no refusal; beyond it at \
               least 80 % of the capacity is served, within 1 s for 99 of a hundred, and probes answer all the while.",
        head: vec![
            "asked for",
            "× capacity",
            "came/s",
            "served/s",
            "refused/s",
            "failures",
            "served p50 ms",
            "p99 ms",
            "refused p50 ms",
            "no free client/s",
            "probe's longest ms",
            "MiB",
            "",
        ],
        rows,
    })
}

fn one(
    name: &str,
    plan: SwarmPlan,
    program: &std::path::Path,
    times: f64,
    capacity: f64,
    options: &Options,
) -> Outcome<Vec<String>> {
    let fleet = Fleet::start(program, options)?;
    let crowd = ClientSwarm::start(SwarmPlan { address: fleet.address, ..plan });
    let mut longest = Duration::ZERO;
    let lasting = SETTLED + Duration::from_secs(options.seconds);
    while crowd.age() < lasting {
        longest = longest.max(probe(fleet.admin)?);
        std::thread::sleep(Duration::from_millis(100));
    }
    let memory = fleet.memory()?;
    let report = crowd.finish();
    println!("{name}, {times} × {capacity:.0}/s: {report}");
    let served = report.rate(SETTLED, lasting);
    let refused = report.refused() as f64 / lasting.as_secs_f64();
    let p99 = report.latency(0.99, SETTLED);
    let kept = if times < 1.0 {
        report.failed() == 0 && report.refused() == 0
    } else {
        report.failed() == 0 && served >= 0.8 * capacity && (times <= 1.0 || p99 <= P99)
    };
    Ok(vec![
        name.to_owned(),
        times.to_string(),
        format!("{:.0}", capacity * times),
        format!("{served:.0}"),
        format!("{refused:.0}"),
        table::failures(&report),
        table::ms(report.latency(0.5, SETTLED)),
        table::ms(p99),
        refusals(&report),
        format!("{:.0}", report.never_sent as f64 / lasting.as_secs_f64()),
        table::ms(longest),
        format!("{memory:.0}"),
        table::verdict(kept, "80 % served, p99 1 s, no failure"),
    ])
}

fn refusals(report: &SwarmReport) -> String {
    table::ms(report.refusal_latency(0.5, SETTLED))
}

/// Asks `/livez` over a connection of its own; how long it took.
fn probe(admin: SocketAddr) -> Outcome<Duration> {
    let begin = Instant::now();
    let mut stream = TcpStream::connect(admin)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.starts_with("HTTP/1.1 200") {
        true => Ok(begin.elapsed()),
        false => Err(format!("/livez answered {answer}").into()),
    }
}
