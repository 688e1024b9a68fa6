"""The store's atomic steps, in Lua: each runs in Redis as a whole or not at all."""

from __future__ import annotations

PREFIX = "forcegauge:1:"
"""Before every key; the number is the version of what the keys hold."""

KEPT_EVENTS = 200
"""Events that are kept of a run."""

KEPT_EVENT_IDS = 2000
"""Ids of events that are known to be told already; a client keeps fewer untold."""

_COMMON = f"""
local P = '{PREFIX}'
local call = redis.call
local function of(what, run) return P .. what .. ':' .. run end
local function snapshot(run, id) return P .. 'snapshot:' .. run .. ':' .. id end
local function word(run, id, field)
  return (string.gsub(call('HGET', snapshot(run, id), field) or '', '"', ''))
end
local function state(run, id) return word(run, id, 'state') end
local function show(run, id, name, done, total)
  local stage = {{word(run, id, 'queue'), name, done, total}}
  call('HSET', P .. 'stages', run .. '/' .. id, table.concat(stage, '|'))
end
local function close(run, id, name, reason, now)
  local member = run .. '/' .. id
  call('HSET', snapshot(run, id), 'state', '"' .. name .. '"', 'finished', now, 'reason', reason)
  call('ZREM', P .. 'open', member)
  call('HDEL', P .. 'stages', member)
  call('HINCRBY', P .. 'counts', run .. '|' .. name, 1)
  if call('GET', of('running', run)) == id then
    call('DEL', of('running', run), of('lease', run))
  end
  if name == 'failed' then call('ZADD', P .. 'dead', now, member) end
end
local function forget(run)
  for _, id in ipairs(call('ZRANGE', of('snapshots', run), 0, -1)) do
    local member = run .. '/' .. id
    call('DEL', snapshot(run, id))
    call('ZREM', P .. 'open', member)
    call('ZREM', P .. 'dead', member)
    call('HDEL', P .. 'stages', member)
  end
  for _, what in ipairs({{'events', 'told', 'snapshots', 'asked', 'running', 'lease'}}) do
    call('DEL', of(what, run))
  end
  for _, hash in ipairs({{'owners', 'runs', 'beats', 'verdicts', 'addresses', 'targets', 'ended',
                          'results', 'scores', 'watches', 'noted', 'annotated'}}) do
    call('HDEL', P .. hash, run)
  end
  for _, name in ipairs({{'done', 'failed', 'cancelled', 'superseded'}}) do
    call('HDEL', P .. 'counts', run .. '|' .. name)
  end
  for _, index in ipairs({{'live', 'known', 'created', 'unannotated'}}) do
    call('ZREM', P .. index, run)
  end
end
"""

REGISTER = (
    _COMMON
    + """
local run, record, facts, target, now, fresh = unpack(ARGV)
local owner = call('HGET', P .. 'owners', run)
if owner and owner ~= record then
  local seen = call('ZSCORE', P .. 'live', run)
  if seen and tonumber(seen) >= tonumber(fresh) then return 'taken' end
  forget(run)
end
call('HSET', P .. 'owners', run, record)
call('HSET', P .. 'runs', run, facts)
call('HDEL', P .. 'ended', run)
call('HSETNX', P .. 'verdicts', run, 'warming')
if target == '' then
  call('HDEL', P .. 'addresses', run)
  call('HDEL', P .. 'targets', run)
else
  call('HSET', P .. 'addresses', run, target)
  call('HSET', P .. 'targets', run, target)
end
call('ZADD', P .. 'live', now, run)
call('ZADD', P .. 'known', now, run)
call('ZADD', P .. 'created', 'NX', now, run)
return owner == record and 'same' or 'created'
"""
)

HEARTBEAT = (
    _COMMON
    + f"""
local run, record, beat, verdict, now = unpack(ARGV)
local owner = call('HGET', P .. 'owners', run)
if not owner then return 'unknown' end
if owner ~= record then return 'taken' end
call('HSET', P .. 'beats', run, beat)
call('HSET', P .. 'verdicts', run, verdict)
call('ZADD', P .. 'known', now, run)
if call('HEXISTS', P .. 'ended', run) == 0 then
  call('ZADD', P .. 'live', now, run)
  local target = call('HGET', P .. 'addresses', run)
  if target then call('HSET', P .. 'targets', run, target) end
end
for place = 6, #ARGV, 2 do
  if call('ZADD', of('told', run), 'NX', now, ARGV[place]) == 1 then
    call('RPUSH', of('events', run), ARGV[place + 1])
    call('HINCRBY', P .. 'noted', run, 1)
    call('ZADD', P .. 'unannotated', 'NX', now, run)
  end
end
if #ARGV > 5 then
  call('LTRIM', of('events', run), -{KEPT_EVENTS}, -1)
  call('ZREMRANGEBYRANK', of('told', run), 0, -{KEPT_EVENT_IDS + 1})
end
return 'ok'
"""
)

UNANNOTATED = (
    _COMMON
    + """
local room, found = tonumber(ARGV[1]), {}
for _, run in ipairs(call('ZRANGE', P .. 'unannotated', 0, room - 1)) do
  local noted = tonumber(call('HGET', P .. 'noted', run))
  local done = tonumber(call('HGET', P .. 'annotated', run) or 0)
  -- of the oldest only the count is left
  local left = math.min(noted - done, call('LLEN', of('events', run)))
  local taken = math.min(left, room)
  if taken > 0 then
    local lines = call('LRANGE', of('events', run), -left, taken - left - 1)
    found[#found + 1] = {run, call('HGET', P .. 'owners', run), noted - left, lines}
    room = room - taken
  end
end
return found
"""
)

