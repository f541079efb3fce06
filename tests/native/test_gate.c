/*
 * A thread that moves packets and others that want in, with real threads: built under
 * ThreadSanitizer as well.
 */
#include "forwarder.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"

enum { VISITORS = 3, VISITS = 2000, NOT_YET = 99 };

/* ---- the gate alone ---- */

static struct gate gate;
static atomic_bool over;
static atomic_uint turns;
static unsigned inside; /* by turns and visits, which are one at a time */

/* What the mover had done when this thread, already announced, began to wait. */
static _Thread_local unsigned turns_before;

int __real_pthread_mutex_lock(pthread_mutex_t *lock);
int __wrap_pthread_mutex_lock(pthread_mutex_t *lock);

int __wrap_pthread_mutex_lock(pthread_mutex_t *lock)
{
    turns_before = atomic_load(&turns);
    return __real_pthread_mutex_lock(lock);
}

static void *take_turns(void *unused)
{
    while (!atomic_load(&over)) {
        gate_begin(&gate);
        inside++;
        atomic_fetch_add(&turns, 1);
        gate_end(&gate);
    }
    return unused;
}

static void *visit(void *unused)
{
    for (int i = 0; i < VISITS; i++) {
        if (i % 2 || !gate_try(&gate)) {
            gate_enter(&gate);
            /* One that was under way; a mover that stood back began no other. */
            CHECK(atomic_load(&turns) - turns_before <= 1);
        }
        inside++;
        gate_leave(&gate);
    }
    return unused;
}

static pthread_t start(void *(*run)(void *), void *with)
{
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, run, with) == 0);
    return thread;
}

static void join(pthread_t thread)
{
    CHECK(pthread_join(thread, NULL) == 0);
}

TEST(a_visitor_waits_for_one_turn_at_most)
{
    pthread_t visitors[VISITORS];
    CHECK(gate_open(&gate));
    pthread_t mover = start(take_turns, NULL);
    for (int i = 0; i < VISITORS; i++)
        visitors[i] = start(visit, NULL);
    for (int i = 0; i < VISITORS; i++)
        join(visitors[i]);
    unsigned seen = atomic_load(&turns);
    while (atomic_load(&turns) < seen + 10) /* it goes on once they have left */
        sched_yield();
    atomic_store(&over, true);
    join(mover);
    CHECK_EQ(inside, VISITORS * VISITS + atomic_load(&turns));
    CHECK_EQ(atomic_load(&gate.visitors), 0);
    gate_close(&gate);
}

TEST(nobody_is_let_in_who_would_have_to_wait)
{
    CHECK(gate_open(&gate));
    gate_begin(&gate);
    CHECK(!gate_try(&gate));
    gate_end(&gate);
    CHECK(gate_try(&gate));
    CHECK(!gate_try(&gate));
    gate_leave(&gate);
    CHECK_EQ(atomic_load(&gate.visitors), 0);
    gate_close(&gate);
}

/* ---- a forwarder in a thread of its own ---- */

struct runner {
    struct forwarder *forwarder;
    int device; /* the far end */
    int watch;
    int stop;
    pthread_t thread;
    atomic_int result;
    int failed;
};

static void *run(void *with)
{
    struct runner *runner = with;
    int failed = -1;
    int result = forwarder_run(runner->forwarder, runner->watch, runner->stop, &failed);
    runner->failed = failed;
    atomic_store(&runner->result, result);
    return NULL;
}

static void watch(const struct runner *runner, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    CHECK(epoll_ctl(runner->watch, EPOLL_CTL_ADD, fd, &event) == 0);
}

static struct runner *runner_new(void)
{
    struct runner *runner = calloc(1, sizeof *runner);
    int pair[2];
    CHECK(runner && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, pair) == 0);
    runner->forwarder = forwarder_new();
    runner->device = pair[1];
    runner->watch = epoll_create1(0);
    runner->stop = eventfd(0, EFD_NONBLOCK);
    CHECK(runner->forwarder && runner->watch >= 0 && runner->stop >= 0);
    runner->forwarder->device = (struct device){.fd = pair[0], .output = pair[0]};
    watch(runner, pair[0]);
    watch(runner, runner->stop);
    return runner;
}

static void runner_start(struct runner *runner)
{
    atomic_store(&runner->result, NOT_YET);
    runner->thread = start(run, runner);
}

