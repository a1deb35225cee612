#!lua name=regatta_v3
-- Regatta's server-side code, version 3: what a request asks of Redis at its start, in one step, once however often it
-- is sent.
--
-- Beside version 2, on the same keys and in the same layout: workers of both releases serve during a rolling deploy, and
-- version 2's commit goes on. New are the once-ledger, the repair of what a clock that stepped back left behind, and a
-- session that is read by one command.
-- This file never changes once it was released. It runs as a Redis function and, behind a few lines that Regatta puts
-- around it, as a script by digest. Time is Redis's own, in whole microseconds: below 2^53, where Lua's numbers are
-- exact. Nothing is turned into text by `..` or tostring, which would lose the microseconds.
--
-- regatta_v3_begin: decide the limits; if all allow, charge them, read the session, count its view, add to counters.
--   A call that is denied writes nothing but repairs. What could fail is tried before the first write.
--   KEYS   one per limit · the session, unless ARGV[1] is '-' (hash) · its user's generation, if flag 1 is set
--          (string: number) · one per counter (string: number) · the once-ledger, if flag 2 is set (string: bits)
--          A limit on rate is a string: theoretical arrival time, us. One on concurrency is a sorted set: a member per
--          request under way, its score the time at which its lease ends, us.
--   ARGV   session: '-' none, 'r' read, 'v' read and count a view; 'cr', 'cv' the same, and make it
--          · numbers: idle lifetime ms, absolute lifetime ms (both 0 without a session)
--            , flags: 1 a generation is given, 2 a ledger is given, 4 the ledger's lifetime is to be set, 8 this call may
--              have been executed before
--            · per limit: kind, a, b, cost (0 looks only)
--              kind 0 rate: a interval us, b tolerance us (interval x burst)
--              kind 1 rate in shadow: the same; its refusal is told and denies nothing
--              kind 2 concurrency: a lease us, b most requests at once; kind 3 the same in shadow
--          · token: what this request is called in limits on concurrency
--          · per counter: what to add, as text, because it may exceed what a double holds (0 reads only)
--          · the call's bit in the ledger, as text, if flag 2 is set
--   reply  as of version 2: numbers
--          · 1 granted or 0 denied
--          · per limit: 1 allowed or 0, remaining, retry after us (-1: allowed, or never), reset after us
--          · only if granted: per counter its value
--          · only if granted and with a session: 0 gone · 1 live, created ms, views · 2 rotated: it has another id now
--            · 3 damaged: something else lies under the key · 4 revoked: its user logged out everywhere; it is deleted
--          If the session lives and has more than _c, _t and _v: a list of that string and [field, value, ...].
--          Fields named _ and one letter are ours: _c created ms, _t last touch ms, _v views, _i idle lifetime of its
--          own ms, _x end of its own ms, _u user's tag, _g generation at login, _d details, _r rotated.
--          A call that was executed before writes nothing and is answered with what stands now, as granted.
--   Numbers travel as doubles, little-endian, in one string: on both sides it is cheaper than a list.
--   example  FCALL regatta_v3_begin 4 p:l:default:v:10.0.0.1 p:s:digest p:c:total p:once:5eed:7
--                  v [86400000 2592000000 2  0 10000 2000000 1] "" 1 4095
--            -> 1  1 199 -1 10000  42  1 1763694494000 7, [_c 1763694494000 _t 1763694494000 _v 7 cart "[1]"]

-- Neither redis.call nor math exist while Redis loads a library, so neither can be kept in a local here.
local function min(a, b) if a < b then return a end return b end

-- Whole part of a division of what is not negative.
local function div(a, b) return (a - a % b) / b end

-- Fields that every session has: one without more needs no list.
local ALWAYS = 3
-- How long a ledger is kept after its lifetime was last set, ms: far longer than anything is sent again.
local LEDGER = '180000'

local function clock()
  local now = redis.call('TIME')
  return now[1] * 1000000 + now[2]