ANNOTATED = (
    _COMMON
    + """
local run, record, done = unpack(ARGV)
if call('HGET', P .. 'owners', run) ~= record then return 0 end
call('HSET', P .. 'annotated', run, done)
if tonumber(done) >= tonumber(call('HGET', P .. 'noted', run)) then
  call('ZREM', P .. 'unannotated', run)
end
return 1
"""
)

END = (
    _COMMON
    + """
local run, record, ended, now = unpack(ARGV)
local owner = call('HGET', P .. 'owners', run)
if not owner then return 'unknown' end
if owner ~= record then return 'taken' end
call('HSET', P .. 'ended', run, ended)
call('ZADD', P .. 'known', now, run)
call('ZREM', P .. 'live', run)
call('HDEL', P .. 'targets', run)
return 'ok'
"""
)

REAP = (
    _COMMON
    + """
local names = call('ZRANGEBYSCORE', P .. 'live', '-inf', '(' .. ARGV[1])
for _, run in ipairs(names) do
  call('ZREM', P .. 'live', run)
  call('HDEL', P .. 'targets', run)
end
return names
"""
)

FORGET = _COMMON + "forget(ARGV[1])"

EXPIRE = (
    _COMMON
    + """
local names = {}
for _, run in ipairs(call('ZRANGEBYSCORE', P .. 'known', '-inf', '(' .. ARGV[1])) do
  if call('EXISTS', of('lease', run)) == 0 then
    forget(run)
    names[#names + 1] = run
  end
end
return names
"""
)

ASK = (
    _COMMON
    + """
local run, id, question, step, now = unpack(ARGV)
local same = call('HGET', of('asked', run), question)
if same then
  local found = state(run, same)
  if found == 'queued' or found == 'running' or found == 'done' then return same end
end
for _, older in ipairs(call('ZRANGE', of('snapshots', run), 0, -1)) do
  if state(run, older) == 'queued'
      and tonumber(call('HGET', snapshot(run, older), 'step')) < tonumber(step) then
    close(run, older, 'superseded', '"a snapshot of step ' .. step .. ' was asked for"', now)
  end
end
for place = 6, #ARGV, 2 do call('HSET', snapshot(run, id), ARGV[place], ARGV[place + 1]) end
call('HSET', of('asked', run), question, id)
call('ZADD', of('snapshots', run), now, id)
call('ZADD', P .. 'open', now, run .. '/' .. id)
call('ZADD', P .. 'known', 'NX', now, run)
show(run, id, 'queued', 0, 0)
return id
"""
)

BEGIN = (
    _COMMON
    + """
local run, id, worker, lease, now = unpack(ARGV)
local found, running = state(run, id), call('GET', of('running', run))
if found ~= 'queued' and found ~= 'running' then return 0 end
if running and running ~= id then return 0 end
if call('SET', of('lease', run), worker, 'NX', 'PX', lease) == false then return 0 end
call('SET', of('running', run), id)
if call('HGET', snapshot(run, id), 'started') == 'null' then
  call('HSET', snapshot(run, id), 'started', now)
end
call('HSET', snapshot(run, id), 'state', '"running"')
call('HINCRBY', snapshot(run, id), 'attempts', 1)
if found == 'queued' then show(run, id, 'running', 0, 0) end
return 1
"""
)

PROGRESS = (
    _COMMON
    + """
local run, id, done, total, lease = unpack(ARGV)
if state(run, id) ~= 'running' or call('GET', of('running', run)) ~= id then return 0 end
call('SET', of('lease', run), id, 'PX', lease)
call('HSET', snapshot(run, id), 'pieces_done', done, 'pieces_total', total)
show(run, id, 'running', done, total)
return 1
"""
)

CLOSE = (
    _COMMON
    + """
local run, id, from, name, reason, now, path, metrics, result = unpack(ARGV)
local found = state(run, id)
if found == '' or not string.find(from, found, 1, true) then return 0 end
close(run, id, name, reason, now)
if name == 'done' then
  local total = call('HGET', snapshot(run, id), 'pieces_total')
  call('HSET', snapshot(run, id), 'path', path, 'metrics', metrics, 'pieces_done', total)
  local shown = call('HGET', P .. 'results', run)
  local step = tonumber(call('HGET', snapshot(run, id), 'step'))
  if not shown or tonumber(string.match(shown, '^%d+')) <= step then
    call('HSET', P .. 'results', run, step .. '|' .. result)
  end
end
return 1
"""
)

REQUEUE = (
    _COMMON
    + """
local run, id, question, now = unpack(ARGV)
local found = state(run, id)
if found ~= 'failed' and found ~= 'cancelled' and found ~= 'superseded' then return 0 end
call('HSET', snapshot(run, id), 'state', '"queued"', 'reason', '""', 'started', 'null',
     'finished', 'null', 'attempts', 0, 'pieces_done', 0)
call('HSET', of('asked', run), question, id)
call('ZADD', P .. 'open', now, run .. '/' .. id)
call('ZREM', P .. 'dead', run .. '/' .. id)
show(run, id, 'queued', 0, 0)
return 1
"""
)
