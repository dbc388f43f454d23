"""What Redis does for us in one step, in Lua."""

# XCLAIM takes entries from whoever has them; TOUCH and TAKE leave alone what is another's by now. And it
# drops pending entries that were trimmed, without a word; TOUCH leaves them to TAKE, RECLAIM tells of them.
TOUCH = """
for i = 5, #ARGV do
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2])
  if #pending == 1 and #redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i]) == 1 then
    local claim = {'XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'IDLE', ARGV[3]}
    if ARGV[4] ~= '-1' then
      claim[#claim + 1] = 'RETRYCOUNT'
      claim[#claim + 1] = ARGV[4]
    end
    claim[#claim + 1] = 'JUSTID'
    redis.call(unpack(claim))
  end
end
"""

TAKE = """
local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2])
if #pending == 0 then return false end
return {pending[1][4], redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[3])}
"""

RECLAIM = """
local claimed, lost = 0, {}
for i = 4, #ARGV do
  if #redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i]) == 1 then
    claimed = claimed + #redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[i], 'JUSTID')
  elseif redis.call('XACK', KEYS[1], ARGV[1], ARGV[i]) == 1 then
    lost[#lost + 1] = ARGV[i]
  end
end
return {claimed, lost}
"""

TIDY = """
local deleted = 0
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local row = {}
  for i = 1, #consumer, 2 do row[consumer[i]] = consumer[i + 1] end
  if row['pending'] == 0 and row['idle'] >= tonumber(ARGV[2]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], row['name'])
    deleted = deleted + 1
  end
end
return deleted
"""
