#!lua name=regatta_limit_v2
-- Regatta's limits outside a request's first step, version 2: what is given back, drawn in advance, merged after an
-- outage, and the places of concurrency limits. Deciding a request is begin's task.
--
-- Beside version 1, on the same keys in the same form, so that both may be in use at once. New: what a clock that
-- stepped back left too far ahead is stored as it was cut, by a draw that gets nothing too; a draw tells when the limit
-- is as if never used; and all of it goes on where the server's memory is full, because it frees memory or takes next to
-- none for a moment.
--
-- The name carries the version. This file never changes once it was released (see 0001). Time is Redis's own, in whole
-- microseconds; nothing is turned into text by `..` or tostring, which would lose them. What could fail is tried
-- before the first write. A rate limit is a string (theoretical arrival time, µs), a concurrency limit a sorted set
-- (place → when it ends, µs), both as begin has them.
--
-- Whatever gives quota back tells every worker at the same moment: those that know the limit as used up ask again.
--   message  l, a space, and the limit's key
--
-- regatta_limit_v2_refund: give requests back. Never more than was used.
--   KEYS   one per rate limit
--   ARGV   channel · per limit: interval µs, tolerance µs, requests
--   reply  per limit: remaining
--   example  FCALL regatta_limit_v2_refund 1 p:l:default:v:10.0.0.1  p:news 10000 2000000 5   → 147
--
-- regatta_limit_v2_reset: make a limit of either kind as if never used.
--   KEYS   the limit
--   ARGV   channel
--   reply  1, or 0: it was not in use
--   example  FCALL regatta_limit_v2_reset 1 p:l:login:v:10.0.0.1  p:news   → 1
--
-- regatta_limit_v2_look: how a limit stands; changes nothing.
--   KEYS   the limit
--   ARGV   rate limit: interval µs, tolerance µs · concurrency limit: most places
--   reply  remaining, µs until it is as if never used (concurrency: until the last place ends by itself)
--   example  FCALL regatta_limit_v2_look 1 p:l:default:v:10.0.0.1  10000 2000000   → 199, 10000
--
-- regatta_limit_v2_draw: charge a rate limit for several requests to come, or for as many as it allows.
--   KEYS   the limit
--   ARGV   interval µs, tolerance µs, requests
--   reply  requests charged, µs until the limit is as if never used
--   example  FCALL regatta_limit_v2_draw 1 p:l:api:v:10.0.0.1  100 1000000 500   → 500, 50000
--
-- regatta_limit_v2_merge: charge what was allowed elsewhere while this server was away, and each batch once.
--   KEYS   the batch's mark (string) · one per rate limit
--   ARGV   how long the mark is kept, ms · per limit: interval µs, tolerance µs, requests
--   reply  1, or 0: this batch was merged before, nothing was changed
--   example  FCALL regatta_limit_v2_merge 2 p:m:batch p:l:default:v:10.0.0.1  600000 10000 2000000 25   → 1
--
-- regatta_limit_v2_renew: keep a place of a concurrency limit. One that has ended is not made again.
--   KEYS   the limit
--   ARGV   the place's name, how long from now µs
--   reply  1, or 0: it has ended
--   example  FCALL regatta_limit_v2_renew 1 p:l:export:v:*  worker-17 10000000   → 1
--
-- regatta_limit_v2_release: give a place back.
--   KEYS   the limit
--   ARGV   the place's name
--   reply  1, or 0: it had ended
--   example  FCALL regatta_limit_v2_release 1 p:l:export:v:*  worker-17   → 1

-- Neither redis.call nor math exist while Redis loads a library, so neither can be kept in a local here.
local function min(a, b) if a < b then return a end return b end
local function max(a, b) if a > b then return a end return b end

-- Whole part of a division of what is not negative.
local function div(a, b) return (a - a % b) / b end

local function clock()
  local now = redis.call('TIME')
  return now[1] * 1000000 + now[2]
end

-- Before the writes: a script's message is sent at the moment of its writes, wherever it stands in it. A server that
-- forbids it has no listeners either, who therefore trust what they know for a moment only.
local function tell(channel, key)
  redis.pcall('PUBLISH', channel, 'l ' .. key)
