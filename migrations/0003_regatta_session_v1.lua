#!lua name=regatta_session_v1
-- Regatta's server-side code for whole sessions: their ids, their users and their ends.
--
-- Reading, touching and changing a session's fields is not here but in `begin` and `commit`. This file never changes
-- once it was released. It runs as a Redis function and as a script by digest. Time is Redis's own.
-- Whatever may fail is tried before the first write.
--
-- A session is a hash. Fields named _ and one letter are ours:
--   _c created ms · _t last touch ms · _v views · _i own idle lifetime ms · _x own end ms · _u its user's tag
--   · _g its user's generation at login, ms · _d details · _r the mark of an id that was replaced: no session any more
-- A user's sessions stand in an index (sorted set: hashed id by time of login, ms), which is advice: what it names may
-- be gone, and every look at it mends it. A user's generation (string: ms) is when everything of his was last logged
-- out; a session whose own is older is revoked.
--
-- regatta_session_v1_move: give a session another id in one step, or make one; with a login or without.
--   KEYS   the new id's session · the old id's, unless ARGV[2] is '-'
--          · with a user: his index, his generation
--   ARGV   1 'login': the session's user changes and its lifetime begins anew; or 'cycle': only the id changes
--          2 '-': there is no old one, 'o': there must be one, 'f': a new one is made if it is gone
--          3 user's tag, or '' · 4 new hashed id · 5 old hashed id, or '' · 6 details, or '' to leave them
--          7 idle lifetime ms · 8 absolute lifetime ms · 9 how long the old id stays marked, ms
--          · 10 most fields · 11 most bytes of names and values
--          · then three lists, each behind its number of entries: field and value to set, field to remove,
--            field and value it must still have: those that are encrypted, which the caller has encrypted for the new id
--   reply  1, created ms, sessions in the user's index (0 without one)
--          · or one number, and nothing was changed: 0 gone · -1 the new id is taken · -2 too many fields or bytes
--            · -3 the old id was replaced already · -4 an encrypted field is not what it must be
--   example  FCALL regatta_session_v1_move 4 p:s:new p:s:old p:u:tag p:g:tag
--              login f tag new old {"user":"ann"} 86400000 2592000000 10000 64 16384  0 0 0   → 1 1763694494000 1
--
-- regatta_session_v1_end: end one session.
--   KEYS   the session · its user's index, if there is one
--   ARGV   its hashed id · the user's tag it must have, or '' for any
--   reply  1 ended · 0 there was none of his
--
-- regatta_session_v1_list: a user's sessions; those that are gone leave the index.
--   KEYS   his index · his generation · sessions that the index names, …
--   ARGV   his tag · most sessions he may have, 0 for any: the oldest of the rest end · hashed ids of the sessions, …
--   reply  per session: [created ms, last touch ms, details], or [0] if it is gone or ended now
--
-- regatta_session_v1_everywhere: log a user out everywhere, whatever his number of sessions.
--   KEYS   his generation · his index · a session of his that stays, if any
--   ARGV   how long the generation is kept, ms: longer than any session lives · hashed id of what stays, or ''
--   reply  the new generation, ms
--
-- regatta_session_v1_remember: give a session a lifetime of its own.
--   KEYS   the session · its user's index, if there is one
--   ARGV   idle lifetime ms · lifetime from now ms
--   reply  1 done · 0 gone
--
-- regatta_session_v1_quarantine: put aside what lies under a session's key and is none.
--   KEYS   the session · where it goes
--   ARGV   how long it is kept there, ms
--   reply  1 put aside · 0 there is nothing, or a session

local function min(a, b) if a < b then return a end return b end

local function div(a, b) return (a - a % b) / b end

local function clock_ms()
  local now = redis.call('TIME')
  return now[1] * 1000 + div(now[2], 1000)
end

-- Whole digits: `..` and tostring would write large numbers as 1.7e+12.
local function text(number) return string.format('%.0f', number) end

-- An application's own `_` is stored as `__`.
local function ours(field) return #field == 2 and string.sub(field, 1, 1) == '_' and field ~= '__' end

-- A field of a session, or nothing: also where something else lies under the key.
local function field(key, name)
  local value = redis.pcall('HGET', key, name)
  if type(value) == 'string' then return value end
