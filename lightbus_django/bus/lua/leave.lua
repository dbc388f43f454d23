-- Deletes a consumer that has nothing pending. The placeholder takes the place of a group's last consumer.
--
-- KEYS: the stream
-- ARGV: group; consumer; name of the placeholder
--
-- The placeholder is needed because a Lightbus service that starts destroys groups without consumers.

local group, name, placeholder = unpack(ARGV)
local consumers = xinfo_list('CONSUMERS', KEYS[1], group)
for _, consumer in ipairs(consumers) do
  if consumer['name'] == name and consumer['pending'] == 0 then
    if #consumers == 1 then
      -- A read creates its consumer, even if Redis is out of memory. XGROUP CREATECONSUMER fails then. Nothing is
      -- pending after the last id, so this read returns nothing.
      local last_id = to_table(redis.call('XINFO', 'STREAM', KEYS[1]))['last-generated-id']
      redis.call('XREADGROUP', 'GROUP', group, placeholder, 'COUNT', 1, 'STREAMS', KEYS[1], last_id)
    end
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], group, name)
  end
end
