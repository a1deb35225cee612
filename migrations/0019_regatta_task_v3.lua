#!lua name=regatta_task_v3
-- Regatta's server-side code for tasks, version 3: whoever makes something ready wakes one worker, and no more. On the
-- same keys as versions 1 and 2, beside which it works; this file never changes once it was released. Time is Redis's own,
-- in whole milliseconds. Every key that is touched is among KEYS, and all of them share one hash tag.
--
-- A task is a hash: k kind, i input, s state, p percent, a how often it was begun, w worker, v where that worker is told
-- things, e error, r result, c, b and f when it was made, begun and ended, q its entry in the queue, x the number of its
-- present execution.
--   queued → running → done | failed | dead          queued, running → cancelled
--   running → queued: given back, or to be tried again
-- An execution's number is random, chosen by whoever begins; only the present one may renew or end, so that a task ends
-- once however often it was begun, and whatever is repeated after a lost answer does the same as once.
--
-- Each kind has a queue: a stream with one consumer group, one entry a task until the task ends. An entry that was
-- taken and not renewed for a lease is overdue, and anybody may take it over. The group has one consumer: who has a task
-- stands in its hash, and consumers would outlive their workers. The group counts how often an entry was taken; renewing
-- and giving back leave that count alone, so it tells who was the last to take it, however late he comes.
--
-- Beside them: waiting (sorted set: 'id kind' → made), running (hash: id → 'kind percent begun attempt worker'),
-- dead (list, the last hundred: 'id kind attempts ended reason') and totals (hash: done, failed, …).
--
-- A kind's idle (sorted set: worker → when it looks by itself, ms) are the workers that have a place and found nothing.
-- They take turns to look, half a second apart, so that what nobody was told of is found in that time, however many they
-- are and at the cost of two looks a second for all. Making a task ready wakes the one who came last: it is the least
-- likely to be gone. One whose turn has passed without a look is forgotten.
--
-- Told are, each in the moment in which it is made:
--   SPACE:w:WORKER   't', a space and the kind: there is something to take; 'p', a space, an id and ' cancelled'
--   SPACE:p:ID       the task's new state, for those who follow it
--   the channel of earlier releases, where one is named: 't KIND' and 'p ID STATE', to every worker
--
-- A caller who waits for tasks says so in the same words everywhere, AS IDLE:
--   KEYS   queues · as many idle sets, of the same kinds
--   ARGV   worker, or '' : it does not wait · 1: it has another place, 0: it has none
--   reply  1 there is something left for it, 0 there is not · after which time it is to look, ms
--
-- SPACE is what the fleet's channels begin with, EARLIER the channel of earlier releases or '', COUNTS 1 where the answer
-- to PUBLISH counts every listener (in a cluster it counts those of one node).
--
-- regatta_task_v3_enqueue: make a task.
--   KEYS   task · queue · waiting · idle
--   ARGV   SPACE · EARLIER · COUNTS · id · kind · input · most that may wait · longest life of a task that does not end, ms
--   reply  1 made · 0 too many wait · 2 it was made before
--   example  FCALL regatta_task_v3_enqueue 4 p:{t}:task:0a p:{t}:queue:fib p:{t}:waiting p:{t}:idle:fib
--                  p '' 1 0a fib 30 1000 345600000   → 1
--
-- regatta_task_v3_take: the next entry, an overdue one first, else the oldest; what became of its task says begin.
--   KEYS   AS IDLE
--   ARGV   SPACE · EARLIER · COUNTS · after which time without a renewal an entry is overdue, ms (0: none is)
--          · AS IDLE · kinds
--   reply  AS IDLE · if something was taken: the queue's number from 1 · entry · id · how often the entry was taken
--   example  FCALL regatta_task_v3_take 2 p:{t}:queue:fib p:{t}:idle:fib  p '' 1 3000 5eed 0 fib
--                  → 0, 0, 1, 1700000000000-0, 0a, 1
--
-- regatta_task_v3_rest: a worker waits no more. What it was woken for is passed on.
--   KEYS   AS IDLE
--   ARGV   SPACE · EARLIER · COUNTS · worker · kinds
--
-- regatta_task_v3_begin: begin an execution of a task that was taken.
--   KEYS   task · queue · waiting · running · dead · totals
--   ARGV   SPACE · EARLIER · COUNTS · id · kind · entry · execution · worker · where it is told things, or '' · most
--          attempts · longest life ms · kept after its end ms · how often the entry was taken, as take has said
--   reply  1 · attempt · input · or 0: there is nothing to do (it ended, or others have taken it since) · or 2: it is
--          dead, its attempts are used up
--
-- regatta_task_v3_renew: an execution goes on.
--   KEYS   task · queue · running
--   ARGV   SPACE · EARLIER · COUNTS · id · kind · entry · execution · percent, or -1: as it was
--   reply  1, or 0: it is no longer the present one
--
-- regatta_task_v3_end: an execution has ended.
--   KEYS   as begin · the kind's idle · AS IDLE
--   ARGV   SPACE · EARLIER · COUNTS · id · kind · entry · execution · outcome: done, failed, retry or back · result, or
--          why · most attempts · kept after its end ms · retry: after which time, ms · the time after which one is
--          overdue, ms · AS IDLE
--   reply  1: it has ended so, now or before; 0: it has not, for it was no longer the present one · AS IDLE
--
-- regatta_task_v3_cancel: nobody needs it any more.
--   KEYS   as begin
--   ARGV   SPACE · EARLIER · COUNTS · id · kind · kept after its end ms
--   reply  1 it was queued · 2 it was running · 3 it had ended · 0 there is none
--
-- regatta_task_v3_overdue: who has waited for too long. Changes nothing.
--   KEYS   waiting
--   ARGV   longest wait, ms
--   reply  members of waiting, the oldest first, at most 32
--
-- regatta_task_v3_expire: give up a task that has waited for too long.
--   KEYS   as begin
--   ARGV   SPACE · EARLIER · COUNTS · id · kind · longest wait, ms · kept after its end ms · why
--   reply  1, or 0: it does not wait, or not so long
--
-- regatta_task_v3_survey: how things stand. Changes nothing.
--   KEYS   waiting · running · dead · totals
--   reply  now ms · how many wait · since when the oldest does, ms, or '' · running · dead · totals