end

-- How far a stored time is ahead; further than the tolerance it came from another clock and is cut: then true as well,
-- for callers that write, so that the next one does not find it as far ahead again.
local function ahead_of(key, now, tolerance)
  local stored = tonumber(redis.call('GET', key))
  if not stored or stored <= now then return 0 end
  return min(stored - now, tolerance), stored - now > tolerance
end

local function store(key, now, ahead)
  if ahead > 0 then
    redis.call('SET', key, now + ahead, 'PX', div(ahead + 999, 1000))
  else
    redis.call('DEL', key)
  end
end

-- Interval, tolerance and requests of the limit with this number, which stand behind `before` other arguments.
local function quota(args, before, number)
  local at = before + 3 * number - 2
  return tonumber(args[at]), tonumber(args[at + 1]), tonumber(args[at + 2])
end

local function refund(keys, args)
  local now, aheads, reply = clock(), {}, {}
  for i = 1, #keys do
    local interval, tolerance, requests = quota(args, 1, i)
    aheads[i] = max(ahead_of(keys[i], now, tolerance) - interval * requests, 0)
    reply[i] = div(tolerance - aheads[i], interval)
  end
  for i = 1, #keys do
    tell(args[1], keys[i])
    store(keys[i], now, aheads[i])
  end
  return reply
end

local function reset(keys, args)
  tell(args[1], keys[1])
  return redis.call('DEL', keys[1])
end

local function look(keys, args)
  local now = clock()
  if args[2] then
    local interval, tolerance = tonumber(args[1]), tonumber(args[2])
    local ahead = ahead_of(keys[1], now, tolerance)
    return { div(tolerance - ahead, interval), ahead }
  end
  local taken = redis.call('ZCOUNT', keys[1], now + 1, '+inf')
  local last = redis.call('ZRANGE', keys[1], -1, -1, 'WITHSCORES')
  return { max(tonumber(args[1]) - taken, 0), max((tonumber(last[2]) or now) - now, 0) }
end

local function draw(keys, args)
  local now = clock()
  local interval, tolerance, wanted = quota(args, 0, 1)
  local ahead, cut = ahead_of(keys[1], now, tolerance)
  local drawn = min(wanted, div(tolerance - ahead, interval))
  ahead = ahead + drawn * interval
  if drawn > 0 or cut then store(keys[1], now, ahead) end
  return { drawn, ahead }
end

local function merge(keys, args)
  local now, aheads = clock(), {}
  for i = 2, #keys do
    local interval, tolerance, requests = quota(args, 1, i - 1)
    aheads[i] = min(ahead_of(keys[i], now, tolerance) + interval * requests, tolerance)
  end
  if not redis.call('SET', keys[1], 1, 'NX', 'PX', args[1]) then return 0 end
  for i = 2, #keys do store(keys[i], now, aheads[i]) end
  return 1
end

local function renew(keys, args)
  local now = clock()
  local ends = tonumber(redis.call('ZSCORE', keys[1], args[1]))
  if not ends or ends <= now then return 0 end
  local lease = tonumber(args[2])
  redis.call('ZADD', keys[1], 'XX', now + lease, args[1])
  if redis.call('PTTL', keys[1]) < div(lease + 999, 1000) then
    redis.call('PEXPIRE', keys[1], div(lease + 999, 1000))
  end
  return 1
end

local function release(keys, args)
  -- Nobody is told: a refusal for want of a place is remembered by nobody.
  return redis.call('ZREM', keys[1], args[1])
end

local function register(name, callback, flag)
  redis.register_function({ function_name = name, callback = callback, flags = { flag } })
end

register('regatta_limit_v2_refund', refund, 'allow-oom')
register('regatta_limit_v2_reset', reset, 'allow-oom')
register('regatta_limit_v2_look', look, 'no-writes')
register('regatta_limit_v2_draw', draw, 'allow-oom')
register('regatta_limit_v2_merge', merge, 'allow-oom')
register('regatta_limit_v2_renew', renew, 'allow-oom')
register('regatta_limit_v2_release', release, 'allow-oom')
