/* The type Forwarder: one worker. */
#include "py.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#include "inbound.h"
#include "outbound.h"
#include "run.h"
#include "trace.h"

typedef struct {
    PyObject_HEAD
    struct forwarder *forwarder;
    PyObject *fdb; /* keeps the forwarder's table alive, or NULL */
} ForwarderObject;

/* ---- construction ---- */

/* Whether the first `count` keywords are given. CPython treats all as optional if one is. */
static bool has_all(PyObject *kwargs, char **names, int count)
{
    for (int i = 0; i < count; i++) {
        if (!kwargs || !PyDict_GetItemString(kwargs, names[i])) {
            PyErr_Format(PyExc_TypeError, "missing keyword argument: '%s'", names[i]);
            return false;
        }
    }
    return true;
}

static int Forwarder_init(ForwarderObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"device",   "output", "vnet_header", "coalesce_tcp", "coalesce_udp",
                            "vni",      "mac",    "segments",    "fdb",          "flood",
                            "learning", "storm",  NULL};
    enum { REQUIRED = 8 };
    int device, output, vnet_header, coalesce_tcp, coalesce_udp, flood = 1, learning = 1;
    unsigned long segments;
    unsigned storm = 0;
    PyObject *fdb = Py_None;
    struct vtep vtep;

    if (!has_all(kwargs, names, REQUIRED) ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "|$iipppO&O&kOppI", names, &device, &output,
                                     &vnet_header, &coalesce_tcp, &coalesce_udp, convert_vni,
                                     &vtep.vni, convert_mac, vtep.mac, &segments, &fdb, &flood,
                                     &learning, &storm))
        return -1;
    struct module_state *state = PyType_GetModuleState(Py_TYPE((PyObject *)self));
    struct fdb *table = fdb_of(fdb, state->fdb_type);
    if (fdb != Py_None && !table) {
        PyErr_SetString(PyExc_TypeError, "fdb must be an initialised Fdb or None");
        return -1;
    }
    if (segments < 1 || segments > TRAIN_SEGMENTS_MAX) {
        PyErr_Format(PyExc_ValueError, "segments must be 1 to %d", TRAIN_SEGMENTS_MAX);
        return -1;
    }
    if (self->forwarder) {
        PyErr_SetString(PyExc_RuntimeError, "a Forwarder can be initialised only once");
        return -1;
    }
    struct forwarder *forwarder = forwarder_new();
    if (!forwarder) {
        PyErr_NoMemory();
        return -1;
    }
    forwarder->vtep = vtep;
    forwarder->device = (struct device){
        .fd = device,
        .output = output,
        .offload_header = vnet_header,
    };
    forwarder->coalescer.tcp = vnet_header && coalesce_tcp;
    forwarder->coalescer.udp = vnet_header && coalesce_udp;
    forwarder->trains.segments = (unsigned)segments;
    if (table) {
        self->fdb = Py_NewRef(fdb);
        forwarder->device.frames = true;
        forwarder->bridge = (struct bridge){
            .fdb = table,
            .flood = flood,
            .learning = learning,
            .storm = storm,
        };
    }
    self->forwarder = forwarder;
    return 0;
}

static void Forwarder_dealloc(ForwarderObject *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    forwarder_free(self->forwarder);
    Py_XDECREF(self->fdb);
    PyObject_Free(self);
    Py_DECREF(type);
}

/* ---- arguments ---- */

/* Converter for "O&". */
static int convert_address(PyObject *object, void *converted)
{
    struct address *address = converted;
    const char *bytes;
    Py_ssize_t size;
    if (!PyArg_Parse(object, "y#", &bytes, &size))
        return 0;
    if (size != 4 && size != 16) {
        PyErr_SetString(PyExc_ValueError, "a packed address has 4 or 16 bytes");
        return 0;
    }
    *address = (struct address){.size = (uint8_t)size};
    memcpy(address->bytes, bytes, (size_t)size);
    return 1;
}

/* Converter for "O&": None for an unknown address. */
static int convert_known_address(PyObject *object, void *address)
{
    *(struct address *)address = (struct address){0};
    return object == Py_None || convert_address(object, address);
}

/* Converts each item to `size` bytes of an array, which the caller frees. NULL and an exception if
 * an item cannot be converted. */
