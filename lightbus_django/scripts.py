"""What Redis does for us in one step, in Lua."""

# XCLAIM takes entries from whoever has them; TOUCH and TAKE leave alone what is another's by now. And it
# drops pending entries that were trimmed, without a word; TOUCH leaves them to TAKE, RECLAIM tells of them.
TOUCH = """
local touched = {}
for i = 6, #ARGV do
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2])
  if #pending == 1 and #redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i]) == 1 then
    local claim = {'XCLAIM', KEYS[1], ARGV[1], ARGV[3], 0, ARGV[i], 'IDLE', ARGV[4]}
    if ARGV[5] ~= '-1' then
      claim[#claim + 1] = 'RETRYCOUNT'
      claim[#claim + 1] = ARGV[5]
    end
    claim[#claim + 1] = 'JUSTID'
    redis.call(unpack(claim))
    touched[#touched + 1] = ARGV[i]
  end
end
return touched
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

_ROWS = """
local function rows(...)
  local found = {}
  for _, flat in ipairs(redis.call('XINFO', ...)) do
    local row = {}
    for i = 1, #flat, 2 do row[flat[i]] = flat[i + 1] end
    found[#found + 1] = row
  end
  return found
end
"""

# A group keeps one consumer: a Lightbus service that starts destroys groups that have none.
LEAVE = (
    _ROWS
    + """
local consumers = rows('CONSUMERS', KEYS[1], ARGV[1])
for _, consumer in ipairs(consumers) do
  if consumer['name'] == ARGV[2] and consumer['pending'] == 0 then
    if #consumers == 1 then redis.call('XGROUP', 'CREATECONSUMER', KEYS[1], ARGV[1], ARGV[3]) end
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
  end
end
"""
)

TIDY = (
    _ROWS
    + """
local consumers = rows('CONSUMERS', KEYS[1], ARGV[1])
table.sort(consumers, function(a, b) return a['idle'] > b['idle'] end)
local deleted = 0
for i = 1, #consumers - 1 do
  if consumers[i]['pending'] == 0 and consumers[i]['idle'] >= tonumber(ARGV[2]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumers[i]['name'])
    deleted = deleted + 1
  end
end
return deleted
"""
)

# Numbers in Lua are floats, so stream ids are compared as texts: the longer number is the greater one.
TRIM = (
    _ROWS
    + """
local function less(a, b)
  local ams, aseq = string.match(a, '(%d+)-(%d+)')
  local bms, bseq = string.match(b, '(%d+)-(%d+)')
  if #ams ~= #bms then return #ams < #bms end
  if ams ~= bms then return ams < bms end
  if #aseq ~= #bseq then return #aseq < #bseq end
  return aseq < bseq
end
local keep_from = ARGV[1]
local too_many = redis.call('XLEN', KEYS[1]) - tonumber(ARGV[2])
if too_many <= 0 then return 0 end
local awaited = {}
for i = 4, #ARGV do awaited[ARGV[i]] = true end
for _, group in ipairs(rows('GROUPS', KEYS[1])) do
  awaited[group['name']] = nil
  local unfinished = group['last-delivered-id']
  if group['pending'] > 0 then unfinished = redis.call('XPENDING', KEYS[1], group['name'])[2] end
  if less(unfinished, keep_from) then keep_from = unfinished end
end
if next(awaited) then return 0 end
return redis.call('XTRIM', KEYS[1], 'MINID', '~', keep_from, 'LIMIT', math.min(too_many, tonumber(ARGV[3])))
"""
)

# Nothing is destroyed that has been in use since, whatever was seen before.
RETIRE = (
    _ROWS
    + """
for _, consumer in ipairs(rows('CONSUMERS', KEYS[1], ARGV[1])) do
  if consumer['idle'] < tonumber(ARGV[2]) then return false end
end
return redis.call('XGROUP', 'DESTROY', KEYS[1], ARGV[1])
"""
)

# An event is noted once it is in the stream, whatever goes wrong: what is noted is never published again.
# What can't be noted is not published; so the notes are looked at before.
PUBLISH = """
local notes = redis.call('SCARD', KEYS[2])
redis.call('XADD', KEYS[1], '*', unpack(ARGV, 2))
return notes + redis.call('SADD', KEYS[2], ARGV[1])
"""
