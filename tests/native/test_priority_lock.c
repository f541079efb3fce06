/* The lock of a forwarder, with real threads: built under ThreadSanitizer as well. */
#include "run.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"

enum { HOLDERS = 3, TIMES = 2000, NOT_YET = 99 };

/* ---- the lock alone ---- */

static struct priority_lock lock;
static atomic_bool over;
static atomic_uint turns;
static unsigned inside; /* counts every time that the lock was held: guarded by it */

/* Turns at low priority when this thread, already counted as waiting, began to wait. */
static _Thread_local unsigned turns_before;

int __real_pthread_mutex_lock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_lock(pthread_mutex_t *mutex);

int __wrap_pthread_mutex_lock(pthread_mutex_t *mutex)
{
    turns_before = atomic_load(&turns);
    return __real_pthread_mutex_lock(mutex);
}

static void *hold_low(void *unused)
{
    while (!atomic_load(&over)) {
        priority_lock_low(&lock);
        inside++;
        atomic_fetch_add(&turns, 1);
        priority_unlock_low(&lock);
    }
    return unused;
}

static void *hold_high(void *unused)
{
    for (int i = 0; i < TIMES; i++) {
        if (i % 2 || !priority_trylock_high(&lock)) {
            priority_lock_high(&lock);
            /* The turn that was under way: no other begins before this one. */
            CHECK(atomic_load(&turns) - turns_before <= 1);
        }
        inside++;
        priority_unlock_high(&lock);
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

TEST(high_priority_waits_for_one_turn_at_most)
{
    pthread_t holders[HOLDERS];
    CHECK(priority_lock_init(&lock));
    pthread_t low = start(hold_low, NULL);
    for (int i = 0; i < HOLDERS; i++)
        holders[i] = start(hold_high, NULL);
    for (int i = 0; i < HOLDERS; i++)
        join(holders[i]);
    unsigned seen = atomic_load(&turns);
    while (atomic_load(&turns) < seen + 10) /* low priority goes on after them */
        sched_yield();
    atomic_store(&over, true);
    join(low);
    CHECK_EQ(inside, HOLDERS * TIMES + atomic_load(&turns));
    CHECK_EQ(atomic_load(&lock.high), 0);
    priority_lock_destroy(&lock);
}

TEST(trylock_fails_where_it_would_wait)
{
    CHECK(priority_lock_init(&lock));
    priority_lock_low(&lock);
    CHECK(!priority_trylock_high(&lock));
    priority_unlock_low(&lock);
    CHECK(priority_trylock_high(&lock));
    CHECK(!priority_trylock_high(&lock));
    priority_unlock_high(&lock);
    CHECK_EQ(atomic_load(&lock.high), 0);
    priority_lock_destroy(&lock);
}

/* ---- a forwarder in a thread ---- */

struct runner {
    struct forwarder *forwarder;
    int device; /* the far end */
    int epoll;
    int stop;
    pthread_t thread;
    atomic_int result;
    int failed;
};

static void *run(void *with)
{
    struct runner *runner = with;
    int failed = -1;
    int result = forwarder_run(runner->forwarder, runner->epoll, runner->stop, &failed);
    runner->failed = failed;
    atomic_store(&runner->result, result);
    return NULL;
}

static void add_to_epoll(const struct runner *runner, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    CHECK(epoll_ctl(runner->epoll, EPOLL_CTL_ADD, fd, &event) == 0);
}

static struct runner *runner_new(void)
{
    struct runner *runner = calloc(1, sizeof *runner);
    int pair[2];
    CHECK(runner && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, pair) == 0);
    runner->forwarder = forwarder_new();
    runner->device = pair[1];
    runner->epoll = epoll_create1(0);
    runner->stop = eventfd(0, EFD_NONBLOCK);
    CHECK(runner->forwarder && runner->epoll >= 0 && runner->stop >= 0);
    runner->forwarder->device = (struct device){.fd = pair[0], .output = pair[0]};
    add_to_epoll(runner, pair[0]);
    add_to_epoll(runner, runner->stop);
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
    close(runner->epoll);
    close(runner->stop);
    forwarder_free(runner->forwarder);
    free(runner);
}

static uint64_t reads_of(struct runner *runner)
{
    priority_lock_high(&runner->forwarder->lock);
    uint64_t reads = runner->forwarder->work.device_reads;
    priority_unlock_high(&runner->forwarder->lock);
    return reads;
}

/* Keeps packets in the device all the time. */
static void *flood(void *with)
{
    const struct runner *runner = with;
    while (!atomic_load(&over))
        if (send(runner->device, "x", 1, MSG_NOSIGNAL) < 0)
            sched_yield();
    return NULL;
}

TEST(runs_until_it_is_stopped)
{
    struct runner *runner = runner_new();
    runner_start(runner);
    CHECK_EQ(send(runner->device, "x", 1, 0), 1);
    while (!reads_of(runner))
        sched_yield();
    CHECK_EQ(atomic_load(&runner->result), NOT_YET);
    runner_stop(runner);
    CHECK_EQ(runner_join(runner), 0);
    CHECK_EQ(runner->forwarder->peers.unknown.drops[DROP_not_ip], 1);
    runner_free(runner);
}

TEST(moves_nothing_if_stopped_before_the_start)
{
    struct runner *runner = runner_new();
    CHECK_EQ(send(runner->device, "x", 1, 0), 1);
    runner_stop(runner);
    runner_start(runner);
    CHECK_EQ(runner_join(runner), 0);
    CHECK_EQ(runner->forwarder->work.device_reads, 0);
    runner_free(runner);
}

TEST(tables_change_while_packets_arrive)
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
    for (int i = 0; i < TIMES; i++) {
        struct route_table *table = route_table_new(&route, (size_t)(i % 2));
        priority_lock_high(&forwarder->lock);
        CHECK(peers_put(&forwarder->peers, 0, &address, 9, mac));
        route_table_free(forwarder->routes);
        forwarder->routes = table;
        priority_unlock_high(&forwarder->lock);
    }
    uint64_t reads = reads_of(runner);
    while (reads_of(runner) == reads)
        sched_yield();
    runner_stop(runner);
    CHECK_EQ(runner_join(runner), 0); /* also under load */
    atomic_store(&over, true);
    join(sender);
    runner_free(runner);
}

TEST(reports_the_descriptor_that_failed)
{
    struct runner *runner = runner_new();
    runner_start(runner);
    close(runner->device);
    CHECK_EQ(runner_join(runner), -EPIPE);
    CHECK_EQ(runner->failed, runner->forwarder->device.fd);
    runner->device = -1;
    runner_free(runner);
}

TEST(reports_a_descriptor_that_is_no_epoll)
{
    struct runner *runner = runner_new();
    int before = runner->epoll;
    runner->epoll = runner->stop;
    runner_start(runner);
    CHECK_EQ(runner_join(runner), -EINVAL);
    CHECK_EQ(runner->failed, runner->stop);
    runner->epoll = before;
    runner_free(runner);
}

TEST(returns_once_for_a_lost_offload_and_can_go_on)
{
    struct runner *runner = runner_new();
    runner->forwarder->attention = true;
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
