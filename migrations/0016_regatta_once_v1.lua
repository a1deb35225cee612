#!lua name=regatta_once_v1
-- Regatta's server-side code for the names under which a request with an Idempotency-Key is found again, version 1.
--
-- A client sends the same request under changing names: without a cookie, with its first one, after a login. Each name
-- (a string: fingerprint, then record) leads to the one record of the request, which is claimed and kept as
-- regatta_counter_v2 and _v1 have it, on the same keys: workers of both releases serve during a rolling deploy.
-- All names of one key lie in one slot of a cluster. This file never changes once it was released. It runs as a Redis
-- function and as a script by digest.
--
-- regatta_once_v1_find: the record of a request, which from then on is found under its own names.
--   KEYS   names, the strongest first: its own, then those under which it may have been sent before
--   ARGV   how many are its own · fingerprint · the record it has if none is known · lifetime of the names ms
--          A name of its own counts whatever request it stands for; another one only for the same request.
--   reply  the record
--   example  FCALL regatta_once_v1_find 2 p:io:{key}:user p:io:{key}:session  1 f00d... p:i:digest 86460000  → p:i:digest

local function find(keys, args)
  local own, fingerprint, record = tonumber(args[1]), args[2], args[3]
  local length, held = #fingerprint, {}
  local found
  for i = 1, #keys do
    local value = redis.call('GET', keys[i])
    held[i] = value and true or false
    if value and not found and (i <= own or string.sub(value, 1, length) == fingerprint) then
      found = { string.sub(value, 1, length), string.sub(value, length + 1) }
    end
  end
  if found and found[1] ~= fingerprint then return found[2] end
  if found then record = found[2] end
  for i = 1, own do
    if not held[i] then redis.call('SET', keys[i], fingerprint .. record, 'PX', args[4]) end
  end
  return record
end

redis.register_function('regatta_once_v1_find', find)
