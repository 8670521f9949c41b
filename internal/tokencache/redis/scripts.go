package redis

import goredis "github.com/redis/go-redis/v9"

// Keys that replicas share. The braces keep them in one slot of a cluster, so that a script reads a
// value and its fences atomically:
//
//	{tokend}:all          the fence of every org
//	{tokend}:org:<id>     the fence of one org
//	{tokend}:token:<id>   a sealed token, by credential
//
// A fence is a hash: `epoch`, its generation; `hold:<id>` for each delete in progress, until when
// at most; and `token`, a keyed hash of the token that was stored last, until `until`. The fence of
// every org also has `process`, the Redis process that its epoch belongs to. One key holds all of
// it, so that it is lost as a whole. A missing fence is made with a new epoch, so nothing that was
// stored before is used.
const (
	keyAll         = "{tokend}:all"
	keyOrgPrefix   = "{tokend}:org:"
	keyTokenPrefix = "{tokend}:token:"
)

// luaStart has Redis's clock in milliseconds, and functions:
//
// keep keeps a fence for a time at least. A fence is kept no longer than a call or a value needs
// it: it is made for any org that a JWT names, verified or not.
//
// process identifies this process as a primary. The replication ID changes at each start and at
// each promotion, and a replica has that of its primary. (The run_id changes at each start only,
// and asking for it as well costs twice as much.)
const luaStart = `
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function keep(key, ms)
  ms = tonumber(ms)
  if redis.call('PTTL', key) < ms then redis.call('PEXPIRE', key, string.format('%.0f', ms)) end
end
local function process()
  local info = redis.call('INFO', 'replication')
  return string.find(info, 'role:master', 1, true) and string.match(info, 'master_replid:(%x+)')
end
local readonly = {err = 'READONLY not a primary'}
`

// scriptRead reads the fences and the value, and makes fences that are missing.
//
// What another Redis process has written is not used: it may be older than a delete that this
// process has not heard of, as after a restart from a snapshot or a failover. So the fence of every
// org moves when it is from another process.
//
// A Redis that takes no writes any more is not read either, because a delete may have been written
// to another one: HDEL changes nothing, and fails with READONLY or NOREPLICAS.
//
// A delete whose hold has run out was not ended: its replica may have been killed after Atlas
// carried it out. So the fence moves.
//
//	KEYS  all, org, value
//	ARGV  an epoch for a fence that is made or moves, how long to keep the fences (ms)
//	      now, epoch of all, epoch of the org ('' if it is held), the value
var scriptRead = goredis.NewScript(luaStart + `
local process = process()
if not process then return readonly end
local all = redis.call('HMGET', KEYS[1], 'epoch', 'process')
if not all[1] or all[2] ~= process then
  all[1] = ARGV[1]
  redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'process', process)
end
keep(KEYS[1], ARGV[2])
redis.call('HDEL', KEYS[2], '')
local fields, org, held, over = redis.call('HGETALL', KEYS[2]), false, false, false
for i = 1, #fields, 2 do
  local name, value = fields[i], fields[i + 1]
  if name == 'epoch' then
    org = value
  elseif string.sub(name, 1, 5) == 'hold:' then
    if tonumber(value) > now then
      held = true
    else
      redis.call('HDEL', KEYS[2], name)
      over = true
    end
  end
end
if not org or over then
  org = ARGV[1]
  redis.call('HSET', KEYS[2], 'epoch', org)
end
keep(KEYS[2], ARGV[2])
if held then return {now, all[1], '', false} end
return {now, all[1], org, redis.call('GET', KEYS[3])}
`)

// scriptPut notes the token that Atlas answered with, and stores the value if the fences are where
// they were when Atlas was asked. If the last token noted is another one, it was deleted without
// this cache, or this one is the older: it is not known which, so the fence moves and neither is
// kept. A note is kept for longer than any call takes, since one of them may have the other token.
// If the value there is the answer to a call that began later, it stays: the headers (seal.go) say
// so.
//
//	KEYS  all, org, value
//	ARGV  epoch of all, epoch of the org, keyed hash of the token, the value, its end (ms), an epoch
//	      to move to, how long to keep the fence (ms)
//	      1 if it was stored
var scriptPut = goredis.NewScript(luaStart + `
local known = redis.call('HMGET', KEYS[2], 'epoch', 'token', 'until')
if not known[1] then return 0 end
local last = math.max(tonumber(ARGV[5]), now + tonumber(ARGV[7]))
if known[2] and tonumber(known[3]) > now then
  if known[2] ~= ARGV[3] then
    redis.call('HSET', KEYS[2], 'epoch', ARGV[6])
    known[1] = ARGV[6]
  else
    last = math.max(last, tonumber(known[3]))
  end
end
redis.call('HSET', KEYS[2], 'token', ARGV[3], 'until', string.format('%.0f', last))
keep(KEYS[2], last - now + 1000)
local ends = tonumber(ARGV[5])
if ends <= now or known[1] ~= ARGV[2] or redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return 0 end
local function since(value)
  local ms = 0
  for i = 2, 9 do ms = ms * 256 + string.byte(value, i) end
  return ms
end
local stored = redis.call('GET', KEYS[3])
if stored and string.sub(stored, 26, 89) == ARGV[1] .. ARGV[2] and since(stored) > since(ARGV[4]) and since(stored) <= now then
  return 0
end
redis.call('SET', KEYS[3], ARGV[4], 'PX', string.format('%.0f', ends - now))
keep(KEYS[1], ends - now + 1000)
return 1
`)

// scriptHold holds a fence for a time, or no longer, and moves it.
//
//	KEYS  the fence
//	ARGV  the epoch to move to ('': it does not move), the hold's field, for how long to hold it
//	      (ms; 0: no longer), how long to keep the fence (ms)
var scriptHold = goredis.NewScript(luaStart + `
if not process() then return readonly end
if ARGV[1] ~= '' then
  redis.call('HSET', KEYS[1], 'epoch', ARGV[1])
  redis.call('HDEL', KEYS[1], 'token', 'until')
end
if tonumber(ARGV[3]) > 0 then
  redis.call('HSET', KEYS[1], ARGV[2], string.format('%.0f', now + ARGV[3]))
else
  redis.call('HDEL', KEYS[1], ARGV[2])
end
keep(KEYS[1], ARGV[4])
return 1
`)

// scriptDrop removes one value.
var scriptDrop = goredis.NewScript(`return redis.call('DEL', KEYS[1])`)
