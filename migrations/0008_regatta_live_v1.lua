#!lua name=regatta_live_v1
-- Regatta's server-side code for broadcasts, version 1: messages to everybody who subscribes to a topic.
--
-- A topic is a stream, which is the truth; what is published beside it only wakes workers up. Every entry names the one
-- before it, so that whoever hears one knows whether he has heard them all. Reading needs no code: XRANGE does it.
-- The name carries the version; this file never changes once it was released. Time is Redis's own, in whole milliseconds.
-- All keys have one hash tag, so that in a cluster one call may touch several topics.
--
-- regatta_live_v1_publish: add a message to a topic and tell every worker, in one step: the order of news is that of ids.
--   KEYS   the topic (stream: p id of the entry before, m message)
--   ARGV   channel of news · topic · message · how many are kept, about · lifetime after the last one, ms
--   reply  the message's id
--   news   b TOPIC P ID MESSAGE
--   example  FCALL regatta_live_v1_publish 1 p:{b}:topic:chat  p:news chat hello 1000 3600000   → "1770000000000-0"
--
-- regatta_live_v1_here: say how many subscribe to topics on a worker, and learn how many do on all.
--   KEYS   one per topic (hash: worker → how many, and until when that holds, ms)
--   ARGV   the worker · how long its word holds, ms · per topic how many ('-': no word, only the question)
--   reply  per topic how many
--   example  FCALL regatta_live_v1_here 2 p:{b}:here:chat p:{b}:here:news  9f3a 10000 17 -   → 40 3

-- Neither redis.call nor math exist while Redis loads a library, so neither can be kept in a local here.

-- A topic whose stream is gone begins this far ahead of the clock: its ids must be above those that were lost, which
-- may be as young as this very millisecond, or a little younger by the clock of another server.
local AHEAD_MS = 1000

local function now_ms()
  local now = redis.call('TIME')
  return now[1] * 1000 + (now[2] - now[2] % 1000) / 1000
end

-- A whole number as text: `..` and tostring would write the last digits of a time as an exponent.
local function text(number) return string.format('%.0f', number) end

local function add(key, kept, at, before, message)
  return redis.pcall('XADD', key, 'MAXLEN', '~', kept, at, 'p', before, 'm', message)
end

local function publish(keys, args)
  local key, channel, topic, message, kept = keys[1], args[1], args[2], args[3], args[4]
  local newest = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
  local before, at = '0-0', '*'
  if newest then before = newest[1] else at = text(now_ms() + AHEAD_MS) .. '-0' end
  local id = add(key, kept, at, before, message)
  -- Somebody emptied the stream by hand, and its last id lies even further ahead.
  if type(id) == 'table' and not newest then id = add(key, kept, '*', before, message) end
  if type(id) == 'table' then return id end
  redis.call('PEXPIRE', key, args[5])
  -- The message is there: that nobody may be told makes it late, not lost.
  redis.pcall('PUBLISH', channel, 'b ' .. topic .. ' ' .. before .. ' ' .. id .. ' ' .. message)
  return id
end

local function here(keys, args)
  local me, life, now = args[1], tonumber(args[2]), now_ms()
  local sums = {}
  for i, key in ipairs(keys) do
    local count, sum = args[i + 2], 0
    if count == '0' then
      redis.call('HDEL', key, me)
    elseif count ~= '-' then
      redis.call('HSET', key, me, count .. ' ' .. text(now + life))
      if redis.call('PTTL', key) < life then redis.call('PEXPIRE', key, life) end
    end
    local all = redis.call('HGETALL', key)
    for at = 1, #all, 2 do
      local many, till = string.match(all[at + 1], '^(%d+) (%d+)$')
      if many and tonumber(till) > now then
        sum = sum + tonumber(many)
      else
        redis.call('HDEL', key, all[at])
      end
    end
    sums[i] = sum
  end
  return sums
end

redis.register_function('regatta_live_v1_publish', publish)
redis.register_function('regatta_live_v1_here', here)