static void *convert_all(PyObject *sequence, int (*convert)(PyObject *, void *), size_t size,
                         size_t *count)
{
    Py_ssize_t length = PySequence_Size(sequence);
    if (length < 0)
        return NULL;
    *count = (size_t)length;
    char *array = calloc(*count + 1, size);
    if (!array)
        return PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < length; i++) {
        PyObject *item = PySequence_GetItem(sequence, i);
        bool converted = item && convert(item, array + (size_t)i * size);
        Py_XDECREF(item);
        if (!converted) {
            free(array);
            return NULL;
        }
    }
    return array;
}

static struct peer *find_peer(const struct forwarder *forwarder, int index)
{
    return index >= 0 && index < PEERS_MAX ? peers_get(&forwarder->peers, (uint16_t)index) : NULL;
}

static struct peer *parse_peer(const struct forwarder *forwarder, int index)
{
    struct peer *peer = find_peer(forwarder, index);
    if (!peer)
        PyErr_Format(PyExc_ValueError, "there is no peer %d", index);
    return peer;
}

static struct underlay *underlay_of(struct forwarder *forwarder, int family)
{
    if (family != 4 && family != 6) {
        PyErr_SetString(PyExc_ValueError, "family must be 4 or 6");
        return NULL;
    }
    return &forwarder->underlays[family == 6];
}

/* ---- tables ---- */

static PyObject *set_sockets(struct forwarder *forwarder, PyObject *args)
{
    int family;
    PyObject *sockets;
    if (!PyArg_ParseTuple(args, "iO", &family, &sockets))
        return NULL;
    struct underlay *underlay = underlay_of(forwarder, family);
    Py_ssize_t count = underlay ? PySequence_Size(sockets) : -1;
    if (count < 0)
        return NULL;
    if (count > SOCKETS_MAX)
        return PyErr_Format(PyExc_ValueError, "at most %d sockets", SOCKETS_MAX);
    struct underlay made = {.receiving.fd = -1, .count = (unsigned)count};
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = PySequence_GetItem(sockets, i);
        made.fds[i] = item ? (int)PyLong_AsLong(item) : -1;
        Py_XDECREF(item);
        if (PyErr_Occurred())
            return NULL;
    }
    if (count)
        made.receiving.fd = made.fds[0];
    *underlay = made;
    Py_RETURN_NONE;
}