local GROUP, CONSUMER = 'workers', 'fleet'

-- What is kept of the dead and of totals, ms: a week and a month.
local DEAD_MAX, DEAD_MS, TOTALS_MS = 100, 604800000, 2592000000

-- An entry that was given back counts as not renewed for a day, whatever anybody's lease is.
local LONG_AGO = 86400000

-- Entries that are looked at in one step, and in all.
local STEP, MOST = 100, 1000

-- Time between two turns to look, longest time until a worker's own, and how late it may be for it before it is
-- forgotten, ms.
local TURN, TURN_MAX, LATE = 500, 5000, 2000

-- Workers that may be gone and are woken nevertheless, at most, before that is left to the next look.
local WAKES = 8

local function now_ms()
  local now = redis.call('TIME')
  return now[1] * 1000 + (now[2] - now[2] % 1000) / 1000
end

-- A whole number as text: `..` and tostring would write the last digits of a time as an exponent.
local function text(number) return string.format('%.0f', number) end

local function live_on(key, ms)
  if redis.call('PTTL', key) < tonumber(ms) then redis.call('PEXPIRE', key, ms) end
end

-- A server that forbids it has no listeners either, who therefore look by themselves.
local function tell(args, id, state)
  redis.pcall('PUBLISH', args[1] .. ':p:' .. id, state)
  if args[2] ~= '' then redis.pcall('PUBLISH', args[2], 'p ' .. id .. ' ' .. state) end
end

-- Wakes one worker that waits for this kind. Where the answer counts its listeners, one that is gone has none.
local function wake(args, idle, kind, now)
  if args[2] ~= '' then redis.pcall('PUBLISH', args[2], 't ' .. kind) end
  for _ = 1, WAKES do
    local last = redis.call('ZPOPMAX', idle)
    if not last[1] then return end
    local heard = 0
    if tonumber(last[2]) + LATE >= now then
      heard = redis.pcall('PUBLISH', args[1] .. ':w:' .. last[1], 't ' .. kind)
      if heard ~= 0 or args[3] ~= '1' then return end
    end
  end
end

local function count(totals, name)
  redis.call('HINCRBY', totals, name, 1)
  live_on(totals, TOTALS_MS)
