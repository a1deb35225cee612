#!lua name=regatta_live_v3
-- Regatta's server-side code for broadcasts, version 3: a message is told on its topic's own channel, so that only those
-- workers hear it that have subscribers to the topic. All else is version 1's, on the same keys, where topics are
-- described; this file never changes once it was released. Time is Redis's own, in whole milliseconds.
--
-- regatta_live_v3_publish: add a message to a topic and tell it, in one step: the order of news is that of ids.
--   KEYS   the topic (stream: p id of the entry before, m message)
--   ARGV   the topic's channel · the fleet's mark, without spaces · message · how many are kept, about
--          · lifetime after the last one, ms · the channel on which workers of earlier releases listen, or '' · the topic
--   reply  the message's id
--   news   MARK P ID MESSAGE on the topic's channel; b TOPIC P ID MESSAGE on that of earlier releases. What has another
--          mark was told by somebody else.
--   example  FCALL regatta_live_v3_publish 1 p:{b}:topic:chat  p:b:chat 5eed5eed5eed5eed hello 1000 3600000 '' chat
--            → "1770000000000-0"

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
  local key, channel, mark, message, kept = keys[1], args[1], args[2], args[3], args[4]
  local newest = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
  local before, at = '0-0', '*'
  if newest then before = newest[1] else at = text(now_ms() + AHEAD_MS) .. '-0' end
  local id = add(key, kept, at, before, message)
  -- Somebody emptied the stream by hand, and its last id lies even further ahead.
  if type(id) == 'table' and not newest then id = add(key, kept, '*', before, message) end
  if type(id) == 'table' then return id end
  redis.call('PEXPIRE', key, args[5])
  -- The message is there: that nobody may be told makes it late, not lost.
  local told = before .. ' ' .. id .. ' ' .. message
  redis.pcall('PUBLISH', channel, mark .. ' ' .. told)
  if args[6] ~= '' then redis.pcall('PUBLISH', args[6], 'b ' .. args[7] .. ' ' .. told) end
  return id
end

redis.register_function('regatta_live_v3_publish', publish)
