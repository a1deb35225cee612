#!lua name=regatta_v1
-- Regatta's server-side code, version 1: everything a request asks of Redis, in one step.
--
-- The name carries the version. This file never changes once it was released: other behaviour is another file with
-- another number and another library name, so that two releases can use one Redis side by side.
-- It runs as a Redis function and, behind a few lines that Regatta puts around it, as a script by digest.
-- Time is Redis's own, in whole microseconds: below 2^53, where Lua's numbers are exact. Nothing is turned into text
-- by `..` or tostring, which would lose the microseconds.
--
-- regatta_v1_begin: decide the limits; if all allow, charge them, read the session, count its view, add to counters.
--   A call that is denied writes nothing. What could fail is tried before the first write.
--   KEYS   one per limit (string: theoretical arrival time, µs) · the session, unless ARGV[1] is '-' (hash) ·
--          one per counter (string: number)
--   ARGV   session: '-' none, 'r' read, 'v' read and count a view; 'cr', 'cv' the same, and make it
--          · numbers: idle lifetime ms, absolute lifetime ms (both 0 without a session)
--            · per limit: interval µs, tolerance µs (interval × burst), cost (0 looks only)
--          · per counter: what to add, as text, because it may exceed what a double holds (0 reads only)
--   reply  numbers
--          · 1 granted or 0 denied
--          · per limit: 1 allowed or 0, remaining, retry after µs (-1: allowed, or never), reset after µs
--          · only if granted: per counter its value
--          · only if granted and with a session: 0 gone, or 1, created ms, views
--          If the session has fields of the application's: a list of that string and [field, value, …].
--          Fields named _ and one letter are ours: _c created ms, _t last touch ms, _v views.
--   Numbers travel as doubles, little-endian, in one string: on both sides it is cheaper than a list.
--   example  FCALL regatta_v1_begin 3 p:l:default:v:10.0.0.1 p:s:digest p:c:total
--                  v [86400000 2592000000  10000 2000000 1] 1
--            → 1  1 199 -1 10000  42  1 1763694494000 7, [_c 1763694494000 _t 1763694494000 _v 7 cart "[1]"]
--
-- regatta_v1_commit: change a session's fields, those that are named and no others.
--   KEYS   the session (hash)
--   ARGV   0 change, or 1 make: created ms (0: now), views, idle lifetime ms, absolute lifetime ms
--          · most fields · number of fields to set · field, value, … · fields to remove, …
--   reply  1 stored · 0 gone (a session that is not there is never made by a change) · -1 to be made, but there
--          already · -2 too many fields. All but 1 changed nothing.
--   example  FCALL regatta_v1_commit 1 p:s:digest  0  64  1 cart "[1,2]"  coupon   → 1

-- Neither redis.call nor math exist while Redis loads a library, so neither can be kept in a local here.
local function min(a, b) if a < b then return a end return b end

-- Whole part of a division of what is not negative.
local function div(a, b) return (a - a % b) / b end

-- Fields of the session's hash that are ours.
local OURS = 3

local function clock()
  local now = redis.call('TIME')
  return now[1] * 1000000 + now[2]
end

-- Lifetime left of a session, ms: the shorter of idle and absolute; below 1 it is over.
local function lifetime(created, now_ms, idle, absolute)
  return min(idle, created + absolute - now_ms)
end

local function make(key, created, views, now_ms, idle, absolute)
  local left = lifetime(created, now_ms, idle, absolute)
  if left < 1 then return false end
  redis.call('HSET', key, '_c', created, '_t', now_ms, '_v', views)
  redis.call('PEXPIRE', key, left)
  return true
end

