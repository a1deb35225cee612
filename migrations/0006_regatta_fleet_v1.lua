#!lua name=regatta_fleet_v1
-- Regatta's server-side code for the fleet: which machines live, and which libraries are in use.
--
-- Every machine's supervisor has one heartbeat, written by one of its workers. The name carries the version; this
-- file never changes once it was released. Time is Redis's own, in whole milliseconds.
--
-- Both functions have the same KEYS, of one hash tag:
--   the machines (hash: id → last beat ms, lifetime ms and document, with spaces between; '-' → since when anybody
--   has written here without a pause longer than a lifetime)
--   · when each is dead (sorted set: id, ms) · when each library was last in use (sorted set: name, ms)
--
-- regatta_fleet_v1_beat: write a machine's document and that it uses these libraries; drop the machines that are dead.
--   ARGV   id · lifetime ms · document · library, …
--   reply  machines alive
--   example  FCALL regatta_fleet_v1_beat 3 p:{fleet}:machines p:{fleet}:deaths p:{fleet}:libraries
--                  web-1.42.9f3a 10000 {"host":"web-1"} regatta_v1 regatta_v2   → 3
--
-- regatta_fleet_v1_leave: drop one machine, which ends in order.
--   ARGV   id
--   reply  1 dropped, 0 was not there

-- Neither redis.call nor math exist while Redis loads a library, so neither can be kept in a local here.

local function clock_ms()
  local now = redis.call('TIME')
  return now[1] * 1000 + (now[2] - now[2] % 1000) / 1000
end

-- A whole number as text: `..` and tostring would write the last digits of a time as an exponent.
local function text(number) return string.format('%.0f', number) end

-- The keys live as long as their last machine.
local function live_on(key, lifetime)
  if redis.call('PTTL', key) < lifetime then redis.call('PEXPIRE', key, lifetime) end
end

local function beat(now, keys, args)
  local machines, deaths, libraries = keys[1], keys[2], keys[3]
  local id, lifetime, document = args[1], tonumber(args[2]), args[3]

  -- Everything that can fail, a key of another type above all, does so before the first write.
  local since = redis.call('HGET', machines, '-')
  local dead = redis.call('ZRANGEBYSCORE', deaths, '-inf', text(now))
  redis.call('ZCARD', libraries)

  for _, gone in ipairs(dead) do
    redis.call('HDEL', machines, gone)
    redis.call('ZREM', deaths, gone)
  end
  if not since then redis.call('HSET', machines, '-', text(now)) end
  redis.call('HSET', machines, id, text(now) .. ' ' .. text(lifetime) .. ' ' .. document)
  redis.call('ZADD', deaths, text(now + lifetime), id)
  live_on(machines, lifetime)
  live_on(deaths, lifetime)

  for i = 4, #args do redis.call('ZADD', libraries, text(now), args[i]) end
  return redis.call('ZCARD', deaths)
end

local function leave(keys, args)
  redis.call('HDEL', keys[1], args[1])
  return redis.call('ZREM', keys[2], args[1])
end

redis.register_function('regatta_fleet_v1_beat', function(keys, args) return beat(clock_ms(), keys, args) end)
redis.register_function('regatta_fleet_v1_leave', function(keys, args) return leave(keys, args) end)
