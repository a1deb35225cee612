#!lua name=regatta_counter_v1
-- Regatta's server-side code for counters and for requests that count once, version 1.
--
-- The name carries the version. This file never changes once it was released: other behaviour is another file with
-- another number and another library name, so that two releases can use one Redis side by side.
-- It runs as a Redis function and, behind a few lines that Regatta puts around it, as a script by digest.
-- Time is Redis's own. What may exceed 2^53, where Lua's numbers stop being exact, stays text here.
--
-- regatta_counter_v1_flush: add a worker's batch to counters, once, however often it is sent.
--   KEYS   the fleet's ledger (hash: journal → number of its last batch) · one per counter (string: number)
--   ARGV   journal · number of the batch · lifetime of the ledger, ms · per counter what to add
--   reply  1 added, or 0 if it was before · per counter its value as text, or '' if it cannot be added to (it would
--          overflow, or holds no number): that part of the batch is given up
--   example  FCALL regatta_counter_v1_flush 3 p:j:f p:c:a p:c:b  8 17 2592000000 5 -1  → 1 "1005" "-1"
--
-- regatta_counter_v1_read: a counter, and how far each journal of one's own fleet is contained in it.
--   KEYS   the fleet's ledger · the counter
--   ARGV   journals
--   reply  the counter's value as text · per journal the number of its last batch as text
--   example  FCALL regatta_counter_v1_read 2 p:j:f p:c:a  8 9  → "1005" "17" "0"
--
-- regatta_counter_v1_take: take from something of which there is only so much; once per token.
--   KEYS   the counter (string: how much is taken) · with a token: the token's (string)
--   ARGV   how much · how much there is · lifetime of the token, ms
--   reply  1 taken, 0 there is not so much left, or 2 it was taken with this token before · how much is taken
--   example  FCALL regatta_counter_v1_take 2 p:b:seats p:bt:seats:digest  2 1000 86400000  → 1 998
--
-- regatta_counter_v1_give: give back, never more than is taken; once per token.
--   KEYS   as take
--   ARGV   how much · lifetime of the token, ms
--   reply  1 given back, or 2 it was with this token before · how much is taken
--   example  FCALL regatta_counter_v1_give 2 p:b:seats p:bt:seats:digest  2 86400000  → 1 996
--
-- regatta_counter_v1_see: count what is different among everything that was seen (HyperLogLog, ± 0.81 %).
--   KEYS   the counter, or one for each of three windows, the middle one by the caller's clock
--   ARGV   length of a window, ms (0: none) · number of the middle one since 1970 · what was seen, if anything
--   reply  1 something was new, or 0, or -1 the caller's clock is off by more than a window and nothing was done ·
--          how much was seen, or by -1 the number of the window it is
--   example  FCALL regatta_counter_v1_see 3 p:dw:86400000:20412:{v} p:dw:86400000:20413:{v}
--                  p:dw:86400000:20414:{v}  86400000 20413 alice bob  → 1 2
--
-- regatta_counter_v1_claim: begin a request that is to be carried out once.
--   KEYS   its record (hash: f fingerprint, o owner, l end of the lease ms, s status, h headers, b body)
--   ARGV   fingerprint · owner · lease ms · lifetime of the record ms
--   reply  1 carry it out · 2 somebody does, and has so many ms left · 3 the key stands for another request ·
--          4 it was: status, headers, body (status 0: it was, but its response was not kept)
--   example  FCALL regatta_counter_v1_claim 1 p:i:digest  f00d w1 10000 86400000  → 1
--
-- regatta_counter_v1_renew: prolong the lease of a request that is being carried out.
--   KEYS   its record   ARGV   owner · lease ms   reply  1, or 0 if it is somebody else's
--
-- regatta_counter_v1_keep: keep the response of a request that was carried out.
--   KEYS   its record
--   ARGV   owner · lifetime of the record ms · status · headers · body
--   reply  1, or 0 if the record is somebody else's
--
-- regatta_counter_v1_forget: let a request be carried out again.
--   KEYS   its record   ARGV   owner   reply  1, or 0 if it is somebody else's

local function now_ms()
  local now = redis.call('TIME')
  return now[1] * 1000 + (now[2] - now[2] % 1000) / 1000
end

