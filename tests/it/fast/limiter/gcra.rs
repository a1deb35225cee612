//! The rate arithmetic on the server and in the worker: the same decisions on the same random schedules.

use proptest::collection::vec;
use proptest::prelude::*;
use regatta::__internals::config::limits::Rate;
use regatta::__internals::limiter::gcra;
use regatta::__internals::limiter::gcra::Quota;
use regatta::__internals::redis::functions;

use crate::support::redis::TestRedis;
use crate::support::{property, soak};

/// A whole schedule in one call: interval, tolerance, then time and cost of each request; five numbers for each.
const SCHEDULE: &str = "
redis.register_function('regatta_schedule', function(keys, args)
  local reply = {}
  for i = 3, #args, 2 do
    local packed = struct.pack('<ddddddd', 0, 0, 0, 0, args[1], args[2], args[i + 1])
    local numbers = { struct.unpack('<ddddd', begin_at(tonumber(args[i]), keys, { '-', packed, '' })) }
    for j = 1, 5 do reply[#reply + 1] = numbers[j] end
  end
  return reply
end)";

/// What the worker would decide, in the form of the reply.
fn expected(quota: &Quota, schedule: &[(u64, u64)]) -> Vec<i64> {
    let number = |us: u64| i64::try_from(us).unwrap();
    let mut tat = None;
    let mut numbers = Vec::new();
    for (now, cost) in schedule {
        let gcra::GcraDecision { reply, tat_us } = gcra::decide(tat, *now, quota, *cost);
        let allowed = i64::from(reply.allowed);
        let retry = reply.retry_after_us.map_or(-1, number);
        numbers.extend([allowed, allowed, number(reply.remaining), retry, number(reply.reset_us)]);
        tat = tat_us.or(tat);
    }
    numbers
}

#[test]
fn the_server_and_the_worker_decide_alike() {
    let server = TestRedis::start();
    let source = functions::library_by_name("regatta_v6").unwrap().text.replace("regatta_v6", "regatta_test")
        + SCHEDULE;
    assert_eq!(server.cli(&["FUNCTION", "LOAD", &source]), "regatta_test");
    let rate = (1..5_000u64, 1..3_600u64, 1..200u64);
    // Mostly forward, sometimes a clock that steps back.
    let gaps = vec((prop_oneof![9 => 0..2_000_000i64, 1 => -90_000_000..90_000_000i64], 0..4u64), 1..60);
    property::holds(soak::length(100, 3000), &(rate, gaps), |run, ((count, seconds, burst), gaps)| {
        let quota = Quota::new(Rate { count, period: std::time::Duration::from_secs(seconds) }, burst);
        let mut now = 1_763_694_494_000_000u64;
        let schedule: Vec<_> = gaps
            .into_iter()
            .map(|(gap, cost)| {
                now = now.saturating_add_signed(gap);
                (now, cost)
            })
            .collect();
        let key = format!("l:{run}");
        let mut args = vec!["FCALL".to_owned(), "regatta_schedule".to_owned(), "1".to_owned(), key];
        args.extend([quota.interval_us().to_string(), quota.tolerance_us().to_string()]);
        args.extend(schedule.iter().flat_map(|(now, cost)| [now.to_string(), cost.to_string()]));
        let reply = server.cli(&args.iter().map(String::as_str).collect::<Vec<_>>());
        let numbers: Result<Vec<i64>, _> = reply.lines().map(str::parse).collect();
        prop_assert_eq!(numbers, Ok(expected(&quota, &schedule)), "{}", reply);
        Ok(())
    });
}
