package tokencache

import "github.com/redis/go-redis/v9"

// What replicas share, all in one slot of a cluster (the braces), so that a script can read a value and its fences at one
// point in time:
//
//	{tokend}:all          the fence of every org
//	{tokend}:org:<id>     that of one
//	{tokend}:token:<id>   a sealed token, by credential
//
// A fence is a hash: `epoch`, where it stands; `hold:<id>` for each delete in progress, until when at most; and `token`, a
// hash of the token that is remembered behind it, until `until`. One key holds all of it, so that it is lost as a whole.
// A fence that is missing is made anew with an epoch that nobody has seen, so nothing that was stored before is used.
const (
	keyAll         = "{tokend}:all"
	keyOrgPrefix   = "{tokend}:org:"
	keyTokenPrefix = "{tokend}:token:"
)

// luaStart is Redis's clock in milliseconds, and a way to keep a fence for so many at least. A fence is kept no longer
// than a call or a value needs it: it is made for whatever org a JWT names that nobody has verified.
const luaStart = `
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function keep(key, ms)
  ms = tonumber(ms)
  if redis.call('PTTL', key) < ms then redis.call('PEXPIRE', key, string.format('%.0f', ms)) end
end
`

// scriptLook reads the fences and the value, and makes fences that are missing.
//
//	KEYS  all, org, value
//	ARGV  an epoch for a missing fence, how long to keep the fences (ms)
//	      now, epoch of all, epoch of the org, 1 if one of them is held, the value
var scriptLook = redis.NewScript(luaStart + `
local held = 0
local function read(key)
  local fields, epoch = redis.call('HGETALL', key), false
  for i = 1, #fields, 2 do
    if fields[i] == 'epoch' then
      epoch = fields[i + 1]
    elseif string.sub(fields[i], 1, 5) == 'hold:' then
      if tonumber(fields[i + 1]) > now then held = 1 else redis.call('HDEL', key, fields[i]) end
    end
  end
  if not epoch then
    epoch = ARGV[1]
    redis.call('HSET', key, 'epoch', epoch)
  end
  keep(key, ARGV[2])
  return epoch
end
local all, org = read(KEYS[1]), read(KEYS[2])
local value = held == 0 and redis.call('GET', KEYS[3])
return {now, all, org, held, value}
`)

// scriptPut notes the token that Atlas answered with, and stores the value if the fences are where they were when Atlas was
// asked. (Then none is held either: a hold begins with a move, and who is asked while one is held notes no fence.) If the last
// token noted is another one, somebody has deleted that behind our back, or this one is the older: nobody knows which, so the
// fence moves and neither is kept. A note is kept for longer than any call takes, since one of them may have the other token.
// If what is stored is the answer to a call that began later, it stays: the headers (seal.go) say so.
//
//	KEYS  all, org, value
//	ARGV  epoch of all, epoch of the org, hash of the token, the value, its end (ms), an epoch to move to, how long to keep
//	      the fence (ms)
//	      1 if it was stored
var scriptPut = redis.NewScript(luaStart + `
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

// scriptMove moves a fence, and holds it for a time or no longer.
//
//	KEYS  the fence
//	ARGV  the epoch to move to, the hold's field, for how long to hold it (ms; 0: no longer), how long to keep the fence (ms)
var scriptMove = redis.NewScript(luaStart + `
redis.call('HSET', KEYS[1], 'epoch', ARGV[1])
redis.call('HDEL', KEYS[1], 'token', 'until')
if tonumber(ARGV[3]) > 0 then
  redis.call('HSET', KEYS[1], ARGV[2], string.format('%.0f', now + ARGV[3]))
else
  redis.call('HDEL', KEYS[1], ARGV[2])
end
keep(KEYS[1], ARGV[4])
return 1
`)

// scriptDrop forgets one value.
var scriptDrop = redis.NewScript(`return redis.call('DEL', KEYS[1])`)
