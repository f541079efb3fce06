/*
 * A gate between one mover of packets and those who want to read or change its tables.
 *
 * A plain mutex would not do: the mover takes it again so soon after it let go that nobody else
 * gets in while packets keep coming. Here it stands back for whoever has said that he waits.
 */
#ifndef TUNNEL_GATE_H
#define TUNNEL_GATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

struct gate {
    pthread_mutex_t lock;
    pthread_cond_t left;
    atomic_uint visitors; /* waiting, or inside */
};

static inline bool gate_open(struct gate *gate)
{
    return pthread_mutex_init(&gate->lock, NULL) == 0 && pthread_cond_init(&gate->left, NULL) == 0;
}

static inline void gate_close(struct gate *gate)
{
    pthread_cond_destroy(&gate->left);
    pthread_mutex_destroy(&gate->lock);
}

/* The mover's turn begins when no visitor is left. */
static inline void gate_begin(struct gate *gate)
{
    pthread_mutex_lock(&gate->lock);
    while (atomic_load_explicit(&gate->visitors, memory_order_relaxed))
        pthread_cond_wait(&gate->left, &gate->lock);
}

static inline void gate_end(struct gate *gate)
{
    pthread_mutex_unlock(&gate->lock);
}

/* Returns false where gate_enter() would have to wait. */
static inline bool gate_try(struct gate *gate)
{
    if (pthread_mutex_trylock(&gate->lock))
        return false;
    atomic_fetch_add_explicit(&gate->visitors, 1, memory_order_relaxed);
    return true;
}

static inline void gate_enter(struct gate *gate)
{
    atomic_fetch_add_explicit(&gate->visitors, 1, memory_order_relaxed);
    pthread_mutex_lock(&gate->lock);
}

static inline void gate_leave(struct gate *gate)
{
    atomic_fetch_sub_explicit(&gate->visitors, 1, memory_order_relaxed);
    pthread_cond_signal(&gate->left);
    pthread_mutex_unlock(&gate->lock);
}

#endif