end

local function make(key, created, views, now_ms, idle, absolute)
  local left = min(idle, created + absolute - now_ms)
  if left < 1 then return false end
  redis.call('HSET', key, '_c', created, '_t', now_ms, '_v', views)
  redis.call('PEXPIRE', key, left)
  return true
end

-- GCRA. A stored time further ahead than the tolerance came from another clock: it is cut, and stored so, or a clock
-- that stepped back by an hour would refuse for an hour. What is not a number counts as nothing.
local function rate(key, now, interval, tolerance, cost)
  local stored = tonumber(redis.call('GET', key))
  local ahead = 0
  if stored and stored > now then
    ahead = stored - now
    if ahead > tolerance then
      ahead = tolerance
      redis.call('SET', key, now + ahead, 'PX', div(ahead + 999, 1000))
    end
  end
  local wanted = ahead + interval * cost
  if wanted > tolerance then
    local retry = -1
    if interval * cost <= tolerance then retry = wanted - tolerance end
    return 0, div(tolerance - ahead, interval), retry, ahead
  end
  return 1, div(tolerance - wanted, interval), -1, wanted
end

-- Requests whose lease has ended do not count, whether they were taken out or not. A lease that ends later than one
-- that begins now came from another clock and is cut like a stored time.
local function concurrency(key, now, lease, most, cost)
  local late = redis.call('ZRANGEBYSCORE', key, '(' .. string.format('%.0f', now + lease), '+inf')
  for i = 1, #late do redis.call('ZADD', key, 'XX', now + lease, late[i]) end
  local busy = redis.call('ZCOUNT', key, '(' .. string.format('%.0f', now), '+inf')
  if busy + cost > most then return 0, 0, min(lease, 1000000), lease end
  local reset = 0
  if busy + cost > 0 then reset = lease end
  return 1, most - busy - cost, -1, reset
end

-- Decides every limit; charges nothing. Returns whether all that count allow.
local function decide_all(now, keys, numbers, limits, reply)
  local granted = true
  for i = 1, limits do
    local at, slot = 4 * i, 4 * i - 2
    local kind = numbers[at]
    local decide = kind < 2 and rate or concurrency
    local allowed, remaining, retry, reset = decide(keys[i], now, numbers[at + 1], numbers[at + 2], numbers[at + 3])
    if allowed == 0 and kind % 2 == 0 then granted = false end
    reply[slot], reply[slot + 1], reply[slot + 2], reply[slot + 3] = allowed, remaining, retry, reset
  end
  return granted
end

-- What an allowing limit said assumed a charge; when another one refuses, none is made.
local function uncharge(numbers, limits, reply)
  for i = 1, limits do
    local at, slot = 4 * i, 4 * i - 2
    local cost = numbers[at + 3]
    if reply[slot] == 1 and cost > 0 then
      if numbers[at] < 2 then
        reply[slot + 3] = reply[slot + 3] - numbers[at + 1] * cost
        reply[slot + 1] = div(numbers[at + 2] - reply[slot + 3], numbers[at + 1])
      else
        reply[slot + 1] = reply[slot + 1] + cost
        if reply[slot + 1] == numbers[at + 2] then reply[slot + 3] = 0 end
      end
    end
  end
end

local function charge(now, keys, numbers, limits, token, reply)
  for i = 1, limits do
    local at, slot = 4 * i, 4 * i - 2
    if reply[slot] == 1 and numbers[at + 3] > 0 then
      if numbers[at] < 2 then
        local spent = reply[slot + 3]
        redis.call('SET', keys[i], now + spent, 'PX', div(spent + 999, 1000))
      else
        local lease = numbers[at + 1]
        redis.call('ZREMRANGEBYSCORE', keys[i], '-inf', now)
        redis.call('ZADD', keys[i], now + lease, token)
        redis.call('PEXPIRE', keys[i], div(lease + 999, 1000))
      end
    end
  end
