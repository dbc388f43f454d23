-- Gives the place of one group to another one: what it has read, and what is pending. Returns how many entries are
-- pending, or -1 if one of the two groups is in use.
--
-- KEYS: the stream
-- ARGV: old group; new group; consumer that gets the pending entries; minimum idle time in milliseconds
--
-- The old group is destroyed in the same step.

local old, new, consumer, idle = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local groups = {}
for _, group in ipairs(xinfo_list('GROUPS', KEYS[1])) do groups[group['name']] = group end
if not groups[old] then return 0 end
for _, name in ipairs({old, new}) do
  if groups[name] then
    for _, each in ipairs(xinfo_list('CONSUMERS', KEYS[1], name)) do
      if each['idle'] < idle then return -1 end
    end
  end
end
local last_id = groups[old]['last-delivered-id']
if groups[new] then
  redis.call('XGROUP', 'SETID', KEYS[1], new, last_id)
else
  redis.call('XGROUP', 'CREATE', KEYS[1], new, last_id)
end
redis.call('XGROUP', 'CREATECONSUMER', KEYS[1], new, consumer)
local count, after = 0, '-'
while true do
  local pending = redis.call('XPENDING', KEYS[1], old, after, '+', 1000)
  for _, entry in ipairs(pending) do
    redis.call('XCLAIM', KEYS[1], new, consumer, 0, entry[1], 'IDLE', entry[3], 'RETRYCOUNT', entry[4], 'FORCE', 'JUSTID')
    after = '(' .. entry[1]
  end
  count = count + #pending
  if #pending < 1000 then break end
end
redis.call('XGROUP', 'DESTROY', KEYS[1], old)
return count
