//! Thousands of streams on one host: memory of each, and what a delivered message costs.

use std::time::Duration;

use crate::Outcome;
use crate::events::Clock;
use crate::events::delivery_audit::DeliveryReport;
use crate::host::{Site, Used, percent, settle};
use crate::options::Options;
use crate::table::Section;

pub(crate) fn measure(options: &Options) -> Outcome<Section> {
    let site = Site::start(1, options)?;
    let mut rows = Vec::new();
    let before = {
        // Everything has been done once.
        let clock = Clock::start();
        let crowd = site.crowd(clock, "load", 50)?;
        settle(crowd, &site.publish(clock, "load", Duration::from_millis(1), 100))?;
        site.memory()?
    };
    let mut memory = None;
    for (number, rate) in options.rates.iter().enumerate() {
        let clock = Clock::start();
        let topic = format!("r{number}");
        let crowd = site.crowd(clock, &topic, options.clients)?;
        let waiting = site.memory()?;
        let begin = site.cpu()?;
        let count = options.seconds as usize * *rate as usize;
        let printed = site.publish(clock, &topic, Duration::from_secs(1) / *rate, count);
        let last = printed.iter().filter_map(|printed| printed.answer.clone().ok()).max();
        crate::process::wait_until("all have the last message", || {
            last.is_some_and(|last| crowd.all(|record| record.has(last)))
        })
        .map_err(|error| format!("{error}: {}", crowd.summary()))?;
        let used = site.cpu()?.since(&begin);
        let busy = site.memory()?;
        memory.get_or_insert((waiting, busy));
        let balance = settle(crowd, &printed)?;
        rows.push(row(*rate, &balance, used));
    }
    let (waiting, busy) = memory.unwrap_or_default();
    let each = |now: u64| now.saturating_sub(before) as f64 / options.clients as f64;
    let text = format!(
        "{} clients of one topic, {} workers, texts of 100 B. Memory of a client in the workers: **{:.1} KiB** while it \
         waits, {:.1} KiB after the first load. *Behind* is how often a client was told that it was too slow; it came \
         again and lost nothing.",
        options.clients,
        options.workers,
        each(waiting),
        each(busy)
    );
    let head = vec![
        "published/s",
        "delivered/s",
        "p50 ms",
        "p99 ms",
        "behind",
        "workers' CPU",
        "µs a delivery",
        "Redis CPU",
        "clients' own CPU",
    ];
    Ok(Section { title: "Streams by the thousand", text, head, rows })
}

fn row(rate: u32, balance: &DeliveryReport, used: Used) -> Vec<String> {
    vec![
        rate.to_string(),
        format!("{:.0}", balance.delivered as f64 / used.seconds),
        format!("{:.1}", balance.late_ms(0.5)),
        format!("{:.1}", balance.late_ms(0.99)),
        balance.slow.to_string(),
        percent(used.workers, used.seconds),
        format!("{:.2}", used.workers / balance.delivered as f64),
        percent(used.redis, used.seconds),
        percent(used.own, used.seconds),
    ]
}
