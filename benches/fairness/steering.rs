//! Each `listen.steering`, with kept connections and with one a request.

use std::process::Command;
use std::time::Duration;

use crate::Outcome;
use crate::fleet::Fleet;
use crate::load::{Load, Seen, load};
use crate::options::Options;

/// The program under test, built by cargo with the release profile.
const REGATTA: &str = env!("CARGO_BIN_EXE_regatta");

/// What can be measured, as `listen.steering` spells it.
const STEERINGS: &[&str] = &["kernel", "client-ip"];

/// The figures of one round.
#[derive(Debug, Clone, Copy)]
struct Figures {
    rate: f64,
    max_to_mean: f64,
    jain: f64,
    p50_us: u64,
    p99_us: u64,
    failed: u64,
}

pub(crate) fn run(options: &Options) -> Outcome<()> {
    println!(
        "| steering | connections | req/s | max/mean | worst | Jain | worst | p50 ms | p99 ms | failed |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for (workers, clients) in options
        .workers
        .iter()
        .flat_map(|workers| options.connections.iter().map(move |count| (*workers, *count)))
    {
        for steering in STEERINGS {
            let folder = tempfile::Builder::new().prefix("regatta-fairness").tempdir()?;
            let settings = [("REGATTA_LISTEN__STEERING", *steering)];
            let fleet = Fleet::start(Command::new(REGATTA), folder.path(), workers, &settings)?;
            for keep in [true, false] {
                let other = (options.heavy > 0).then_some((options.heavy, "/heavy?n=300000"));
                let wanted = Load {
                    path: "/hello",
                    other,
                    keep,
                    clients,
                    warm_up: Duration::ZERO,
                    time: options.time,
                    interval: None,
                };
                let mut rounds = Vec::new();
                for _ in 0..options.rounds {
                    let seen = runtime.block_on(load(fleet.address, wanted))?;
                    rounds.push(figures(seen, workers, options));
                }
                print(steering, if keep { "kept" } else { "closed" }, &mut rounds);
            }
        }
    }
    Ok(())
}

/// One line: the median round by evenness, beside the least even one.
fn print(steering: &str, kind: &str, rounds: &mut [Figures]) {
    rounds.sort_by(|a, b| a.max_to_mean.total_cmp(&b.max_to_mean));
    let (Some(worst), median) = (rounds.last(), rounds[rounds.len() / 2]) else { return };
    let p99 = {
        let mut all: Vec<_> = rounds.iter().map(|round| round.p99_us).collect();
        all.sort_unstable();
        all[all.len() / 2]
    };
    let ms = |us: u64| format!("{:.2}", us as f64 / 1e3);
    println!(
        "| {steering} | {kind} | {:.0} | {:.3} | {:.3} | {:.4} | {:.4} | {} | {} | {} |",
        median.rate,
        median.max_to_mean,
        worst.max_to_mean,
        median.jain,
        worst.jain,
        ms(median.p50_us),
        ms(p99),
        rounds.iter().map(|round| round.failed).sum::<u64>()
    );
}

fn figures(mut seen: Seen, workers: usize, options: &Options) -> Figures {
    let workers = workers as f64;
    let counts: Vec<f64> = seen.answers.values().map(|count| *count as f64).collect();
    let total: f64 = counts.iter().sum();
    let squares: f64 = counts.iter().map(|count| count * count).sum();
    Figures {
        rate: total / options.time.as_secs_f64(),
        max_to_mean: counts.iter().copied().fold(0.0, f64::max) * workers / total.max(1.0),
        jain: total * total / (workers * squares.max(1.0)),
        p50_us: seen.quantile(50),
        p99_us: seen.quantile(99),
        failed: seen.failed,
    }
}
