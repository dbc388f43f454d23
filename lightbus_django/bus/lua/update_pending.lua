-- Sets the owner, the idle time and, if given, the delivery count of pending entries of one consumer.
--
-- KEYS: the stream
-- ARGV: group; consumer; new owner; idle time in milliseconds; delivery count or an empty string; stream ids
--
-- XCLAIM alone would also take entries from other consumers, and silently drop entries that were trimmed. Both are left
-- as they are.

local group, consumer, owner, idle, deliveries = unpack(ARGV, 1, 5)
local updated = {}
for i = 6, #ARGV do
  local stream_id = ARGV[i]
  local pending = redis.call('XPENDING', KEYS[1], group, stream_id, stream_id, 1, consumer)
  if #pending == 1 and #redis.call('XRANGE', KEYS[1], stream_id, stream_id) == 1 then
    local claim = {'XCLAIM', KEYS[1], group, owner, 0, stream_id, 'IDLE', idle}
    if deliveries ~= '' then
      claim[#claim + 1] = 'RETRYCOUNT'
      claim[#claim + 1] = deliveries
    end
    claim[#claim + 1] = 'JUSTID'
    redis.call(unpack(claim))
    updated[#updated + 1] = stream_id
  end
end
return updated
