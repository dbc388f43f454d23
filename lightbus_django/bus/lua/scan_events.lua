-- Returns which events lie after an id, without their payloads.
--
-- KEYS: the stream
-- ARGV: stream id; maximum number of entries to look at; maximum number of bytes to look at
--
-- Returns the id of the last entry that was looked at (false at the end of the stream), and for each entry its stream
-- id, its event id, its API name and its event name.

local after, limit, bytes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local size, found = 0, {}
while #found < limit and size < bytes do
  local entries = redis.call('XRANGE', KEYS[1], '(' .. after, '+', 'COUNT', 20)
  for _, entry in ipairs(entries) do
    local fields = {}
    for i = 1, #entry[2], 2 do
      fields[entry[2][i]] = entry[2][i + 1]
      size = size + #entry[2][i + 1]
    end
    found[#found + 1] = {entry[1], fields['id'] or '', fields['api_name'] or '', fields['event_name'] or ''}
    after = entry[1]
  end
  if #entries < 20 then return {false, found} end
end
return {after, found}