-- GCRA. A stored time further ahead than the tolerance came from another clock: it is cut, so that a clock that
-- stepped back locks nobody out.
local function decide(key, now, interval, tolerance, cost)
  local stored = tonumber(redis.call('GET', key))
  local ahead = 0
  if stored and stored > now then ahead = min(stored - now, tolerance) end
  local wanted = ahead + interval * cost
  if wanted > tolerance then
    local retry = -1
    if interval * cost <= tolerance then retry = wanted - tolerance end
    return false, ahead, retry
  end
  return true, wanted, -1
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
        if undo ~= '0' then redis.call('DECRBY', keys[j], undo) end
      end
      return value
    end
    reply[#reply + 1] = value
  end
end

-- Decides every limit; writes nothing. Returns whether all allow, and per limit the time spent if it is charged.
local function decide_all(now, keys, numbers, limits, reply)
  local spent, granted = {}, true
  for i = 1, limits do
    local at, slot = 3 * i, 4 * i - 2
    local interval, tolerance = numbers[at], numbers[at + 1]
    local allowed, ahead, retry = decide(keys[i], now, interval, tolerance, numbers[at + 2])
    granted, spent[i] = granted and allowed, ahead
    reply[slot], reply[slot + 1] = allowed and 1 or 0, div(tolerance - ahead, interval)
    reply[slot + 2], reply[slot + 3] = retry, ahead
  end
  return granted, spent
end

-- What an allowing limit said assumed a charge; when another one refuses, none is made.
local function uncharge(numbers, limits, spent, reply)
  for i = 1, limits do
    local at, slot = 3 * i, 4 * i - 2
    if reply[slot] == 1 then
      local interval, tolerance = numbers[at], numbers[at + 1]
      local ahead = spent[i] - interval * numbers[at + 2]
      reply[slot + 1], reply[slot + 3] = div(tolerance - ahead, interval), ahead
    end
  end
end

-- Counts a view of a session that lives, and returns its views.
local function view(key)
  local views = redis.pcall('HINCRBY', key, '_v', 1)
  if type(views) == 'number' then return views end
  -- A damaged number: counting goes on from the beginning rather than failing for ever.
  redis.call('HSET', key, '_v', 1)
  return 1
end

-- Makes the session, or counts and touches the one that was found; returns created and views, or nothing if gone.
local function use(key, how, created, now_ms, idle, absolute)
  if how == 'cr' or how == 'cv' then
    local views = how == 'cv' and 1 or 0
    if not make(key, now_ms, views, now_ms, idle, absolute) then return nil end
    return now_ms, views
  end
  -- Expired, deleted, never there, or not a session: in each case there is none to give.
  if not created or created + absolute <= now_ms then return nil end
  local views
  if how == 'v' then views = view(key) else views = tonumber(redis.call('HGET', key, '_v')) or 0 end
  -- A tenth of the idle lifetime must have passed, so that a busy session is not touched at every request.
  local touched = tonumber(redis.call('HGET', key, '_t'))
  if not touched or (now_ms - touched) * 10 >= idle then
    redis.call('HSET', key, '_t', now_ms)
    redis.call('PEXPIRE', key, lifetime(created, now_ms, idle, absolute))
  end
  return created, views
end

-- When the session was created, or nothing; and its fields if it has any of the application's.
local function look(key)
  local created = redis.pcall('HGET', key, '_c')
  if type(created) ~= 'string' then return nil end
  if redis.call('HLEN', key) == OURS then return tonumber(created) end
  return tonumber(created), redis.call('HGETALL', key)
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

local function begin_at(now, keys, args)
  local how, sent = args[1], #args[2] / 8
  local numbers = { struct.unpack(format(sent), args[2]) }
  local limits = (sent - 2) / 3
  local reply = { 1 }
  local granted, spent = decide_all(now, keys, numbers, limits, reply)
  if not granted then
    reply[1] = 0
    uncharge(numbers, limits, spent, reply)
    return pack(reply)
  end

  -- The session is read before the first write, because reading may fail.
  local key_at, key, created, fields = limits + 1, nil, nil, nil
  if how ~= '-' then
    key, key_at = keys[key_at], key_at + 1
    if how == 'r' or how == 'v' then created, fields = look(key) end
  end

  local refused = count(keys, args, key_at, 3, reply)
  if refused then return refused end

  for i = 1, limits do
    if numbers[3 * i + 2] > 0 then
      redis.call('SET', keys[i], now + spent[i], 'PX', div(spent[i] + 999, 1000))
    end
  end

  if not key then return pack(reply) end
  local views
  created, views = use(key, how, created, div(now, 1000), numbers[1], numbers[2])
  local at = #reply
  if not created then
    reply[at + 1] = 0
    return pack(reply)
  end
  reply[at + 1], reply[at + 2], reply[at + 3] = 1, created, views
  if fields then return { pack(reply), fields } end
  return pack(reply)
end

local function commit_at(now, keys, args)
  local key = keys[1]
  local at, create = 1, args[1] == '1'
  if create then at = 5 end
  local most, sets = args[at + 1] + OURS, tonumber(args[at + 2])
  at = at + 2
  if create then
    if redis.call('EXISTS', key) == 1 then return -1 end
    if sets + OURS > most then return -2 end
    local now_ms = div(now, 1000)
    local created = tonumber(args[2])
    if created == 0 then created = now_ms end
    if not make(key, created, tonumber(args[3]), now_ms, tonumber(args[4]), tonumber(args[5])) then return 0 end
  else
    -- _c and not mere existence: what has none is no session.
    if redis.call('HEXISTS', key, '_c') == 0 then return 0 end
    local fields = redis.call('HLEN', key)
    if sets > 0 and fields + sets > most then
      for i = 1, sets do
        if redis.call('HEXISTS', key, args[at + 2 * i - 1]) == 0 then fields = fields + 1 end
      end
      for i = at + 2 * sets + 1, #args do fields = fields - redis.call('HEXISTS', key, args[i]) end
      if fields > most then return -2 end
    end
  end
  if sets > 0 then redis.call('HSET', key, unpack(args, at + 1, at + 2 * sets)) end
  at = at + 2 * sets
  if #args > at then redis.call('HDEL', key, unpack(args, at + 1)) end
  return 1
end

redis.register_function('regatta_v1_begin', function(keys, args) return begin_at(clock(), keys, args) end)
redis.register_function('regatta_v1_commit', function(keys, args)
  return commit_at(args[1] == '1' and clock() or 0, keys, args)
end)
