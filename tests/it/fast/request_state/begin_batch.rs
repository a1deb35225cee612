//! Many begins in one call: what it does is what they would do one by one at one instant, and it does it once.

use bytes::Bytes;
use fred::clients::Client;
use fred::interfaces::{ClientLike, FunctionInterface};
use fred::types::Value;
use fred::types::config::{Config, ServerConfig};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use regatta::__internals::counters::commands::CounterIncrement;
use regatta::__internals::limiter::commands::{LimitParameters, RateLimitCheck};
use regatta::__internals::redis::{RedisError, functions};
use regatta::__internals::request_state;
use regatta::__internals::request_state::begin::batch::{BatchLedger, BeginEntry};
use regatta::__internals::request_state::begin::{BeginReply, BeginRequest, batch};
use regatta::__internals::sessions::commit;
use regatta::__internals::sessions::query::{
    ProvisionalSessionQuery, SessionAccess, SessionLookup, SessionQuery,
};

use crate::support::redis::TestRedis;
use crate::support::{property, soak};

const NOW_MS: u64 = 1_763_694_494_000;
const IDLE_MS: u64 = 86_400_000;
const ABSOLUTE_MS: u64 = 30 * IDLE_MS;

/// Calls at a given time, what they find, and what they leave behind.
const TOOLS: &str = "
redis.register_function('regatta_test_at', function(keys, args)
  local now, how = tonumber(args[#args]), args[#args - 1]
  args[#args] = nil
  args[#args] = nil
  if how == 'batch' then return batches()(now, keys, args) end
  return begin_at(now, keys, args)
end)
redis.register_function('regatta_test_fill', function(keys, args)
  local p, now, idle = args[1], tonumber(args[2]), tonumber(args[3])
  local function text(number) return string.format('%.0f', number) end
  local function session(name, ...)
    redis.call('HSET', p .. 's:' .. name, ...)
    redis.call('PEXPIRE', p .. 's:' .. name, text(idle - 1000000))
  end
  local c, t = text(now - 5000000), text(now - 1000000)
  session('0', '_c', c, '_t', t, '_v', '7')
  session('1', '_c', c, '_t', t, '_v', '1', '_h', struct.pack('<dd', now - 5000000, now - 1000000))
  session('2', '_c', c, '_t', text(now - idle / 5), '_v', '3', 'cart', '[1]', 'name', 'x')
  session('3', '_c', c, '_t', t, '_v', '2')
  session('4', '_c', c, '_t', text(now - idle / 2), '_v', '2', '_h', struct.pack('<dd', now - 5000000, now - idle / 2))
  session('5', '_c', c, '_t', t, '_v', '2', '_i', '7200000', '_u', 'tag')
  session('6', '_r', text(now - 1000))
  session('7', '_r', text(now + 50000))
  redis.call('SET', p .. 's:8', 'a string')
  session('9', '_c', c, '_t', '0', '_v', '2')
  session('10', '_c', c, '_t', t, '_v', 'many')
  session('11', '_c', text(now - 40 * idle), '_t', t, '_v', '2')
  session('12', '_t', t, '_v', '2')
  session('13', '_c', c, '_t', t, '_v', '2', '_h', struct.pack('<dd', now - 9000000, now - 9000000), 'late', '1')
  session('14', '_c', text(now - 40 * idle), '_t', t, '_v', '2', '_h', struct.pack('<dd', now - 40 * idle, now))
  session('16', '_c', c, '_t', t, '_v', '2', '_u', 'tag', '_g', text(now - 5000000), '_d', '{}', 'cart', '[1]')
  session('17', '_c', c, '_t', t, '_v', '2', '_u', 'tag', '_g', text(now - 3000000), '_d', '{}', 'cart', '[1]')
  session('18', '_c', c, '_t', t, '_v', '2', '_u', 'tag', '_g', '0', '_i', '7200000', '_x', text(now + 9000000))
  session('19', '_c', c, '_t', t, '_v', '2', '_u', 'tag', '_g', 'none', '_h', struct.pack('<dd', now - 5000000, now))
  session('20', '_c', c, '_t', t, '_v', '2', '_h', 'short')
  session('21', '_c', c, '_t', t, '_v', '2', '_u', 'tag', '_x', text(now - 1))
  redis.call('SET', p .. 'l:1', text(now * 1000 + 3600000000))
  redis.call('SET', p .. 'l:2', text(now * 1000 + 360000000000))
  redis.call('RPUSH', p .. 'l:5', 'a')
  redis.call('SET', p .. 'c:1', '10')
  redis.call('SET', p .. 'c:2', '9223372036854775804')
  redis.call('RPUSH', p .. 'c:3', 'a')
  redis.call('SET', p .. 'c:4', '1.5')
  redis.call('SET', p .. 'c:5', 'many')
  redis.call('SET', p .. 'g:1', '1')
  redis.call('SET', p .. 'g:2', text(now - 4000000))
  redis.call('RPUSH', p .. 'g:3', 'a')
  redis.call('SET', p .. 'g:4', 'many')
  return 1
end)
redis.register_function('regatta_test_state', function(keys, args)
  local state = {}
  for i = 1, #keys do
    local key, parts = keys[i], {}
    local kind = redis.call('TYPE', key).ok
    if kind == 'string' then parts = { redis.call('GET', key) } end
    -- A counter that was added to and taken back from is as one that never was.
    if parts[1] == '0' then kind, parts = 'none', {} end
    if kind == 'zset' then parts = redis.call('ZRANGE', key, '0', '-1', 'WITHSCORES') end
    if kind == 'hash' then
      local all = redis.call('HGETALL', key)
      for j = 1, #all, 2 do
        if all[j] ~= '_h' then parts[#parts + 1] = all[j] .. '=' .. all[j + 1] end
      end
      table.sort(parts)
    end
    state[i] = { kind .. ' ' .. table.concat(parts, ' '), redis.call('PTTL', key) }
  end
  return state
end)";

/// What an entry is made of.
#[derive(Debug, Clone)]
struct Spec {
    /// Number and use: 0 read, 1 visit, 2 and 3 with a ticket, 4 and above a visit with a user's generation.
    session: Option<(u8, u8)>,
    /// Number, cost, whether in shadow.
    limits: Vec<(u8, u64, bool)>,
    concurrency: bool,
    /// Number, what is added.
    counters: Vec<(u8, i64)>,
}

fn specs() -> impl Strategy<Value = Vec<Spec>> {
    let how = prop_oneof![2 => Just(0u8), 12 => Just(1u8), 1 => Just(2u8), 1 => Just(3u8), 6 => 4..9u8];
    let number = prop_oneof![6 => 0..5u8, 2 => 5..16u8, 5 => 16..22u8];
    let session = prop_oneof![1 => Just(None), 9 => (number, how).prop_map(Some)];
    let limit = prop_oneof![12 => 0..5u8, 1 => Just(5u8)];
    let limits =
        vec((limit, prop_oneof![1 => Just(0u64), 6 => Just(1), 1 => Just(2), 1 => Just(300)], 0..20u8), 0..3);
    let by =
        prop_oneof![2 => Just(0i64), 8 => Just(1), 2 => Just(3), 1 => Just(-1), 1 => Just(1_000_000_000_000)];
    let counters = vec((prop_oneof![12 => 0..2u8, 1 => 2..6u8], by), 0..3);
    let entry = (session, limits, 0..15u8, counters).prop_map(|(session, limits, concurrency, counters)| {
        let limits = limits.into_iter().map(|(number, cost, shadow)| (number, cost, shadow == 0)).collect();
        Spec { session, limits, concurrency: concurrency == 0, counters }
    });
    vec(entry, 1..14)
}

impl Spec {
    /// Whether it is executed behind the others, as a call of its own.
    fn is_rare(&self) -> bool {
        let distinct = |numbers: Vec<u8>| {
            let set: std::collections::HashSet<_> = numbers.iter().collect();
            set.len() == numbers.len()
        };
        self.session.is_some_and(|(_, how)| how == 2 || how == 3)
            || self.concurrency
            || self.limits.iter().any(|(_, cost, shadow)| *shadow || *cost > 255)
            || self.counters.iter().any(|(_, by)| !(0..256).contains(by))
            || !distinct(self.limits.iter().map(|(number, ..)| *number).collect())
            || !distinct(self.counters.iter().map(|(number, _)| *number).collect())
    }

    fn entry(&self, prefix: &str) -> BeginEntry {
        let interval_us = 3_600_000_000;
        let kind = |number: u8| LimitParameters::Rate {
            interval_us,
            tolerance_us: interval_us * (u64::from(number) + 2),
        };
        let mut limits: Vec<_> = self
            .limits
            .iter()
            .map(|(number, cost, shadow)| RateLimitCheck {
                key: format!("{prefix}l:{number}"),
                parameters: kind(*number),
                shadow: *shadow,
                cost: *cost,
            })
            .collect();
        if self.concurrency {
            let kind = LimitParameters::Concurrency { lease_us: 60_000_000, max: 1 };
            limits.push(RateLimitCheck {
                key: format!("{prefix}z:0"),
                parameters: kind,
                shadow: false,
                cost: 1,
            });
        }
        let ticket = |makes| ProvisionalSessionQuery {
            issued_ms: NOW_MS - 1000,
            view_counted: true,
            ttl_ms: 600_000,
            creates: makes,
            limit: None,
        };
        let session = self.session.map(|(number, how)| SessionQuery {
            key: format!("{prefix}s:{number}"),
            generation: (how >= 4).then(|| format!("{prefix}g:{}", how - 4)),
            access: if how == 0 { SessionAccess::Read } else { SessionAccess::CountView },
            provisional: (how == 2 || how == 3).then(|| ticket(how == 2)),
            idle_ms: IDLE_MS,
            absolute_ms: ABSOLUTE_MS,
        });
        let counters: Vec<_> = self
            .counters
            .iter()
            .map(|(number, by)| CounterIncrement { key: format!("{prefix}c:{number}"), by: *by })
            .collect();
        let request =
            BeginRequest { limits: &limits, session: session.as_ref(), counters: &counters, token: "token" };
        BeginEntry::new(&request)
    }
}

/// An answer without what differs between two ways of asking: the order of fields, and a failure's words.
fn told(reply: Result<BeginReply, RedisError>) -> String {
    match reply {
        Ok(BeginReply::Granted {
            limits,
            session: SessionLookup::Found { created_ms, views, attributes: own, mut fields },
            counters,
            now_ms,
        }) => {
            fields.sort();
            let session = SessionLookup::Found { created_ms, views, attributes: own, fields };
            format!("{:?}", BeginReply::Granted { limits, session, counters, now_ms })
        }
        Ok(reply) => format!("{reply:?}"),
        Err(RedisError::Rejected { rejection: refusal, .. }) => format!("{refusal:?}"),
        Err(error) => format!("{error:?}"),
    }
}

struct World {
    client: Client,
}

impl World {
    async fn start(server: &TestRedis) -> Self {
        let unix = ServerConfig::Unix { path: server.socket() };
        let client = Client::new(Config { server: unix, ..Config::default() }, None, None, None);
        client.init().await.unwrap();
        Self { client }
    }

    async fn call(&self, function: &str, keys: Vec<Value>, args: Vec<Value>) -> Result<Value, RedisError> {
        let keys: Vec<Bytes> = keys.into_iter().map(|key| key.into_bytes().unwrap()).collect();
        let answer = self.client.fcall::<Value, _, _, _>(function, keys, args).await;
        answer.map_err(|error| match error.details() {
            details if details.contains("would overflow") => RedisError::Overflow,
            details => RedisError::Rejected {
                rejection: match details.starts_with("WRONGTYPE") {
                    true => regatta::__internals::redis::ServerRejection::WrongType,
                    false => regatta::__internals::redis::ServerRejection::Other,
                },
                reason: details.to_owned(),
            },
        })
    }

    async fn fill(&self, prefix: &str) {
        let args = [prefix.to_owned(), NOW_MS.to_string(), IDLE_MS.to_string()];
        let args = args.into_iter().map(Value::from).collect();
        self.call("regatta_test_fill", vec![Value::from(format!("{prefix}s:0"))], args).await.unwrap();
    }

    async fn batch(
        &self,
        entries: &[BeginEntry],
        ledger: Option<&BatchLedger>,
    ) -> Result<Vec<Result<BeginReply, RedisError>>, RedisError> {
        let entries: Vec<_> = entries.iter().collect();
        let mut args = batch::encode(&entries, ledger, Value::Null).split_off(1);
        let keys = usize::try_from(args[0].as_u64().unwrap()).unwrap();
        let mut rest = args.split_off(1 + keys);
        rest.extend([Value::from("batch"), Value::from((NOW_MS * 1000).to_string())]);
        let reply = self.call("regatta_test_at", args.split_off(1), rest).await?;
        batch::decode(&entries, reply)
    }

    /// The same by Redis's clock.
    async fn now(
        &self,
        entries: &[BeginEntry],
        ledger: Option<&BatchLedger>,
    ) -> Vec<Result<BeginReply, RedisError>> {
        let entries: Vec<_> = entries.iter().collect();
        let mut args = batch::encode(&entries, ledger, Value::Null).split_off(1);
        let keys = usize::try_from(args[0].as_u64().unwrap()).unwrap();
        let rest = args.split_off(1 + keys);
        let reply = self.call("regatta_v6_batch", args.split_off(1), rest).await.unwrap();
        batch::decode(&entries, reply).unwrap()
    }

    /// A view counted by the begin of another release; its views, and the fields it was told.
    async fn earlier(&self, function: &str, key: &str) -> (u64, usize) {
        let numbers = [86_400_000f64, 2_592_000_000.0, 0.0].map(f64::to_le_bytes).concat();
        let args = vec![Value::from("v"), Value::Bytes(numbers.into()), Value::from("")];
        let reply = self.call(function, vec![Value::from(key)], args).await.unwrap();
        let (packed, fields) = match reply {
            Value::Array(parts) => {
                let Value::Array(fields) = &parts[1] else { panic!() };
                let names = fields.iter().step_by(2).map(|name| name.as_string().unwrap());
                (parts[0].clone().into_bytes().unwrap(), names.filter(|name| !name.starts_with('_')).count())
            }
            packed => (packed.into_bytes().unwrap(), 0),
        };
        let number = |at: usize| f64::from_le_bytes(packed[8 * at..][..8].try_into().unwrap());
        assert_eq!(number(1).to_string(), "1", "the session lives");
        (number(3) as u64, fields)
    }

    /// Views counted by version 5's batch; the last one's number, and the fields it was told.
    async fn former(&self, key: &str, count: u8) -> (u64, usize) {
        let n = f64::from(count);
        let head = [4.0, 86_400_000.0, 2_592_000_000.0, 0.0, 0.0, n, n, 0.0].map(f64::to_le_bytes).concat();
        let plan = [2, 0, 0].repeat(usize::from(count));
        let args = vec![Value::Bytes(head.into()), Value::from(""), Value::Bytes(plan.into())];
        let keys = vec![Value::from(key); usize::from(count)];
        let (packed, fields) = match self.call("regatta_v5_batch", keys, args).await.unwrap() {
            Value::Array(mut parts) => {
                let Some(Value::Array(fields)) = parts.pop() else { panic!() };
                let names = fields.iter().step_by(2).map(|name| name.as_string().unwrap());
                let count = names.filter(|name| !name.starts_with('_')).count();
                (parts.swap_remove(0).into_bytes().unwrap(), count)
            }
            packed => (packed.into_bytes().unwrap(), 0),
        };
        let number = |at: usize| f64::from_le_bytes(packed[packed.len() - 8 * at..][..8].try_into().unwrap());
        // Views and creation of each, the last ones at the end.
        (number(2) as u64, fields)
    }

    async fn alone(&self, entry: &BeginEntry) -> Result<BeginReply, RedisError> {
        let call = entry.call();
        let mut args = call.args.to_vec();
        args.extend([Value::from("begin"), Value::from((NOW_MS * 1000).to_string())]);
        entry.decode(self.call("regatta_test_at", call.keys.to_vec(), args).await?)
    }

    /// Every key's content, and for how long it is kept.
    async fn state(&self, prefix: &str) -> Vec<(String, i64)> {
        let names = [("s", 22), ("l", 6), ("c", 6), ("z", 1), ("g", 5)];
        let keys = names
            .into_iter()
            .flat_map(|(kind, count)| (0..count).map(move |at| format!("{prefix}{kind}:{at}")));
        let keys = keys.map(Value::from).collect();
        let Value::Array(state) = self.call("regatta_test_state", keys, vec![]).await.unwrap() else {
            panic!()
        };
        let entry = |entry: Value| {
            let Value::Array(parts) = entry else { panic!() };
            (parts[0].as_string().unwrap(), parts[1].as_i64().unwrap())
        };
        state.into_iter().map(entry).collect()
    }
}

fn same(one: &[(String, i64)], other: &[(String, i64)]) -> Result<(), TestCaseError> {
    for ((content, ttl), (expected, expected_ttl)) in one.iter().zip(other) {
        prop_assert_eq!(content, expected);
        prop_assert!(
            (ttl - expected_ttl).abs() < 5000 || ttl.max(expected_ttl) < &0,
            "{}: {} and {}",
            content,
            ttl,
            expected_ttl
        );
    }
    Ok(())
}

fn kind(reply: &Result<BeginReply, RedisError>) -> u8 {
    match reply {
        Ok(BeginReply::Granted { .. }) => 0,
        Ok(BeginReply::Denied { .. }) => 1,
        Err(_) => 2,
    }
}

async fn check(world: &World, run: u64, specs: &[Spec], noted: bool) -> Result<(), TestCaseError> {
    let (one, other) = (format!("a{run}:"), format!("b{run}:"));
    world.fill(&one).await;
    world.fill(&other).await;
    let entries: Vec<_> = specs.iter().map(|spec| spec.entry(&one)).collect();
    let alone: Vec<_> = specs.iter().map(|spec| spec.entry(&other)).collect();
    let key = Value::from(format!("once{run}"));
    let ledger = |number, repeated| BatchLedger { key: key.clone(), number, repeated };

    let replies = world.batch(&entries, noted.then(|| ledger(8, false)).as_ref()).await;
    let replies = replies.map_err(|error| TestCaseError::fail(error.to_string()))?;
    let mut expected: Vec<_> = specs.iter().map(|_| String::new()).collect();
    for rare in [false, true] {
        for (at, spec) in specs.iter().enumerate().filter(|(_, spec)| spec.is_rare() == rare) {
            let reply = told(world.alone(&alone[at]).await);
            prop_assert_eq!(told(replies[at].clone()), &reply[..], "entry {}: {:?}", at, spec);
            expected[at] = reply;
        }
    }
    let state = world.state(&one).await;
    same(&state, &world.state(&other).await)?;
    if !noted {
        return Ok(());
    }

    // Sent again it is told alike, and nothing is done; nor by a first sending that comes late, or behind a later one.
    let again = world.batch(&entries, Some(&ledger(8, true))).await;
    let again = again.map_err(|error| TestCaseError::fail(error.to_string()))?;
    let kinds = |replies: &[Result<BeginReply, RedisError>]| replies.iter().map(kind).collect::<Vec<_>>();
    prop_assert_eq!(kinds(&again), kinds(&replies));
    same(&world.state(&one).await, &state)?;
    for number in [8, 7] {
        // What it is answered is told to no caller.
        let _ = world.batch(&entries, Some(&ledger(number, false))).await;
        same(&world.state(&one).await, &state)?;
    }
    Ok(())
}

fn tools(server: &TestRedis) {
    let source =
        functions::library_by_name("regatta_v6").unwrap().text.replace("regatta_v6", "regatta_test") + TOOLS;
    assert_eq!(server.cli(&["FUNCTION", "LOAD", &source]), "regatta_test");
}

#[test]
fn a_batch_does_what_its_entries_do_one_by_one_and_does_it_once() {
    let server = TestRedis::start();
    tools(&server);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let world = runtime.block_on(World::start(&server));
    property::holds(soak::length(300, 10_000), &(specs(), any::<bool>()), |run, (specs, noted)| {
        runtime.block_on(check(&world, run, &specs, noted))
    });
}

fn visits(count: u8, limit: bool) -> Vec<BeginEntry> {
    let spec = |number| Spec {
        session: Some((number % 5, 1)),
        limits: if limit { vec![(0, 1, false)] } else { vec![] },
        concurrency: false,
        counters: vec![(0, 1)],
    };
    (0..count).map(|number| spec(number).entry("p:")).collect()
}

#[tokio::test]
async fn a_denial_that_was_told_holds_when_the_first_sending_comes_late() {
    let server = TestRedis::start();
    tools(&server);
    let world = World::start(&server).await;
    world.fill("p:").await;
    let ledger =
        |number, repeated| BatchLedger { key: Value::from(format!("once{}", number % 2)), number, repeated };
    // A burst of two.
    let replies = world.batch(&visits(3, true), Some(&ledger(1, false))).await.unwrap();
    assert_eq!(replies.iter().map(kind).collect::<Vec<_>>(), [0, 0, 1]);
    let denied = world.batch(&visits(3, true), Some(&ledger(2, true))).await.unwrap();
    assert_eq!(denied.iter().map(kind).collect::<Vec<_>>(), [1, 1, 1]);
    server.cli(&["DEL", "p:l:0"]);
    let state = world.state("p:").await;
    for repeated in [false, true] {
        let late = world.batch(&visits(3, true), Some(&ledger(2, repeated))).await.unwrap();
        assert_eq!(late.iter().map(kind).collect::<Vec<_>>(), [1, 1, 1]);
        let Ok(BeginReply::Denied { limits }) = &late[0] else { panic!() };
        assert!(limits.iter().any(|limit| !limit.allowed), "a denial says what denies");
    }
    same(&world.state("p:").await, &state).unwrap();
}

#[tokio::test]
async fn a_view_costs_three_commands_and_a_batch_shares_the_rest() {
    let server = TestRedis::start();
    tools(&server);
    let world = World::start(&server).await;
    world.fill("p:").await;
    let ledger = |number| BatchLedger { key: Value::from("once"), number, repeated: false };
    world.batch(&visits(64, false), Some(&ledger(1))).await.unwrap();
    server.cli(&["CONFIG", "RESETSTAT"]);
    let entries: Vec<_> = visits(64, false).into_iter().enumerate().filter(|(at, _)| at % 5 < 2).collect();
    let entries: Vec<_> = entries.into_iter().map(|(_, entry)| entry).collect();
    let count = u64::try_from(entries.len()).unwrap();
    world.batch(&entries, Some(&ledger(2))).await.unwrap();
    let mut commands = server.commands();
    commands.retain(|name, _| !matches!(name.as_str(), "config|resetstat" | "info"));
    let expected =
        [("fcall", 1), ("hget", count), ("hincrby", count), ("hlen", count), ("incrby", 1), ("set", 1)];
    assert_eq!(commands, expected.map(|(name, count)| (name.to_owned(), count)).into());
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// So many views in one call.
    Views(u8),
    /// A view by a worker of the release with this function.
    Earlier(&'static str),
    /// So many views in one call of the release before, which believes the same heads.
    Former(u8),
    Set(u8),
    Remove(u8),
    Remember,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1..5u8).prop_map(Step::Views),
        1 => Just(Step::Earlier("regatta_v2_begin")),
        1 => Just(Step::Earlier("regatta_v3_begin")),
        1 => Just(Step::Earlier("regatta_v4_begin")),
        2 => (1..4u8).prop_map(Step::Former),
        2 => (0..3u8).prop_map(Step::Set),
        3 => (0..3u8).prop_map(Step::Remove),
        1 => Just(Step::Remember),
    ];
    vec(step, 1..30)
}

/// Stores a field, by a call for many commits or by one of the releases before.
async fn set(world: &World, key: &str, field: u8) {
    let (function, args) = if field.is_multiple_of(2) {
        let set = [(format!("f{field}"), Bytes::from_static(b"1"))];
        let request = commit::CommitSession { key, set: &set, max_fields: 64, ..Default::default() };
        let entry = request_state::commit_batch::CommitEntry::new(&request);
        // Behind the function's name, the number of keys and the key.
        ("regatta_v6_commits", request_state::commit_batch::encode(&[&entry], None, Value::Null).split_off(3))
    } else {
        let args = ["0", "64", "0", "0", "1", &format!("f{field}"), "1", "0"];
        ("regatta_v2_commit", args.into_iter().map(Value::from).collect())
    };
    world.call(function, vec![Value::from(key)], args).await.unwrap();
}

/// Carries the steps out on one session; no view is lost or told twice, and no field is missed.
async fn walk(world: &World, server: &TestRedis, run: u64, steps: &[Step]) -> Result<(), TestCaseError> {
    let key = format!("w{run}:s:0");
    let created_ms = regatta::__internals::sys::clock::wall_clock().as_millis().to_string();
    server.cli(&["HSET", &key, "_c", &created_ms, "_t", &created_ms, "_v", "0"]);
    let (mut views, mut fields, mut remembered) = (0, std::collections::BTreeSet::new(), false);
    for (number, step) in steps.iter().enumerate() {
        match step {
            Step::Views(count) => {
                let spec =
                    Spec { session: Some((0, 1)), limits: vec![], concurrency: false, counters: vec![] };
                let entries: Vec<_> = (0..*count).map(|_| spec.entry(&format!("w{run}:"))).collect();
                let number = u64::try_from(number).unwrap();
                let ledger =
                    BatchLedger { key: Value::from(format!("w{run}:once")), number, repeated: false };
                for reply in world.now(&entries, Some(&ledger)).await {
                    views += 1;
                    let Ok(BeginReply::Granted { session, .. }) = reply else { panic!("{reply:?}") };
                    let SessionLookup::Found {
                        views: told,
                        created_ms: born,
                        attributes: own,
                        fields: found,
                    } = session
                    else {
                        panic!("{session:?}")
                    };
                    prop_assert_eq!(
                        (told, found.len(), born.to_string()),
                        (views, fields.len(), created_ms.clone())
                    );
                    prop_assert_eq!(own.is_some(), remembered);
                }
            }
            Step::Earlier(function) => {
                views += 1;
                prop_assert_eq!(world.earlier(function, &key).await, (views, fields.len()));
            }
            Step::Former(count) => {
                views += u64::from(*count);
                prop_assert_eq!(world.former(&key, *count).await, (views, fields.len()));
            }
            Step::Set(field) => {
                set(world, &key, *field).await;
                fields.insert(*field);
            }
            Step::Remove(field) => {
                let args = ["0", "64", "0", "0", "0", "0", &format!("f{field}")];
                let args = args.into_iter().map(Value::from).collect();
                world.call("regatta_v2_commit", vec![Value::from(key.as_str())], args).await.unwrap();
                fields.remove(field);
            }
            Step::Remember => {
                let args = ["0", "86400000", "864000000", "600000"].into_iter().map(Value::from).collect();
                world.call("regatta_v4_remember", vec![Value::from(key.as_str())], args).await.unwrap();
                remembered = true;
            }
        }
    }
    Ok(())
}

#[test]
fn workers_of_all_releases_count_on_the_same_sessions() {
    let server = TestRedis::start();
    server.load(&["regatta_v2", "regatta_v3", "regatta_v4", "regatta_v5", "regatta_v6"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let world = runtime.block_on(World::start(&server));
    property::holds(soak::length(100, 3000), &steps(), |run, steps| {
        runtime.block_on(walk(&world, &server, run, &steps))
    });
}
