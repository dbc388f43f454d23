-- Counts the entries after an id that a listener wants, without sending them.
--
-- KEYS: the stream
-- ARGV: stream id; last stream id, or +; maximum number of entries to look at; maximum number of bytes to look at; full
-- names of the events that are wanted
--
-- Returns how many entries were looked at, how many of them are wanted, the id of the first of these (or false), and 1
-- if no more entries follow, else 0.

local after, last, limit, bytes = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local wanted = {}
for i = 5, #ARGV do wanted[ARGV[i]] = true end
local seen, size, count, first = 0, 0, 0, false
while seen < limit and size < bytes do
  local entries = redis.call('XRANGE', KEYS[1], '(' .. after, last, 'COUNT', 20)
  for _, entry in ipairs(entries) do
    local fields = {}
    for i = 1, #entry[2], 2 do
      fields[entry[2][i]] = entry[2][i + 1]
      size = size + #entry[2][i + 1]
    end
    if wanted[(fields['api_name'] or '') .. '.' .. (fields['event_name'] or '')] then
      first, count = first or entry[1], count + 1
    end
    after = entry[1]
  end
  seen = seen + #entries
  if #entries < 20 then return {seen, count, first, 1} end
end
return {seen, count, first, 0}
