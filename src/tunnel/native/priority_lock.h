/*
 * A mutex with two priorities: low for the thread that moves packets, high for everything that
 * reads or changes its tables.
 *
 * Like a lock with writer preference: while any thread holds or waits for the lock at high
 * priority, no thread gets it at low priority. With a plain mutex the thread that moves packets
 * would take the lock again so soon after its release that the others starved while packets keep
 * coming.
 */
#ifndef TUNNEL_PRIORITY_LOCK_H
#define TUNNEL_PRIORITY_LOCK_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

struct priority_lock {
    pthread_mutex_t mutex;
    pthread_cond_t released; /* at high priority */
    atomic_uint high;        /* threads that hold it at high priority, or wait for that */
};

static inline bool priority_lock_init(struct priority_lock *lock)
{
    return pthread_mutex_init(&lock->mutex, NULL) == 0 &&
           pthread_cond_init(&lock->released, NULL) == 0;
}

static inline void priority_lock_destroy(struct priority_lock *lock)
{
    pthread_cond_destroy(&lock->released);
    pthread_mutex_destroy(&lock->mutex);
}

static inline void priority_lock_low(struct priority_lock *lock)
{
    pthread_mutex_lock(&lock->mutex);
    while (atomic_load_explicit(&lock->high, memory_order_relaxed))
        pthread_cond_wait(&lock->released, &lock->mutex);
}

static inline void priority_unlock_low(struct priority_lock *lock)
{
    pthread_mutex_unlock(&lock->mutex);
}

/* Returns false if priority_lock_high() would wait. */
static inline bool priority_trylock_high(struct priority_lock *lock)
{
    if (pthread_mutex_trylock(&lock->mutex))
        return false;
    atomic_fetch_add_explicit(&lock->high, 1, memory_order_relaxed);
    return true;
}

static inline void priority_lock_high(struct priority_lock *lock)
{
    atomic_fetch_add_explicit(&lock->high, 1, memory_order_relaxed);
    pthread_mutex_lock(&lock->mutex);
}

static inline void priority_unlock_high(struct priority_lock *lock)
{
    atomic_fetch_sub_explicit(&lock->high, 1, memory_order_relaxed);
    pthread_cond_signal(&lock->released);
    pthread_mutex_unlock(&lock->mutex);
}

#endif
