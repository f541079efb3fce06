#include "forwarder.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <time.h>

#include "bytes.h"
#include "split.h"

enum {
    OUTBOUND_BUDGET = 4, /* batches for one wake-up */
    INBOUND_BUDGET = 4,
    TRAIN_LARGE = 16 * 1024, /* a message of this size is one of a bulk transfer */
    RECEIVE_LARGE = 4,
};

/* ---- outbound: device to peers ---- */

static void tell_sender(struct forwarder *forwarder, const struct ip_packet *packet,
                        size_t available, enum icmp_reason reason, uint32_t mtu)
{
    uint8_t message[OFFLOAD_HEADER + ICMP_MESSAGE_MAX] = {0};
    size_t length = icmp_error(message + OFFLOAD_HEADER, packet, available, reason, mtu);
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    /* Asked last: what is not to be answered takes no share of what others get. */
    if (!length ||
        !icmp_allowed(&forwarder->icmp, (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec))
        return;
    const struct iovec pieces[2] = {{message, OFFLOAD_HEADER}, {message + OFFLOAD_HEADER, length}};
    if (device_write(&forwarder->device, pieces, 2) == 0)
        forwarder->work.icmp_sent++;
}

static bool may_fragment(const struct ip_packet *packet)
{
    return packet->version == 4 && !(packet->data[6] & 0x40);
}

static uint64_t inner_bytes(const struct train *train)
{
    return train->bytes - (uint64_t)train->segments * VXLAN_OVERHEAD;
}

static enum drop drop_reason(int error)
{
    switch (error) {
    case EPERM:
    case EACCES:
        return DROP_blocked;
    case ENETUNREACH:
    case EHOSTUNREACH:
    case ENETDOWN:
    case EHOSTDOWN:
    case EADDRNOTAVAIL:
        return DROP_unreachable;
    case EAGAIN:
    case ENOBUFS:
    case ENOMEM:
        return DROP_send_full;
    case EMSGSIZE:
        return DROP_too_big;
    default:
        return DROP_send_failed;
    }
}

static void count_sent(struct forwarder *forwarder, const struct train *train)
{
    struct counters *counters = &forwarder->peers.at[train->peer].counters;
    if (train->error)
        count_drops(counters, drop_reason(train->error), train->segments);
    else
        count_traffic(&counters->outbound, train->segments, inner_bytes(train));
}

/* The inner packet of a datagram, as far as its first piece goes: its lengths are right, we wrote
 * them, but not all of it need be there. */
static bool packet_of(const struct train *single, struct ip_packet *packet)
{
    uint8_t *data = (uint8_t *)single->pieces[0].iov_base + VXLAN_OVERHEAD;
    return ip_parse(data, single->bytes - VXLAN_OVERHEAD, packet);
}

/*
 * Sends the datagrams of a refused train one by one, but for those longer than `limit` that may
 * not be fragmented: their senders are told. Returns whether any went.
 */
static bool send_singly(struct forwarder *forwarder, int fd, const struct train *train,
                        uint32_t limit)
{
    struct train single = {.segments = 1, .peer = train->peer, .ecn = train->ecn};
    struct train *const list[1] = {&single};
    struct ip_packet packet, told = {0};
    bool went = false;
    struct train_cursor next = {0};
    for (unsigned i = 0; i < train->segments; i++) {
        train_datagram(train, &next, &single);
        single.error = 0;
        if (single.bytes > limit && packet_of(&single, &packet) && !may_fragment(&packet)) {
            single.error = EMSGSIZE;
            if (!told.data || !ip_same_hosts(&told, &packet)) /* once for a super-packet */
                tell_sender(forwarder, &packet, single.pieces[0].iov_len - VXLAN_OVERHEAD,
                            ICMP_TOO_BIG, limit - VXLAN_OVERHEAD);
            told = packet;
        } else {
            underlay_send(fd, list, 1, &forwarder->peers, &forwarder->work);
        }
        count_sent(forwarder, &single);
        went |= !single.error;
    }
    return went;
}

/*
 * What the kernel refused. The whole train was refused, nothing of it was sent.
 *
 * A datagram larger than the path's MTU is EMSGSIZE, EINVAL before Linux 6.14: where the sender
 * can be told to send less it is told, and the path goes on to take trains. Any other EINVAL,
 * and EIO, say that this path takes no trains, if it then takes the datagrams singly.
 */
static void send_refused(struct forwarder *forwarder, int fd, struct train *train)
{
    struct peer *peer = &forwarder->peers.at[train->peer];
    uint32_t outer = UDP_HEADER + (peer->address.size == 4 ? 20 : 40);
    bool no_trains = train->segments > 1 && (train->error == EIO || train->error == EINVAL);
    if (!no_trains && train->error != EMSGSIZE) {
        count_sent(forwarder, train);
        return;
    }
    uint32_t mtu = train->error == EIO ? 0 : underlay_path_mtu(peer);
    bool too_big = mtu > outer + VXLAN_OVERHEAD && train->size > mtu - outer;
    bool went = send_singly(forwarder, fd, train, too_big ? mtu - outer : DATAGRAM_MAX);
    if (went && no_trains && !too_big) {
        peer->trains = false;
        forwarder->lost_offload = true;
    }
}

static void send_all(struct forwarder *forwarder, int fd, struct train *const *trains,
                     unsigned count)
{
    while (count) {
        unsigned dealt_with = underlay_send(fd, trains, count, &forwarder->peers, &forwarder->work);
        for (unsigned i = 0; i < dealt_with; i++) {
            if (trains[i]->error)
                send_refused(forwarder, fd, trains[i]);
            else
                count_sent(forwarder, trains[i]);
        }
        trains += dealt_with;
        count -= dealt_with;
    }
}

static unsigned socket_fd_index(const struct underlay *underlay, uint32_t hash)
{
    return (unsigned)(((uint64_t)hash * underlay->count) >> 32);
}

/* Sends every train of the batch, one call a socket. */
static void flush_trains(struct forwarder *forwarder)
{
    struct trains *trains = &forwarder->trains;
    struct train *list[TRAINS_MAX];
    bool done[TRAINS_MAX] = {false};

    for (unsigned first = 0; first < trains->count; first++) {
        if (done[first])
            continue;
        uint8_t socket = trains->at[first].socket;
        int fd = forwarder->underlays[socket / SOCKETS_MAX].fds[socket % SOCKETS_MAX];
        unsigned count = 0;
        for (unsigned i = first; i < trains->count; i++) {
            if (trains->at[i].socket != socket)
                continue;
            list[count++] = &trains->at[i];
            done[i] = true;
        }
        send_all(forwarder, fd, list, count);
    }
    trains_reset(trains);
    forwarder->slab_used = 0;
}

static void add_to_train(struct forwarder *forwarder, struct ticket ticket,
                         const struct iovec *pieces, unsigned count)
{
    if (trains_add(&forwarder->trains, ticket, pieces, count))
        return;
    size_t used = forwarder->slab_used; /* the header in `pieces` stays taken */
    flush_trains(forwarder);
    forwarder->slab_used = used;
    trains_add(&forwarder->trains, ticket, pieces, count);
}

/* A header of the slab, which lasts until the trains are flushed. */
static uint8_t *take_header(struct forwarder *forwarder, size_t size)
{
    size = (size + 7) & ~(size_t)7;
    if (forwarder->slab_used + size > SLAB_ROOM)
        flush_trains(forwarder);
    uint8_t *header = forwarder->slab + forwarder->slab_used;
    forwarder->slab_used += size;
    return header;
}

/* Segments that lie apart get their headers right there: then the whole train is one piece. */
static void forward_super(struct forwarder *forwarder, struct split *split, struct ticket ticket,
                          const struct vxlan_frame *frame)
{
    bool apart = split->stride != split->size;
    size_t header_size = VXLAN_OVERHEAD + split->header;
    forwarder->work.super_packets_read++;
    while (!split_done(split)) {
        uint8_t *payload = split_payload(split);
        uint8_t *header = apart ? payload - header_size : take_header(forwarder, header_size);
        vxlan_put(header, frame);
        size_t payload_size = split_next(split, header + VXLAN_OVERHEAD, &payload);
        const struct iovec pieces[2] = {{header, header_size}, {payload, payload_size}};
        add_to_train(forwarder, ticket, pieces, 2);
    }
}

static void forward_single(struct forwarder *forwarder, const struct ip_packet *packet,
                           struct ticket ticket, const struct vxlan_frame *frame)
{
    uint8_t *start = packet->data - VXLAN_OVERHEAD; /* in the headroom */
    vxlan_put(start, frame);
    const struct iovec piece = {start, VXLAN_OVERHEAD + packet->length};
    add_to_train(forwarder, ticket, &piece, 1);
}

/* Opens a split of what was read, in one piece or apart, and learns how to read the next. */
static bool open_split(struct forwarder *forwarder, struct split *split,
                       const struct ip_packet *packet, struct device_packet *read)
{
    if (!split_open(split, packet, &read->offload))
        return false;
    device_expect(&forwarder->device, split->header, split->size);
    struct layout layout = read->layout;
    if (layout.header == split->header && layout.size == split->size)
        split->stride = layout_stride(layout);
    else if (layout.size)
        device_gather(read);
    return true;
}

static void forward_to(struct forwarder *forwarder, uint16_t index, struct ip_packet *packet,
                       struct device_packet *read)
{
    struct peer *peer = &forwarder->peers.at[index];
    unsigned family = peer->address.size == 16;
    const struct underlay *underlay = &forwarder->underlays[family];
    if (!peer->address.size || !underlay->count) {
        count_drops(&peer->counters, DROP_unresolved, 1);
        return;
    }
    unsigned socket = socket_fd_index(underlay, ip_flow_hash(packet));
    struct ticket ticket = {
        .peer = index,
        .socket = (uint8_t)(family * SOCKETS_MAX + socket),
        .ecn = ip_ecn(packet),
        .alone = !peer->trains,
    };
    struct vxlan_frame frame = {
        .vni = forwarder->vtep.vni,
        .ethertype = packet->version == 4 ? ETHERTYPE_IP4 : ETHERTYPE_IP6,
        .destination = peer->mac,
        .source = forwarder->vtep.mac,
    };
    struct split split;
    if (read->offload.gso_type != GSO_NONE) {
        if (open_split(forwarder, &split, packet, read))
            forward_super(forwarder, &split, ticket, &frame);
        else
            count_drops(&peer->counters, DROP_bad_offload, 1);
        return;
    }
    if (read->offload.flags & OFFLOAD_NEEDS_CSUM && !split_checksum(packet, &read->offload)) {
        count_drops(&peer->counters, DROP_bad_offload, 1);
    } else if (packet->length + VXLAN_OVERHEAD <= DATAGRAM_MAX) {
        forward_single(forwarder, packet, ticket, &frame);
    } else {
        count_drops(&peer->counters, DROP_too_big, 1);
        tell_sender(forwarder, packet, packet->length, ICMP_TOO_BIG, DATAGRAM_MAX - VXLAN_OVERHEAD);
    }
}

static void forward(struct forwarder *forwarder, struct device_packet *read)
{
    struct counters *nobody = &forwarder->peers.nobody;
    struct ip_packet packet;
    if (read->layout.size && read->offload.gso_type == GSO_NONE)
        device_gather(read);
    if (!ip_parse(read->data, read->length, &packet)) {
        count_drops(nobody, DROP_not_ip, 1);
        return;
    }
    if (ip_is_multicast(&packet)) {
        count_drops(nobody, DROP_multicast, 1);
        return;
    }
    uint16_t index = route_lookup(forwarder->routes, packet.destination, packet.address_size);
    if (index != ROUTE_NONE) {
        forward_to(forwarder, index, &packet, read);
        return;
    }
    count_drops(nobody, DROP_no_route, 1);
    tell_sender(forwarder, &packet, device_leading(read), ICMP_NO_ROUTE, 0);
}

int forwarder_outbound(struct forwarder *forwarder)
{
    int moved = 0;
    for (int batch = 0; batch < OUTBOUND_BUDGET; batch++) {
        int count = device_read(&forwarder->device, &forwarder->packets);
        if (count < 0)
            return moved ? moved : count;
        forwarder->work.device_reads += (unsigned)count;
        for (int i = 0; i < count; i++)
            forward(forwarder, &forwarder->packets.packets[i]);
        flush_trains(forwarder);
        moved += count;
        if (count < DEVICE_BATCH)
            break;
    }
    return moved;
}

/* ---- inbound: peers to device ---- */

static struct counters *counters_of(struct forwarder *forwarder, uint16_t index)
{
    struct peer *peer = peers_get(&forwarder->peers, index);
    return peer ? &peer->counters : &forwarder->peers.nobody;
}

/* What became of `packets` from a peer that went to the device as one. */
static void count_written(struct forwarder *forwarder, uint16_t index, int error, unsigned packets,
                          uint64_t bytes)
{
    struct counters *counters = counters_of(forwarder, index);
    if (!error) {
        forwarder->work.device_writes++;
        count_traffic(&counters->inbound, packets, bytes);
        return;
    }
    bool full = error == -EAGAIN || error == -ENOBUFS;
    count_drops(counters, full ? DROP_device_full : DROP_device_refused, packets);
}

/* The packets of a joined run, each as it came: its headers lie before its payload. */
static void write_singly(struct forwarder *forwarder, const struct run *run)
{
    uint8_t none[OFFLOAD_HEADER] = {0};
    for (unsigned i = 1; i <= run->segments; i++) {
        const struct iovec *payload = &run->pieces[i];
        const struct iovec pieces[2] = {
            {none, OFFLOAD_HEADER},
            {(uint8_t *)payload->iov_base - run->header, payload->iov_len + run->header},
        };
        int error = device_write(&forwarder->device, pieces, 2);
        count_written(forwarder, run->peer, error, 1, pieces[1].iov_len);
    }
}

static void write_run(struct forwarder *forwarder, const struct run *run)
{
    bool joined = run->segments > 1;
    int error = device_write(&forwarder->device, run->pieces, run->segments + 1u);
    if (error == -EINVAL && joined) {
        /* Some kernels refuse valid super-packets: this one gets no more of them. */
        bool tcp = run->first.protocol == IP_TCP;
        *(tcp ? &forwarder->coalescer.tcp : &forwarder->coalescer.udp) = false;
        forwarder->lost_offload = true;
        write_singly(forwarder, run);
        return;
    }
    forwarder->work.super_packets_written += joined && !error;
    count_written(forwarder, run->peer, error, run->segments, run->bytes);
}

static void flush_runs(struct forwarder *forwarder)
{
    struct coalescer *coalescer = &forwarder->coalescer;
    coalesce_finish(coalescer);
    for (unsigned i = 0; i < coalescer->count; i++)
        write_run(forwarder, &coalescer->runs[i]);
    coalesce_reset(coalescer);
}

/* The peer that owns the inner source, if it is one that sends from this address. */
static uint16_t owner_of(const struct forwarder *forwarder, const struct ip_packet *packet,
                         const struct address *from)
{
    uint16_t index = route_lookup(forwarder->routes, packet->source, packet->address_size);
    if (index == ROUTE_NONE || !address_equal(&forwarder->peers.at[index].address, from))
        return PEER_NONE;
    return index;
}

/* What the datagrams of one arrival have in common: who sent them, and most often whose packets
 * are inside. */
struct origin {
    uint16_t sender;
    uint16_t owner; /* of `source` */
    uint8_t size;   /* of `source`, 0 as long as there is none */
    const uint8_t *source;
};

static uint16_t known_owner(const struct forwarder *forwarder, struct origin *origin,
                            const struct ip_packet *packet, const struct address *from)
{
    if (origin->size != packet->address_size ||
        memcmp(origin->source, packet->source, packet->address_size) != 0) {
        origin->owner = owner_of(forwarder, packet, from);
        origin->size = packet->address_size;
        origin->source = packet->source;
    }
    return origin->owner;
}

static void unpack_datagram(struct forwarder *forwarder, uint8_t *data, size_t length,
                            const struct arrival *arrival, struct origin *origin)
{
    struct ip_packet packet;
    enum drop reason = decap(&forwarder->vtep, data, length, arrival->ecn, &packet);
    uint16_t owner = PEER_NONE;
    if (reason == DROP_NONE) {
        owner = known_owner(forwarder, origin, &packet, &arrival->from);
        if (owner == PEER_NONE)
            reason = DROP_spoofed;
    }
    if (reason != DROP_NONE) {
        count_drops(counters_of(forwarder, origin->sender), reason, 1);
        return;
    }
    if (coalesce_full(&forwarder->coalescer))
        flush_runs(forwarder);
    coalesce_add(&forwarder->coalescer, &packet, owner);
}

static void unpack(struct forwarder *forwarder, const struct arrival *arrival)
{
    struct work *work = &forwarder->work;
    size_t datagrams = arrival->length ? (arrival->length - 1) / arrival->size + 1 : 1;
    struct origin origin = {.sender = peers_find(&forwarder->peers, &arrival->from)};
    work->datagrams_received += datagrams;
    work->trains_received += datagrams > 1;
    if (origin.sender == PEER_NONE || arrival->cut) {
        enum drop reason = arrival->cut ? DROP_short_frame : DROP_unknown_source;
        count_drops(counters_of(forwarder, origin.sender), reason, datagrams);
        return;
    }
    for (size_t i = 0; i < datagrams; i++) {
        size_t offset = i * arrival->size;
        size_t left = arrival->length - offset;
        unpack_datagram(forwarder, arrival->data + offset,
                        left < arrival->size ? left : arrival->size, arrival, &origin);
    }
}

/* Of large messages only so many at once that they are still in the cache when written. */
static unsigned receive_most(size_t mean_bytes)
{
    return mean_bytes > TRAIN_LARGE ? RECEIVE_LARGE : RECEIVE_BATCH;
}

int forwarder_inbound(struct forwarder *forwarder, struct underlay *underlay)
{
    int moved = 0;
    for (int batch = 0; batch < INBOUND_BUDGET; batch++) {
        unsigned most = forwarder->receive_most;
        int count = underlay_receive(&underlay->receiving, &forwarder->receiver, most,
                                     &forwarder->work);
        if (count < 0)
            return moved ? moved : count;
        size_t bytes = 0;
        for (int i = 0; i < count; i++) {
            struct arrival arrival = underlay_arrival(&forwarder->receiver, (unsigned)i);
            bytes += arrival.length;
            unpack(forwarder, &arrival);
        }
        flush_runs(forwarder);
        moved += count;
        if (count)
            forwarder->receive_most = receive_most(bytes / (unsigned)count);
        if ((unsigned)count < most)
            break;
    }
    return moved;
}

/* ---- both ---- */

/* What came in has often made the kernel answer by the time it is written (a TCP segment its ACK,
 * an ACK the next segments), so one look at every descriptor saves a wake-up more often than it
 * costs an EAGAIN. */
int forwarder_move(struct forwarder *forwarder, int *failed)
{
    *failed = forwarder->device.fd;
    int moved = forwarder_outbound(forwarder);
    for (int family = 0; family < 2 && moved >= 0; family++) {
        struct underlay *underlay = &forwarder->underlays[family];
        if (!underlay->count)
            continue;
        *failed = underlay->receiving.fd;
        moved = forwarder_inbound(forwarder, underlay);
    }
    if (moved < 0)
        return moved;
    bool lost_offload = forwarder->lost_offload;
    forwarder->lost_offload = false;
    return lost_offload;
}

int forwarder_run(struct forwarder *forwarder, int watch, int stop, int *failed)
{
    int result = 0;
    while (!result) {
        struct epoll_event events[2];
        int ready = epoll_wait(watch, events, 2, -1);
        if (ready < 0 && errno != EINTR) {
            *failed = watch;
            return -errno;
        }
        for (int i = 0; i < ready; i++)
            if (events[i].data.fd == stop)
                return 0;
        gate_begin(&forwarder->gate);
        result = forwarder_move(forwarder, failed);
        gate_end(&forwarder->gate);
    }
    return result;
}

/* ---- life ---- */

struct forwarder *forwarder_new(void)
{
    /* Not calloc: once it has freed something as large it keeps such memory, and must clear it. */
    struct forwarder *forwarder = mmap(NULL, sizeof *forwarder, PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (forwarder == MAP_FAILED)
        return NULL;
    forwarder->routes = route_table_new(NULL, 0);
    if (!forwarder->routes || !gate_open(&forwarder->gate)) {
        route_table_free(forwarder->routes);
        munmap(forwarder, sizeof *forwarder);
        return NULL;
    }
    forwarder->receive_most = RECEIVE_BATCH;
    return forwarder;
}

void forwarder_free(struct forwarder *forwarder)
{
    if (!forwarder)
        return;
    gate_close(&forwarder->gate);
    peers_free(&forwarder->peers);
    route_table_free(forwarder->routes);
    munmap(forwarder, sizeof *forwarder);
}
