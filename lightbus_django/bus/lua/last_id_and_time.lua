-- Returns the last id that was generated for a stream, and the time of the clock that generates the ids.
--
-- KEYS: the stream
--
-- The time is nil if the user may not call TIME.

local time = redis.pcall('TIME')
local stream = redis.pcall('XINFO', 'STREAM', KEYS[1])
if stream['err'] and not string.find(stream['err'], 'no such key', 1, true) then return stream end
return {stream['err'] and '0-0' or to_table(stream)['last-generated-id'], not time['err'] and time}
