//! What it costs that pages are open and nothing happens.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use crate::events::{Clock, SubscribePlan, SubscriberGroup};
use crate::host::{Site, percent};
use crate::options::Options;
use crate::table::Section;
use crate::{Outcome, process};

/// After the last one has come: what they caused is over.
const SETTLING: Duration = Duration::from_secs(2);

pub(crate) fn measure(options: &Options) -> Outcome<Section> {
    let site = Site::start(1, options)?;
    let (public, admin) = (site.hosts[0].address, site.hosts[0].admin);
    let streams = |count: usize, address: SocketAddr, target: &str| {
        let aim =
            SubscribePlan { addresses: vec![address], target: target.to_owned(), topic: target.to_owned() };
        (count > 0).then(|| SubscriberGroup::start(Clock::start(), &vec![aim; count]))
    };
    let cases = [
        ("no client", 0, public, "/"),
        ("streams of a quiet topic", options.clients, public, "/events?topic=quiet"),
        ("`/live`: pages", 1, public, "/live"),
        ("`/live`: pages", 200, public, "/live"),
        ("`/fleet/events`: dashboards", 1, admin, "/fleet/events"),
        ("`/fleet/events`: dashboards", 20, admin, "/fleet/events"),
    ];
    let mut rows = Vec::new();
    for (name, count, address, target) in cases {
        let crowd = streams(count, address, target);
        if let Some(crowd) = &crowd {
            process::wait_until("all listen", || crowd.listens())
                .map_err(|error| format!("{target}: {error}: {}", crowd.summary()))?;
        }
        thread::sleep(SETTLING);
        let bytes =
            || crowd.iter().flat_map(SubscriberGroup::records).map(|record| record.bytes).sum::<u64>();
        let (begin, received) = (site.cpu()?, bytes());
        thread::sleep(Duration::from_secs(options.seconds));
        let used = site.cpu()?.since(&begin);
        let each = (bytes() - received) as f64 / count.max(1) as f64 / used.seconds;
        rows.push(vec![
            if count > 0 { format!("{count} {name}") } else { name.to_owned() },
            percent(used.workers, used.seconds),
            percent(used.supervisors, used.seconds),
            percent(used.redis, used.seconds),
            format!("{each:.0}"),
        ]);
    }
    let text = format!(
        "One host of {} workers without any other traffic, per cent of one core over {} s.",
        options.workers, options.seconds
    );
    let head = vec!["open", "workers", "supervisor", "Redis", "B/s each"];
    Ok(Section { title: "Idle, with pages open", text, head, rows })
}
