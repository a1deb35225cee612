#!lua name=regatta_live_v2
-- Regatta's server-side code for broadcasts, version 2: a worker's word that was stored by a clock that is now behind
-- holds no longer than a word does. All else is version 1's, on the same keys; this file never changes once it was
-- released. Time is Redis's own, in whole milliseconds.
--
-- regatta_live_v2_here: say how many subscribe to topics on a worker, and learn how many do on all.
--   KEYS   one per topic, of one hash tag (hash: worker → how many, and until when that holds, ms)
--   ARGV   the worker · how long its word holds, ms · per topic how many ('-': no word, only the question)
--   reply  per topic how many
--   example  FCALL regatta_live_v2_here 2 p:{b}:here:chat p:{b}:here:news  9f3a 10000 17 -   → 40 3

local function now_ms()
  local now = redis.call('TIME')
  return now[1] * 1000 + (now[2] - now[2] % 1000) / 1000
end

-- A whole number as text: `..` and tostring would write the last digits of a time as an exponent.
local function text(number) return string.format('%.0f', number) end

-- How many the words of a topic's workers add up to; those that hold no more go.
local function sum_of(key, now, life)
  local sum, all = 0, redis.call('HGETALL', key)
  for at = 1, #all, 2 do
    local many, till = string.match(all[at + 1], '^(%d+) (%d+)$')
    till = tonumber(till)
    if many and till > now then
      if till > now + life then redis.call('HSET', key, all[at], many .. ' ' .. text(now + life)) end
      sum = sum + tonumber(many)
    else
      redis.call('HDEL', key, all[at])
    end
  end
  return sum
end

local function here(keys, args)
  local me, life, now = args[1], tonumber(args[2]), now_ms()
  local sums = {}
  for i, key in ipairs(keys) do
    local count = args[i + 2]
    if count == '0' then
      redis.call('HDEL', key, me)
    elseif count ~= '-' then
      redis.call('HSET', key, me, count .. ' ' .. text(now + life))
      if redis.call('PTTL', key) < life then redis.call('PEXPIRE', key, life) end
    end
    sums[i] = sum_of(key, now, life)
  end
  return sums
end

redis.register_function('regatta_live_v2_here', here)
