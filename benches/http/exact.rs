//! Whether every visit counts: parallel visits of one session, and the sum over the whole pool after the load.

use std::net::SocketAddr;
use std::thread;

use crate::Outcome;
use crate::client::Client;
use crate::contender::Contender;

/// Visitors at a time; each makes [`EACH`] visits on a connection of its own.
const VISITORS: u64 = 20;

/// Visits of one visitor.
const EACH: u64 = 10;

/// Visits made with one cookie.
pub(crate) const VISITS: u64 = VISITORS * EACH;

/// Visits that [`parallel`] makes besides: two that make the cookie, and the last, which tells the count.
pub(crate) const BESIDES: u64 = 3;

/// Threads that make visits one by one.
const HANDS: usize = 8;

/// Makes 200 visits with one cookie, 20 at a time; returns how many of them were counted.
pub(crate) fn parallel(contender: &Contender) -> Outcome<u64> {
    let cookie = visit(&mut Client::new(contender.address), None)?.1;
    let cookie = cookie.ok_or_else(|| format!("{} set no cookie", contender.name))?;
    // A first visit's cookie may be replaced by the session's.
    let cookie = visit(&mut Client::new(contender.address), Some(&cookie))?.1.unwrap_or(cookie);
    thread::scope(|scope| {
        let visitors: Vec<_> =
            (0..VISITORS).map(|_| scope.spawn(|| visitor(contender.address, &cookie))).collect();
        visitors
            .into_iter()
            .try_for_each(|visitor| visitor.join().map_err(|_| "a visitor panicked".to_owned())?)
    })?;
    let (views, _) = visit(&mut Client::new(contender.address), Some(&cookie))?;
    // Without the two visits that made the cookie, and this last one.
    Ok(views.saturating_sub(BESIDES))
}

fn visitor(address: SocketAddr, cookie: &str) -> Result<(), String> {
    let mut client = Client::new(address);
    for _ in 0..EACH {
        visit(&mut client, Some(cookie)).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Visits of each place of the pool while it is made.
pub(crate) const POOL_VISITS: u64 = 2;

/// Makes a session for each place of the pool, by a real first visit and a real return. Each has an address of its own,
/// because one address is not allowed as many sessions.
pub(crate) fn pool(contender: &Contender, size: usize) -> Outcome<Vec<String>> {
    let made = spread(
        &(0..size).collect::<Vec<_>>(),
        |client, place| {
            let [.., a, b, c] = place.to_be_bytes();
            client.forwarded_for = Some(format!("10.{a}.{b}.{c}"));
            let cookie = visit(client, None)?.1.ok_or("a first visit set no cookie")?;
            Ok(visit(client, Some(&cookie))?.1.unwrap_or(cookie))
        },
        contender.address,
    )?;
    Ok(made)
}

/// Visits each session of the pool once more and adds their views up.
pub(crate) fn sum(contender: &Contender, cookies: &[String]) -> Outcome<u64> {
    let views = spread(cookies, |client, cookie| Ok(visit(client, Some(cookie))?.0), contender.address)?;
    Ok(views.into_iter().sum())
}

/// Does something for each item, on a few threads with a connection each.
fn spread<T: Sync, R: Send>(
    items: &[T],
    each: impl Fn(&mut Client, &T) -> Outcome<R> + Sync,
    address: SocketAddr,
) -> Outcome<Vec<R>> {
    let work = |part: &[T]| -> Result<Vec<R>, String> {
        let mut client = Client::new(address);
        part.iter().map(|item| each(&mut client, item).map_err(|error| error.to_string())).collect()
    };
    thread::scope(|scope| {
        let parts = items.chunks(items.len().div_ceil(HANDS).max(1));
        let hands: Vec<_> = parts.map(|part| scope.spawn(|| work(part))).collect();
        let mut results = Vec::with_capacity(items.len());
        for hand in hands {
            results.extend(hand.join().map_err(|_| "a thread panicked")??);
        }
        Ok(results)
    })
}

/// One visit: the views it shows, and the cookie it sets.
fn visit(client: &mut Client, cookie: Option<&str>) -> Outcome<(u64, Option<String>)> {
    let answer = client.ask("/", cookie)?;
    match answer.views() {
        Some(views) if answer.status == 200 => Ok((views, answer.cookie())),
        _ => Err(format!("a visit was answered {}: {}", answer.status, answer.body).into()),
    }
}
