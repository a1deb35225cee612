#!lua name=regatta_fleet_v2
-- Regatta's server-side code for the fleet, version 2: a machine whose word was stored by a clock that is now behind is
-- dead a lifetime later, and not when that clock is where it was. All else is version 1's, on the same keys; this file
-- never changes once it was released. Time is Redis's own, in whole milliseconds.
--
-- regatta_fleet_v2_beat: write a machine's document and that it uses these libraries; drop the machines that are dead.
--   KEYS   of one hash tag: the machines (hash: id → last beat ms, lifetime ms and document, with spaces between; '-' →
--          since when anybody has written here without a pause longer than a lifetime)
--          · when each is dead (sorted set: id, ms) · when each library was last in use (sorted set: name, ms)
--   ARGV   id · lifetime ms · document · library, …
--   reply  machines alive
--   example  FCALL regatta_fleet_v2_beat 3 p:{fleet}:machines p:{fleet}:deaths p:{fleet}:libraries
--                  web-1.42.9f3a 10000 {"host":"web-1"} regatta_v1 regatta_v2   → 3

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

-- A word that is still to be said was said now: its machine has one lifetime from here, as if it had just spoken.
local function cut(now, machines, deaths, late, lifetime)
  for _, id in ipairs(late) do
    local word = redis.call('HGET', machines, id) or ''
    local beat, life, document = string.match(word, '^(%d+) (%d+) (.*)$')
    if not beat then
      redis.call('ZADD', deaths, 'XX', text(now + lifetime), id)
    elseif tonumber(beat) > now then
      redis.call('HSET', machines, id, text(now) .. ' ' .. life .. ' ' .. document)
      redis.call('ZADD', deaths, 'XX', text(now + tonumber(life)), id)
    end
  end
end

local function beat(now, keys, args)
  local machines, deaths, libraries = keys[1], keys[2], keys[3]
  local id, lifetime, document = args[1], tonumber(args[2]), args[3]

  -- Everything that can fail, a key of another type above all, does so before the first write.
  local since = tonumber(redis.call('HGET', machines, '-') or '')
  local dead = redis.call('ZRANGEBYSCORE', deaths, '-inf', text(now))
  local late = redis.call('ZRANGEBYSCORE', deaths, '(' .. text(now + lifetime), '+inf')
  redis.call('ZCARD', libraries)

  for _, gone in ipairs(dead) do
    redis.call('HDEL', machines, gone)
    redis.call('ZREM', deaths, gone)
  end
  cut(now, machines, deaths, late, lifetime)
  if not since or since > now then redis.call('HSET', machines, '-', text(now)) end
  redis.call('HSET', machines, id, text(now) .. ' ' .. text(lifetime) .. ' ' .. document)
  redis.call('ZADD', deaths, text(now + lifetime), id)
  live_on(machines, lifetime)
  live_on(deaths, lifetime)

  for i = 4, #args do redis.call('ZADD', libraries, text(now), args[i]) end
  return redis.call('ZCARD', deaths)
end

redis.register_function('regatta_fleet_v2_beat', function(keys, args) return beat(clock_ms(), keys, args) end)