end

-- What people are shown of a task that runs.
local function show(running, id, kind, percent, begun, attempt, worker)
  local words = { kind, percent, begun, attempt, worker }
  redis.call('HSET', running, id, table.concat(words, ' '))
end

-- Takes an entry out of its queue, whoever has it.
local function strike(queue, entry)
  redis.call('XACK', queue, GROUP, entry)
  redis.call('XDEL', queue, entry)
end

-- The end of a task, whatever it is; `field` of it is now `value`. A full server takes it: what frees memory comes first.
local function close(keys, args, entry, state, now, keep, field, value)
  local id, kind = args[4], args[5]
  strike(keys[2], entry)
  redis.call('HDEL', keys[1], 'i')
  redis.call('HSET', keys[1], 's', state, 'f', text(now), field, value)
  redis.call('PEXPIRE', keys[1], keep)
  redis.call('ZREM', keys[3], id .. ' ' .. kind)
  redis.call('HDEL', keys[4], id)
  count(keys[6], state)
  tell(args, id, state)
end

local function bury(keys, args, entry, attempts, reason, now, keep)
  close(keys, args, entry, 'dead', now, keep, 'e', reason)
  local words = { args[4], args[5], text(attempts), text(now), reason }
  redis.call('LPUSH', keys[5], table.concat(words, ' '))
  redis.call('LTRIM', keys[5], 0, DEAD_MAX - 1)
  redis.call('PEXPIRE', keys[5], DEAD_MS)
end

local function enqueue(keys, args)
  local task, queue, waiting = keys[1], keys[2], keys[3]
  local id, kind, life = args[4], args[5], args[8]
  if redis.call('EXISTS', task) == 1 then return 2 end
  if redis.call('ZCARD', waiting) >= tonumber(args[7]) then return 0 end
  local now = now_ms()
  -- The first write takes memory: a full server says so here.
  local entry = redis.call('XADD', queue, '*', 'id', id)
  if #redis.call('XINFO', 'GROUPS', queue) == 0 then redis.call('XGROUP', 'CREATE', queue, GROUP, '0') end
  redis.call('HSET', task, 'k', kind, 'i', args[6], 's', 'queued', 'p', 0, 'a', 0, 'c', text(now), 'q', entry)
  redis.call('ZADD', waiting, text(now), id .. ' ' .. kind)
  redis.call('PEXPIRE', task, life)
  live_on(queue, life)
  live_on(waiting, life)
  wake(args, keys[4], kind, now)
  return 1
end

-- Which of two entries is the older one. The clock may be behind what numbered one of them, which says nothing about
-- its age then: they take turns, or a queue that lives on would wait behind one that is new until the clock is there.
local function before(left, right, now)
  local left_ms, left_seq = string.match(left, '(%d+)-(%d+)')
  local right_ms, right_seq = string.match(right, '(%d+)-(%d+)')
  left_ms, right_ms = tonumber(left_ms), tonumber(right_ms)
  if left_ms > now or right_ms > now then return now % 2 == 0 end
  if left_ms ~= right_ms then return left_ms < right_ms end
  return tonumber(left_seq) < tonumber(right_seq)
end

-- How many entries of a queue are taken, and which was the last one.
local function standing(queue)
  if redis.call('EXISTS', queue) == 0 then return nil end
  local group = redis.call('XINFO', 'GROUPS', queue)[1]
  if not group then
    redis.call('XGROUP', 'CREATE', queue, GROUP, '0')
    return 0, '0-0'
  end
  local fields = {}
  for i = 1, #group, 2 do fields[group[i]] = group[i + 1] end
  return fields['pending'], fields['last-delivered-id']
end

-- The first entry of a queue that was never taken.
local function untaken(queue, last)
  return last and redis.call('XRANGE', queue, '(' .. last, '+', 'COUNT', 1)[1]
end

local function is_left(queue)
  local _, last = standing(queue)
  return untaken(queue, last) ~= nil
end

