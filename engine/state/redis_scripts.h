// SPDX-License-Identifier: Apache-2.0
// What must happen at once in Redis, as scripts that it runs whole. Keys and fields: store_redis.c.
//
// Each answers a list whose first item says what happened. Times are the server's own, so that the
// clocks of those who share it do not matter.
#ifndef SSM_ENGINE_REDIS_SCRIPTS_H
#define SSM_ENGINE_REDIS_SCRIPTS_H

// A session whose first turn is under way has a place for as long as it is claimed, so that nothing
// is generated in vain: in indices of its own, as it is in no list.
#define SCRIPT_PLACE                                                                               \
    "local function place(key, own, all, lease, how) "                                             \
    "  local till = redis.call('TIME')[1] + 1 + math.ceil(2 * lease / 1000) "                      \
    "  for _, index in ipairs({own .. ':new', all .. ':new'}) do "                                 \
    "    redis.call('ZADD', index, how, till, string.sub(key, -32)) "                              \
    "    redis.call('EXPIREAT', index, till) "                                                     \
    "  end "                                                                                       \
    "end "
// It has given it back (where it has none nothing is written: a Redis may refuse that).
#define SCRIPT_NO_PLACE                                                                            \
    "local function no_place(key, own, all) "                                                      \
    "  local id = string.sub(key, -32) "                                                           \
    "  for _, index in ipairs({own .. ':new', all .. ':new'}) do "                                 \
    "    if redis.call('ZSCORE', index, id) then redis.call('ZREM', index, id) end "               \
    "  end "                                                                                       \
    "end "

// What has expired leaves an index by its score; then whether one more session, which may have its
// place already, is too many.
#define SCRIPT_LIMITS                                                                              \
    "local function counted(index, key, now) "                                                     \
    "  local new = index .. ':new' "                                                               \
    "  redis.call('ZREMRANGEBYSCORE', index, '-inf', '(' .. now) "                                 \
    "  redis.call('ZREMRANGEBYSCORE', new, '-inf', '(' .. now) "                                   \
    "  local n = redis.call('ZCARD', index) + redis.call('ZCARD', new) "                           \
    "  return redis.call('ZSCORE', new, string.sub(key, -32)) and n - 1 or n "                     \
    "end "                                                                                         \
    "local function over(key, own, all, most_own, most_all) "                                      \
    "  local now = redis.call('TIME')[1] "                                                         \
    "  local n_all, n_own = counted(all, key, now), counted(own, key, now) "                       \
    "  if most_all > 0 and n_all >= most_all then return 'full' end "                              \
    "  if most_own > 0 and n_own >= most_own then return 'own full' end "                          \
    "end "

// By whole seconds, of which the one that has begun does not count, as in one process (quota.c):
// nothing goes before its time is up, and a TTL of a second is one. Nor before `until`.
#define SCRIPT_EXPIRE                                                                              \
    "local function live(key, own, all, ttl, id) "                                                 \
    "  local score = '+inf' "                                                                      \
    "  redis.call('PERSIST', key) "                                                                \
    "  redis.call('HDEL', key, 'expires') "                                                        \
    "  if ttl > 0 then "                                                                           \
    "    score = redis.call('TIME')[1] + 1 + ttl "                                                 \
    "    redis.call('HSET', key, 'expires', score) "                                               \
    "    score = math.max(score, tonumber(redis.call('HGET', key, 'until') or 0)) "                \
    "    redis.call('EXPIREAT', key, score) "                                                      \
    "  end "                                                                                       \
    "  redis.call('ZADD', own, score, id) "                                                        \
    "  redis.call('ZADD', all, score, id) "                                                        \
    "end "

// A session that is claimed or waited for does not expire, and stays in the indices: it is kept for
// half of `ms` from now at least.
#define SCRIPT_HOLD                                                                                \
    "local function hold(key, own, all, ms) "                                                      \
    "  local left = redis.call('PTTL', key) "                                                      \
    "  if left < 0 or left >= ms / 2 or redis.call('TYPE', key).ok ~= 'hash' then return end "     \
    "  local till = redis.call('TIME')[1] + 1 + math.ceil(ms / 1000) "                             \
    "  redis.call('EXPIREAT', key, till) "                                                         \
    "  redis.call('ZADD', own, till, string.sub(key, -32)) "                                       \
    "  redis.call('ZADD', all, till, string.sub(key, -32)) "                                       \
    "end "

