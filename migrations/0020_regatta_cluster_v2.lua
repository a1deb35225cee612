#!lua name=regatta_cluster_v2
-- Regatta's server-side code for clusters, version 2: what one node did is taken back because another one refused, once
-- however often that is said.
--
-- In a cluster a request's limits, session and counters lie on several nodes, so `begin` runs on each of them at once,
-- with the part that lies there. If one denies, the others give back what they granted. The answer to that may be lost,
-- and then it is said again.
-- This file never changes once it was released. Time is Redis's own, in whole microseconds.
--
-- regatta_cluster_v2_undo: take back what one call of begin granted.
--   KEYS   as that call had them, without the limits that charged nothing · a mark in the same slot, which no other undoing
--          has (string)
--   ARGV   as that call had them, without the numbers of those limits · how long the mark is kept, ms
--          A session that was made is deleted, unless somebody stored something in it by now; a view is uncounted. When a
--          session was last used stays as it is.
--   reply  1: it was taken back, 0: it had been before
--   example  FCALL regatta_cluster_v2_undo 2 p:{c}:c:total p:{c}:c:total:u:5eed  - [0 0 0] "" 1 60000   → 1

local function min(a, b) if a < b then return a end return b end

local function div(a, b) return (a - a % b) / b end

-- Fields of a session in which nobody has stored anything: _c, _t, _v.
local ALWAYS = 3

local function clock()
  local now = redis.call('TIME')
  return now[1] * 1000000 + now[2]
end

-- Gives requests back to a limit on rate; never more than was used.
local function refund(key, now, interval, tolerance, cost)
  local stored = tonumber(redis.call('GET', key))
  if not stored or stored <= now then return end
  local ahead = min(stored - now, tolerance) - interval * cost
  if ahead > 0 then
    redis.call('SET', key, now + ahead, 'PX', div(ahead + 999, 1000))
  else
    redis.call('DEL', key)
  end
end

local function forget(key, how)
  local views = tonumber(redis.call('HGET', key, '_v'))
  if not views then return end
  if how == 'cr' or how == 'cv' then
    if views <= 1 and redis.call('HLEN', key) == ALWAYS then redis.call('UNLINK', key) end
  elseif how == 'v' and views > 0 then
    redis.call('HINCRBY', key, '_v', -1)
  end
end

local function undo_at(now, keys, args)
  if not redis.call('SET', keys[#keys], '1', 'PX', args[#args], 'NX') then return 0 end
  local how, sent = args[1], #args[2] / 8
  local numbers = { struct.unpack('<' .. string.rep('d', sent), args[2]) }
  local limits = (sent - 3) / 4
  for i = 1, limits do
    local at = 4 * i
    if numbers[at] < 2 then
      refund(keys[i], now, numbers[at + 1], numbers[at + 2], numbers[at + 3])
    else
      redis.call('ZREM', keys[i], args[3])
    end
  end
  local key_at = limits + 1
  if how ~= '-' then
    forget(keys[key_at], how)
    key_at = key_at + 1
    if numbers[3] == 1 then key_at = key_at + 1 end
  end
  for i = key_at, #keys - 1 do
    local by = args[4 + i - key_at]
    -- A counter that is as if nobody had ever added to it is not kept.
    if by ~= '0' and redis.call('DECRBY', keys[i], by) == 0 then redis.call('DEL', keys[i]) end
  end
  return 1
end

redis.register_function('regatta_cluster_v2_undo', function(keys, args) return undo_at(clock(), keys, args) end)