-- Takes over the first entry that is overdue. XPENDING finds it in one step, where XAUTOCLAIM would need one for every
-- ten that are not.
local function overdue_entry(queue, lease)
  for _ = 1, 8 do
    local pending = redis.call('XPENDING', queue, GROUP, 'IDLE', lease, '-', '+', 1)[1]
    if not pending then return nil end
    local count = pending[4] + 1
    local entry = redis.call('XCLAIM', queue, GROUP, CONSUMER, lease, pending[1], 'RETRYCOUNT', count)[1]
    if entry then return entry, count end
    -- Somebody has deleted it by hand.
    redis.call('XACK', queue, GROUP, pending[1])
  end
end

-- Redis says 0 of an entry that was taken at a time that is still to come, and it stays at 0 until then. Such an entry
-- is taken now, by nobody else than before; for one that was taken this very millisecond that changes nothing.
local function cut(queue)
  local from = '-'
  for _ = 1, MOST / STEP do
    local pending = redis.call('XPENDING', queue, GROUP, from, '+', STEP)
    local claim = { 'XCLAIM', queue, GROUP, CONSUMER, 0 }
    for _, entry in ipairs(pending) do
      if entry[3] <= 0 then claim[#claim + 1] = entry[1] end
    end
    if #claim > 5 then
      claim[#claim + 1] = 'JUSTID'
      redis.call(unpack(claim))
    end
    if #pending < STEP then return end
    from = '(' .. pending[STEP][1]
  end
end

-- The next entry, and of which queue.
local function next_entry(keys, queues, lease, now)
  local first, from
  for i = 1, queues do
    local queue = keys[i]
    local pending, last = standing(queue)
    if pending and pending > 0 and lease > 0 then
      local entry, count = overdue_entry(queue, lease)
      if entry then return i, entry[1], entry[2][2], count end
      cut(queue)
    end
    local next = untaken(queue, last)
    if next and (not first or before(next[1], first, now)) then first, from = next[1], i end
  end
  if not first then return nil end
  local read = redis.call('XREADGROUP', 'GROUP', GROUP, CONSUMER, 'COUNT', 1, 'STREAMS', keys[from], '>')
  local entry = read[1][2][1]
  return from, entry[1], entry[2][2], 1
end

-- Whether the keys from `at` on, `kinds` queues, hold something that nobody has taken: the first such queue.
local function left_in(keys, at, kinds)
  for i = 1, kinds do
    if is_left(keys[at + i - 1]) then return i end
  end
end

-- A worker waits from now on, for each kind whose idle set is among the keys; after which time it is to look. By a clock
-- that stepped back all turns are further away than any can be, and begin anew.
local function wait(keys, at, kinds, worker, now)
  local turn = now
  for i = at, at + kinds - 1 do
    redis.call('ZREMRANGEBYSCORE', keys[i], '-inf', '(' .. text(now - LATE))
    local last = redis.call('ZRANGE', keys[i], -1, -1, 'WITHSCORES')
    if last[1] == worker then last = redis.call('ZRANGE', keys[i], -2, -2, 'WITHSCORES') end
    local at_ms = tonumber(last[2] or 0)
    if at_ms > turn and at_ms <= now + TURN_MAX then turn = at_ms end
  end
  turn = turn + TURN
  if turn > now + TURN_MAX then turn = now + TURN_MAX end
  for i = at, at + kinds - 1 do
    redis.call('ZADD', keys[i], text(turn), worker)
    redis.call('PEXPIRE', keys[i], TURN_MAX + LATE)
  end
  return turn - now
end

local function waits_no_more(keys, at, kinds, worker)
  for i = at, at + kinds - 1 do redis.call('ZREM', keys[i], worker) end
end

local function take(keys, args)
  local lease, worker, has_place, kinds, now = tonumber(args[4]), args[5], args[6] == '1', #keys / 2, now_ms()
  local from, entry, id, count = next_entry(keys, kinds, lease, now)
  if not from then
    if worker == '' then return { 0, 0 } end
    return { 0, wait(keys, kinds + 1, kinds, worker, now) }
  end
  local left, pause = left_in(keys, 1, kinds), 0
  if worker ~= '' then
    if has_place and not left then
      pause = wait(keys, kinds + 1, kinds, worker, now)
    else
      waits_no_more(keys, kinds + 1, kinds, worker)
    end
  end
  -- Whoever has another place takes what is left itself, at once.
  if left and not has_place then wake(args, keys[kinds + left], args[6 + left], now) end
  return { left and 1 or 0, pause, from, entry, id, count }
end

local function rest(keys, args)
  local kinds, now = #keys / 2, now_ms()
  waits_no_more(keys, kinds + 1, kinds, args[4])
  local left = left_in(keys, 1, kinds)
  if left then wake(args, keys[kinds + left], args[4 + left], now) end
  return 1
end

-- Whether nobody else has taken an entry since it was taken for this time. Said after a stall, a begin may be late.
local function is_held(queue, entry, count)
  local pending = redis.pcall('XPENDING', queue, GROUP, entry, entry, 1)
  return pending[1] and pending[1][4] == tonumber(count)
end

local function begin(keys, args)
  local task, id, kind, entry, execution = keys[1], args[4], args[5], args[6], args[7]
  local held = redis.call('HMGET', task, 's', 'x', 'a', 'i', 'q', 'w', 'p')
  local state, attempts = held[1], tonumber(held[3]) or 0
  if (state ~= 'queued' and state ~= 'running') or held[5] ~= entry then
    strike(keys[2], entry)
    if not state then
      redis.call('ZREM', keys[3], id .. ' ' .. kind)
      redis.call('HDEL', keys[4], id)
    end
    return { 0 }
  end
  -- Said once more: while it runs, and after it was given back.
  if held[2] == execution then
    if state == 'running' then return { 1, attempts, held[4] } end
    return { 0 }
  end
  if not is_held(keys[2], entry, args[13]) then return { 0 } end
  local now = now_ms()
  if state == 'running' then count(keys[6], 'taken_over') end
  if attempts >= tonumber(args[10]) then
    local reason = 'its worker was lost while it ran: ' .. (held[6] or '') .. ', at ' .. (held[7] or '0') .. ' %'
    -- Whatever the lost one still says, it is not how the task has ended.
    redis.call('HDEL', task, 'x')
    bury(keys, args, entry, attempts, reason, now, args[12])
    return { 2 }
  end
  local worker, attempt = args[8], text(attempts + 1)
  redis.call('HSET', task, 's', 'running', 'x', execution, 'a', attempt, 'w', worker, 'v', args[9], 'p', 0, 'b', text(now))
  redis.call('ZREM', keys[3], id .. ' ' .. kind)
  show(keys[4], id, kind, 0, text(now), attempt, worker)
  redis.call('PEXPIRE', task, args[11])
  live_on(keys[2], args[11])
  live_on(keys[4], args[11])
  tell(args, id, 'running')
  return { 1, attempts + 1, held[4] }
end

local function renew(keys, args)
  local task, id, percent = keys[1], args[4], tonumber(args[8])
  local held = redis.call('HMGET', task, 's', 'x', 'p', 'b', 'a', 'w')
  if held[1] ~= 'running' or held[2] ~= args[7] then return 0 end
  redis.call('XCLAIM', keys[2], GROUP, CONSUMER, 0, args[6], 'JUSTID')
  if percent > tonumber(held[3]) then
    redis.call('HSET', task, 'p', args[8])
    show(keys[3], id, args[5], args[8], held[4], held[5], held[6])
    tell(args, id, 'running')
  end
  return 1
end

-- Back into the queue: overdue after a while, or at once; `field` of it is now `value`. A full server takes this, too: a
-- script may go on after its first write, and that one takes no memory.
local function requeue(keys, id, kind, entry, made, idle, field, value)
  redis.call('XCLAIM', keys[2], GROUP, CONSUMER, 0, entry, 'IDLE', idle, 'JUSTID')
  redis.call('HSET', keys[1], 's', 'queued', 'p', 0, field, value)
  redis.call('ZADD', keys[3], made, id .. ' ' .. kind)
  live_on(keys[3], 2 * LONG_AGO)
  redis.call('HDEL', keys[4], id)
end

-- Where a task stands after each outcome, and whether it may be said once more.
local AFTER = {
  done = { done = true },
  failed = { failed = true },
  retry = { queued = true, dead = true },
  back = { queued = true },
}

local function conclude(keys, args)
  local task, id, kind, entry = keys[1], args[4], args[5], args[6]
  local outcome, value, most, keep = args[8], args[9], tonumber(args[10]), args[11]
  local held = redis.call('HMGET', task, 's', 'x', 'a', 'c')
  local state, attempts = held[1], tonumber(held[3]) or 0
  if not state or held[2] ~= args[7] then return 0 end
  if state ~= 'running' then
    -- Said once more, or ended otherwise meanwhile.
    if AFTER[outcome][state] then return 1 end
    return 0
  end
  if outcome == 'done' then
    close(keys, args, entry, 'done', now_ms(), keep, 'r', value)
    -- Why an earlier attempt failed.
    redis.call('HDEL', task, 'e')
  elseif outcome == 'failed' then
    close(keys, args, entry, 'failed', now_ms(), keep, 'e', value)
  elseif outcome == 'back' then
    requeue(keys, id, kind, entry, held[4], LONG_AGO, 'a', text(attempts - 1))
    count(keys[6], 'given_back')
    tell(args, id, 'queued')
    wake(args, keys[7], kind, now_ms())
  elseif attempts >= most then
    bury(keys, args, entry, attempts, value, now_ms(), keep)
  else
    local idle = tonumber(args[13]) - tonumber(args[12])
    if idle < 0 then idle = 0 end
    requeue(keys, id, kind, entry, held[4], text(idle), 'e', value)
    count(keys[6], 'retried')
    tell(args, id, 'queued')
  end
  return 1
end

local function end_(keys, args)
  local ended, worker, kinds = conclude(keys, args), args[14], (#keys - 7) / 2
  if worker == '' then return { ended, 0, 0 } end
  if left_in(keys, 8, kinds) then return { ended, 1, 0 } end
  return { ended, 0, wait(keys, 8 + kinds, kinds, worker, now_ms()) }
end

local function cancel(keys, args)
  local held = redis.call('HMGET', keys[1], 's', 'q', 'v')
  local state = held[1]
  if not state then return 0 end
  if state ~= 'queued' and state ~= 'running' then return 3 end
  close(keys, args, held[2], 'cancelled', now_ms(), args[6], 'e', 'it was cancelled')
  if state == 'queued' then return 1 end
  if held[3] and held[3] ~= '' then
    redis.pcall('PUBLISH', args[1] .. ':w:' .. held[3], 'p ' .. args[4] .. ' cancelled')
  end
  return 2
end

local function overdue(keys, args)
  local until_ms = text(now_ms() - tonumber(args[1]))
  return redis.call('ZRANGEBYSCORE', keys[1], '-inf', until_ms, 'LIMIT', 0, 32)
end

local function expire(keys, args)
  local id, kind, now = args[4], args[5], now_ms()
  local held = redis.call('HMGET', keys[1], 's', 'q', 'a', 'c')
  if held[1] ~= 'queued' then
    -- Nobody else will take a task out of the list that is no longer there.
    if not held[1] then redis.call('ZREM', keys[3], id .. ' ' .. kind) end
    return 0
  end
  if now - tonumber(held[4]) < tonumber(args[6]) then return 0 end
  bury(keys, args, held[2], tonumber(held[3]), args[8], now, args[7])
  return 1
end

local function survey(keys)
  local oldest = redis.call('ZRANGE', keys[1], 0, 0, 'WITHSCORES')
  return {
    text(now_ms()),
    redis.call('ZCARD', keys[1]),
    oldest[2] or '',
    redis.call('HGETALL', keys[2]),
    redis.call('LRANGE', keys[3], 0, -1),
    redis.call('HGETALL', keys[4]),
  }
end

-- What a full server takes nevertheless: whatever frees memory, or takes next to none, so that a full queue can be worked
-- off; and what changes nothing, which a replica takes as well.
local function register(name, callback, flag)
  redis.register_function { function_name = name, callback = callback, flags = { flag } }
end

redis.register_function('regatta_task_v3_enqueue', enqueue)
redis.register_function('regatta_task_v3_take', take)
redis.register_function('regatta_task_v3_begin', begin)
register('regatta_task_v3_rest', rest, 'allow-oom')
register('regatta_task_v3_renew', renew, 'allow-oom')
register('regatta_task_v3_end', end_, 'allow-oom')
register('regatta_task_v3_cancel', cancel, 'allow-oom')
register('regatta_task_v3_overdue', overdue, 'no-writes')
register('regatta_task_v3_expire', expire, 'allow-oom')
register('regatta_task_v3_survey', survey, 'no-writes')
