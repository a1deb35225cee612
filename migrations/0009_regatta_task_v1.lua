#!lua name=regatta_task_v1
-- Regatta's server-side code for tasks, version 1: a queue that any worker takes from, and each task finished once.
--
-- The name carries the version. This file never changes once it was released (see 0001). Time is Redis's own, in whole
-- milliseconds. Every key that is touched is among KEYS, and all of them share one hash tag.
--
-- A task is a hash: k kind, i input, s state, p percent, a how often it was begun, w worker, e error, r result, c, b and
-- f when it was made, begun and ended, q its entry in the queue, x the number of its present execution.
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
-- Changes are told to every worker, in the moment in which they are made: 't', a space and the kind: there is something
-- to take; 'p', a space, the id, a space and the state: a task has changed.
--
-- regatta_task_v1_enqueue: make a task.
--   KEYS   task · queue · waiting
--   ARGV   id · kind · input · most that may wait · longest life of a task that does not end, ms · channel
--   reply  1 made · 0 too many wait · 2 it was made before
--   example  FCALL regatta_task_v1_enqueue 3 p:{t}:task:0a p:{t}:queue:fib p:{t}:waiting
--                  0a fib 30 1000 345600000 p:news   → 1
--
-- regatta_task_v1_take: the next entry, an overdue one first, else the oldest; what became of its task says begin.
--   KEYS   queues
--   ARGV   after which time without a renewal an entry is overdue, ms (0: none is)
--   reply  empty, or the queue's number from 1 · entry · id · how often the entry was taken, this time included
--   example  FCALL regatta_task_v1_take 1 p:{t}:queue:fib  3000   → 1, 1700000000000-0, 0a, 1
--
-- regatta_task_v1_begin: begin an execution of a task that was taken.
--   KEYS   task · queue · waiting · running · dead · totals
--   ARGV   id · kind · entry · execution · channel · worker · most attempts · longest life ms · kept after its end ms ·
--          how often the entry was taken, as take has said
--   reply  1 · attempt · input · or 0: there is nothing to do (it ended, or others have taken it since) · or 2: it is
--          dead, its attempts are used up
--
-- regatta_task_v1_renew: an execution goes on.
--   KEYS   task · queue · running
--   ARGV   id · kind · entry · execution · channel · percent, or -1: as it was
--   reply  1, or 0: it is no longer the present one
--
-- regatta_task_v1_end: an execution has ended.
--   KEYS   as begin
--   ARGV   id · kind · entry · execution · channel · outcome: done, failed, retry or back · result, or why ·
--          most attempts · kept after its end ms · retry: after which time, ms · the time after which one is overdue, ms
--   reply  1: it has ended so, now or before · 0: it has not, for it was no longer the present one
--
-- regatta_task_v1_cancel: nobody needs it any more.
--   KEYS   as begin
--   ARGV   id · kind · channel · kept after its end ms
--   reply  1 it was queued · 2 it was running · 3 it had ended · 0 there is none
--
-- regatta_task_v1_overdue: who has waited for too long. Changes nothing.
--   KEYS   waiting
--   ARGV   longest wait, ms
--   reply  members of waiting, the oldest first, at most 32
--
-- regatta_task_v1_expire: give up a task that has waited for too long.
--   KEYS   as begin
--   ARGV   id · kind · channel · longest wait, ms · kept after its end ms · why
--   reply  1, or 0: it does not wait, or not so long
--
-- regatta_task_v1_survey: how things stand. Changes nothing.
--   KEYS   waiting · running · dead · totals
--   reply  now ms · how many wait · since when the oldest does, ms, or '' · running · dead · totals

local GROUP, CONSUMER = 'workers', 'fleet'

-- What is kept of the dead and of totals, ms: a week and a month.
local DEAD_MAX, DEAD_MS, TOTALS_MS = 100, 604800000, 2592000000

-- An entry that was given back counts as not renewed for a day, whatever anybody's lease is.
local LONG_AGO = 86400000

local function now_ms()
  local now = redis.call('TIME')
  return now[1] * 1000 + (now[2] - now[2] % 1000) / 1000
end

-- A whole number as text: `..` and tostring would write the last digits of a time as an exponent.
local function text(number) return string.format('%.0f', number) end

local function live_on(key, ms)
  if redis.call('PTTL', key) < tonumber(ms) then redis.call('PEXPIRE', key, ms) end
end