// Nobody who gives the session up lets it expire for two leases from now. False: it is not there.
#define SCRIPT_AWAIT                                                                               \
    SCRIPT_HOLD                                                                                    \
    "local function await(key, own, all, lease, ms) "                                              \
    "  if redis.call('TYPE', key).ok ~= 'hash' then return false end "                             \
    "  if redis.call('PTTL', key) >= 0 then "                                                      \
    "    local till = redis.call('TIME')[1] + 1 + math.ceil(2 * lease / 1000) "                    \
    "    redis.call('HSET', key, 'until', till) "                                                  \
    "    hold(key, own, all, ms) "                                                                 \
    "  end "                                                                                       \
    "  return true "                                                                               \
    "end "

#define SCRIPT_HOLDER                                                                              \
    "local function holder_of(claim) "                                                             \
    "  if redis.call('TYPE', claim).ok ~= 'string' then return false end "                         \
    "  return redis.call('GET', claim) "                                                           \
    "end "

// Its own time is the session's again, unless it is another's by now.
#define SCRIPT_LET_GO                                                                              \
    SCRIPT_HOLDER                                                                                  \
    SCRIPT_NO_PLACE                                                                                \
    "local function let_go(key, own, all, claim, me) "                                             \
    "  local holder = holder_of(claim) "                                                           \
    "  if holder == me then redis.call('DEL', claim) elseif holder then return end "               \
    "  no_place(key, own, all) "                                                                   \
    "  if redis.call('TYPE', key).ok ~= 'hash' then return end "                                   \
    "  local at = tonumber(redis.call('HGET', key, 'expires') or nil) "                            \
    "  if not at then return end "                                                                 \
    "  at = math.max(at, tonumber(redis.call('HGET', key, 'until') or 0)) "                        \
    "  redis.call('EXPIREAT', key, at) "                                                           \
    "  redis.call('ZADD', own, at, string.sub(key, -32)) "                                         \
    "  redis.call('ZADD', all, at, string.sub(key, -32)) "                                         \
    "end "

// KEYS session claim own all wish, ARGV me lease hold most_own most_all waits?. Who waits says so
// for a while, to whoever puts a turn in place, and is told whether there is a session to wait for.
static const char script_claim[] = SCRIPT_LIMITS SCRIPT_PLACE SCRIPT_AWAIT SCRIPT_HOLDER
    "local lease, ms = tonumber(ARGV[2]), tonumber(ARGV[3]) "
    "local holder = holder_of(KEYS[2]) "
    "if holder and holder ~= ARGV[1] then "
    "  local is = false "
    "  if ARGV[6] == '1' then "
    "    redis.call('SET', KEYS[5], ARGV[1], 'PX', 1500) "
    "    is = await(KEYS[1], KEYS[3], KEYS[4], lease, ms) "
    "  end "
    "  return {'busy', is and 1 or 0} "
    "end "
    "local kind = redis.call('TYPE', KEYS[1]).ok "
    "if kind == 'none' then "
    "  local why = over(KEYS[1], KEYS[3], KEYS[4], tonumber(ARGV[4]), tonumber(ARGV[5])) "
    "  if why then return {why} end "
    "  place(KEYS[1], KEYS[3], KEYS[4], lease, 'GT') "
    "end "
    "redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2]) "
    "redis.call('DEL', KEYS[5]) "
    "if kind == 'none' then return {'none'} end "
    "if kind ~= 'hash' then return {'bad'} end "
    "hold(KEYS[1], KEYS[3], KEYS[4], ms) "
    "return {'ok', unpack(redis.call('HMGET', KEYS[1], 'stamp', 'size', 'created', 'last_used', "
    "'name', 'owner'))}";

