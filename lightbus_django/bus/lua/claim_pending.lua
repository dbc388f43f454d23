-- Claims the oldest pending entries that have been idle long enough, of all consumers or of one.
--
-- KEYS: the stream
-- ARGV: group; consumer; minimum idle time in milliseconds; maximum number of entries; owner (optional)
--
-- No delivery is counted: that happens when the turn of an entry comes. So this uses neither XREADGROUP with an id nor
-- XCLAIM without JUSTID, which both count one.

local group, consumer, idle, count = unpack(ARGV, 1, 4)
local entries = redis.call('XPENDING', KEYS[1], group, 'IDLE', idle, '-', '+', count, unpack(ARGV, 5))
for i, pending in ipairs(entries) do
  local stream_id, deliveries = pending[1], pending[4]
  local entry = redis.call('XRANGE', KEYS[1], stream_id, stream_id)[1]
  -- XCLAIM would silently drop an entry that was trimmed. It is returned without fields.
  if entry then redis.call('XCLAIM', KEYS[1], group, consumer, idle, stream_id, 'JUSTID') end
  entries[i] = {stream_id, deliveries, entry and entry[2] or {}}
end
return entries