local function flush(keys, args)
  local last = tonumber(redis.call('HGET', keys[1], args[1])) or 0
  local reply = { 0 }
  if tonumber(args[2]) > last then
    -- The first write: a server that takes none says so here, before anything was added.
    redis.call('HSET', keys[1], args[1], args[2])
    redis.call('PEXPIRE', keys[1], args[3])
    reply[1] = 1
  end
  for i = 2, #keys do
    local sum = 0
    if reply[1] == 1 then sum = redis.pcall('INCRBY', keys[i], args[i + 2]) end
    local value = redis.pcall('GET', keys[i])
    if type(sum) == 'table' or type(value) == 'table' then value = '' end
    -- As text: a number beyond 2^53 would lose digits on its way through Lua.
    reply[i] = value or '0'
  end
  return reply
end

local function read(keys, args)
  local reply = { redis.call('GET', keys[2]) or '0' }
  if #args == 0 then return reply end
  local last = redis.call('HMGET', keys[1], unpack(args))
  for i = 1, #args do reply[i + 1] = last[i] or '0' end
  return reply
end

local function taken_of(key) return tonumber(redis.call('GET', key) or 0) end

-- Notes that this token did its work; true if it had done so before.
local function seen(keys, value, lifetime)
  if not keys[2] then return false end
  return not redis.call('SET', keys[2], value, 'PX', lifetime, 'NX')
end

local function take(keys, args)
  local taken = taken_of(keys[1])
  if keys[2] and redis.call('EXISTS', keys[2]) == 1 then return { 2, taken } end
  if taken + args[1] > tonumber(args[2]) then return { 0, taken } end
  seen(keys, args[1], args[3])
  return { 1, redis.call('INCRBY', keys[1], args[1]) }
end

local function give(keys, args)
  local taken, back = taken_of(keys[1]), tonumber(args[1])
  if back > taken then back = taken end
  if seen(keys, args[1], args[2]) then return { 2, taken } end
  return { 1, redis.call('DECRBY', keys[1], back) }
end

local function see(keys, args)
  local window, key, ends = tonumber(args[1]), keys[1], nil
  if window > 0 then
    local now = now_ms()
    local number = (now - now % window) / window
    local off = number - tonumber(args[2])
    if off < -1 or off > 1 then return { -1, number } end
    key, ends = keys[2 + off], (number + 2) * window - now
  end
  local new = 0
  if #args > 2 then
    new = redis.call('PFADD', key, unpack(args, 3))
    -- Kept for one window more, for whoever asks what the last one was.
    if new == 1 and ends then redis.call('PEXPIRE', key, ends) end
  end
  return { new, redis.call('PFCOUNT', key) }
end

local function claim(keys, args)
  local key, now = keys[1], now_ms()
  local found = redis.call('HMGET', key, 'f', 'o', 'l', 's')
  if found[1] then
    if found[1] ~= args[1] then return { 3 } end
    if found[4] then
      local kept = redis.call('HMGET', key, 'h', 'b')
      return { 4, tonumber(found[4]), kept[1] or '', kept[2] or '' }
    end
    local left = tonumber(found[3]) - now
    if left > 0 and found[2] ~= args[2] then return { 2, left } end
  end
  redis.call('HSET', key, 'f', args[1], 'o', args[2], 'l', now + args[3])
  redis.call('PEXPIRE', key, args[4])
  return { 1 }
end

local function is_mine(keys, args) return redis.call('HGET', keys[1], 'o') == args[1] end

local function renew(keys, args)
  if not is_mine(keys, args) then return 0 end
  redis.call('HSET', keys[1], 'l', now_ms() + args[2])
  return 1
end

local function keep(keys, args)
  if not is_mine(keys, args) then return 0 end
  redis.call('HSET', keys[1], 's', args[3], 'h', args[4], 'b', args[5])
  redis.call('PEXPIRE', keys[1], args[2])
  return 1
end

local function forget(keys, args)
  if not is_mine(keys, args) then return 0 end
  return redis.call('DEL', keys[1])
end

redis.register_function('regatta_counter_v1_flush', flush)
redis.register_function('regatta_counter_v1_read', read)
redis.register_function('regatta_counter_v1_take', take)
redis.register_function('regatta_counter_v1_give', give)
redis.register_function('regatta_counter_v1_see', see)
redis.register_function('regatta_counter_v1_claim', claim)
redis.register_function('regatta_counter_v1_renew', renew)
redis.register_function('regatta_counter_v1_keep', keep)
redis.register_function('regatta_counter_v1_forget', forget)