static PyObject *set_peer(struct forwarder *forwarder, PyObject *args)
{
    int index, port;
    struct address address;
    uint8_t mac[MAC_SIZE];
    if (!PyArg_ParseTuple(args, "iO&iO&", &index, convert_known_address, &address, &port,
                          convert_mac, mac))
        return NULL;
    if (index < 0 || index >= PEERS_MAX || port < 1 || port > 65535) {
        PyErr_SetString(PyExc_ValueError, "index or port out of range");
        return NULL;
    }
    if (!peers_put(&forwarder->peers, (uint16_t)index, &address, (uint16_t)port, mac))
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *remove_peer(struct forwarder *forwarder, PyObject *args)
{
    int index;
    if (!PyArg_ParseTuple(args, "i", &index) || !parse_peer(forwarder, index))
        return NULL;
    if (route_table_names(forwarder->routes, (uint16_t)index))
        return PyErr_Format(PyExc_ValueError, "peer %d still has routes", index);
    peers_remove(&forwarder->peers, (uint16_t)index);
    if (forwarder->bridge.fdb) /* other workers may have learned entries since the last flush */
        fdb_flush(forwarder->bridge.fdb, (uint16_t)index, false);
    Py_RETURN_NONE;
}

/* Converter for convert_all(). */
static int convert_route(PyObject *item, void *converted)
{
    struct route *route = converted;
    int length, index;
    struct address network;
    if (!PyArg_ParseTuple(item, "O&ii", convert_address, &network, &length, &index))
        return 0;
    if (length < 0 || length > 8 * network.size || index < 0 || index >= PEERS_MAX) {
        PyErr_SetString(PyExc_ValueError, "a route's length or peer index is out of range");
        return 0;
    }
    *route = (struct route){
        .length = (uint8_t)length,
        .version = network.size == 4 ? 4 : 6,
        .value = (uint16_t)index,
    };
    memcpy(route->network, network.bytes, sizeof route->network);
    if (route_is_canonical(route))
        return 1;
    PyErr_SetString(PyExc_ValueError, "a route has host bits set");
    return 0;
}

static bool have_peers(const struct route *routes, size_t count, const struct peers *peers)
{
    for (size_t i = 0; i < count; i++) {
        if (!peers_get(peers, routes[i].value)) {
            PyErr_SetString(PyExc_ValueError, "a route's length or peer index is out of range");
            return false;
        }
    }
    return true;
}

static PyObject *set_routes(struct forwarder *forwarder, PyObject *list)
{
    size_t count;
    struct route *routes = convert_all(list, convert_route, sizeof *routes, &count);
    struct route_table *table = NULL;
    if (!routes)
        return NULL;
    if (have_peers(routes, count, &forwarder->peers)) {
        table = route_table_new(routes, count);
        if (!table)
            PyErr_NoMemory();
    }
    free(routes);
    if (!table)
        return NULL;
    route_table_free(forwarder->routes);
    forwarder->routes = table;
    Py_RETURN_NONE;
}

/* Converter for convert_all(). */
static int convert_neighbour(PyObject *item, void *converted)
{
    struct neighbour *neighbour = converted;
    struct address address;
    if (!PyArg_ParseTuple(item, "O&O&", convert_address, &address, convert_mac, neighbour->mac))
        return 0;
    memcpy(neighbour->address, address.bytes, sizeof neighbour->address);
    neighbour->size = address.size;
    return 1;
}

static PyObject *set_neighbours(struct forwarder *forwarder, PyObject *list)
{
    size_t count;
    struct neighbour *neighbours = convert_all(list, convert_neighbour, sizeof *neighbours, &count);
    if (!neighbours)
        return NULL;
    struct neighbour_table *table = neighbour_table_new(neighbours, count);
    free(neighbours);
    if (!table)
        return PyErr_NoMemory();
    neighbour_table_free(forwarder->neighbours);
    forwarder->neighbours = table;
    Py_RETURN_NONE;
}

static PyObject *lookup(struct forwarder *forwarder, PyObject *args)
{
    struct address address;
    if (!PyArg_ParseTuple(args, "O&", convert_address, &address))
        return NULL;
    uint16_t index = route_lookup(forwarder->routes, address.bytes, address.size);
    return PyLong_FromLong(index == ROUTE_NONE ? -1 : index);
}

static PyObject *set_mtu(struct forwarder *forwarder, PyObject *args)
{
    int index, mtu;
    if (!PyArg_ParseTuple(args, "ii", &index, &mtu))
        return NULL;
    struct peer *peer = parse_peer(forwarder, index);
    if (!peer)
        return NULL;
    if (mtu < 0 || mtu > IP_MAX)
        return PyErr_Format(PyExc_ValueError, "mtu %d is out of range", mtu);
    peer->mtu = (uint16_t)mtu;
    Py_RETURN_NONE;
}

static PyObject *set_trains(struct forwarder *forwarder, PyObject *args)
{
    int index, on;
    if (!PyArg_ParseTuple(args, "ip", &index, &on))
        return NULL;
    struct peer *peer = parse_peer(forwarder, index);
    if (!peer)
        return NULL;
    peer->trains = on;
    Py_RETURN_NONE;
}

/* For each index: 0 if there is no peer, 1 if it gets no trains, 2 if it does. */
static PyObject *trains(struct forwarder *forwarder, PyObject *Py_UNUSED(none))
{
    const struct peers *peers = &forwarder->peers;
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)peers->room);
    char *states = bytes ? PyBytes_AsString(bytes) : NULL;
    for (size_t i = 0; bytes && i < peers->room; i++) {
        const struct peer *peer = &peers->at[i];
        states[i] = peer->used ? 1 + (peer->trains && forwarder->trains.segments > 1) : 0;
    }
    return bytes;
}

static PyObject *coalescing(struct forwarder *forwarder, PyObject *Py_UNUSED(none))
{
    return Py_BuildValue("NN", PyBool_FromLong(forwarder->coalescer.tcp),
                         PyBool_FromLong(forwarder->coalescer.udp));
}

/* ---- packets ---- */

static PyObject *moved_or_error(int moved)
{
    if (moved >= 0)
        return PyLong_FromLong(moved);
    errno = -moved;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *outbound(struct forwarder *forwarder, PyObject *Py_UNUSED(none))
{
    int moved;
    Py_BEGIN_ALLOW_THREADS
    moved = forwarder_outbound(forwarder);
    Py_END_ALLOW_THREADS
    return moved_or_error(moved);
}

static PyObject *inbound(struct forwarder *forwarder, PyObject *args)
{
    int family, moved;
    if (!PyArg_ParseTuple(args, "i", &family))
        return NULL;
    struct underlay *underlay = underlay_of(forwarder, family);
    if (!underlay)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    moved = forwarder_inbound(forwarder, underlay);
    Py_END_ALLOW_THREADS
    return moved_or_error(moved);
}

/* The `filename` of the error is the descriptor. */
static PyObject *lost_or_error(int result, int failed)
{
    if (result >= 0)
        return PyBool_FromLong(result);
    errno = -result;
    PyObject *descriptor = PyLong_FromLong(failed);
    if (descriptor)
        PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, descriptor);
    Py_XDECREF(descriptor);
    return NULL;
}

