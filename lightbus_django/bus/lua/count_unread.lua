-- Counts the entries after an id that a listener wants, without sending them.
--
-- KEYS: the stream
-- ARGV: stream id; maximum number of entries to look at; full names of the events that are wanted
--
-- Returns how many entries were looked at, how many of them are wanted, and the ids of the first and of the last of
-- these.

local limit = tonumber(ARGV[2])
local wanted = {}
for i = 3, #ARGV do wanted[ARGV[i]] = true end
local after, seen, count, first, last = ARGV[1], 0, 0, false, false
while seen < limit do
  local entries = redis.call('XRANGE', KEYS[1], '(' .. after, '+', 'COUNT', 100)
  for _, entry in ipairs(entries) do
    local fields = {}
    for i = 1, #entry[2], 2 do fields[entry[2][i]] = entry[2][i + 1] end
    if wanted[(fields['api_name'] or '') .. '.' .. (fields['event_name'] or '')] then
      first = first or entry[1]
      last, count = entry[1], count + 1
    end
    after = entry[1]
  end
  seen = seen + #entries
  if #entries < 100 then break end
end
return {seen, count, first, last}
