#!lua name=regatta_v2
-- Regatta's server-side code, version 2: everything a request asks of Redis, in one step.
--
-- Beside version 1, on the same keys: workers of both releases serve during a rolling deploy. New are limits in
-- shadow, limits on concurrency, sessions that were rotated, revoked or damaged, lifetimes of a session's own,
-- increments and expectations in a commit.
-- This file never changes once it was released. It runs as a Redis function and, behind a few lines that Regatta puts
-- around it, as a script by digest. Time is Redis's own, in whole microseconds: below 2^53, where Lua's numbers are
-- exact. Nothing is turned into text by `..` or tostring, which would lose the microseconds.
--
-- regatta_v2_begin: decide the limits; if all allow, charge them, read the session, count its view, add to counters.
--   A call that is denied writes nothing. What could fail is tried before the first write.
--   KEYS   one per limit · the session, unless ARGV[1] is '-' (hash) · its user's generation, if flag 1 is set
--          (string: number) · one per counter (string: number)
--          A limit on rate is a string: theoretical arrival time, µs. One on concurrency is a sorted set: a member per
--          request under way, its score the time at which its lease ends, µs.
--   ARGV   session: '-' none, 'r' read, 'v' read and count a view; 'cr', 'cv' the same, and make it
--          · numbers: idle lifetime ms, absolute lifetime ms (both 0 without a session), flags (1: a generation is given)
--            · per limit: kind, a, b, cost (0 looks only)
--              kind 0 rate: a interval µs, b tolerance µs (interval × burst)
--              kind 1 rate in shadow: the same; its refusal is told and denies nothing
--              kind 2 concurrency: a lease µs, b most requests at once; kind 3 the same in shadow
--          · token: what this request is called in limits on concurrency
--          · per counter: what to add, as text, because it may exceed what a double holds (0 reads only)
--   reply  numbers
--          · 1 granted or 0 denied
--          · per limit: 1 allowed or 0, remaining, retry after µs (-1: allowed, or never), reset after µs
--          · only if granted: per counter its value
--          · only if granted and with a session: 0 gone · 1 live, created ms, views · 2 rotated: it has another id now
--            · 3 damaged: something else lies under the key · 4 revoked: its user logged out everywhere; it is deleted
--          If the session lives and has more than _c, _t and _v: a list of that string and [field, value, …].
--          Fields named _ and one letter are ours: _c created ms, _t last touch ms, _v views, _i idle lifetime of its
--          own ms, _x end of its own ms, _u user's tag, _g generation at login, _d details, _r rotated.
--   Numbers travel as doubles, little-endian, in one string: on both sides it is cheaper than a list.
--   example  FCALL regatta_v2_begin 3 p:l:default:v:10.0.0.1 p:s:digest p:c:total
--                  v [86400000 2592000000 0  0 10000 2000000 1] "" 1
--            → 1  1 199 -1 10000  42  1 1763694494000 7, [_c 1763694494000 _t 1763694494000 _v 7 cart "[1]"]
--
-- regatta_v2_commit: change a session's fields, those that are named and no others.
--   KEYS   the session (hash)
--   ARGV   0 change, or 1 make: created ms (0: now), views, idle lifetime ms, absolute lifetime ms
--          · most fields · most bytes of names and values (0: not looked at)
--          · number of expectations · field, 1 and the value it must have, or 0 and '' if it must be absent, …
--          · number of fields to set · field, value, …
--          · number of fields to add to · field, by, …
--          · fields to remove, …
--   reply  1 stored, and if fields were added to a list of that and their values as text
--          · 0 gone (a session that is not there is never made by a change) · -1 to be made, but there already
--          · -2 too many fields or bytes · -3 an expectation does not hold · -4 not an integer, or it would overflow
--          · -5 rotated. All but 1 changed nothing.
--   example  FCALL regatta_v2_commit 1 p:s:digest  0  64 0  0  1 cart "[1,2]"  0  coupon   → 1

-- Neither redis.call nor math exist while Redis loads a library, so neither can be kept in a local here.
local function min(a, b) if a < b then return a end return b end

