//! Tasks: how many a second, and how long until a dead worker's is taken over.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::host::Site;
use crate::options::Options;
use crate::table::{Section, share};
use crate::{Outcome, process, web};

/// Who enqueues.
const CLIENTS: usize = 4;

/// A kind and a number that take no time to speak of.
const SMALL: (&str, u32) = ("fibonacci", 10);

/// Some that take ten seconds.
const LARGE: (&str, u32) = ("primes", 20_000_000);

/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(10);

pub(crate) fn measure(options: &Options) -> Outcome<Section> {
    let site = Site::start(1, options)?;
    let address = site.hosts[0].address;
    let mut rows = throughput(&site, options)?;
    let mut times = Vec::new();
    for _ in 0..options.kills {
        times.push(taken_over(&site, address)?);
    }
    times.sort_by(f64::total_cmp);
    let (median, longest) = (share(&times, 0.5), share(&times, 1.0));
    rows.push((
        format!("a killed worker's task is begun elsewhere ({} kills)", times.len()),
        format!("median {median:.1} s, longest {longest:.1} s"),
    ));
    let text = format!("One host of {} workers, one task at a time in each.", options.workers);
    Ok(Section::pairs("Tasks", text, rows))
}

fn throughput(site: &Site, options: &Options) -> Outcome<Vec<(String, String)>> {
    let address = site.hosts[0].address;
    let (begin, cpu) = (Instant::now(), site.cpu()?);
    let each = options.tasks / CLIENTS;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            thread::spawn(move || (0..each).map(|_| enqueue(address, SMALL)).collect::<Result<Vec<_>, _>>())
        })
        .collect();
    let mut times = Vec::new();
    let mut last = Vec::new();
    for client in clients {
        let enqueued = client.join().map_err(|_| "a client panicked")??;
        times.extend(enqueued.iter().map(|(_, time)| *time));
        last.extend(enqueued.into_iter().map(|(place, _)| place));
    }
    for place in &last {
        wait_for(address, place, "done")?;
    }
    let (seconds, used) = (begin.elapsed().as_secs_f64(), site.cpu()?.since(&cpu));
    let count = last.len() as f64;
    times.sort_by(f64::total_cmp);
    let (median, slow) = (share(&times, 0.5), share(&times, 0.99));
    Ok(vec![
        (
            format!("{count} small tasks by {CLIENTS} clients, asked for and done"),
            format!("{:.0}/s", count / seconds),
        ),
        ("`POST /tasks`".to_owned(), format!("p50 {median:.1} ms, p99 {slow:.1} ms")),
        (
            "CPU a task, from the request to its result".to_owned(),
            format!("workers {:.0} µs, Redis {:.0} µs", used.workers / count, used.redis / count),
        ),
    ])
}

/// Enqueues one; where it is, and how long that took, milliseconds.
fn enqueue(address: SocketAddr, (kind, n): (&str, u32)) -> Result<(String, f64), String> {
    let begin = Instant::now();
    loop {
        let body = json!({ "kind": kind, "n": n });
        let reply = web::post(address, "/tasks", &body).map_err(|error| error.to_string())?;
        match reply.status {
            202 => {
                let place = reply.head.header("Location").ok_or("a task without a place")?;
                return Ok((place.to_owned(), begin.elapsed().as_secs_f64() * 1000.0));
            }
            // Full: as a polite client does.
            503 => thread::sleep(LOOK),
            status => return Err(format!("{status}: {}", reply.body)),
        }
    }
}

fn look(address: SocketAddr, place: &str) -> Outcome<Value> {
    web::ask(address, &format!("GET {place} HTTP/1.1\r\nAccept: application/json"), "")?.json()
}

fn wait_for(address: SocketAddr, place: &str, state: &str) -> Outcome<Value> {
    let mut task = Value::Null;
    process::wait_until(&format!("{place} is {state}"), || {
        look(address, place).is_ok_and(|seen| {
            task = seen;
            task["state"] == state
        })
    })?;
    Ok(task)
}

/// Kills the worker that has a task; seconds until another one runs it.
fn taken_over(site: &Site, address: SocketAddr) -> Outcome<f64> {
    let (place, _) = enqueue(address, LARGE)?;
    let worker = wait_for(address, &place, "running")?["worker"].clone();
    let victim = site.workers().into_iter().find(|pid| worker.to_string().contains(&pid.to_string()));
    process::kill(victim.ok_or_else(|| format!("{worker} is nobody's"))?, Signal::SIGKILL)?;
    let begin = Instant::now();
    process::wait_until("another worker has it", || {
        look(address, &place).is_ok_and(|task| task["worker"] != worker && task["state"] != "queued")
    })?;
    let time = begin.elapsed().as_secs_f64();
    let cancelled = web::ask(address, &format!("DELETE {place} HTTP/1.1"), "")?;
    if cancelled.status >= 300 && cancelled.status != 409 {
        return Err(format!("cancel: {}: {}", cancelled.status, cancelled.body).into());
    }
    // The next one begins with workers that have served for a while.
    thread::sleep(Duration::from_secs(1));
    Ok(time)
}
