-- Creates the stream, the group and the consumer where they don't exist.
--
-- KEYS: the stream
-- ARGV: group; consumer; stream id after which a new group starts
--
-- Both in one script, because a Lightbus service that starts destroys groups without consumers.

local group, consumer, start_id = unpack(ARGV)
local created = redis.pcall('XGROUP', 'CREATE', KEYS[1], group, start_id, 'MKSTREAM')
if created['err'] and not string.find(created['err'], 'BUSYGROUP', 1, true) then return created end
redis.call('XGROUP', 'CREATECONSUMER', KEYS[1], group, consumer)
return created['err'] and 0 or 1