-- Whole part of a division of what is not negative.
local function div(a, b) return (a - a % b) / b end

-- Fields that every session has: one without more needs no list.
local ALWAYS = 3
-- Most fields of ours.
local OURS = 9

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

-- GCRA. A stored time further ahead than the tolerance came from another clock: it is cut, so that a clock that
-- stepped back locks nobody out. What is not a number counts as nothing.
local function rate(key, now, interval, tolerance, cost)
  local stored = tonumber(redis.call('GET', key))
  local ahead = 0
  if stored and stored > now then ahead = min(stored - now, tolerance) end
  local wanted = ahead + interval * cost
  if wanted > tolerance then
    local retry = -1
    if interval * cost <= tolerance then retry = wanted - tolerance end
    return 0, div(tolerance - ahead, interval), retry, ahead
  end
  return 1, div(tolerance - wanted, interval), -1, wanted
end

-- Requests whose lease has ended do not count, whether they were taken out or not.
local function concurrency(key, now, lease, most, cost)
  local busy = redis.call('ZCOUNT', key, '(' .. string.format('%.0f', now), '+inf')
  if busy + cost > most then return 0, 0, min(lease, 1000000), lease end
  local reset = 0
  if busy + cost > 0 then reset = lease end
  return 1, most - busy - cost, -1, reset
end

-- Decides every limit; writes nothing. Returns whether all that count allow.
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
local function count(keys, args, key_at, arg_at, reply)
  for i = key_at, #keys do
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
  local head = redis.pcall('HMGET', key, '_c', '_t', '_v', '_i', '_x', '_g', '_r')
  if head.err then return DAMAGED end
  local fields = redis.call('HLEN', key)
  if fields == 0 then return GONE end
  if head[7] then return ROTATED end
  local created = tonumber(head[1])
  if not created then return DAMAGED end
  local found = {
    created = created, touched = tonumber(head[2]), views = tonumber(head[3]) or 0,
    idle = tonumber(head[4]), ends = tonumber(head[5]) or created + absolute,
  }
  if generation and (tonumber(redis.call('GET', generation)) or 0) > (tonumber(head[6]) or 0) then return REVOKED end
  if found.ends <= now_ms then return GONE end
  if fields == ALWAYS then return LIVE, found end
  return LIVE, found, redis.call('HGETALL', key)
end

-- Counts a view of a session that lives, and returns its views.
local function view(key)
  local views = redis.pcall('HINCRBY', key, '_v', 1)
  if type(views) == 'number' then return views end
  -- A damaged number: counting goes on from the beginning rather than failing for ever.
  redis.call('HSET', key, '_v', 1)
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

