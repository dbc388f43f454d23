-- Stores the heartbeat of a process, and returns those of other processes under the same name.
--
-- KEYS: the heartbeats under this name; the index of names
-- ARGV: start (unique for each start of a process); content; seconds until the heartbeat expires; member of the index
--
-- A heartbeat is stored as: time of the first one, time of this one, content. Times are those of Redis, in seconds.

local start, content, expiry, member = unpack(ARGV)
local time = redis.call('TIME')
local now = string.format('%d.%03d', time[1], math.floor(time[2] / 1000))
local oldest = tonumber(now) - tonumber(expiry)
local first, others = now, {}
local stored = redis.call('HGETALL', KEYS[1])
for i = 1, #stored, 2 do
  local first_time, last_time, rest = string.match(stored[i + 1], '^(%S+) (%S+) (.*)$')
  if stored[i] == start then
    first = first_time
  elseif tonumber(last_time) < oldest then
    redis.call('HDEL', KEYS[1], stored[i])
  else
    others[#others + 1] = {first_time, last_time, rest}
  end
end
redis.call('HSET', KEYS[1], start, first .. ' ' .. now .. ' ' .. content)
redis.call('EXPIRE', KEYS[1], expiry)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', oldest)
redis.call('ZADD', KEYS[2], now, member)
redis.call('EXPIRE', KEYS[2], expiry)
return {first, now, others}
