-- Destroys a group unless one of its consumers was active lately. Returns 1 if the group was destroyed.
--
-- KEYS: the stream
-- ARGV: group; minimum idle time in milliseconds
--
-- Looks at the consumers again in the same step, whatever the caller has seen before.

local group, idle = ARGV[1], tonumber(ARGV[2])
for _, consumer in ipairs(xinfo_list('CONSUMERS', KEYS[1], group)) do
  if consumer['idle'] < idle then return false end
end
return redis.call('XGROUP', 'DESTROY', KEYS[1], group)
