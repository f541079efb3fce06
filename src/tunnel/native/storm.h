/*
 * Storm: a bound on flooded frames, so many a second and as many at once.
 *
 * A token bucket as one number, the time until which what was let through would take at that
 * rate: GCRA, ITU-T I.371. Times are monotonic nanoseconds.
 */
#ifndef TUNNEL_STORM_H
#define TUNNEL_STORM_H

#include <stdbool.h>
#include <stdint.h>

enum { STORM_NS = 1000000000 };

/* Whether one more may pass, or `frames` at once that are one super-packet; `rate` a second, 0: no
 * bound. `until` begins as 0. */
static inline bool storm_allowed(uint64_t *until, uint32_t rate, uint32_t frames, uint64_t now)
{
    if (!rate)
        return true;
    uint64_t interval = STORM_NS / rate, from = *until > now ? *until : now;
    if (from - now + interval > STORM_NS)
        return false;
    *until = from + interval * frames;
    return true;
}

#endif
