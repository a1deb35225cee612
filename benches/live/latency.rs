//! How long a broadcast takes from the publisher's call to the subscribers of two hosts.

use std::time::Duration;

use crate::Outcome;
use crate::events::Clock;
use crate::host::{Site, settle};
use crate::options::Options;
use crate::table::Section;

/// Subscribers, over both hosts.
const CLIENTS: [usize; 2] = [10, 200];

/// Messages a second.
const RATE: u32 = 50;

pub(crate) fn measure(options: &Options) -> Outcome<Section> {
    let site = Site::start(2, options)?;
    let mut rows = Vec::new();
    for (number, clients) in CLIENTS.into_iter().enumerate() {
        let clock = Clock::start();
        let topic = format!("l{number}");
        let crowd = site.crowd(clock, &topic, clients)?;
        let count = options.seconds as usize * RATE as usize;
        let printed = site.publish(clock, &topic, Duration::from_secs(1) / RATE, count);
        let balance = settle(crowd, &printed)?;
        let milliseconds = |share: f64| format!("{:.2}", balance.late_ms(share));
        rows.push(vec![
            clients.to_string(),
            balance.delivered.to_string(),
            milliseconds(0.5),
            milliseconds(0.99),
            milliseconds(1.0),
        ]);
    }
    let text = format!(
        "From the moment before the publisher's `POST` to the arrival of the frame: one publisher, {RATE} messages of \
         100 B a second, two hosts of {} workers, one Redis over loopback TCP.",
        options.workers
    );
    let head = vec!["subscribers", "arrivals", "p50 ms", "p99 ms", "longest ms"];
    Ok(Section { title: "Latency of a broadcast over two hosts", text, head, rows })
}