static PyObject *move(struct forwarder *forwarder, PyObject *Py_UNUSED(none))
{
    int result, failed;
    Py_BEGIN_ALLOW_THREADS
    result = forwarder_move(forwarder, &failed);
    Py_END_ALLOW_THREADS
    return lost_or_error(result, failed);
}

static PyObject *trace(struct forwarder *forwarder, PyObject *args)
{
    const char *packet;
    Py_ssize_t size;
    if (!PyArg_ParseTuple(args, "y#", &packet, &size))
        return NULL;
    if (size > DEVICE_PACKET_MAX)
        return PyErr_Format(PyExc_ValueError, "a packet has %d bytes at most", DEVICE_PACKET_MAX);
    uint8_t *room = malloc(DEVICE_GAP + (size_t)size);
    if (!room)
        return PyErr_NoMemory();
    struct device_packet read = {.data = room + DEVICE_GAP, .length = (size_t)size};
    memcpy(read.data, packet, read.length);
    struct trace trace;
    forwarder_trace(forwarder, &read, &trace);
    PyObject *answer = Py_BuildValue("iNiiy#", trace.peer == PEER_NONE ? -1 : trace.peer,
                                     PyBool_FromLong(trace.flooded),
                                     trace.reason == DROP_NONE ? -1 : (int)trace.reason, trace.fd,
                                     (const char *)trace.headers, (Py_ssize_t)trace.headers_size);
    free(room);
    return answer;
}

/* ---- counters ---- */

/* Packets of each peer in one direction, by index. */
static PyObject *packets_by_index(const struct peers *peers, bool inbound)
{
    PyObject *tuple = PyTuple_New((Py_ssize_t)peers->room);
    for (size_t i = 0; tuple && i < peers->room; i++) {
        const struct counters *counters = &peers->at[i].counters;
        const struct traffic *traffic = inbound ? &counters->inbound : &counters->outbound;
        PyObject *value = PyLong_FromUnsignedLongLong(traffic->packets);
        if (!value || PyTuple_SetItem(tuple, (Py_ssize_t)i, value) < 0)
            Py_CLEAR(tuple);
    }
    return tuple;
}

static PyObject *sent(struct forwarder *forwarder, PyObject *Py_UNUSED(none))
{
    return packets_by_index(&forwarder->peers, false);
}

static PyObject *received(struct forwarder *forwarder, PyObject *Py_UNUSED(none))
{
    return packets_by_index(&forwarder->peers, true);
}

static PyObject *work(struct forwarder *forwarder, PyObject *Py_UNUSED(none))
{
#define X(name) "sK"
    static const char format[] = "{" WORK(X) "}";
#undef X
#define X(name) , #name, (unsigned long long)forwarder->work.name
    return Py_BuildValue(format WORK(X));
#undef X
}

/* ---- control messages ---- */

static PyObject *control_message(const struct control_queue *queue, unsigned index)
{
    const struct control_message *one = &queue->messages[index];
    PyObject *body = PyBytes_FromStringAndSize(NULL, one->length);
    if (!body)
        return NULL;
    control_queue_copy(queue, index, (uint8_t *)PyBytes_AsString(body));
    return Py_BuildValue("iy#iy#N", one->sender, (const char *)one->from.bytes,
                         (Py_ssize_t)one->from.size, one->ethertype, (const char *)one->source,
                         (Py_ssize_t)MAC_SIZE, body);
}

static PyObject *take_control_messages(struct forwarder *forwarder, PyObject *Py_UNUSED(none))
{
    struct control_queue *queue = &forwarder->control;
    PyObject *list = PyList_New(queue->count);
    for (unsigned i = 0; list && i < queue->count; i++) {
        PyObject *item = control_message(queue, i);
        if (!item || PyList_SetItem(list, (Py_ssize_t)i, item) < 0)
            Py_CLEAR(list);
    }
    control_queue_clear(queue);
    return list;
}

