-- wrk's part of `cargo bench --bench http`: each request carries the next cookie of the pool.
--
-- Arguments after `--`: the path, the value of Accept, and the file with one cookie a line (none: no cookies).
-- The requests are built before the load starts, so that the generator costs as little as it can.

local threads = 0

function setup(thread)
  thread:set("offset", threads)
  threads = threads + 1
end

function init(arguments)
  requests = {}
  if arguments[3] then
    for cookie in io.lines(arguments[3]) do
      local headers = { Accept = arguments[2], Cookie = cookie }
      requests[#requests + 1] = wrk.format("GET", arguments[1], headers)
    end
  else
    requests[1] = wrk.format("GET", arguments[1], { Accept = arguments[2] })
  end
  -- 7919 is a prime: steps of that length reach every cookie before they reach one again, and the next is nowhere near
  -- the last, so that a short run over many sessions meets them all over the memory of Redis.
  stride = #requests % 7919 == 0 and 1 or 7919
  -- Threads and runs start at different cookies.
  position = (offset * 104729 + os.time() * 31) % #requests
end

function request()
  position = (position + stride) % #requests
  return requests[position + 1]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    "figures %d %d %d %d %d %d %d %d\n",
    summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99),
    errors.status, errors.connect, errors.read + errors.write, errors.timeout
  ))
end
