-- Returns which events lie after an id, without their payloads.
--
-- KEYS: the stream
-- ARGV: stream id; maximum number of entries to look at
--
-- Returns the id of the last entry that was looked at (false at the end of the stream), and for each entry its stream
-- id, its event id, its API name and its event name.

local limit = tonumber(ARGV[2])
local after, seen, found = ARGV[1], 0, {}
while seen < limit do
  local entries = redis.call('XRANGE', KEYS[1], '(' .. after, '+', 'COUNT', 100)
  for _, entry in ipairs(entries) do
    local fields = {}
    for i = 1, #entry[2], 2 do fields[entry[2][i]] = entry[2][i + 1] end
    found[#found + 1] = {entry[1], fields['id'] or '', fields['api_name'] or '', fields['event_name'] or ''}
    after = entry[1]
  end
  seen = seen + #entries
  if #entries < 100 then return {false, found} end
end
return {after, found}