end

-- Keeps a key at least this long.
local function keep(key, ms)
  if redis.call('PTTL', key) < ms then redis.call('PEXPIRE', key, text(ms)) end
end

-- Three counted lists from the end of the arguments, as tables: field → value, names, field → value.
local function lists(args, at)
  local set, remove, expect = {}, {}, {}
  for _ = 1, tonumber(args[at]) do
    set[args[at + 1]] = args[at + 2]
    at = at + 2
  end
  at = at + 1
  for _ = 1, tonumber(args[at]) do
    at = at + 1
    remove[args[at]] = true
  end
  at = at + 1
  for _ = 1, tonumber(args[at]) do
    expect[args[at + 1]] = args[at + 2]
    at = at + 2
  end
  return set, remove, expect
end

-- Whether every encrypted field is known to the caller, who has encrypted it for the new id.
local function known(stored, expect)
  for name, value in pairs(expect) do
    if stored[name] ~= value then return false end
  end
  for name, value in pairs(stored) do
    if not ours(name) and string.sub(value, 1, 1) == '~' and not expect[name] then return false end
  end
  return true
end

-- Number and bytes of the application's fields after a change.
local function measure(stored, set, remove)
  local count, bytes = 0, 0
  local function add(name, value) count, bytes = count + 1, bytes + #name + #value end
  for name, value in pairs(stored) do
    if not ours(name) and not set[name] and not remove[name] then add(name, value) end
  end
  for name, value in pairs(set) do add(name, value) end
  return count, bytes
end

local function stored_of(key)
  local flat, stored = redis.call('HGETALL', key), {}
  for i = 1, #flat, 2 do stored[flat[i]] = flat[i + 1] end
  return stored
end

-- The session under the old id, or why there is none; an empty one if it may be made.
local function source(how, old, now, absolute)
  if how == '-' then return {} end
  local marked, created = field(old, '_r'), tonumber(field(old, '_c') or '')
  if marked then return nil, -3 end
  if not created then
    if how == 'f' then return {} end
    return nil, 0
  end
  local stored = stored_of(old)
  local ends = tonumber(stored._x or '') or created + absolute
  if ends <= now then
    if how == 'f' then return {} end
    return nil, 0
  end
  return stored, created
end

local function move(keys, args)
  local login, how, tag, now = args[1] == 'login', args[2], args[3], clock_ms()
  local idle, absolute, grace = tonumber(args[7]), tonumber(args[8]), args[9]
  local new, old, at = keys[1], nil, 2
  if how ~= '-' then old, at = keys[2], 3 end
  local set, remove, expect = lists(args, 12)
  if redis.call('EXISTS', new) == 1 then return -1 end
  local stored, created = source(how, old, now, absolute)
  if not stored then return created end
  if not known(stored, expect) then return -4 end
  local count, bytes = measure(stored, set, remove)
  if count > tonumber(args[10]) or bytes > tonumber(args[11]) then return -2 end
  local generation = 0
  if tag ~= '' then
    local value = redis.pcall('GET', keys[at + 1])
    if type(value) == 'string' then generation = tonumber(value) or 0 end
    -- An index that is none would fail after the first write.
    if type(redis.pcall('ZCARD', keys[at])) ~= 'number' then redis.call('DEL', keys[at]) end
  end

  if created then
    redis.call('RENAME', old, new)
    redis.call('HSET', old, '_r', text(now))
    redis.call('PEXPIRE', old, grace)
  else
    redis.call('HSET', new, '_v', '0')
  end
  if login then
    if created then redis.call('HDEL', new, '_i', '_x', '_u', '_g', '_d') end
    stored._i, stored._x = nil, nil
  end
  if login or not created then
    created = now
    redis.call('HSET', new, '_c', text(now))
  end
  redis.call('HSET', new, '_t', text(now))
  if args[6] ~= '' then redis.call('HSET', new, '_d', args[6]) end
  for name in pairs(remove) do redis.call('HDEL', new, name) end
  for name, value in pairs(set) do redis.call('HSET', new, name, value) end
  local own_idle = tonumber(stored._i or '') or idle
  local left = (tonumber(stored._x or '') or created + absolute) - now
  redis.call('PEXPIRE', new, text(min(own_idle, left)))
  if tag == '' then return { 1, text(created), 0 } end

  local index = keys[at]
  if login then redis.call('HSET', new, '_u', tag, '_g', text(generation)) end
  local since = now
  if args[5] ~= '' then
    if not login then since = redis.call('ZSCORE', index, args[5]) or text(created) end
    redis.call('ZREM', index, args[5])
  end
  redis.call('ZADD', index, since, args[4])
  keep(index, left)
  return { 1, text(created), redis.call('ZCARD', index) }
