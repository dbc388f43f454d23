"""What Redis does for us in one step, in Lua."""

# XCLAIM takes entries from other consumers, and silently drops those that were trimmed; TOUCH leaves both alone.
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

# Those pending for long, of all consumers or of that in ARGV[5]. Not XREADGROUP with an id, nor XCLAIM without JUSTID:
# a delivery is counted when the entry's turn comes.
CLAIM = """
local found = redis.call('XPENDING', KEYS[1], ARGV[1], 'IDLE', ARGV[3], '-', '+', ARGV[4], unpack(ARGV, 5))
for i, row in ipairs(found) do
  local entry = redis.call('XRANGE', KEYS[1], row[1], row[1])[1]
  if entry then redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], row[1], 'JUSTID') end
  found[i] = {row[1], row[4], entry and entry[2] or {}}
end
return found
"""

_ROWS = """
local function row(flat)
  local found = {}
  for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
  return found
end
local function rows(...)
  local found = {}
  for _, flat in ipairs(redis.call('XINFO', ...)) do found[#found + 1] = row(flat) end
  return found
end
"""

# Unlike XGROUP CREATECONSUMER, this look behind the last entry also creates the consumer where Redis is full.
_SHOW_UP = """
local function show_up(group, consumer)
  local last = row(redis.call('XINFO', 'STREAM', KEYS[1]))['last-generated-id']
  redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', 1, 'STREAMS', KEYS[1], last)
end
"""

# In one step: a Lightbus service that starts destroys groups without a consumer.
JOIN = """
local created = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], ARGV[3], 'MKSTREAM')
if created['err'] and not string.find(created['err'], 'BUSYGROUP', 1, true) then return created end
redis.call('XGROUP', 'CREATECONSUMER', KEYS[1], ARGV[1], ARGV[2])
return created['err'] and 0 or 1
"""

# Redis before 7.2 takes a read that finds nothing for no sign of life; a consumer's look behind the last entry, at what
# it has outstanding there, is one. The rows of all groups stay here: a hundred listeners would read a hundred each.
PROGRESS = (
    _ROWS
    + _SHOW_UP
    + """
local stream = row(redis.call('XINFO', 'STREAM', KEYS[1]))
for _, group in ipairs(rows('GROUPS', KEYS[1])) do
  if group['name'] == ARGV[1] then
    local last = stream['last-generated-id']
    if ARGV[3] == '1' then show_up(ARGV[1], ARGV[2]) end
    return {
      redis.call('XPENDING', KEYS[1], ARGV[1])[2], group['last-delivered-id'], group['entries-read'] or false,
      last, stream['length'], stream['entries-added'] or false, stream['recorded-first-entry-id'] or false
    }
  end
end
return false
"""
)

# By the clock of Redis, which gives the stream ids; its users may not be allowed to ask for it.
LAST = (
    _ROWS
    + """
local time = redis.pcall('TIME')
local stream = redis.pcall('XINFO', 'STREAM', KEYS[1])
if stream['err'] and not string.find(stream['err'], 'no such key', 1, true) then return stream end
return {stream['err'] and '0-0' or row(stream)['last-generated-id'], not time['err'] and time}
"""
)

# A group keeps one consumer: a Lightbus service that starts destroys groups that have none.
LEAVE = (
    _ROWS
    + _SHOW_UP
    + """
local consumers = rows('CONSUMERS', KEYS[1], ARGV[1])
for _, consumer in ipairs(consumers) do
  if consumer['name'] == ARGV[2] and consumer['pending'] == 0 then
    if #consumers == 1 then show_up(ARGV[1], ARGV[3]) end
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
-- What follows an id that somebody has put ahead of the time has no age: it goes when every group has finished with it.
local kept = redis.pcall('XRANGE', KEYS[1], keep_from, '+', 'COUNT', 1)
if not kept['err'] and kept[1] and less(ARGV[4], kept[1][1]) then
  keep_from = '18446744073709551615-18446744073709551615'
end
local too_many = redis.call('XLEN', KEYS[1]) - tonumber(ARGV[2])
if too_many <= 0 then return 0 end
local awaited = {}
for i = 5, #ARGV do awaited[ARGV[i]] = true end
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
redis.call('SCARD', KEYS[3])
local id = redis.call('XADD', KEYS[1], '*', unpack(ARGV, 2))
redis.call('SADD', KEYS[3], ARGV[1] .. id)
return notes + redis.call('SADD', KEYS[2], ARGV[1])
"""