local function begin_at(now, keys, args)
  local how = args[1]
  local numbers = { struct.unpack(format(#args[2] / 8), args[2]) }
  local limits = (#args[2] / 8 - 3) / 4
  local reply = { 1 }
  if not decide_all(now, keys, numbers, limits, reply) then
    reply[1] = 0
    uncharge(numbers, limits, reply)
    return pack(reply)
  end

  -- The session is read before the first write, because reading may fail.
  local now_ms = div(now, 1000)
  local key_at, key, status, found, fields = limits + 1, nil, nil, nil, nil
  if how ~= '-' then
    key, key_at = keys[key_at], key_at + 1
    local generation
    if numbers[3] == 1 then generation, key_at = keys[key_at], key_at + 1 end
    if how == 'r' or how == 'v' then status, found, fields = look(key, generation, now_ms, numbers[2]) end
  end

  local refused = count(keys, args, key_at, 4, reply)
  if refused then return refused end
  charge(now, keys, numbers, limits, args[3], reply)
  if not key then return pack(reply) end
  settle(key, how, status, found, now_ms, numbers, reply)
  if fields then return { pack(reply), fields } end
  return pack(reply)
end

-- Where each part of a commit's arguments begins, and how long it is.
local function parts(args)
  local at = args[1] == '1' and 6 or 2
  local part = { most = args[at] + OURS, bytes = tonumber(args[at + 1]) }
  part.expect, part.expects = at + 3, tonumber(args[at + 2])
  at = part.expect + 3 * part.expects
  part.set, part.sets = at + 1, tonumber(args[at])
  at = part.set + 2 * part.sets
  part.add, part.adds = at + 1, tonumber(args[at])
  part.remove = part.add + 2 * part.adds
  return part
end

-- Whether the session would have more than it may.
local function is_full(key, args, part)
  local size = {}
  local stored = redis.call('HGETALL', key)
  for i = 1, #stored, 2 do size[stored[i]] = #stored[i + 1] end
  for i = part.set, part.set + 2 * part.sets - 1, 2 do size[args[i]] = #args[i + 1] end
  -- A sum has no more than 20 characters.
  for i = part.add, part.add + 2 * part.adds - 1, 2 do size[args[i]] = 20 end
  for i = part.remove, #args do size[args[i]] = nil end
  local fields, bytes = 0, 0
  for name, length in pairs(size) do
    -- Ours are those of two characters that begin with one underscore.
    if #name ~= 2 or string.sub(name, 1, 1) ~= '_' or name == '__' then
      fields, bytes = fields + 1, bytes + #name + length
    end
  end
  return fields > part.most - OURS or (part.bytes > 0 and bytes > part.bytes)
end

local function holds(key, args, part)
  for i = part.expect, part.expect + 3 * part.expects - 1, 3 do
    local wanted = args[i + 1] == '1' and args[i + 2]
    if redis.call('HGET', key, args[i]) ~= wanted then return false end
  end
  return true
end

-- Adds to every field or to none; returns the sums, or nothing. One addition Redis itself refuses in time; of several
-- none may fail, so each must be far from where sums overflow.
local function add(key, args, part)
  if part.adds > 1 then
    for i = part.add, part.add + 2 * part.adds - 1, 2 do
      local stored = redis.call('HGET', key, args[i]) or '0'
      -- As Redis writes integers: it refuses "007" and "-0".
      local integer = stored == '0' or string.match(stored, '^-?[1-9]%d*$')
      if #stored > 18 or #args[i + 1] > 18 or not integer then return nil end
    end
  end
  local sums = { 1 }
  for i = part.add, part.add + 2 * part.adds - 1, 2 do
    if type(redis.pcall('HINCRBY', key, args[i], args[i + 1])) == 'table' then return nil end
    -- As text, read back: a sum may exceed what a double holds.
    sums[#sums + 1] = redis.call('HGET', key, args[i])
  end
  return sums
end

local function commit_at(now, keys, args)
  local key = keys[1]
  local part = parts(args)
  local create = args[1] == '1'
  if create then
    if redis.call('EXISTS', key) == 1 then return -1 end
  elseif redis.call('HEXISTS', key, '_c') == 0 then
    -- _c and not mere existence: what has none is no session.
    if redis.call('HEXISTS', key, '_r') == 1 then return -5 end
    return 0
  end
  if not holds(key, args, part) then return -3 end
  if part.sets + part.adds > 0
    and (part.bytes > 0 or redis.call('HLEN', key) + part.sets + part.adds > part.most - OURS)
    and is_full(key, args, part) then
    return -2
  end
  local sums
  if part.adds > 0 then
    sums = add(key, args, part)
    if not sums then return -4 end
  end
  if create then
    local now_ms = div(now, 1000)
    local created = tonumber(args[2])
    if created == 0 then created = now_ms end
    if not make(key, created, tonumber(args[3]), now_ms, tonumber(args[4]), tonumber(args[5])) then
      redis.call('DEL', key)
      return 0
    end
  end
  if part.sets > 0 then redis.call('HSET', key, unpack(args, part.set, part.set + 2 * part.sets - 1)) end
  if #args >= part.remove then redis.call('HDEL', key, unpack(args, part.remove)) end
  return sums or 1
end

redis.register_function('regatta_v2_begin', function(keys, args) return begin_at(clock(), keys, args) end)
redis.register_function('regatta_v2_commit', function(keys, args)
  return commit_at(args[1] == '1' and clock() or 0, keys, args)
end)
