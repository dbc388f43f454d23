-- Deletes idle consumers that have nothing pending, but never a group's last one. Returns how many.
--
-- KEYS: the stream
-- ARGV: group; minimum idle time in milliseconds

local group, idle = ARGV[1], tonumber(ARGV[2])
local consumers = xinfo_list('CONSUMERS', KEYS[1], group)
table.sort(consumers, function(a, b) return a['idle'] > b['idle'] end)
local deleted = 0
for i = 1, #consumers - 1 do
  if consumers[i]['pending'] == 0 and consumers[i]['idle'] >= idle then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], group, consumers[i]['name'])
    deleted = deleted + 1
  end
end
return deleted