static PyObject *count_bad_control(struct forwarder *forwarder, PyObject *args)
{
    int index;
    if (!PyArg_ParseTuple(args, "i", &index))
        return NULL;
    struct peer *peer = find_peer(forwarder, index);
    count_drops(peer ? &peer->counters : &forwarder->peers.unknown, DROP_bad_control, 1);
    Py_RETURN_NONE;
}

/* ---- the type ---- */

/* Drops the GIL while it waits for the lock, so that Python code runs on. */
static struct forwarder *enter(ForwarderObject *self)
{
    struct forwarder *forwarder = self->forwarder;
    if (!forwarder) {
        PyErr_SetString(PyExc_RuntimeError, "not initialised");
        return NULL;
    }
    if (!priority_trylock_high(&forwarder->lock)) {
        Py_BEGIN_ALLOW_THREADS
        priority_lock_high(&forwarder->lock);
        Py_END_ALLOW_THREADS
    }
    return forwarder;
}

struct forwarder *lock_forwarder(PyObject *object, PyTypeObject *forwarder_type)
{
    if (Py_TYPE(object) != forwarder_type) {
        PyErr_SetString(PyExc_TypeError, "not a Forwarder");
        return NULL;
    }
    return enter((ForwarderObject *)object);
}

void unlock_forwarder(struct forwarder *forwarder)
{
    priority_unlock_high(&forwarder->lock);
}

/* Methods that lock the forwarder for the whole call: all but run(). */
#define METHODS(X)                                                                                 \
    X(set_sockets, METH_VARARGS)                                                                   \
    X(set_peer, METH_VARARGS)                                                                      \
    X(remove_peer, METH_VARARGS)                                                                   \
    X(set_routes, METH_O)                                                                          \
    X(set_neighbours, METH_O)                                                                      \
    X(lookup, METH_VARARGS)                                                                        \
    X(set_mtu, METH_VARARGS)                                                                       \
    X(set_trains, METH_VARARGS)                                                                    \
    X(trains, METH_NOARGS)                                                                         \
    X(outbound, METH_NOARGS)                                                                       \
    X(inbound, METH_VARARGS)                                                                       \
    X(move, METH_NOARGS)                                                                           \
    X(trace, METH_VARARGS)                                                                         \
    X(sent, METH_NOARGS)                                                                           \
    X(received, METH_NOARGS)                                                                       \
    X(work, METH_NOARGS)                                                                           \
    X(take_control_messages, METH_NOARGS)                                                          \
    X(count_bad_control, METH_VARARGS)

#define LOCKED_METHOD(name, flags)                                                                 \
    static PyObject *Forwarder_##name(ForwarderObject *self, PyObject *args)                       \
    {                                                                                              \
        struct forwarder *forwarder = enter(self);                                                 \
        if (!forwarder)                                                                            \
            return NULL;                                                                           \
        PyObject *result = name(forwarder, args);                                                  \
        priority_unlock_high(&forwarder->lock);                                                    \
        return result;                                                                             \
    }

METHODS(LOCKED_METHOD)
LOCKED_METHOD(coalescing, METH_NOARGS)

/* Locks in each turn, not around them all. */
static PyObject *Forwarder_run(ForwarderObject *self, PyObject *args)
{
    int watch, stop, failed = -1, result;
    if (!PyArg_ParseTuple(args, "ii", &watch, &stop))
        return NULL;
    if (!self->forwarder) {
        PyErr_SetString(PyExc_RuntimeError, "not initialised");
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    result = forwarder_run(self->forwarder, watch, stop, &failed);
    Py_END_ALLOW_THREADS
    return lost_or_error(result, failed);
}

#define ENTRY(name, flags) {#name, (PyCFunction)Forwarder_##name, flags, NULL},
static PyMethodDef forwarder_methods[] = {METHODS(ENTRY) ENTRY(run, METH_VARARGS){0}};

static PyGetSetDef forwarder_getset[] = {
    {"coalescing", (getter)Forwarder_coalescing, NULL, NULL, NULL},
    {0},
};

static PyType_Slot forwarder_slots[] = {
    {Py_tp_doc, "One worker: a device descriptor, UDP sockets, and the tables between them."},
    {Py_tp_init, Forwarder_init},
    {Py_tp_dealloc, Forwarder_dealloc},
    {Py_tp_methods, forwarder_methods},
    {Py_tp_getset, forwarder_getset},
    {0},
};

PyType_Spec forwarder_spec = {
    .name = "tunnel._native.Forwarder",
    .basicsize = sizeof(ForwarderObject),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = forwarder_slots,
};
