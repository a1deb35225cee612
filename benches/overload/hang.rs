//! A worker whose loop stands still for ten seconds, and comes back.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

use crate::crowd::{ClientSwarm, SwarmPace, SwarmPlan, SwarmRequest};
use crate::fleet::Fleet;
use crate::options::Options;
use crate::table::Section;
use crate::{Outcome, process, table};

pub(crate) fn measure(options: &Options) -> Outcome<Section> {
    let fleet = Fleet::start(&options.faulty()?, options)?;
    let plan = SwarmPlan::closed(fleet.address, 32, SwarmRequest::Path("/hello"));
    let crowd = ClientSwarm::start(SwarmPlan { pace: SwarmPace::Paused(Duration::from_millis(5)), ..plan });
    std::thread::sleep(Duration::from_secs(1));
    let begin = now_ms();
    let mut stream = TcpStream::connect(fleet.address)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.write_all(b"GET /block/10000 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    std::thread::sleep(Duration::from_secs(2));
    let report = crowd.finish();
    println!("a block of 10 s: {report}");
    let whole = answer.starts_with("HTTP/1.1 200");
    process::wait_until("two workers serve", || fleet.workers().len() == options.workers)?;
    let since = |text: &str| {
        let later = fleet.lines(text).into_iter().filter_map(|line| at_ms(&line)).find(|at| *at >= begin);
        later.map_or_else(|| "never".to_owned(), |at| format!("{:.2}", (at - begin) as f64 / 1e3))
    };
    let lost = report.failed() + report.refused();
    let row = vec![
        since("worker suspect"),
        since("worker ready"),
        report.answered().to_string(),
        lost.to_string(),
        if whole { "yes".to_owned() } else { "no".to_owned() },
        table::ms(report.latency(1.0, Duration::ZERO)),
        table::verdict(lost == 0 && whole, "no request lost"),
    ];
    Ok(Section {
        title: "A worker hangs",
        text: "A handler blocks one of two workers for 10 s under 32 clients with kept connections. Seconds from its \
               begin. Promised: a spare serves, nothing is lost, and the handler's own answer comes, too.",
        head: vec![
            "steered away after s",
            "spare ready after s",
            "answered",
            "lost",
            "the handler's answer",
            "longest wait ms",
            "",
        ],
        rows: vec![row],
    })
}

fn now_ms() -> i64 {
    i64::try_from(regatta::__internals::sys::clock::wall_clock().as_millis()).unwrap_or(0)
}

/// When a line was written: milliseconds since 1970.
fn at_ms(line: &Value) -> Option<i64> {
    let text = line["at"].as_str().or_else(|| line["timestamp"].as_str())?;
    let format = time::format_description::well_known::Rfc3339;
    let at = time::OffsetDateTime::parse(text, &format).ok()?;
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).ok()
}