end

-- Adds to every counter or to none: the sum of the second may not fit although the first's did.
local function count(keys, args, key_at, last, arg_at, reply)
  for i = key_at, last do
    local by = args[arg_at + i - key_at]
    local value
    if by == '0' then
      value = redis.pcall('GET', keys[i])
      if type(value) ~= 'table' then value = tonumber(value or 0) or redis.error_reply('ERR value is not an integer') end
    else
      value = redis.pcall('INCRBY', keys[i], by)
    end
    if type(value) == 'table' then
      for j = key_at, i - 1 do
        local undo = args[arg_at + j - key_at]
        -- Taken back in two parts, because the smallest integer has no opposite.
        if undo == '-9223372036854775808' then redis.call('INCRBY', keys[j], '9223372036854775807') undo = '-1' end
        if undo ~= '0' then redis.call('DECRBY', keys[j], undo) end
      end
      return value
    end
    reply[#reply + 1] = value
  end
end

local GONE, LIVE, ROTATED, DAMAGED, REVOKED = 0, 1, 2, 3, 4

-- What lies under a session's key: a status, and of a session that lives its head and its fields, if it has more.
local function look(key, generation, now_ms, absolute)
  local fields = redis.pcall('HGETALL', key)
  if fields.err then return DAMAGED end
  if #fields == 0 then return GONE end
  local head = {}
  for i = 1, #fields, 2 do
    -- Ours have two characters.
    if #fields[i] == 2 then head[fields[i]] = fields[i + 1] end
  end
  if head._r then return ROTATED end
  local created = tonumber(head._c)
  if not created then return DAMAGED end
  local found = {
    created = created, touched = tonumber(head._t), views = tonumber(head._v) or 0,
    idle = tonumber(head._i), ends = tonumber(head._x) or created + absolute,
  }
  if generation and (tonumber(redis.call('GET', generation)) or 0) > (tonumber(head._g) or 0) then return REVOKED end
  if found.ends <= now_ms then return GONE end
  if #fields == 2 * ALWAYS then return LIVE, found end
  return LIVE, found, fields
end

-- Counts a view of a session that lives, and returns its views.
local function view(key)
  local views = redis.pcall('HINCRBY', key, '_v', '1')
  if type(views) == 'number' then return views end
  -- A damaged number: counting goes on from the beginning rather than failing for ever.
  redis.call('HSET', key, '_v', '1')
  return 1
end

-- Counts and touches a session that was found.
local function use(key, how, found, now_ms, idle)
  local views = found.views
  if how == 'v' then views = view(key) end
  idle = found.idle or idle
  -- A tenth of the idle lifetime must have passed, so that a busy session is not touched at every request.
  if not found.touched or (now_ms - found.touched) * 10 >= idle then
    redis.call('HSET', key, '_t', now_ms)
    redis.call('PEXPIRE', key, min(idle, found.ends - now_ms))
  end
  return views
end

-- Formats for struct by the number of numbers.
local FORMATS = {}

local function format(count)
  local known = FORMATS[count]
  if not known then
    known = '<' .. string.rep('d', count)
    FORMATS[count] = known
  end
  return known
end

local function pack(numbers)
  return struct.pack(format(#numbers), unpack(numbers))
end

-- The session's part of the reply, after everything else was done.
local function settle(key, how, status, found, now_ms, numbers, reply)
  local at = #reply
  if how == 'cr' or how == 'cv' then
    local views = how == 'cv' and 1 or 0
    if not make(key, now_ms, views, now_ms, numbers[1], numbers[2]) then
      reply[at + 1] = GONE
      return
    end
    reply[at + 1], reply[at + 2], reply[at + 3] = LIVE, now_ms, views
    return
  end
  reply[at + 1] = status
  if status == LIVE then
    reply[at + 2], reply[at + 3] = found.created, use(key, how, found, now_ms, numbers[1])
  elseif status == REVOKED then
    redis.call('DEL', key)
  end
end

-- Calls in one ledger. Behind their bits lie as many more: that a call was denied after it had been sent again.
local CALLS = 4096

-- Notes in the ledger that this call is executed; whether it was before.
local function note(ledger, bit, arm)
  local before = redis.call('SETBIT', ledger, bit, '1')
  if arm then redis.call('PEXPIRE', ledger, LEDGER) end
  return before == 1
end

-- The answer to a call that was executed before: what stands now, and nothing is written.
local function again(now, keys, args, numbers, limits, key_at, last)
  for i = 1, limits do numbers[4 * i + 3] = 0 end
  local reply = { 1 }
  decide_all(now, keys, numbers, limits, reply)
  local key, status, found, fields = nil, nil, nil, nil
  if args[1] ~= '-' then
    key, key_at = keys[key_at], key_at + 1
    local generation
    if numbers[3] % 2 == 1 then generation, key_at = keys[key_at], key_at + 1 end
    status, found, fields = look(key, generation, div(now, 1000), numbers[2])
  end
  for i = key_at, last do
    local value = redis.pcall('GET', keys[i])
    reply[#reply + 1] = type(value) ~= 'table' and tonumber(value or 0) or 0
  end
  if not key then return pack(reply) end
  reply[#reply + 1] = status
  if status == LIVE then
    reply[#reply + 1] = found.created
    reply[#reply + 1] = found.views
  end
  if fields then return { pack(reply), fields } end
  return pack(reply)
end

local function begin_at(now, keys, args)
  local how = args[1]
  local numbers = { struct.unpack(format(#args[2] / 8), args[2]) }
  local limits = (#args[2] / 8 - 3) / 4
  local flags, last, ledger, bit = numbers[3], #keys, nil, nil
  if flags % 4 >= 2 then ledger, bit, last = keys[last], args[#args], last - 1 end
  local arm, repeated = flags % 8 >= 4, flags % 16 >= 8
  local void = false
  if repeated and ledger and redis.call('GETBIT', ledger, bit) == 1 then
    void = redis.call('GETBIT', ledger, bit + CALLS) == 1
    if not void then return again(now, keys, args, numbers, limits, limits + 1, last) end
  end
  local reply = { 1 }
  if not decide_all(now, keys, numbers, limits, reply) then
    reply[1] = 0
    uncharge(numbers, limits, reply)
    -- The first sending may still be on its way: it is to do nothing after its caller was denied.
    if repeated and ledger then
      note(ledger, bit, arm)
      redis.call('SETBIT', ledger, bit + CALLS, '1')
    end
    return pack(reply)
  end

  -- The session is read before the first write, because reading may fail.
  local now_ms = div(now, 1000)
  local key_at, key, status, found, fields = limits + 1, nil, nil, nil, nil
  if how ~= '-' then
    key, key_at = keys[key_at], key_at + 1
    local generation
    if flags % 2 == 1 then generation, key_at = keys[key_at], key_at + 1 end
    if how == 'r' or how == 'v' then status, found, fields = look(key, generation, now_ms, numbers[2]) end
  end

  -- The first write: a server that takes none says so here. A later sending may have come first.
  if void then
    redis.call('SETBIT', ledger, bit + CALLS, '0')
  elseif ledger and note(ledger, bit, arm) then
    return again(now, keys, args, numbers, limits, limits + 1, last)
  end
  local refused = count(keys, args, key_at, last, 4, reply)
  if refused then
    if ledger then redis.call('SETBIT', ledger, bit, '0') end
    return refused
  end
  charge(now, keys, numbers, limits, args[3], reply)
  if not key then return pack(reply) end
  settle(key, how, status, found, now_ms, numbers, reply)
  if fields then return { pack(reply), fields } end
  return pack(reply)
end

redis.register_function('regatta_v3_begin', function(keys, args) return begin_at(clock(), keys, args) end)
