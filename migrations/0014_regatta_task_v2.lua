#!lua name=regatta_task_v2
-- Regatta's server-side code for tasks, version 2: an entry that was taken by a clock that is now behind is overdue a
-- lease later. All else is version 1's, on the same keys, where queues and their groups are described; this file never
-- changes once it was released. Time is Redis's own, in whole milliseconds.
--
-- regatta_task_v2_take: the next entry, an overdue one first, else the oldest; what became of its task says begin.
--   KEYS   queues, of one hash tag
--   ARGV   after which time without a renewal an entry is overdue, ms (0: none is)
--   reply  empty, or the queue's number from 1 · entry · id · how often the entry was taken, this time included
--   example  FCALL regatta_task_v2_take 1 p:{t}:queue:fib  3000   → 1, 1700000000000-0, 0a, 1

local GROUP, CONSUMER = 'workers', 'fleet'

-- Entries that are looked at in one step, and in all.
local STEP, MOST = 100, 1000

local function now_ms()
  local now = redis.call('TIME')
  return now[1] * 1000 + (now[2] - now[2] % 1000) / 1000
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

local function take(keys, args)
  local lease, now, first, from = tonumber(args[1]), now_ms(), nil, nil
  for i, queue in ipairs(keys) do
    local pending, last = standing(queue)
    if pending and pending > 0 and lease > 0 then
      local entry, count = overdue_entry(queue, lease)
      if entry then return { i, entry[1], entry[2][2], count } end
      cut(queue)
    end
    local next = pending and redis.call('XRANGE', queue, '(' .. last, '+', 'COUNT', 1)[1]
    if next and (not first or before(next[1], first, now)) then first, from = next[1], i end
  end
  if not first then return {} end
  local read = redis.call('XREADGROUP', 'GROUP', GROUP, CONSUMER, 'COUNT', 1, 'STREAMS', keys[from], '>')
  local entry = read[1][2][1]
  return { from, entry[1], entry[2][2], 1 }
end

redis.register_function('regatta_task_v2_take', take)