end

local function finish(keys, args)
  local session, index, digest, tag = keys[1], keys[2], args[1], args[2]
  local his = tag == '' or field(session, '_u') == tag
  if index then redis.pcall('ZREM', index, digest) end
  if not his then return 0 end
  return redis.call('DEL', session)
end

-- Created, touched and details of a session that is this user's and lives.
local function living(key, tag, generation)
  if field(key, '_u') ~= tag then return nil end
  local created = field(key, '_c')
  if not created or (tonumber(field(key, '_g') or '') or 0) < generation then return nil end
  return { created, field(key, '_t') or created, field(key, '_d') or '' }
end

local function list(keys, args)
  local index, tag, most = keys[1], args[1], tonumber(args[2])
  local generation = redis.pcall('GET', keys[2])
  generation = type(generation) == 'string' and tonumber(generation) or 0
  local reply, lives = {}, {}
  for i = 3, #keys do
    local found = living(keys[i], tag, generation)
    if found then
      lives[#lives + 1] = { at = i - 2, login = tonumber(redis.call('ZSCORE', index, args[i])) or 0 }
    else
      redis.call('ZREM', index, args[i])
    end
    reply[i - 2] = found or { 0 }
  end
  -- What the index names beyond those that were asked for counts as living.
  local over = redis.call('ZCARD', index) - most
  if most == 0 or over <= 0 then return reply end
  table.sort(lives, function(a, b) return a.login < b.login or a.login == b.login and a.at < b.at end)
  for i = 1, min(over, #lives) do
    local at = lives[i].at
    redis.call('DEL', keys[at + 2])
    redis.call('ZREM', index, args[at + 2])
    reply[at] = { 0 }
  end
  return reply
end

local function everywhere(keys, args)
  local generation, index, stays = keys[1], keys[2], keys[3]
  local now, before = clock_ms(), redis.pcall('GET', generation)
  before = type(before) == 'string' and tonumber(before) or 0
  -- Later than every login, also after Redis forgot the one before or its clock stepped back.
  local value = now
  if before >= now then value = before + 1 end
  redis.call('SET', generation, text(value), 'PX', args[1])
  local since = redis.pcall('ZSCORE', index, args[2])
  redis.call('DEL', index)
  if stays and field(stays, '_c') then
    redis.call('HSET', stays, '_g', text(value))
    redis.call('ZADD', index, type(since) == 'string' and since or text(now), args[2])
    redis.call('PEXPIRE', index, args[1])
  end
  return text(value)
end

local function remember(keys, args)
  local session, index, now = keys[1], keys[2], clock_ms()
  local idle, absolute = tonumber(args[1]), tonumber(args[2])
  if not field(session, '_c') then return 0 end
  redis.call('HSET', session, '_i', text(idle), '_x', text(now + absolute), '_t', text(now))
  redis.call('PEXPIRE', session, text(min(idle, absolute)))
  if index then keep(index, absolute) end
  return 1
end

local function quarantine(keys, args)
  if redis.call('EXISTS', keys[1]) == 0 or field(keys[1], '_r') then return 0 end
  if tonumber(field(keys[1], '_c') or '') then return 0 end
  redis.call('RENAME', keys[1], keys[2])
  redis.call('PEXPIRE', keys[2], args[1])
  return 1
end

redis.register_function('regatta_session_v1_move', move)
redis.register_function('regatta_session_v1_end', finish)
redis.register_function('regatta_session_v1_list', list)
redis.register_function('regatta_session_v1_everywhere', everywhere)
redis.register_function('regatta_session_v1_remember', remember)
redis.register_function('regatta_session_v1_quarantine', quarantine)