static void runner_stop(const struct runner *runner)
{
    uint64_t one = 1;
    CHECK_EQ(write(runner->stop, &one, sizeof one), sizeof one);
}

static int runner_join(struct runner *runner)
{
    join(runner->thread);
    return atomic_load(&runner->result);
}

static void runner_free(struct runner *runner)
{
    close(runner->forwarder->device.fd);
    close(runner->device);
    close(runner->watch);
    close(runner->stop);
    forwarder_free(runner->forwarder);
    free(runner);
}

static uint64_t reads_of(struct runner *runner)
{
    gate_enter(&runner->forwarder->gate);
    uint64_t reads = runner->forwarder->work.device_reads;
    gate_leave(&runner->forwarder->gate);
    return reads;
}

/* Keeps the device from ever being empty. */
static void *flood(void *with)
{
    const struct runner *runner = with;
    while (!atomic_load(&over))
        if (send(runner->device, "x", 1, MSG_NOSIGNAL) < 0)
            sched_yield();
    return NULL;
}

TEST(it_runs_until_it_is_stopped)
{
    struct runner *runner = runner_new();
    runner_start(runner);
    CHECK_EQ(send(runner->device, "x", 1, 0), 1);
    while (!reads_of(runner))
        sched_yield();
    CHECK_EQ(atomic_load(&runner->result), NOT_YET);
    runner_stop(runner);
    CHECK_EQ(runner_join(runner), 0);
    CHECK_EQ(runner->forwarder->peers.nobody.drops[DROP_not_ip], 1);
    runner_free(runner);
}

TEST(stopped_before_it_starts_it_moves_nothing)
{
    struct runner *runner = runner_new();
    CHECK_EQ(send(runner->device, "x", 1, 0), 1);
    runner_stop(runner);
    runner_start(runner);
    CHECK_EQ(runner_join(runner), 0);
    CHECK_EQ(runner->forwarder->work.device_reads, 0);
    runner_free(runner);
}

TEST(tables_change_while_packets_keep_coming)
{
    struct runner *runner = runner_new();
    struct forwarder *forwarder = runner->forwarder;
    const struct address address = {.size = 4, .bytes = {127, 0, 0, 1}};
    struct route route = {.network = {10}, .length = 8, .version = 4};
    const uint8_t mac[MAC_SIZE] = {2};
    runner_start(runner);
    pthread_t sender = start(flood, runner);
    while (!reads_of(runner))
        sched_yield();
    for (int i = 0; i < VISITS; i++) {
        struct route_table *table = route_table_new(&route, (size_t)(i % 2));
        gate_enter(&forwarder->gate);
        CHECK(peers_put(&forwarder->peers, 0, &address, 9, mac));
        route_table_free(forwarder->routes);
        forwarder->routes = table;
        gate_leave(&forwarder->gate);
    }
    uint64_t reads = reads_of(runner);
    while (reads_of(runner) == reads)
        sched_yield();
    runner_stop(runner);
    CHECK_EQ(runner_join(runner), 0); /* under load, too */
    atomic_store(&over, true);
    join(sender);
    runner_free(runner);
}

TEST(a_descriptor_that_fails_is_named)
{
    struct runner *runner = runner_new();
    runner_start(runner);
    close(runner->device);
    CHECK_EQ(runner_join(runner), -EPIPE);
    CHECK_EQ(runner->failed, runner->forwarder->device.fd);
    runner->device = -1;
    runner_free(runner);
}

TEST(an_epoll_that_is_none_is_named)
{
    struct runner *runner = runner_new();
    int watched = runner->watch;
    runner->watch = runner->stop;
    runner_start(runner);
    CHECK_EQ(runner_join(runner), -EINVAL);
    CHECK_EQ(runner->failed, runner->stop);
    runner->watch = watched;
    runner_free(runner);
}

TEST(a_lost_offload_is_told_once_and_it_can_go_on)
{
    struct runner *runner = runner_new();
    runner->forwarder->news = true;
    CHECK_EQ(send(runner->device, "x", 1, 0), 1);
    runner_start(runner);
    CHECK_EQ(runner_join(runner), 1);
    runner_start(runner);
    CHECK_EQ(send(runner->device, "x", 1, 0), 1);
    while (reads_of(runner) < 2)
        sched_yield();
    runner_stop(runner);
    CHECK_EQ(runner_join(runner), 0);
    runner_free(runner);
}