-- A server that forbids it has no listeners either, who therefore look once a second.
local function tell(channel, id, state) redis.pcall('PUBLISH', channel, 'p ' .. id .. ' ' .. state) end

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
local function close(keys, id, kind, entry, state, now, keep, channel, field, value)
  strike(keys[2], entry)
  redis.call('HDEL', keys[1], 'i')
  redis.call('HSET', keys[1], 's', state, 'f', text(now), field, value)
  redis.call('PEXPIRE', keys[1], keep)
  redis.call('ZREM', keys[3], id .. ' ' .. kind)
  redis.call('HDEL', keys[4], id)
  count(keys[6], state)
  tell(channel, id, state)
end

local function bury(keys, id, kind, entry, attempts, reason, now, keep, channel)
  close(keys, id, kind, entry, 'dead', now, keep, channel, 'e', reason)
  local words = { id, kind, text(attempts), text(now), reason }
  redis.call('LPUSH', keys[5], table.concat(words, ' '))
  redis.call('LTRIM', keys[5], 0, DEAD_MAX - 1)
  redis.call('PEXPIRE', keys[5], DEAD_MS)
end

local function enqueue(keys, args)
  local task, queue, waiting = keys[1], keys[2], keys[3]
  local id, kind, life = args[1], args[2], args[5]
  if redis.call('EXISTS', task) == 1 then return 2 end
  if redis.call('ZCARD', waiting) >= tonumber(args[4]) then return 0 end
  local now = text(now_ms())
  -- The first write takes memory: a full server says so here.
  local entry = redis.call('XADD', queue, '*', 'id', id)
  if #redis.call('XINFO', 'GROUPS', queue) == 0 then redis.call('XGROUP', 'CREATE', queue, GROUP, '0') end
  redis.call('HSET', task, 'k', kind, 'i', args[3], 's', 'queued', 'p', 0, 'a', 0, 'c', now, 'q', entry)
  redis.call('ZADD', waiting, now, id .. ' ' .. kind)
  redis.call('PEXPIRE', task, life)
  live_on(queue, life)
  live_on(waiting, life)
  redis.pcall('PUBLISH', args[6], 't ' .. kind)
  return 1
end

-- An entry's two numbers; they are compared as such, and not as text.
local function before(left, right)
  local left_ms, left_seq = string.match(left, '(%d+)-(%d+)')
  local right_ms, right_seq = string.match(right, '(%d+)-(%d+)')
  if left_ms ~= right_ms then return tonumber(left_ms) < tonumber(right_ms) end
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

local function take(keys, args)
  local lease, first, from = tonumber(args[1]), nil, nil
  for i, queue in ipairs(keys) do
    local pending, last = standing(queue)
    if pending and pending > 0 and lease > 0 then
      local entry, count = overdue_entry(queue, lease)
      if entry then return { i, entry[1], entry[2][2], count } end
    end
    local next = pending and redis.call('XRANGE', queue, '(' .. last, '+', 'COUNT', 1)[1]
    if next and (not first or before(next[1], first)) then first, from = next[1], i end
  end
  if not first then return {} end
  local read = redis.call('XREADGROUP', 'GROUP', GROUP, CONSUMER, 'COUNT', 1, 'STREAMS', keys[from], '>')
  local entry = read[1][2][1]
  return { from, entry[1], entry[2][2], 1 }
end

-- Whether nobody else has taken an entry since it was taken for this time. Said after a stall, a begin may be late.
local function is_held(queue, entry, count)
  local pending = redis.pcall('XPENDING', queue, GROUP, entry, entry, 1)
  return pending[1] and pending[1][4] == tonumber(count)
end

local function begin(keys, args)
  local task, id, kind, entry, execution, channel = keys[1], args[1], args[2], args[3], args[4], args[5]
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
  if not is_held(keys[2], entry, args[10]) then return { 0 } end
  local now = now_ms()
  if state == 'running' then count(keys[6], 'taken_over') end
  if attempts >= tonumber(args[7]) then
    local reason = 'its worker was lost while it ran: ' .. (held[6] or '') .. ', at ' .. (held[7] or '0') .. ' %'
    -- Whatever the lost one still says, it is not how the task has ended.
    redis.call('HDEL', task, 'x')
    bury(keys, id, kind, entry, attempts, reason, now, args[9], channel)
    return { 2 }
  end
  local worker, attempt = args[6], text(attempts + 1)
  redis.call('HSET', task, 's', 'running', 'x', execution, 'a', attempt, 'w', worker, 'p', 0, 'b', text(now))
  redis.call('ZREM', keys[3], id .. ' ' .. kind)
  show(keys[4], id, kind, 0, text(now), attempt, worker)
  redis.call('PEXPIRE', task, args[8])
  live_on(keys[2], args[8])
  live_on(keys[4], args[8])
  tell(channel, id, 'running')
  return { 1, attempts + 1, held[4] }
