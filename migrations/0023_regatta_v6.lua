#!lua name=regatta_v6
-- Regatta's server-side code, version 6: what requests ask of Redis at their start, and what they commit, each as one call
-- for all requests of one turn of a worker's loop.
--
-- Beside versions 2 to 5 and regatta_session_v1, on the same keys and in the same layout: workers of several releases serve
-- during a rolling deploy. Whole sessions are version 5's matter still, and so is a call of one request. New since
-- version 5: sessions with a user and sessions with fields are read in the plain way, and commits share a call.
-- This file never changes once it was released. It runs as a Redis function and, behind a few lines that Regatta puts
-- around it, as a script by digest. Time is Redis's own, in whole microseconds: below 2^53, where Lua's numbers are
-- exact. Nothing is turned into text by `..` or tostring, which would lose the microseconds.
--
-- A session is a hash. Fields named _ and one letter are ours:
--   _c created ms · _t last touch ms, 0 while it is not confirmed · _v views · _i own idle lifetime ms · _x own end ms
--   · _h its head · _u its user's tag · _g its user's generation at login, ms · _d details · _l the first hashed id it had
--   · _r the mark of an id that was replaced, ms, or 0 of a session that ended: no session any more
-- A ticket is a signed cookie for which nothing is stored: an id, when it was issued, and whether a view was counted with
-- it. When it comes back within its term the session is made under that id, created when the ticket was issued, and with
-- the ticket's view. A session whose id may still be named by a ticket leaves a mark until the ticket's term is over, or
-- the ticket would make it anew.
-- A session is not confirmed until its cookie has come back, or while its client makes more than it may: it is gone
-- after the term without use. Every version takes the 0 for a touch that is long overdue, and confirms it.
--
-- begin, which is called within a batch only: decide the limits; if all allow, charge them, read the session, count its
--   view, add to counters. A call that is denied writes nothing but repairs. What could fail is tried before the first write.
--   KEYS   one per limit · the session, unless ARGV[1] is '-' (hash) · its user's generation, if flag 1 is set
--          (string: number) · the client's limit on new sessions, if flag 16 is set · one per counter (string: number)
--          A limit on rate is a string: theoretical arrival time, us. One on concurrency is a sorted set: a member per
--          request under way, its score the time at which its lease ends, us.
--   ARGV   session: '-' none, 'r' read, 'v' read and count a view; 'kr', 'kv' the same for a ticket, and make what it
--          names; 'pr', 'pv' the same for a ticket, and make nothing
--          · numbers: idle lifetime ms, absolute lifetime ms (both 0 without a session)
--            , flags: 1 a generation is given, 16 a limit on new sessions is given, 32 the ticket carries a view
--            · per limit: kind, a, b, cost (0 looks only)
--              kind 0 rate: a interval us, b tolerance us (interval x burst)
--              kind 1 rate in shadow: the same; its refusal is told and denies nothing
--              kind 2 concurrency: a lease us, b most requests at once; kind 3 the same in shadow
--            · of a ticket: issued ms, term ms, interval us and tolerance us of the limit on new sessions
--          · token: what this request is called in limits on concurrency
--          · per counter: what to add, as text, because it may exceed what a double holds (0 reads only)
--   reply  numbers
--          · 1 granted or 0 denied
--          · per limit: 1 allowed or 0, remaining, retry after us (-1: allowed, or never), reset after us
--          · only if granted: per counter its value
--          · only if granted and with a session: 1 live, created ms, views · 5 live and not confirmed, created ms, views
--            · 7 as 1, and made by this call, which charged the limit on new sessions · 8 as 5, and made by this call
--            · 0 gone · 2 rotated: it has another id now · 3 damaged: something else lies under the key
--            · 4 revoked: its user logged out everywhere; it is deleted · 6 a ticket, and nothing is made
--          · only if granted, unless the session lives: now, ms
--          If the session lives and has more than _c, _t and _v: a list of that string and [field, value, ...].
--   Numbers travel as doubles, little-endian, in one string: on both sides it is cheaper than a list.
--
-- regatta_v6_batch: up to 64 calls of begin at one instant. What it does is what they would do one by one: first the plain
--   ones in their order, then the rare ones in theirs. What one of them fails with is its own.
--   Plain: a session without a ticket, limits on rate that count, counters; no key twice in one entry; costs and
--   what is added from 0 to 255; one pair of lifetimes a batch. Anything else is rare, in the form of begin.
--   Beside the fields above a session has _h, its head: created ms and last touch ms, two doubles. It is believed where
--   there is nothing else but _c, _t and _v, and made anew from them otherwise: other releases leave it as it is. A session
--   that has anything else has none.
--   KEYS   the ledger, if flag 1 is set (string: the last batch's number, ':', bits) · distinct counters · distinct limits
--          · distinct generations · the plain entries' sessions · keys of each rare entry
--   ARGV   numbers: flags, idle lifetime ms, absolute lifetime ms, counters, limits, generations, plain entries, their
--            sessions, rare entries · per limit interval us and tolerance us · per rare entry its number of keys and of arguments
--            flags: 1 a ledger is given, 2 this batch may have been executed before, 4 all plain entries count a view
--          · the batch's number and ':', as text, 16 digits; it grows within a ledger
--          · the plan, bytes, per plain entry: 0 no session, 1 read, 2 read and count a view · its number of limits, of each
--            index (from 1) and cost · its number of counters, of each index and what is added; and behind all entries, if
--            there are generations, per session the index of its user's, or 0
--          · per counter what all plain entries add, as text · arguments of each rare entry
--   reply  numbers: now us, 0 · per limit how far it was ahead before the batch, us · per counter its value after it
--            · per granted plain entry with a session: views, created ms · or -100, views, created ms: its fields are in the
--            list · or -1 - its state as above, if it does not live
--          · or now us and 1, executed before: what stands now, or 2, each entry was executed on its own
--          Either these numbers alone, which says that all were granted; or a list: numbers, bits, then [field, value, ...]
--          of each plain session that has some, then each rare entry's answer (all entries' after 1 and 2), as begin's or
--          [error].
--   A bit an entry, plain ones first: 1 granted, 0 denied, or a letter, failed; '' if all were granted. The ledger has them
--   too: a batch that is sent again is answered by them and by what stands now, and writes nothing; one that comes after a
--   later one of its ledger does nothing. A batch of which nothing is granted is noted only if it is sent again.
--   example  FCALL regatta_v6_batch 4 p:once:5eed:b3 p:c:total p:s:one p:s:two
--                  [5 86400000 2592000000 1 0 0 2 2 0] 0000000000000017: "\2\0\1\1\1\2\0\1\1\1" 2
--            -> [1763694494000000 0 42 7 1763694400000 3 1763694300000]
--
-- A user's generation (string: ms) is when everything was last logged out; a session whose own is older is revoked.
--
-- regatta_v6_commits: up to 64 commits at one instant, one after the other: each changes fields of one session, those that
--   are named and no others. What one of them fails with is its own.
--   KEYS   the ledger, if flag 1 is set (string: the last batch's number, ':', its reply) · a session per commit (hash)
--   ARGV   numbers: flags (1 a ledger is given), commits · per commit: 1 make the session or 0 change it, most fields, most
--            bytes of names and values (0: not looked at), how many fields it expects, sets, adds to, removes
--          · the batch's number and ':', as text, 16 digits; it grows within a ledger
--          · per commit: if it makes created ms (0: now), views, idle lifetime ms, absolute lifetime ms
--            · per field that is expected its name, 1 and the value it must have, or 0 and '' if it must be absent
--            · name and value of each that is set · name and what is added of each that is added to
--            · name of each that is removed
--   reply  '' if all are stored and none added to a field; else a letter a commit, then texts, each behind its length (four
--          bytes, little-endian): of each commit that is stored its sums, of each that failed why
--          1 stored · 0 gone (a session that is not there is never made by a change) · x to be made, but there already
--          · f too many fields or bytes · c an expectation does not hold · n not an integer, or it would overflow
--          · r rotated · e it failed. All but 1 changed nothing.
--   A batch that was executed before is answered as it was then; one that comes after a later one of its ledger does nothing.
--   example  FCALL regatta_v6_commits 2 p:s:one p:s:two  [0 2  0 64 0 0 1 0 1  0 64 0 0 0 1 0] ""
--                  cart "[1,2]" coupon  visits 1
--            -> 11 [1 0 0 0] 8

-- Neither redis.call nor math exist while Redis loads a library, so neither can be kept in a local here.
local function min(a, b) if a < b then return a end return b end

local function max(a, b) if a > b then return a end return b end

-- Whole part of a division of what is not negative.
local function div(a, b) return (a - a % b) / b end

-- Fields that every session has: one without more needs no list.
local ALWAYS = 3
-- How long a ledger is kept after its lifetime was last set, ms: far longer than anything is sent again.
local LEDGER = '180000'

local function clock()
  local now = redis.call('TIME')
  return now[1] * 1000000 + now[2]
end

-- GCRA. A stored time further ahead than the tolerance came from another clock: it is cut, and stored so, or a clock
-- that stepped back by an hour would refuse for an hour. What is not a number counts as nothing.
local function rate(key, now, interval, tolerance, cost)
  local stored = tonumber(redis.call('GET', key))
  local ahead = 0
  if stored and stored > now then
    ahead = stored - now
    ahead = ahead - ahead % 1
    if ahead > tolerance then
      ahead = tolerance
      redis.call('SET', key, now + ahead, 'PX', div(ahead + 999, 1000))
    end
  end
  local wanted = ahead + interval * cost
  if wanted > tolerance then
    local retry = -1
    if interval * cost <= tolerance then retry = wanted - tolerance end
    return 0, div(tolerance - ahead, interval), retry, ahead
  end
  return 1, div(tolerance - wanted, interval), -1, wanted
end

-- Requests whose lease has ended do not count, whether they were taken out or not. A lease that ends later than one
-- that begins now came from another clock and is cut like a stored time.
local function concurrency(key, now, lease, most, cost)
  local late = redis.call('ZRANGEBYSCORE', key, '(' .. string.format('%.0f', now + lease), '+inf')
  for i = 1, #late do redis.call('ZADD', key, 'XX', now + lease, late[i]) end
  local busy = redis.call('ZCOUNT', key, '(' .. string.format('%.0f', now), '+inf')
  if busy + cost > most then return 0, 0, min(lease, 1000000), lease end
  local reset = 0
  if busy + cost > 0 then reset = lease end
  return 1, most - busy - cost, -1, reset
end

-- Decides every limit; charges nothing. Returns whether all that count allow.
local function decide_all(now, keys, numbers, limits, reply)
  local granted = true
  for i = 1, limits do
    local at, slot = 4 * i, 4 * i - 2
    local kind = numbers[at]
    local decide = kind < 2 and rate or concurrency
    local allowed, remaining, retry, reset = decide(keys[i], now, numbers[at + 1], numbers[at + 2], numbers[at + 3])
    if allowed == 0 and kind % 2 == 0 then granted = false end
    reply[slot], reply[slot + 1], reply[slot + 2], reply[slot + 3] = allowed, remaining, retry, reset
  end
  return granted
end

-- What an allowing limit said assumed a charge; when another one refuses, none is made.
local function uncharge(numbers, limits, reply)
  for i = 1, limits do
    local at, slot = 4 * i, 4 * i - 2
    local cost = numbers[at + 3]
    if reply[slot] == 1 and cost > 0 then
      if numbers[at] < 2 then
        reply[slot + 3] = reply[slot + 3] - numbers[at + 1] * cost
        reply[slot + 1] = div(numbers[at + 2] - reply[slot + 3], numbers[at + 1])
      else
        reply[slot + 1] = reply[slot + 1] + cost
        if reply[slot + 1] == numbers[at + 2] then reply[slot + 3] = 0 end
      end
    end
  end
end

local function charge(now, keys, numbers, limits, token, reply)
  for i = 1, limits do
    local at, slot = 4 * i, 4 * i - 2
    if reply[slot] == 1 and numbers[at + 3] > 0 then
      if numbers[at] < 2 then
        local spent = reply[slot + 3]
        redis.call('SET', keys[i], now + spent, 'PX', div(spent + 999, 1000))
      else
        local lease = numbers[at + 1]
        redis.call('ZREMRANGEBYSCORE', keys[i], '-inf', now)
        redis.call('ZADD', keys[i], now + lease, token)
        redis.call('PEXPIRE', keys[i], div(lease + 999, 1000))
      end
    end
  end
end

-- Adds to every counter or to none: the sum of the second may not fit although the first's did.
local function count(keys, args, key_at, last, arg_at, reply)
  for i = key_at, last do
    local by = args[arg_at + i - key_at]
    local value
    if by == '0' then
      value = redis.pcall('GET', keys[i])
      if type(value) ~= 'table' then value = tonumber(value or 0) or redis.error_reply('ERR value is not an integer') end
    else
      value = redis.pcall('INCRBY', keys[i], by)
    end
    if type(value) == 'table' then
      for j = key_at, i - 1 do
        local undo = args[arg_at + j - key_at]
        -- Taken back in two parts, because the smallest integer has no opposite.
        if undo == '-9223372036854775808' then redis.call('INCRBY', keys[j], '9223372036854775807') undo = '-1' end
        if undo ~= '0' then redis.call('DECRBY', keys[j], undo) end
      end
      return value
    end
    reply[#reply + 1] = value
  end
end

local GONE, LIVE, ROTATED, DAMAGED, REVOKED, UNCONFIRMED, TICKET, MADE, MADE_UNCONFIRMED = 0, 1, 2, 3, 4, 5, 6, 7, 8
-- Never told: nothing lies under the key.
local ABSENT = 9
-- Below this a double holds every whole number.
local EXACT = 9007199254740992
-- How long an id that was replaced is told apart from one whose session ended, ms: requests that were sent with it are
-- under way. They get no cookie, which would take the new one's place.
local GRACE = 10000

-- What lies under a session's key: a status, and of a session that lives its head and its fields, if it has more.
-- `generation` is a key or, if it was read already, what lies there.
local function look(key, generation, now_ms, absolute)
  local fields = redis.pcall('HGETALL', key)
  if fields.err then return DAMAGED end
  if #fields == 0 then return ABSENT end
  local head = {}
  for i = 1, #fields, 2 do
    -- Ours have two characters.
    if #fields[i] == 2 then head[fields[i]] = fields[i + 1] end
  end
  if head._r then
    local since = now_ms - (tonumber(head._r) or 0)
    if since >= GRACE then return GONE end
    return ROTATED, { ahead = since < 0 }
  end
  local created = tonumber(head._c)
  if not created then return DAMAGED end
  local found = {
    created = created, touched = tonumber(head._t) or 0, views = tonumber(head._v) or 0,
    idle = tonumber(head._i), ends = tonumber(head._x) or created + absolute,
  }
  -- Times that are no numbers, or beyond what Redis takes, would fail after the first write, and fail a whole batch.
  if not (found.ends < EXACT) or found.idle and not (found.idle < EXACT) then return DAMAGED end
  if type(generation) == 'string' then generation = tonumber(redis.call('GET', generation)) or 0 end
  if generation and generation > (tonumber(head._g) or 0) then return REVOKED end
  if found.ends <= now_ms then return GONE end
  found.head = head._h
  local others = #fields / 2 - (head._h and 1 or 0)
  found.bare = others == ALWAYS and head._t and head._v
  if others == ALWAYS then return LIVE, found end
  return LIVE, found, fields
end

-- Whether the client may have one session more that lives as long as sessions do, and what its limit is then set to.
local function room(key, now, interval, tolerance)
  if not key then return true end
  local stored = tonumber(redis.call('GET', key))
  local ahead = interval
  if stored and stored > now then ahead = ahead + stored - now end
  -- A time that is further ahead than the limit can put it was stored by another clock: the session is allowed.
  if ahead > tolerance + interval then ahead = tolerance end
  return ahead <= tolerance, ahead, ahead - tolerance
end

local function take_room(key, now, ahead)
  if key then redis.call('SET', key, now + ahead, 'PX', div(ahead + 999, 1000)) end
end

-- A ticket, from the numbers behind those of the limits.
local function ticket_of(how, numbers, limits)
  local at = 3 + 4 * limits
  return {
    makes = string.sub(how, 1, 1) == 'k', views = numbers[3] % 64 >= 32 and 1 or 0,
    issued = numbers[at + 1], term = numbers[at + 2], interval = numbers[at + 3], tolerance = numbers[at + 4],
  }
end

-- What a ticket is worth under whose id nothing lies. One from further ahead than its term came from another clock.
local function worth(ticket, now_ms)
  if now_ms < ticket.issued + ticket.term and ticket.issued <= now_ms + ticket.term then return TICKET end
  return GONE
end

-- Counts a view of a session that lives, and returns its views.
local function view(key)
  local views = redis.pcall('HINCRBY', key, '_v', '1')
  if type(views) == 'number' then return views end
  -- A damaged number: counting goes on from the beginning rather than failing for ever.
  redis.call('HSET', key, '_v', '1')
  return 1
end

-- Makes the session that a ticket names.
local function make(key, ticket, views, now, now_ms, idle, absolute)
  local left, touched = min(idle, ticket.issued + absolute - now_ms), now_ms
  if ticket.room then
    take_room(ticket.key, now, ticket.ahead)
  else
    left, touched = min(left, ticket.term), 0
  end
  redis.call('HSET', key, '_c', ticket.issued, '_t', touched, '_v', views)
  redis.call('PEXPIRE', key, left)
  return ticket.room and MADE or MADE_UNCONFIRMED
end

-- Touches a session that was found; returns whether it is confirmed.
local function touch(key, found, ticket, now, now_ms, idle)
  idle = found.idle or idle
  if found.touched == 0 and ticket then
    if not ticket.makes then return UNCONFIRMED end
    if not ticket.room then
      redis.call('PEXPIRE', key, min(min(idle, ticket.term), found.ends - now_ms))
      return UNCONFIRMED
    end
    take_room(ticket.key, now, ticket.ahead)
  end
  -- A tenth of the idle lifetime must have passed, so that a busy session is not touched at every request.
  if (now_ms - found.touched) * 10 >= idle then
    redis.call('HSET', key, '_t', now_ms)
    redis.call('PEXPIRE', key, min(idle, found.ends - now_ms))
  end
  return LIVE
end

-- Formats for struct by the number of numbers.
local FORMATS = {}

local function format(count)
  local known = FORMATS[count]
  if not known then
    known = '<' .. string.rep('d', count)
    FORMATS[count] = known
  end
  return known
end

local function pack(numbers)
  return struct.pack(format(#numbers), unpack(numbers))
end

-- The session's part of the reply, after everything else was done.
local function settle(key, visit, status, found, ticket, now, now_ms, numbers, reply)
  local at = #reply
  if status == LIVE then
    local views = found.views
    if visit then views = view(key) end
    reply[at + 1] = touch(key, found, ticket, now, now_ms, numbers[1])
    reply[at + 2], reply[at + 3] = found.created, views
    return
  end
  if status == TICKET and ticket.makes then
    local views = ticket.views + (visit and 1 or 0)
    reply[at + 1] = make(key, ticket, views, now, now_ms, numbers[1], numbers[2])
    reply[at + 2], reply[at + 3] = ticket.issued, views
    return
  end
  -- A replacement in the future came from another clock, and would not end before that time has come again.
  if status == ROTATED and found.ahead then redis.call('HSET', key, '_r', now_ms) end
  if status == REVOKED then redis.call('DEL', key) end
  reply[at + 1], reply[at + 2] = status, now_ms
end

-- The answer to a call that was executed before: what stands now, and nothing is written.
local function again(now, keys, args, numbers, limits, key_at, last)
  for i = 1, limits do numbers[4 * i + 3] = 0 end
  local reply, how, now_ms = { 1 }, args[1], div(now, 1000)
  decide_all(now, keys, numbers, limits, reply)
  local key, status, found, fields = nil, nil, nil, nil
  if how ~= '-' then
    key, key_at = keys[key_at], key_at + 1
    local generation
    if numbers[3] % 2 == 1 then generation, key_at = keys[key_at], key_at + 1 end
    if numbers[3] % 32 >= 16 then key_at = key_at + 1 end
    status, found, fields = look(key, generation, now_ms, numbers[2])
    local ticket = #how == 2 and ticket_of(how, numbers, limits)
    if status == ABSENT then status = ticket and not ticket.makes and worth(ticket, now_ms) or GONE end
    if status == LIVE and ticket and found.touched == 0 then status = UNCONFIRMED end
  end
  for i = key_at, last do
    local value = redis.pcall('GET', keys[i])
    reply[#reply + 1] = type(value) ~= 'table' and tonumber(value or 0) or 0
  end
  if status then reply[#reply + 1] = status end
  if status == LIVE or status == UNCONFIRMED then
    reply[#reply + 1] = found.created
    reply[#reply + 1] = found.views
  else
    reply[#reply + 1] = now_ms
  end
  if fields then return { pack(reply), fields } end
  return pack(reply)
end

local function begin_at(now, keys, args)
  local how = args[1]
  local numbers = { struct.unpack(format(#args[2] / 8), args[2]) }
  local limits = (#args[2] / 8 - 3) / 4
  if #how == 2 then limits = limits - 1 end
  local flags = numbers[3]
  local reply = { 1 }
  if not decide_all(now, keys, numbers, limits, reply) then
    reply[1] = 0
    uncharge(numbers, limits, reply)
    return pack(reply)
  end

  -- The session is read before the first write, because reading may fail.
  local now_ms = div(now, 1000)
  local key_at, key, status, found, fields, ticket = limits + 1, nil, nil, nil, nil, nil
  if how ~= '-' then
    key, key_at = keys[key_at], key_at + 1
    local generation
    if flags % 2 == 1 then generation, key_at = keys[key_at], key_at + 1 end
    status, found, fields = look(key, generation, now_ms, numbers[2])
    if #how == 2 then
      ticket = ticket_of(how, numbers, limits)
      if flags % 32 >= 16 then ticket.key, key_at = keys[key_at], key_at + 1 end
      if status == ABSENT then status = worth(ticket, now_ms) end
      if ticket.makes and (status == TICKET or status == LIVE and found.touched == 0) then
        ticket.room, ticket.ahead = room(ticket.key, now, ticket.interval, ticket.tolerance)
      end
    elseif status == ABSENT then
      status = GONE
    end
  end

  -- The first write: a server that takes none says so here.
  local refused = count(keys, args, key_at, #keys, 4, reply)
  if refused then return refused end
  charge(now, keys, numbers, limits, args[3], reply)
  if key then
    settle(key, string.sub(how, -1) == 'v', status, found, ticket, now, now_ms, numbers, reply)
  else
    reply[#reply + 1] = now_ms
  end
  if fields then return { pack(reply), fields } end
  return pack(reply)
end

-- What batches of begins and of commits have in common.

-- What a server says to every write alike. Anything else concerns the entry whose key it is about.
local WHOLE = { OOM = true, READONLY = true, MISCONF = true, NOREPLICAS = true }
local function words(failure)
  return type(failure) == 'table' and failure.err or tostring(failure)
end

local function is_whole(failure)
  -- Before version 7 a server puts the place in the script in front.
  local text = string.gsub(words(failure), '^@user_script:%s*%d*:?%s*', '')
  return WHOLE[string.match(text, '^%-?(%u+)')]
end

-- Notes the batch in its ledger; returns what the ledger has if it was executed before, or that it is late.
local function note_batch(ledger, number, bits)
  local old = redis.call('SET', ledger, number .. bits, 'PX', LEDGER, 'GET')
  -- All numbers are as long: text that is less is an earlier number.
  if not old or old < number then return nil end
  if string.sub(old, 1, #number) == number then
    redis.call('SET', ledger, old, 'PX', LEDGER)
    return string.sub(old, #number + 1)
  end
  redis.call('SET', ledger, old, 'PX', LEDGER)
  return nil, redis.error_reply('ERR a later batch was executed: this one was given up')
end

-- Many begins in one call. It is made when it is first called: as a script, this file is run at each call, and no other call
-- is to pay for it.
local function batches()
  -- Flags of a batch: a ledger is given; it may have been executed before; all plain entries count a view.
  local NOTED, REPEATED, ALIKE = 1, 2, 4
  -- What a plain entry asks of a session.
  local NONE, READ, VIEW = 0, 1, 2
  -- How a batch was executed: now; before, and this is what stands; now, each entry on its own.
  local NOW, BEFORE, EACH = 0, 1, 2
  -- A session with fields, in place of its views.
  local WITH_FIELDS = -100

  -- Failures as a ledger keeps them: a letter in place of the entry's bit.
  local LETTERS = {
    o = 'ERR increment or decrement would overflow', i = 'ERR value is not an integer or out of range',
    w = 'WRONGTYPE Operation against a key holding the wrong kind of value', e = 'ERR refused when it was first sent',
  }

  local function letter_of(failure)
    if string.find(failure, 'would overflow', 1, true) then return 'o' end
    if string.find(failure, 'WRONGTYPE', 1, true) then return 'w' end
    if string.find(failure, 'not an integer', 1, true) then return 'i' end
    return 'e'
  end

  -- Whole numbers as text: a number is printed with 17 digits, which is slow.
  local function whole(number) return string.format('%.0f', number) end

  -- Some of an array, as one of its own.
  local function slice(array, first, count)
    return { unpack(array, first, first + count - 1) }
  end

  -- How far ahead of now each distinct limit of the batch is, cut as `rate` cuts it. Returns the failure of one under
  -- whose key something else lies.
  local function read_limits(batch)
    local keys, at, now, head, unpack_two = batch.keys, batch.limits_at, batch.now, batch.args[1], struct.unpack
    local ahead, first, interval, tolerance, cut, failure = {}, {}, {}, {}, nil, nil
    for i = 1, batch.limits do
      interval[i], tolerance[i] = unpack_two('<dd', head, 57 + 16 * i)
      local stored, far = redis.pcall('GET', keys[at + i]), 0
      if type(stored) == 'table' then failure = stored end
      stored = type(stored) == 'string' and tonumber(stored)
      if stored and stored > now then
        far = stored - now
        -- Travels as a whole number: with a fraction the caller would decide otherwise than is decided here.
        far = far - far % 1
        if far > tolerance[i] then
          far, cut = tolerance[i], cut or {}
          cut[#cut + 1] = i
        end
      end
      ahead[i], first[i] = far, far
    end
    batch.ahead, batch.first, batch.interval, batch.tolerance = ahead, first, interval, tolerance
    for j = 1, cut and not failure and #cut or 0 do
      local i = cut[j]
      redis.call('SET', keys[at + i], whole(now + first[i]), 'PX', whole(div(first[i] + 999, 1000)))
    end
    return failure
  end

  local function ones(count)
    local bits = {}
    for i = 1, count do bits[i] = '1' end
    return bits
  end

  -- Goes through the plan: decides each plain entry in turn, charges what is granted to `ahead`, and takes what is denied
  -- out of the counters' sums.
  local function decide_batch(batch)
    local byte, plan, at = string.byte, batch.args[3], 1
    local ahead, interval, tolerance = batch.ahead, batch.interval, batch.tolerance
    local modes, bits, denied = batch.modes, nil, 0
    for i = 1, batch.plain do
      local mode, count = byte(plan, at, at + 1)
      local allowed, last = true, at + 2 * count
      for j = at + 2, last, 2 do
        local limit, cost = byte(plan, j, j + 1)
        if ahead[limit] + interval[limit] * cost > tolerance[limit] then allowed = false end
      end
      if allowed then
        for j = at + 2, last, 2 do
          local limit, cost = byte(plan, j, j + 1)
          ahead[limit] = ahead[limit] + interval[limit] * cost
        end
      else
        denied = denied + 1
        bits = bits or ones(i - 1)
      end
      if bits then bits[i] = allowed and '1' or '0' end
      at = last + 2
      local counters = byte(plan, at)
      if not allowed and counters > 0 then
        batch.sums = batch.sums or {}
        for j = at + 1, at + 2 * counters, 2 do
          local counter, by = byte(plan, j, j + 1)
          batch.sums[counter] = (batch.sums[counter] or 0) + by
        end
      end
      at = at + 1 + 2 * counters
      if modes then modes[i] = mode end
    end
    batch.bits, batch.denied = bits, denied
  end

  -- Each distinct user's generation, or the failure of one under whose key something else lies.
  local function read_generations(keys, at, count)
    local since = {}
    for i = 1, count do
      local value = redis.pcall('GET', keys[at + i])
      if type(value) == 'table' then return nil, value end
      since[i] = tonumber(value) or 0
    end
    return since
  end

  -- The generation that the session of this place in the plan is held against, if there is one.
  local function generation_of(batch, i)
    local at = batch.generation and string.byte(batch.args[3], batch.users_at + i)
    return at and batch.generation[at]
  end

  -- Reads the session of each granted plain entry. A head is believed where there is nothing beside it but what every
  -- session has: commits and workers of other releases change the rest without telling it.
  local function look_batch(batch)
    local keys, at, modes, bits = batch.keys, batch.sessions_at, batch.modes, batch.bits
    local now_ms, idle, absolute = batch.now_ms, batch.idle, batch.absolute
    local call, try, unpack_two = redis.call, redis.pcall, struct.unpack
    local created, due, slow = batch.created, nil, nil
    for i = 1, batch.plain do
      if not modes or modes[i] ~= NONE then
        at = at + 1
        if not created[i] and (not bits or bits[i] == '1') then
          local key, since = keys[at], generation_of(batch, at - batch.sessions_at)
          local head = try('HLEN', key) == ALWAYS + 1 and not (since and since > 0) and call('HGET', key, '_h')
          if head and #head == 16 then
            local made, touched = unpack_two('<dd', head)
            if made + absolute > now_ms then
              created[i] = made
              if (now_ms - touched) * 10 >= idle then
                due = due or {}
                due[i] = true
              end
            else
              slow = slow or {}
              slow[i] = { GONE }
            end
          else
            local status, found, fields = look(key, since, now_ms, absolute)
            if status == ABSENT then status = GONE end
            -- It is deleted, which the entries behind it must see.
            if status == REVOKED then batch.apart = true end
            slow = slow or {}
            slow[i] = { status, found, fields }
          end
        end
      end
    end
    batch.due, batch.slow = due, slow
  end

  -- Takes an addition back. A counter that is as if it had never been added to is not kept.
  local function uncount(key, by)
    if by ~= '0' and redis.call('DECRBY', key, by) == 0 then redis.call('DEL', key) end
  end

  -- Adds to each counter what the granted entries add in all; every sum is in `out`, or nothing was added.
  local function count_batch(batch, out, at)
    local keys, args, sums, key_at = batch.keys, batch.args, batch.sums, batch.counters_at
    local added = {}
    for i = 1, batch.counters do
      local by = args[3 + i]
      if sums and sums[i] then by = whole(tonumber(by) - sums[i]) end
      local value
      if by == '0' then
        value = redis.pcall('GET', keys[key_at + i])
        if type(value) ~= 'table' then value = tonumber(value or 0) or redis.error_reply('ERR value is not an integer') end
      else
        value = redis.pcall('INCRBY', keys[key_at + i], by)
      end
      if type(value) == 'table' then
        for j = 1, i - 1 do uncount(keys[key_at + j], added[j]) end
        return value
      end
      added[i], out[at + i] = by, value
    end
  end

  local function charge_batch(batch)
    local keys, at, now, ahead, first = batch.keys, batch.limits_at, batch.now, batch.ahead, batch.first
    for i = 1, batch.limits do
      local spent = ahead[i]
      if spent > first[i] then
        redis.call('SET', keys[at + i], whole(now + spent), 'PX', whole(div(spent + 999, 1000)))
      end
    end
  end

  -- Counts, touches and tells a session that was read field by field; returns how far the answer goes.
  local function settle_slow(batch, key, mode, seen, out, at, lists)
    local status, found, fields, now_ms = seen[1], seen[2], seen[3], batch.now_ms
    if status ~= LIVE then
      if status == ROTATED and found.ahead then redis.call('HSET', key, '_r', now_ms) end
      out[at + 1] = -1 - status
      return at + 1
    end
    local views
    if mode == VIEW then
      views = view(key)
    else
      views = tonumber(redis.call('HGET', key, '_v') or '') or 0
    end
    local idle = found.idle or batch.idle
    local touched = found.touched
    if (now_ms - touched) * 10 >= idle then
      touched = now_ms
      redis.call('HSET', key, '_t', whole(now_ms))
      redis.call('PEXPIRE', key, whole(min(idle, found.ends - now_ms)))
    end
    if mode == VIEW then
      if found.bare and found.created % 1 == 0 and touched % 1 == 0 then
        redis.call('HSET', key, '_h', struct.pack('<dd', found.created, touched))
      elseif found.head and not found.bare then
        redis.call('HDEL', key, '_h')
      end
    end
    if fields then
      out[at + 1], at = WITH_FIELDS, at + 1
      lists[#lists + 1] = fields
    end
    out[at + 1], out[at + 2] = max(views, 0), found.created
    return at + 2
  end

  -- Counts and touches the sessions of all granted plain entries, and puts them into the answer.
  local function settle_batch(batch, out, at, lists)
    local keys, key_at, modes, bits = batch.keys, batch.sessions_at, batch.modes, batch.bits
    local created, fields, due, slow, now_ms = batch.created, batch.fields, batch.due, batch.slow, batch.now_ms
    local call, try = redis.call, redis.pcall
    for i = 1, batch.plain do
      local mode = VIEW
      if modes then mode = modes[i] end
      if mode ~= NONE then
        key_at = key_at + 1
        local since = created[i]
        if since then
          local key, views = keys[key_at], nil
          if mode == VIEW then
            views = try('HINCRBY', key, '_v', '1')
            if type(views) ~= 'number' then views = view(key) end
          else
            views = tonumber(call('HGET', key, '_v') or '') or 0
          end
          if due and due[i] then
            call('HSET', key, '_t', whole(now_ms), '_h', struct.pack('<dd', since, now_ms))
            call('PEXPIRE', key, whole(min(batch.idle, since + batch.absolute - now_ms)))
          end
          if views < 0 then views = 0 end
          if fields and fields[i] then
            out[at + 1], at = WITH_FIELDS, at + 1
            lists[#lists + 1] = fields[i]
          end
          out[at + 1], out[at + 2] = views, since
          at = at + 2
        elseif slow and slow[i] then
          at = settle_slow(batch, keys[key_at], mode, slow[i], out, at, lists)
        end
      end
    end
  end

  -- A plain entry in the form in which it would be called alone.
  local function alone(batch, wanted)
    local byte, plan, at, key_at = string.byte, batch.args[3], 1, batch.sessions_at
    for i = 1, wanted do
      local mode, count = byte(plan, at, at + 1)
      local limits_at, counters_at = at + 2, at + 2 + 2 * count
      local counters = byte(plan, counters_at)
      at = counters_at + 1 + 2 * counters
      if mode ~= NONE then key_at = key_at + 1 end
      if i == wanted then
        local keys, numbers, bys = {}, { batch.idle, batch.absolute, 0 }, {}
        for j = limits_at, counters_at - 2, 2 do
          local limit, cost = byte(plan, j, j + 1)
          keys[#keys + 1] = batch.keys[batch.limits_at + limit]
          local last = #numbers
          numbers[last + 1], numbers[last + 2] = 0, batch.interval[limit]
          numbers[last + 3], numbers[last + 4] = batch.tolerance[limit], cost
        end
        if mode ~= NONE then
          keys[#keys + 1] = batch.keys[key_at]
          local user = batch.generations > 0 and byte(plan, batch.users_at + key_at - batch.sessions_at) or 0
          if user > 0 then
            numbers[3] = 1
            keys[#keys + 1] = batch.keys[batch.generations_at + user]
          end
        end
        for j = counters_at + 1, at - 2, 2 do
          local counter, by = byte(plan, j, j + 1)
          keys[#keys + 1], bys[#bys + 1] = batch.keys[batch.counters_at + counter], whole(by)
        end
        local how = mode == NONE and '-' or mode == READ and 'r' or 'v'
        return keys, { how, pack(numbers), '', unpack(bys) }
      end
    end
  end

  -- A rare entry as it was sent.
  local function rare_of(batch, i)
    local at = 8 * (7 + 2 * batch.limits + 2 * i) + 1
    local keys, args = struct.unpack('<dd', batch.args[1], at)
    local key_at, arg_at = batch.rare_key_at, batch.rare_arg_at
    batch.rare_key_at, batch.rare_arg_at = key_at + keys, arg_at + args
    return slice(batch.keys, key_at, keys), slice(batch.args, arg_at, args)
  end

  -- What is said now to a call that was denied before.
  local function denial(now, keys, args, numbers, limits)
    local reply = { 0 }
    decide_all(now, keys, numbers, limits, reply)
    uncharge(numbers, limits, reply)
    return pack(reply)
  end

  -- One entry on its own: its answer, and its bit. What it fails with is its own, unless the server takes no writes at all
  -- and none was made.
  local function one(batch, keys, args, bit)
    local now = batch.now
    local done, answer = pcall(function()
      if not bit then return begin_at(now, keys, args) end
      local numbers = { struct.unpack(format(#args[2] / 8), args[2]) }
      local limits = (#args[2] / 8 - 3) / 4
      if #args[1] == 2 then limits = limits - 1 end
      if bit == '1' then return again(now, keys, args, numbers, limits, limits + 1, #keys) end
      return denial(now, keys, args, numbers, limits)
    end)
    if not done or type(answer) == 'table' and answer.err then
      local failure = words(answer)
      if not batch.written and is_whole(failure) then batch.refused = failure end
      return { failure }, bit or letter_of(failure)
    end
    if bit then return answer, bit end
    local packed = type(answer) == 'table' and answer[1] or answer
    if struct.unpack('<d', packed) == 1 then
      batch.written = true
      return answer, '1'
    end
    return answer, '0'
  end

  -- Entries on their own: all of them, or only the rare ones. `before` are the bits of a batch that was executed before.
  -- Returns the failure of a server that takes no writes.
  local function each(batch, first, before, bits, lists)
    for i = first, batch.plain + batch.rare do
      local keys, args
      if i <= batch.plain then
        keys, args = alone(batch, i)
      else
        keys, args = rare_of(batch, i - batch.plain)
      end
      local bit = before and (before == '' and '1' or string.sub(before, i, i))
      if LETTERS[bit] then
        lists[#lists + 1], bits[i] = { LETTERS[bit] }, bit
      else
        lists[#lists + 1], bits[i] = one(batch, keys, args, bit)
        if batch.refused then return redis.error_reply(batch.refused) end
      end
    end
  end

  local function bits_of(batch, bits)
    local all = table.concat(bits)
    if all == string.rep('1', batch.plain + batch.rare) then return '' end
    return all
  end

  -- The answer; `bits` say who was granted, '' if all were.
  local function answer_of(batch, out, bits, lists)
    local packed = pack(out)
    if bits == '' and #lists == 0 then return packed end
    return { packed, bits, unpack(lists) }
  end

  -- Every entry on its own, in the form of a call of one.
  local function each_alone(batch, before)
    local bits, lists = {}, {}
    local refused = each(batch, 1, before, bits, lists)
    if refused then return refused end
    local all = bits_of(batch, bits)
    if batch.ledger and not before then redis.call('SET', batch.ledger, batch.args[2] .. all, 'PX', LEDGER) end
    return answer_of(batch, { batch.now, before and BEFORE or EACH }, all, lists)
  end

  -- When a session with fields was created, and its fields, if it is as usual: alive, without a head, and not to be touched.
  local function read_fields(key, generation, now_ms, idle, absolute)
    local fields = redis.call('HGETALL', key)
    local created, touched, own, ends = nil, nil, 0, nil
    for i = 1, #fields, 2 do
      local name = fields[i]
      if #name == 2 then
        if name == '_c' then
          created = tonumber(fields[i + 1])
        elseif name == '_t' then
          touched = tonumber(fields[i + 1])
        elseif name == '_g' then
          own = tonumber(fields[i + 1]) or 0
        elseif name == '_i' then
          idle = tonumber(fields[i + 1])
        elseif name == '_x' then
          ends = tonumber(fields[i + 1])
        elseif name == '_h' or name == '_r' then
          return nil
        end
      end
    end
    if not (created and touched and idle) or #fields == 2 * ALWAYS then return nil end
    ends = ends or created + absolute
    if generation and generation > own then return nil end
    -- All of these are false of what is no number.
    if ends > now_ms and ends < EXACT and idle < EXACT and (now_ms - touched) * 10 < idle then return created, fields end
  end

  -- Reads as many sessions as are usual: alive, and not to be touched. Returns whether all are, and the fields of those
  -- that have some. `users` are the plan's.
  local function read_usual(keys, at, plain, now_ms, idle, absolute, generation, users, users_at, created)
    local call, try, unpack_two, lists = redis.call, redis.pcall, struct.unpack, nil
    for i = 1, plain do
      local key = keys[at + i]
      local since = generation and generation[string.byte(users, users_at + i)]
      local size = try('HLEN', key)
      if size == ALWAYS + 1 then
        local head = call('HGET', key, '_h')
        if not head or #head ~= 16 or since and since > 0 then return false, lists end
        local made, touched = unpack_two('<dd', head)
        if made + absolute <= now_ms or (now_ms - touched) * 10 >= idle then return false, lists end
        created[i] = made
      elseif type(size) ~= 'number' or size < ALWAYS then
        return false, lists
      else
        lists = lists or {}
        created[i], lists[i] = read_fields(key, since, now_ms, idle, absolute)
        if not created[i] then return false, lists end
      end
    end
    return true, lists
  end

  -- Counts the usual batch: views of sessions that were read, and counters. Returns nothing, and has changed nothing,
  -- where a number is not what it must be.
  local function count_usual(now, keys, args, counters_at, counters, sessions_at, plain, created, lists)
    local try, out, at = redis.pcall, { now, NOW }, 2
    for i = 1, counters do
      local by = args[3 + i]
      local value = by ~= '0' and try('INCRBY', keys[counters_at + i], by)
      if type(value) ~= 'number' then
        for j = 1, i - 1 do uncount(keys[counters_at + j], args[3 + j]) end
        return nil
      end
      out[at + i] = value
    end
    at = at + counters
    local answer
    for i = 1, plain do
      local key = keys[sessions_at + i]
      local views = try('HINCRBY', key, '_v', '1')
      if type(views) ~= 'number' then views = view(key) end
      if views < 0 then views = 0 end
      if lists and lists[i] then
        answer = answer or { '', '' }
        answer[#answer + 1] = lists[i]
        out[at + 1], at = WITH_FIELDS, at + 1
      end
      out[at + 1], out[at + 2] = views, created[i]
      at = at + 2
    end
    if not answer then return pack(out) end
    answer[1] = pack(out)
    return answer
  end

  local function batch_at(now, keys, args)
    local flags, idle, absolute, counters, limits, generations, plain, sessions, rare =
      struct.unpack('<ddddddddd', args[1])
    local ledger = flags % 2 == NOTED and keys[1]
    local counters_at = ledger and 1 or 0
    local limits_at = counters_at + counters
    local generations_at = limits_at + limits
    local sessions_at = generations_at + generations
    local users_at = #args[3] - sessions
    local created, noted, usual, fields, before, late, generation, failure = {}, false, nil, nil, nil, nil, nil, nil
    if generations > 0 then generation, failure = read_generations(keys, generations_at, generations) end
    if flags >= ALIKE and limits == 0 and rare == 0 and not failure then
      local now_ms = div(now, 1000)
      usual, fields =
        read_usual(keys, sessions_at, plain, now_ms, idle, absolute, generation, args[3], users_at, created)
    end
    if usual then
      if ledger then
        before, late = note_batch(ledger, args[2], '')
        noted = true
      end
      local answer = not before and not late
        and count_usual(now, keys, args, counters_at, counters, sessions_at, plain, created, fields)
      if answer then return answer end
    end
    local batch = {
      now = now, now_ms = div(now, 1000), keys = keys, args = args, ledger = ledger, idle = idle, absolute = absolute,
      counters = counters, limits = limits, plain = plain, rare = rare, counters_at = counters_at, limits_at = limits_at,
      generations = generations, generations_at = generations_at, generation = generation, users_at = users_at,
      sessions_at = sessions_at, rare_key_at = sessions_at + sessions + 1, rare_arg_at = 4 + counters, denied = 0,
      created = created, fields = fields,
    }
    if limits > 0 then failure = read_limits(batch) or failure end
    if not failure then
      if flags < ALIKE then batch.modes = {} end
      if limits > 0 or flags < ALIKE then decide_batch(batch) end
      look_batch(batch)
      failure = batch.apart
    end
    local bits = ''
    if batch.denied > 0 then bits = table.concat(batch.bits) .. string.rep('1', rare) end
    local granted = plain - batch.denied
    if ledger and (granted > 0 or rare > 0 or flags % 4 >= REPEATED) then
      if not noted then before, late = note_batch(ledger, args[2], bits) end
      if late then return late end
      if before then return each_alone(batch, before) end
      batch.written = true
    end
    if failure then return each_alone(batch) end

    local out, lists, at = { now, NOW }, {}, 2
    for i = 1, limits do out[at + i] = batch.first[i] end
    at = at + limits
    if granted > 0 then
      failure = count_batch(batch, out, at)
      if failure then
        if not batch.written and is_whole(failure) then return failure end
        return each_alone(batch)
      end
      charge_batch(batch)
      settle_batch(batch, out, at + counters, lists)
      batch.written = true
    else
      for i = 1, counters do out[at + i] = 0 end
    end
    if rare > 0 then
      local all = batch.bits or ones(plain)
      local refused = each(batch, plain + 1, nil, all, lists)
      if refused then return refused end
      local noted = bits
      bits = bits_of(batch, all)
      if ledger and bits ~= noted then redis.call('SET', ledger, args[2] .. bits, 'PX', LEDGER) end
    end
    return answer_of(batch, out, bits, lists)
  end

  return batch_at
end

local batch_made
local function of_batch(keys, args)
  batch_made = batch_made or batches()
  return batch_made(clock(), keys, args)
end

-- Many commits in one call; made when it is first called.
local function commits()
  local STORED, GONE, THERE, FULL, CONFLICT, NO_SUM, MOVED, FAILED = '1', '0', 'x', 'f', 'c', 'n', 'r', 'e'

  -- Whether the session would have more than it may. The session's own fields do not count.
  local function is_full(key, args, part)
    local size, stored = {}, redis.call('HGETALL', key)
    for i = 1, #stored, 2 do size[stored[i]] = #stored[i + 1] end
    for i = part.set, part.add - 1, 2 do size[args[i]] = #args[i + 1] end
    -- A sum has no more than 20 characters.
    for i = part.add, part.remove - 1, 2 do size[args[i]] = 20 end
    for i = part.remove, part.last do size[args[i]] = nil end
    local fields, bytes = 0, 0
    for name, length in pairs(size) do
      -- Ours are those of two characters that begin with one underscore.
      if #name ~= 2 or string.sub(name, 1, 1) ~= '_' or name == '__' then
        fields, bytes = fields + 1, bytes + #name + length
      end
    end
    return fields > part.most or (part.bytes > 0 and bytes > part.bytes)
  end

  local function holds(key, args, part)
    for i = part.expect, part.set - 1, 3 do
      local wanted = args[i + 1] == '1' and args[i + 2]
      if redis.call('HGET', key, args[i]) ~= wanted then return false end
    end
    return true
  end

  -- Adds to every field or to none; returns the sums, or nothing. One addition Redis itself refuses in time; of several
  -- none may fail, so each must be far from where sums overflow.
  local function add(key, args, part)
    local first, last = part.add, part.remove - 1
    if last > first + 1 then
      for i = first, last, 2 do
        local stored = redis.call('HGET', key, args[i]) or '0'
        -- As Redis writes integers: it refuses "007" and "-0".
        local integer = stored == '0' or string.match(stored, '^-?[1-9]%d*$')
        if #stored > 18 or #args[i + 1] > 18 or not integer then return nil end
      end
    end
    local sums = {}
    for i = first, last, 2 do
      local sum = redis.pcall('HINCRBY', key, args[i], args[i + 1])
      -- A server that takes no writes says nothing of the sum.
      if type(sum) == 'table' and is_whole(sum) then error(sum) end
      if type(sum) == 'table' then return nil end
      -- As text, read back: a sum may exceed what a double holds.
      sums[#sums + 1] = redis.call('HGET', key, args[i])
    end
    return sums
  end

  -- Makes a session; whether it could. One whose lifetime is over by now is none.
  local function make(key, args, part)
    part.now = part.now or div(clock(), 1000)
    local at, now = part.first, part.now
    local created, idle, absolute = tonumber(args[at]), tonumber(args[at + 2]), tonumber(args[at + 3])
    if created == 0 then created = now end
    local left = min(idle, created + absolute - now)
    if left < 1 then return false end
    redis.call('HSET', key, '_c', created, '_t', now, '_v', args[at + 1])
    redis.call('PEXPIRE', key, left)
    return true
  end

  -- One commit: what came of it, and its sums, if it added to fields.
  local function commit(key, args, part)
    local call, sums = redis.call, nil
    if part.makes then
      if call('EXISTS', key) == 1 then return THERE end
    elseif call('HEXISTS', key, '_c') == 0 then
      -- _c and not mere existence: what has none is no session.
      return call('HEXISTS', key, '_r') == 1 and MOVED or GONE
    end
    if part.set > part.expect and not holds(key, args, part) then return CONFLICT end
    local more = (part.remove - part.set) / 2
    if more > 0 and (part.bytes > 0 or call('HLEN', key) + more > part.most) and is_full(key, args, part) then
      return FULL
    end
    if part.remove > part.add then
      sums = add(key, args, part)
      if not sums then return NO_SUM end
    end
    if part.makes and not make(key, args, part) then
      call('DEL', key)
      return GONE
    end
    if part.add > part.set then call('HSET', key, unpack(args, part.set, part.add - 1)) end
    if part.last >= part.remove then call('HDEL', key, unpack(args, part.remove, part.last)) end
    return STORED, sums
  end

  -- A text behind its length.
  local function framed(text) return struct.pack('<I4', #text) .. text end

  local function commits_at(keys, args)
    local head = args[1]
    local flags, count = struct.unpack('<dd', head)
    local ledger, written = flags % 2 == 1 and keys[1], false
    if ledger then
      local before, late = note_batch(ledger, args[2], '')
      if before or late then return before or late end
      written = true
    end
    local key_at, at, part, letters, texts, plainly = ledger and 1 or 0, 3, {}, {}, {}, true
    for i = 1, count do
      local makes, most, bytes, expects, sets, adds, removes = struct.unpack('<ddddddd', head, 56 * i - 39)
      part.makes, part.most, part.bytes, part.first = makes == 1, most, bytes, at
      part.expect = at + 4 * makes
      part.set = part.expect + 3 * expects
      part.add = part.set + 2 * sets
      part.remove = part.add + 2 * adds
      part.last = part.remove + removes - 1
      at = part.last + 1
      local done, letter, sums = pcall(commit, keys[key_at + i], args, part)
      if not done then
        local failure = words(letter)
        if not written and is_whole(failure) then return redis.error_reply(failure) end
        letter, sums = FAILED, { failure }
      end
      letters[i], written = letter, written or letter == STORED
      if letter ~= STORED or sums then plainly = false end
      for j = 1, sums and #sums or 0 do texts[#texts + 1] = framed(sums[j]) end
    end
    if plainly then return '' end
    local reply = table.concat(letters) .. table.concat(texts)
    if ledger then redis.call('SET', ledger, args[2] .. reply, 'PX', LEDGER) end
    return reply
  end

  return commits_at
end

local commits_made
redis.register_function('regatta_v6_batch', of_batch)
redis.register_function('regatta_v6_commits', function(keys, args)
  commits_made = commits_made or commits()
  return commits_made(keys, args)
end)