// KEYS session
static const char script_get[] =
    "local kind = redis.call('TYPE', KEYS[1]).ok "
    "if kind == 'none' then return {'none'} end "
    "if kind ~= 'hash' then return {'bad'} end "
    "return {'ok', unpack(redis.call('HMGET', KEYS[1], 'stamp', 'size', 'created', 'last_used', "
    "'name', 'owner'))}";

// KEYS session own all, ARGV lease hold: a request waits for it
static const char script_await[] = SCRIPT_AWAIT
    "local is = await(KEYS[1], KEYS[2], KEYS[3], tonumber(ARGV[1]), tonumber(ARGV[2])) "
    "return {is and 'ok' or 'none'}";

// KEYS session own all claim, ARGV me
static const char script_release[] =
    SCRIPT_LET_GO "let_go(KEYS[1], KEYS[2], KEYS[3], KEYS[4], ARGV[1]) return {'ok'}";

// KEYS all, then session own claim of each; ARGV me lease hold, and a letter for each: c, it is
// claimed, or w, waited for. A claim that has lapsed and that nobody else has taken is taken again:
// had somebody used the session meanwhile, its stamp would say so.
static const char script_renew[] = SCRIPT_PLACE SCRIPT_AWAIT SCRIPT_HOLDER
    "local lease, ms = tonumber(ARGV[2]), tonumber(ARGV[3]) "
    "for i = 2, #KEYS, 3 do "
    "  local key, own, claim = KEYS[i], KEYS[i + 1], KEYS[i + 2] "
    "  local holder, at = holder_of(claim), (i + 1) / 3 "
    "  if string.sub(ARGV[4], at, at) == 'w' then "
    "    await(key, own, KEYS[1], lease, ms) "
    "  elseif not holder or holder == ARGV[1] then "
    "    redis.call('SET', claim, ARGV[1], 'PX', ARGV[2]) "
    "    if redis.call('TYPE', key).ok == 'none' then place(key, own, KEYS[1], lease, 'XX') end "
    "    hold(key, own, KEYS[1], ms) "
    "  end "
    "end "
    "redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. redis.call('TIME')[1]) "
    "return {'ok', redis.call('ZCARD', KEYS[1])}";

// KEYS upload, ARGV field value ...: begins one that goes by itself if it is not finished
static const char script_open[] = "redis.call('HSET', KEYS[1], unpack(ARGV)) "
                                  "redis.call('EXPIRE', KEYS[1], 600) "
                                  "return {'ok'}";

// KEYS session claim own all upload wish grave; ARGV me base stamp fields import? release? ttl
// most_own most_all id hold: the upload becomes the session. One whose answer was lost comes again:
// it is there.
static const char script_put[] = SCRIPT_LIMITS SCRIPT_EXPIRE SCRIPT_HOLD SCRIPT_LET_GO
    "local me, base, stamp = ARGV[1], ARGV[2], ARGV[3] "
    "local function done(what) "
    "  redis.call('DEL', KEYS[5]) "
    "  if ARGV[6] == '1' then "
    "    let_go(KEYS[1], KEYS[3], KEYS[4], KEYS[2], me) "
    "  elseif holder_of(KEYS[2]) == me then "
    "    hold(KEYS[1], KEYS[3], KEYS[4], tonumber(ARGV[11])) "
    "  end "
    "  return {what, redis.call('ZCARD', KEYS[4]), redis.call('EXISTS', KEYS[6])} "
    "end "
    "local is = false "
    "if redis.call('TYPE', KEYS[1]).ok == 'hash' then is = redis.call('HGET', KEYS[1], 'stamp') "
    "end "
    "if is == stamp then return done('ok') end "
    "local holder = holder_of(KEYS[2]) "
    "if ARGV[5] == '1' then "
    "  if holder then return done('busy') end "
    "else "
    "  if holder and holder ~= me then return done('moved') end "
    "  if not is and base ~= '' then "
    "    return done(redis.call('GET', KEYS[7]) == base and 'deleted' or 'gone') "
    "  end "
    "  if is and is ~= base then return done('moved') end "
    "end "
    "if redis.call('HLEN', KEYS[5]) ~= tonumber(ARGV[4]) then return done('torn') end "
    "if is then "
    "  local created = redis.call('HGET', KEYS[1], 'created') "
    "  if created then redis.call('HSET', KEYS[5], 'created', created) end "
    "  local till = redis.call('HGET', KEYS[1], 'until') "
    "  if till then redis.call('HSET', KEYS[5], 'until', till) end "
    "else "
    "  local why = over(KEYS[1], KEYS[3], KEYS[4], tonumber(ARGV[8]), tonumber(ARGV[9])) "
    "  if why then return done(why) end "
    "end "
    "redis.call('RENAME', KEYS[5], KEYS[1]) "
    "live(KEYS[1], KEYS[3], KEYS[4], tonumber(ARGV[7]), ARGV[10]) "
    "no_place(KEYS[1], KEYS[3], KEYS[4]) "
    "return done('ok')";

