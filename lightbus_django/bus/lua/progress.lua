-- Returns how far a group is in its stream, or nil if there is no such group.
--
-- KEYS: the stream
-- ARGV: group
--
-- The list of all groups stays in Redis: with a hundred listeners, each would fetch a hundred groups.

local stream = to_table(redis.call('XINFO', 'STREAM', KEYS[1]))
for _, group in ipairs(xinfo_list('GROUPS', KEYS[1])) do
  if group['name'] == ARGV[1] then
    return {
      redis.call('XPENDING', KEYS[1], ARGV[1])[2], group['last-delivered-id'], stream['last-generated-id'],
      stream['recorded-first-entry-id'] or '0-0', group['entries-read'] or false, stream['length'],
      stream['entries-added'] or false
    }
  end
end
return false
