-- Appends an event to a stream and confirms that it is there.
--
-- KEYS: the stream; its confirmations; its confirmations with stream ids
-- ARGV: the id of the outbox row; names and values of the fields, in turn
--
-- A confirmed event is never published again, so an event in the stream must have its confirmation, even if the script
-- fails half-way. SCARD fails before XADD if the confirmation can't be written.

local confirmations = redis.call('SCARD', KEYS[2])
redis.call('SCARD', KEYS[3])
local stream_id = redis.call('XADD', KEYS[1], '*', unpack(ARGV, 2))
redis.call('SADD', KEYS[3], ARGV[1] .. stream_id)
return confirmations + redis.call('SADD', KEYS[2], ARGV[1])
