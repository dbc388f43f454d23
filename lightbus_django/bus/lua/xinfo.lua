-- Shared functions: XINFO replies as tables.

local function to_table(flat)
  local fields = {}
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  return fields
end

local function xinfo_list(...)
  local items = {}
  for _, flat in ipairs(redis.call('XINFO', ...)) do items[#items + 1] = to_table(flat) end
  return items
end
