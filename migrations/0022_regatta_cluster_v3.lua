#!lua name=regatta_cluster_v3
-- Regatta's server-side code for clusters, version 3: what one node did is taken back because another one refused, once
-- however often that is said.
--
-- In a cluster a request's limits, session and counters lie on several nodes, so `begin` runs on each of them at once,
-- with the part that lies there. If one denies, the others give back what they granted. The answer to that may be lost,
-- and then it is said again.
-- New since version 2: only a session that the call itself made is deleted, and what that charged is given back.
-- This file never changes once it was released. Time is Redis's own, in whole microseconds.
--
-- regatta_cluster_v3_undo: take back what one call of begin granted.
--   KEYS   as that call had them, without the limits that charged nothing · a mark in the same slot, which no other undoing
--          has (string)
--   ARGV   as that call had them, without the numbers of those limits · how long the mark is kept, ms
--          ARGV[1] is that of a ticket, 'kr' or 'kv', only if that call made the session. It is deleted, and the charge on
--          the limit on new sessions given back if one is given, unless other views were counted or something was stored
--          in it by now. Of any other session a view is uncounted; when it was last used, and that it was confirmed (and
--          charged for that), stays as it is.
--   reply  1: it was taken back, 0: it had been before
--   example  FCALL regatta_cluster_v3_undo 2 p:{c}:c:total p:{c}:c:total:m:5eed  - [0 0 0] "" 1 60000   → 1

local function min(a, b) if a < b then return a end return b end

local function div(a, b) return (a - a % b) / b end

-- Fields of a session in which nothing was stored: _c, _t, _v.
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

-- Uncounts the call's view, and deletes the session if the call made it and no other request put anything there; whether
-- it did. The ticket's own view is not the call's.
local function forget(key, how, own)
  local views = tonumber(redis.call('HGET', key, '_v'))
  if not views then return false end
  if string.sub(how, -1) == 'v' and views > 0 then views = redis.call('HINCRBY', key, '_v', -1) end
  if #how < 2 or views > own or redis.call('HLEN', key) > ALWAYS then return false end
  redis.call('UNLINK', key)
  return true
end

local function undo_at(now, keys, args)
  if not redis.call('SET', keys[#keys], '1', 'PX', args[#args], 'NX') then return 0 end
  local how, sent = args[1], #args[2] / 8
  local numbers = { struct.unpack('<' .. string.rep('d', sent), args[2]) }
  local limits = (sent - 3) / 4
  if #how == 2 then limits = limits - 1 end
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
    local flags = numbers[3]
    local gone = forget(keys[key_at], how, flags % 64 >= 32 and 1 or 0)
    key_at = key_at + 1
    if flags % 2 == 1 then key_at = key_at + 1 end
    if flags % 32 >= 16 then
      local at = 3 + 4 * limits
      if gone then refund(keys[key_at], now, numbers[at + 3], numbers[at + 4], 1) end
      key_at = key_at + 1
    end
  end
  for i = key_at, #keys - 1 do
    local by = args[4 + i - key_at]
    -- A counter that is as if it had never been added to is not kept.
    if by ~= '0' and redis.call('DECRBY', keys[i], by) == 0 then redis.call('DEL', keys[i]) end
  end
  return 1
end

redis.register_function('regatta_cluster_v3_undo', function(keys, args) return undo_at(clock(), keys, args) end)