// KEYS session own all claim grave; ARGV id hold. Whoever is at it is to know that it was deleted.
static const char script_delete[] =
    "if redis.call('EXISTS', KEYS[4]) == 1 and redis.call('TYPE', KEYS[1]).ok == 'hash' then "
    "  local stamp = redis.call('HGET', KEYS[1], 'stamp') "
    "  if stamp then redis.call('SET', KEYS[5], stamp, 'PX', ARGV[2]) end "
    "end "
    "local n = redis.call('DEL', KEYS[1]) "
    "redis.call('ZREM', KEYS[2], ARGV[1]) "
    "redis.call('ZREM', KEYS[3], ARGV[1]) "
    "return {n > 0 and 'ok' or 'none', redis.call('ZCARD', KEYS[3])}";

// KEYS session target target's claim own all; ARGV stamp name created ttl most_own most_all id
static const char script_fork[] = SCRIPT_LIMITS SCRIPT_EXPIRE
    "if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then return {'none'} end "
    "local kind = redis.call('TYPE', KEYS[2]).ok "
    "if kind == 'hash' and redis.call('HGET', KEYS[2], 'stamp') == ARGV[1] then return {'ok'} end "
    "if kind ~= 'none' or redis.call('EXISTS', KEYS[3]) == 1 then return {'exists'} end "
    "local why = over(KEYS[2], KEYS[4], KEYS[5], tonumber(ARGV[5]), tonumber(ARGV[6])) "
    "if why then return {why} end "
    "redis.call('COPY', KEYS[1], KEYS[2]) "
    "redis.call('HDEL', KEYS[2], 'until') "
    "redis.call('HSET', KEYS[2], 'stamp', ARGV[1], 'name', ARGV[2], 'created', ARGV[3], "
    "'last_used', "
    "ARGV[3]) "
    "live(KEYS[2], KEYS[4], KEYS[5], tonumber(ARGV[4]), ARGV[7]) "
    "return {'ok', redis.call('ZCARD', KEYS[5])}";

// KEYS session bad claim own all; ARGV stamp me id: what cannot be read goes where nobody looks,
// for a week, unless it is another one by now
static const char script_set_aside[] = SCRIPT_LET_GO
    "local kind = redis.call('TYPE', KEYS[1]).ok "
    "if kind ~= 'hash' or ARGV[1] == '' or redis.call('HGET', KEYS[1], 'stamp') == ARGV[1] then "
    "  if kind ~= 'none' then "
    "    redis.call('RENAME', KEYS[1], KEYS[2]) "
    "    redis.call('EXPIRE', KEYS[2], 604800) "
    "  end "
    "  redis.call('ZREM', KEYS[4], ARGV[3]) "
    "  redis.call('ZREM', KEYS[5], ARGV[3]) "
    "end "
    "let_go(KEYS[1], KEYS[4], KEYS[5], KEYS[3], ARGV[2]) "
    "return {'ok'}";

// KEYS own
static const char script_list[] =
    "redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. redis.call('TIME')[1]) "
    "return redis.call('ZRANGE', KEYS[1], 0, -1)";

#endif
