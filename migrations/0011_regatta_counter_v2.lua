#!lua name=regatta_counter_v2
-- Regatta's server-side code for requests that count once, version 2: a claim whose lease was stored by a clock that is
-- now behind holds nobody up for longer than a lease. All else is version 1's, on the same keys; this file never changes
-- once it was released. Time is Redis's own, in whole milliseconds.
--
-- regatta_counter_v2_claim: begin a request that is to be carried out once.
--   KEYS   its record (hash: f fingerprint, o owner, l end of the lease ms, s status, h headers, b body)
--   ARGV   fingerprint · owner · lease ms · lifetime of the record ms
--   reply  1 carry it out · 2 somebody does, and has so many ms left · 3 the key stands for another request ·
--          4 it was: status, headers, body (status 0: it was, but its response was not kept)
--   example  FCALL regatta_counter_v2_claim 1 p:i:digest  f00d w1 10000 86400000  → 1

local function now_ms()
  local now = redis.call('TIME')
  return now[1] * 1000 + (now[2] - now[2] % 1000) / 1000
end

local function claim(keys, args)
  local key, now, lease = keys[1], now_ms(), tonumber(args[3])
  local found = redis.call('HMGET', key, 'f', 'o', 'l', 's')
  if found[1] then
    if found[1] ~= args[1] then return { 3 } end
    if found[4] then
      local kept = redis.call('HMGET', key, 'h', 'b')
      return { 4, tonumber(found[4]), kept[1] or '', kept[2] or '' }
    end
    local left = (tonumber(found[3]) or 0) - now
    if left > 0 and found[2] ~= args[2] then
      if left > lease then
        -- Stored, or it would be as far ahead at every look until the clock is where it was. An owner who lives renews.
        left = lease
        redis.call('HSET', key, 'l', now + lease)
      end
      return { 2, left }
    end
  end
  redis.call('HSET', key, 'f', args[1], 'o', args[2], 'l', now + lease)
  redis.call('PEXPIRE', key, args[4])
  return { 1 }
end

redis.register_function('regatta_counter_v2_claim', claim)