end

local function renew(keys, args)
  local task, id, percent = keys[1], args[1], tonumber(args[6])
  local held = redis.call('HMGET', task, 's', 'x', 'p', 'b', 'a', 'w')
  if held[1] ~= 'running' or held[2] ~= args[4] then return 0 end
  redis.call('XCLAIM', keys[2], GROUP, CONSUMER, 0, args[3], 'JUSTID')
  if percent > tonumber(held[3]) then
    redis.call('HSET', task, 'p', args[6])
    show(keys[3], id, args[2], args[6], held[4], held[5], held[6])
    tell(args[5], id, 'running')
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

local function end_(keys, args)
  local task, id, kind, entry, channel = keys[1], args[1], args[2], args[3], args[5]
  local outcome, value, most, keep = args[6], args[7], tonumber(args[8]), args[9]
  local held = redis.call('HMGET', task, 's', 'x', 'a', 'c')
  local state, attempts = held[1], tonumber(held[3]) or 0
  if not state or held[2] ~= args[4] then return 0 end
  if state ~= 'running' then
    -- Said once more, or ended otherwise meanwhile.
    if AFTER[outcome][state] then return 1 end
    return 0
  end
  if outcome == 'done' then
    close(keys, id, kind, entry, 'done', now_ms(), keep, channel, 'r', value)
    -- Why an earlier attempt failed.
    redis.call('HDEL', task, 'e')
  elseif outcome == 'failed' then
    close(keys, id, kind, entry, 'failed', now_ms(), keep, channel, 'e', value)
  elseif outcome == 'back' then
    requeue(keys, id, kind, entry, held[4], LONG_AGO, 'a', text(attempts - 1))
    count(keys[6], 'given_back')
    tell(channel, id, 'queued')
    redis.pcall('PUBLISH', channel, 't ' .. kind)
  elseif attempts >= most then
    bury(keys, id, kind, entry, attempts, value, now_ms(), keep, channel)
  else
    local idle = tonumber(args[11]) - tonumber(args[10])
    if idle < 0 then idle = 0 end
    requeue(keys, id, kind, entry, held[4], text(idle), 'e', value)
    count(keys[6], 'retried')
    tell(channel, id, 'queued')
  end
  return 1
end

local function cancel(keys, args)
  local held = redis.call('HMGET', keys[1], 's', 'q')
  local state = held[1]
  if not state then return 0 end
  if state ~= 'queued' and state ~= 'running' then return 3 end
  close(keys, args[1], args[2], held[2], 'cancelled', now_ms(), args[4], args[3], 'e', 'it was cancelled')
  if state == 'queued' then return 1 end
  return 2
end

local function overdue(keys, args)
  local until_ms = text(now_ms() - tonumber(args[1]))
  return redis.call('ZRANGEBYSCORE', keys[1], '-inf', until_ms, 'LIMIT', 0, 32)
end

local function expire(keys, args)
  local id, kind, now = args[1], args[2], now_ms()
  local held = redis.call('HMGET', keys[1], 's', 'q', 'a', 'c')
  if held[1] ~= 'queued' then
    -- Nobody else will take a task out of the list that is no longer there.
    if not held[1] then redis.call('ZREM', keys[3], id .. ' ' .. kind) end
    return 0
  end
  if now - tonumber(held[4]) < tonumber(args[4]) then return 0 end
  bury(keys, id, kind, held[2], tonumber(held[3]), args[6], now, args[5], args[3])
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

redis.register_function('regatta_task_v1_enqueue', enqueue)
redis.register_function('regatta_task_v1_take', take)
redis.register_function('regatta_task_v1_begin', begin)
register('regatta_task_v1_renew', renew, 'allow-oom')
register('regatta_task_v1_end', end_, 'allow-oom')
register('regatta_task_v1_cancel', cancel, 'allow-oom')
register('regatta_task_v1_overdue', overdue, 'no-writes')
register('regatta_task_v1_expire', expire, 'allow-oom')
register('regatta_task_v1_survey', survey, 'no-writes')
