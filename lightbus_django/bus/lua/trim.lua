-- Removes the oldest entries of a stream that every group has finished with.
--
-- KEYS: the stream
-- ARGV: stream id from which entries are kept; number of newest entries to keep; maximum number to remove;
--       stream id after which ids are ahead of the clock; names of groups that must exist

local keep_from, keep_length, limit, ahead_from = unpack(ARGV, 1, 4)

-- If even the first entry to keep has an id in the future, ids say nothing about age: only the groups decide.
local kept = redis.pcall('XRANGE', KEYS[1], keep_from, '+', 'COUNT', 1)
if not kept['err'] and kept[1] and is_less(ahead_from, kept[1][1]) then
  keep_from = '18446744073709551615-18446744073709551615'
end

local excess = redis.call('XLEN', KEYS[1]) - tonumber(keep_length)
if excess <= 0 then return 0 end

local missing = {}
for i = 5, #ARGV do missing[ARGV[i]] = true end
for _, group in ipairs(xinfo_list('GROUPS', KEYS[1])) do
  missing[group['name']] = nil
  local unfinished = group['last-delivered-id']
  if group['pending'] > 0 then unfinished = redis.call('XPENDING', KEYS[1], group['name'])[2] end
  if is_less(unfinished, keep_from) then keep_from = unfinished end
end
if next(missing) then return 0 end
return redis.call('XTRIM', KEYS[1], 'MINID', '~', keep_from, 'LIMIT', math.min(excess, tonumber(limit)))
