/*
 * Storm: limits flooded frames to a rate per second, with a burst of one second.
 *
 * A token bucket kept as one number, the time at which all frames so far would have passed at that
 * rate: GCRA, ITU-T I.371. Times are monotonic nanoseconds.
 */
#ifndef TUNNEL_STORM_H
#define TUNNEL_STORM_H

#include <stdbool.h>
#include <stdint.h>

enum { STORM_NS = 1000000000 };

/* Whether `frames` frames, which are one packet or super-packet, may pass; if so, counts them.
 * `rate` is per second, 0 for no limit; `until` is 0 at first. */
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
