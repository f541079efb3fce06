/* The binding: parse arguments, drop the GIL, call one C function, translate the error. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/random.h>
#include <time.h>

#include "checksum.h"
#include "codec.h"
#include "forwarder.h"

struct module_state {
    PyObject *codec_error;
    PyTypeObject *fdb_type;
};

static struct PyModuleDef module_def;

/* ---- arguments ---- */

static bool parse_mac(const char *bytes, Py_ssize_t size, uint8_t mac[MAC_SIZE])
{
    if (size != MAC_SIZE) {
        PyErr_SetString(PyExc_ValueError, "a MAC has 6 bytes");
        return false;
    }
    memcpy(mac, bytes, MAC_SIZE);
    return true;
}

static bool parse_address(const char *bytes, Py_ssize_t size, struct address *address)
{
    if (size != 4 && size != 16) {
        PyErr_SetString(PyExc_ValueError, "a packed address has 4 or 16 bytes");
        return false;
    }
    *address = (struct address){.size = (uint8_t)size};
    memcpy(address->bytes, bytes, (size_t)size);
    return true;
}

/* For "O&": "k" would take 2**64 for 0. */
static int convert_vni(PyObject *number, void *vni)
{
    int overflow;
    long value = PyLong_AsLongAndOverflow(number, &overflow);
    if (value == -1 && PyErr_Occurred())
        return 0;
    if (overflow || value < 0 || value > VNI_MAX) {
        PyErr_SetString(PyExc_ValueError, "a VNI has 24 bits");
        return 0;
    }
    *(uint32_t *)vni = (uint32_t)value;
    return 1;
}

/* ---- Fdb ---- */

typedef struct {
    PyObject_HEAD
    struct fdb *fdb;
} FdbObject;

enum { VLAN_MAX = 4094 };

static uint32_t seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now); /* as the forwarders do */
    return (uint32_t)now.tv_sec;
}

static int Fdb_init(FdbObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"limit", "share", "ageing", NULL};
    unsigned limit, share, ageing;
    uint64_t seed;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "$III", names, &limit, &share, &ageing))
        return -1;
    if (limit > FDB_LIMIT_MAX || ageing < 1 || ageing > INT32_MAX) {
        PyErr_Format(PyExc_ValueError, "limit is at most %d, ageing 1 second or more",
                     FDB_LIMIT_MAX);
        return -1;
    }
    if (self->fdb) {
        PyErr_SetString(PyExc_RuntimeError, "an FDB is initialised once");
        return -1;
    }
    if (getrandom(&seed, sizeof seed, 0) != sizeof seed) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    self->fdb = fdb_new((struct fdb_limits){limit, share, ageing}, seed);
    if (!self->fdb)
        PyErr_NoMemory();
    return self->fdb ? 0 : -1;
}

static void Fdb_dealloc(FdbObject *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    fdb_free(self->fdb);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static struct fdb *fdb_of(FdbObject *self)
{
    if (!self->fdb)
        PyErr_SetString(PyExc_RuntimeError, "not initialised");
    return self->fdb;
}

/* For "O&": None for no VLAN. */
static int convert_vlan(PyObject *number, void *vlan)
{
    long value = number == Py_None ? 0 : PyLong_AsLong(number);
    if (PyErr_Occurred())
        return 0;
    if (value < (number == Py_None ? 0 : 1) || value > VLAN_MAX) {
        PyErr_Format(PyExc_ValueError, "a VLAN is 1 to %d, or None", VLAN_MAX);
        return 0;
    }
    *(uint16_t *)vlan = (uint16_t)value;
    return 1;
}

/* For "O&": None for every peer. */
static int convert_index(PyObject *number, void *index)
{
    long value = number == Py_None ? FDB_NONE : PyLong_AsLong(number);
    if (PyErr_Occurred())
        return 0;
    if (number != Py_None && (value < 0 || value >= PEERS_MAX)) {
        PyErr_SetString(PyExc_ValueError, "index out of range");
        return 0;
    }
    *(uint16_t *)index = (uint16_t)value;
    return 1;
}

static PyObject *Fdb_put(FdbObject *self, PyObject *args)
{
    struct fdb *fdb = fdb_of(self);
    const char *bytes;
    Py_ssize_t size;
    uint8_t mac[MAC_SIZE];
    uint16_t vlan, index;
    if (!fdb || !PyArg_ParseTuple(args, "y#O&O&", &bytes, &size, convert_vlan, &vlan, convert_index,
                                  &index))
        return NULL;
    if (!parse_mac(bytes, size, mac))
        return NULL;
    if (!mac_is_host(mac) || index == FDB_NONE) {
        PyErr_SetString(PyExc_ValueError, "an entry is one host's MAC behind one peer");
        return NULL;
    }
    if (!fdb_put(fdb, fdb_key(mac, vlan), index))
        return PyErr_Format(PyExc_OverflowError, "at most %d static entries", FDB_STATIC_MAX);
    Py_RETURN_NONE;
}

static bool parse_key(PyObject *args, uint64_t *key)
{
    const char *bytes;
    Py_ssize_t size;
    uint8_t mac[MAC_SIZE];
    uint16_t vlan;
    if (!PyArg_ParseTuple(args, "y#O&", &bytes, &size, convert_vlan, &vlan) ||
        !parse_mac(bytes, size, mac))
        return false;
    *key = fdb_key(mac, vlan);
    return true;
}

static PyObject *Fdb_remove(FdbObject *self, PyObject *args)
{
    struct fdb *fdb = fdb_of(self);
    uint64_t key;
    if (!fdb || !parse_key(args, &key))
        return NULL;
    return PyBool_FromLong(fdb_remove(fdb, key));
}

static PyObject *Fdb_lookup(FdbObject *self, PyObject *args)
{
    struct fdb *fdb = fdb_of(self);
    uint64_t key;
    if (!fdb || !parse_key(args, &key))
        return NULL;
    uint16_t index = fdb_lookup(fdb, key, seconds_now());
    return PyLong_FromLong(index == FDB_NONE ? -1 : index);
}

static PyObject *Fdb_flush(FdbObject *self, PyObject *args)
{
    struct fdb *fdb = fdb_of(self);
    uint16_t index;
    int learned_only;
    if (!fdb || !PyArg_ParseTuple(args, "O&p", convert_index, &index, &learned_only))
        return NULL;
    fdb_flush(fdb, index, learned_only);
    Py_RETURN_NONE;
}

static PyObject *fdb_item(const struct fdb_entry *entry)
{
    PyObject *vlan = entry->vlan ? PyLong_FromLong(entry->vlan) : Py_NewRef(Py_None);
    return Py_BuildValue("y#NiNk", entry->mac, (Py_ssize_t)MAC_SIZE, vlan, entry->index,
                         PyBool_FromLong(entry->fixed), (unsigned long)entry->age);
}

static PyObject *Fdb_entries(FdbObject *self, PyObject *Py_UNUSED(none))
{
    struct fdb *fdb = fdb_of(self);
    if (!fdb)
        return NULL;
    uint32_t now = seconds_now();
    size_t room = fdb_entries(fdb, NULL, 0, now);
    struct fdb_entry *entries = malloc((room + 1) * sizeof *entries);
    if (!entries)
        return PyErr_NoMemory();
    size_t count = fdb_entries(fdb, entries, room, now);
    if (count > room) /* some came in between */
        count = room;
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list && i < count; i++) {
        PyObject *item = fdb_item(&entries[i]);
        if (!item || PyList_SetItem(list, (Py_ssize_t)i, item) < 0)
            Py_CLEAR(list);
    }
    free(entries);
    return list;
}

static PyObject *Fdb_counters(FdbObject *self, PyObject *Py_UNUSED(none))
{
    struct fdb *fdb = fdb_of(self);
    if (!fdb)
        return NULL;
    struct fdb_counters counters = fdb_counters(fdb);
    return Py_BuildValue("{sKsKsKsK}", "learned", counters.learned, "moved", counters.moved, "aged",
                         counters.aged, "refused_full", counters.refused_full);
}

static PyMethodDef fdb_methods[] = {
    {"put", (PyCFunction)Fdb_put, METH_VARARGS, NULL},
    {"remove", (PyCFunction)Fdb_remove, METH_VARARGS, NULL},
    {"lookup", (PyCFunction)Fdb_lookup, METH_VARARGS, NULL},
    {"flush", (PyCFunction)Fdb_flush, METH_VARARGS, NULL},
    {"entries", (PyCFunction)Fdb_entries, METH_NOARGS, NULL},
    {"counters", (PyCFunction)Fdb_counters, METH_NOARGS, NULL},
    {0},
};

static PyType_Slot fdb_slots[] = {
    {Py_tp_doc, "Which peer a MAC is behind: one table for all workers."},
    {Py_tp_init, Fdb_init},
    {Py_tp_dealloc, Fdb_dealloc},
    {Py_tp_methods, fdb_methods},
    {0},
};

static PyType_Spec fdb_spec = {
    .name = "tunnel._native.Fdb",
    .basicsize = sizeof(FdbObject),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = fdb_slots,
};

/* ---- Forwarder ---- */

typedef struct {
    PyObject_HEAD
    struct forwarder *forwarder;
    PyObject *fdb; /* whose table the forwarder has, or NULL */
} ForwarderObject;

/* Every method goes through the gate; waiting for a batch to end must not keep Python from
 * running. */
static struct forwarder *enter(ForwarderObject *self)
{
    struct forwarder *forwarder = self->forwarder;
    if (!forwarder) {
        PyErr_SetString(PyExc_RuntimeError, "not initialised");
        return NULL;
    }
    if (!gate_try(&forwarder->gate)) {
        Py_BEGIN_ALLOW_THREADS
        gate_enter(&forwarder->gate);
        Py_END_ALLOW_THREADS
    }
    return forwarder;
}

static void leave(ForwarderObject *self)
{
    gate_leave(&self->forwarder->gate);
}

#define METHOD(name)                                                                               \
    static PyObject *Forwarder_##name(ForwarderObject *self, PyObject *args)                       \
    {                                                                                              \
        struct forwarder *forwarder = enter(self);                                                 \
        if (!forwarder)                                                                            \
            return NULL;                                                                           \
        PyObject *result = name(forwarder, args);                                                  \
        leave(self);                                                                               \
        return result;                                                                             \
    }

/* Whether the first of these keywords were given: what comes before "$" cannot be optional. */
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

static PyTypeObject *fdb_type_of(PyObject *forwarder)
{
    struct module_state *state = PyType_GetModuleState(Py_TYPE(forwarder));
    return state->fdb_type;
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
    const char *mac;
    Py_ssize_t mac_size;
    struct vtep vtep;

    if (!has_all(kwargs, names, REQUIRED) ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "|$iipppO&y#kOppI", names, &device, &output,
                                     &vnet_header, &coalesce_tcp, &coalesce_udp, convert_vni,
                                     &vtep.vni, &mac, &mac_size, &segments, &fdb, &flood, &learning,
                                     &storm))
        return -1;
    if (fdb != Py_None &&
        (!PyObject_TypeCheck(fdb, fdb_type_of((PyObject *)self)) || !((FdbObject *)fdb)->fdb)) {
        PyErr_SetString(PyExc_TypeError, "fdb is an initialised Fdb or None");
        return -1;
    }
    if (!parse_mac(mac, mac_size, vtep.mac))
        return -1;
    if (segments < 1 || segments > TRAIN_SEGMENTS_MAX) {
        PyErr_Format(PyExc_ValueError, "segments is 1 to %d", TRAIN_SEGMENTS_MAX);
        return -1;
    }
    if (self->forwarder) {
        PyErr_SetString(PyExc_RuntimeError, "a forwarder is initialised once");
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
    if (fdb != Py_None) {
        self->fdb = Py_NewRef(fdb);
        forwarder->device.frames = true;
        forwarder->bridge = (struct bridge){
            .fdb = ((FdbObject *)fdb)->fdb,
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
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static struct underlay *underlay_of(struct forwarder *forwarder, int family)
{
    if (family != 4 && family != 6) {
        PyErr_SetString(PyExc_ValueError, "family is 4 or 6");
        return NULL;
    }
    return &forwarder->underlays[family == 6];
}

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
    const char *address_bytes, *mac_bytes;
    Py_ssize_t address_size, mac_size;
    struct address address = {0};
    uint8_t mac[MAC_SIZE];
    if (!PyArg_ParseTuple(args, "iz#iy#", &index, &address_bytes, &address_size, &port, &mac_bytes,
                          &mac_size))
        return NULL;
    if ((address_bytes && !parse_address(address_bytes, address_size, &address)) ||
        !parse_mac(mac_bytes, mac_size, mac))
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
    if (!PyArg_ParseTuple(args, "i", &index))
        return NULL;
    if (index < 0 || index >= PEERS_MAX || !peers_get(&forwarder->peers, (uint16_t)index))
        return PyErr_Format(PyExc_ValueError, "there is no peer %d", index);
    if (route_table_names(forwarder->routes, (uint16_t)index))
        return PyErr_Format(PyExc_ValueError, "peer %d still has routes", index);
    peers_remove(&forwarder->peers, (uint16_t)index);
    if (forwarder->bridge.fdb) /* the last worker to forget him forgets what others learned since */
        fdb_flush(forwarder->bridge.fdb, (uint16_t)index, false);
    Py_RETURN_NONE;
}

static bool parse_route(PyObject *item, const struct peers *peers, struct route *route)
{
    const char *bytes;
    Py_ssize_t size;
    int length, index;
    struct address network;
    if (!PyArg_ParseTuple(item, "y#ii", &bytes, &size, &length, &index) ||
        !parse_address(bytes, size, &network))
        return false;
    if (length < 0 || length > 8 * size || index < 0 || index >= PEERS_MAX ||
        !peers_get(peers, (uint16_t)index)) {
        PyErr_SetString(PyExc_ValueError, "a route's length or peer index is out of range");
        return false;
    }
    *route = (struct route){
        .length = (uint8_t)length,
        .version = size == 4 ? 4 : 6,
        .value = (uint16_t)index,
    };
    memcpy(route->network, network.bytes, sizeof route->network);
    if (route_is_canonical(route))
        return true;
    PyErr_SetString(PyExc_ValueError, "a route has host bits set");
    return false;
}

static PyObject *set_routes(struct forwarder *forwarder, PyObject *list)
{
    Py_ssize_t count = PySequence_Size(list);
    if (count < 0)
        return NULL;
    struct route *routes = malloc(((size_t)count + 1) * sizeof *routes);
    if (!routes)
        return PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = PySequence_GetItem(list, i);
        bool parsed = item && parse_route(item, &forwarder->peers, &routes[i]);
        Py_XDECREF(item);
        if (!parsed) {
            free(routes);
            return NULL;
        }
    }
    struct route_table *table = route_table_new(routes, (size_t)count);
    free(routes);
    if (!table)
        return PyErr_NoMemory();
    route_table_free(forwarder->routes);
    forwarder->routes = table;
    Py_RETURN_NONE;
}

static bool parse_neighbour(PyObject *item, struct neighbour *neighbour)
{
    const char *bytes, *mac;
    Py_ssize_t size, mac_size;
    struct address address;
    if (!PyArg_ParseTuple(item, "y#y#", &bytes, &size, &mac, &mac_size) ||
        !parse_address(bytes, size, &address) || !parse_mac(mac, mac_size, neighbour->mac))
        return false;
    memcpy(neighbour->address, address.bytes, sizeof neighbour->address);
    neighbour->size = address.size;
    return true;
}

static PyObject *set_neighbours(struct forwarder *forwarder, PyObject *list)
{
    Py_ssize_t count = PySequence_Size(list);
    if (count < 0)
        return NULL;
    struct neighbour *neighbours = malloc(((size_t)count + 1) * sizeof *neighbours);
    if (!neighbours)
        return PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = PySequence_GetItem(list, i);
        bool parsed = item && parse_neighbour(item, &neighbours[i]);
        Py_XDECREF(item);
        if (!parsed) {
            free(neighbours);
            return NULL;
        }
    }
    struct neighbour_table *table = neighbour_table_new(neighbours, (size_t)count);
    free(neighbours);
    if (!table)
        return PyErr_NoMemory();
    neighbour_table_free(forwarder->neighbours);
    forwarder->neighbours = table;
    Py_RETURN_NONE;
}

static PyObject *lookup(struct forwarder *forwarder, PyObject *args)
{
    const char *bytes;
    Py_ssize_t size;
    struct address address;
    if (!PyArg_ParseTuple(args, "y#", &bytes, &size) || !parse_address(bytes, size, &address))
        return NULL;
    uint16_t index = route_lookup(forwarder->routes, address.bytes, address.size);
    return PyLong_FromLong(index == ROUTE_NONE ? -1 : index);
}

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

/* The error names the descriptor where others name a file. */
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

static PyObject *numbers(const uint64_t *values, size_t count)
{
    PyObject *tuple = PyTuple_New((Py_ssize_t)count);
    for (size_t i = 0; tuple && i < count; i++) {
        PyObject *value = PyLong_FromUnsignedLongLong(values[i]);
        if (!value || PyTuple_SetItem(tuple, (Py_ssize_t)i, value) < 0)
            Py_CLEAR(tuple);
    }
    return tuple;
}

static PyObject *counters(struct forwarder *forwarder, PyObject *args)
{
    int index;
    if (!PyArg_ParseTuple(args, "i", &index))
        return NULL;
    const struct counters *counters;
    if (index == -1) {
        counters = &forwarder->peers.nobody;
    } else if (index == -2) {
        counters = &forwarder->peers.gone;
    } else {
        struct peer *peer = index >= 0 && index < PEERS_MAX
                                ? peers_get(&forwarder->peers, (uint16_t)index)
                                : NULL;
        if (!peer)
            return PyErr_Format(PyExc_ValueError, "there is no peer %d", index);
        counters = &peer->counters;
    }
    PyObject *drops = numbers(counters->drops, DROP_REASONS);
    if (!drops)
        return NULL;
    return Py_BuildValue("KKKKNi", counters->outbound.packets, counters->outbound.bytes,
                         counters->inbound.packets, counters->inbound.bytes, drops,
                         (int)counters->last_drop - 1);
}

static PyObject *sent(struct forwarder *forwarder, PyObject *Py_UNUSED(none))
{
    const struct peers *peers = &forwarder->peers;
    PyObject *tuple = PyTuple_New((Py_ssize_t)peers->room);
    for (size_t i = 0; tuple && i < peers->room; i++) {
        PyObject *value = PyLong_FromUnsignedLongLong(peers->at[i].counters.outbound.packets);
        if (!value || PyTuple_SetItem(tuple, (Py_ssize_t)i, value) < 0)
            Py_CLEAR(tuple);
    }
    return tuple;
}

static PyObject *work(struct forwarder *forwarder, PyObject *Py_UNUSED(none))
{
    uint64_t values[sizeof(struct work) / sizeof(uint64_t)];
    memcpy(values, &forwarder->work, sizeof values);
    return numbers(values, sizeof values / sizeof *values);
}

static struct peer *parse_peer(struct forwarder *forwarder, int index)
{
    struct peer *peer = index >= 0 && index < PEERS_MAX
                            ? peers_get(&forwarder->peers, (uint16_t)index)
                            : NULL;
    if (!peer)
        PyErr_Format(PyExc_ValueError, "there is no peer %d", index);
    return peer;
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

static PyObject *letter(const struct inbox *inbox, unsigned index)
{
    const struct letter *one = &inbox->letters[index];
    PyObject *body = PyBytes_FromStringAndSize(NULL, one->length);
    if (!body)
        return NULL;
    inbox_copy(inbox, index, (uint8_t *)PyBytes_AsString(body));
    return Py_BuildValue("iy#iy#N", one->sender, (const char *)one->from.bytes,
                         (Py_ssize_t)one->from.size, one->ethertype, (const char *)one->source,
                         (Py_ssize_t)MAC_SIZE, body);
}

static PyObject *take_letters(struct forwarder *forwarder, PyObject *Py_UNUSED(none))
{
    struct inbox *inbox = &forwarder->inbox;
    PyObject *list = PyList_New(inbox->count);
    for (unsigned i = 0; list && i < inbox->count; i++) {
        PyObject *item = letter(inbox, i);
        if (!item || PyList_SetItem(list, (Py_ssize_t)i, item) < 0)
            Py_CLEAR(list);
    }
    inbox_clear(inbox);
    return list;
}

static PyObject *count_bad_control(struct forwarder *forwarder, PyObject *args)
{
    int index;
    if (!PyArg_ParseTuple(args, "i", &index))
        return NULL;
    struct peer *peer = index >= 0 && index < PEERS_MAX
                            ? peers_get(&forwarder->peers, (uint16_t)index)
                            : NULL;
    count_drops(peer ? &peer->counters : &forwarder->peers.nobody, DROP_bad_control, 1);
    Py_RETURN_NONE;
}

static PyObject *trains(struct forwarder *forwarder, PyObject *args)
{
    int index;
    if (!PyArg_ParseTuple(args, "i", &index))
        return NULL;
    struct peer *peer = parse_peer(forwarder, index);
    if (!peer)
        return NULL;
    return PyBool_FromLong(peer->trains && forwarder->trains.segments > 1);
}

static PyObject *coalescing(struct forwarder *forwarder, PyObject *Py_UNUSED(none))
{
    return Py_BuildValue("NN", PyBool_FromLong(forwarder->coalescer.tcp),
                         PyBool_FromLong(forwarder->coalescer.udp));
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

METHOD(set_sockets)
METHOD(set_peer)
METHOD(remove_peer)
METHOD(set_routes)
METHOD(set_neighbours)
METHOD(lookup)
METHOD(trace)
METHOD(outbound)
METHOD(inbound)
METHOD(move)
METHOD(counters)
METHOD(sent)
METHOD(work)
METHOD(trains)
METHOD(set_mtu)
METHOD(set_trains)
METHOD(take_letters)
METHOD(count_bad_control)
METHOD(coalescing)

/* Through the gate in each turn, not around them all. */
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

static PyMethodDef forwarder_methods[] = {
    {"set_sockets", (PyCFunction)Forwarder_set_sockets, METH_VARARGS, NULL},
    {"set_peer", (PyCFunction)Forwarder_set_peer, METH_VARARGS, NULL},
    {"remove_peer", (PyCFunction)Forwarder_remove_peer, METH_VARARGS, NULL},
    {"set_routes", (PyCFunction)Forwarder_set_routes, METH_O, NULL},
    {"set_neighbours", (PyCFunction)Forwarder_set_neighbours, METH_O, NULL},
    {"lookup", (PyCFunction)Forwarder_lookup, METH_VARARGS, NULL},
    {"trace", (PyCFunction)Forwarder_trace, METH_VARARGS, NULL},
    {"outbound", (PyCFunction)Forwarder_outbound, METH_NOARGS, NULL},
    {"inbound", (PyCFunction)Forwarder_inbound, METH_VARARGS, NULL},
    {"move", (PyCFunction)Forwarder_move, METH_NOARGS, NULL},
    {"run", (PyCFunction)Forwarder_run, METH_VARARGS, NULL},
    {"counters", (PyCFunction)Forwarder_counters, METH_VARARGS, NULL},
    {"sent", (PyCFunction)Forwarder_sent, METH_NOARGS, NULL},
    {"work", (PyCFunction)Forwarder_work, METH_NOARGS, NULL},
    {"trains", (PyCFunction)Forwarder_trains, METH_VARARGS, NULL},
    {"set_trains", (PyCFunction)Forwarder_set_trains, METH_VARARGS, NULL},
    {"set_mtu", (PyCFunction)Forwarder_set_mtu, METH_VARARGS, NULL},
    {"take_letters", (PyCFunction)Forwarder_take_letters, METH_NOARGS, NULL},
    {"count_bad_control", (PyCFunction)Forwarder_count_bad_control, METH_VARARGS, NULL},
    {0},
};

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

static PyType_Spec forwarder_spec = {
    .name = "tunnel._native.Forwarder",
    .basicsize = sizeof(ForwarderObject),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = forwarder_slots,
};

/* ---- codec ---- */

static PyObject *codec_failed(PyObject *module, struct codec_result result)
{
    struct module_state *state = PyModule_GetState(module);
    PyObject *error = PyObject_CallFunction(state->codec_error, "sn", codec_reason(result.fault),
                                            (Py_ssize_t)result.index);
    if (error)
        PyErr_SetObject(state->codec_error, error);
    Py_XDECREF(error);
    return NULL;
}

static bool parse_macs(const char *source, Py_ssize_t source_size, const char *destination,
                       Py_ssize_t destination_size, struct codec_macs *macs)
{
    return parse_mac(source, source_size, macs->source) &&
           parse_mac(destination, destination_size, macs->destination);
}

static PyObject *native_encode(PyObject *module, PyObject *args)
{
    Py_buffer packet;
    uint32_t vni;
    const char *source, *destination;
    Py_ssize_t source_size, destination_size;
    struct codec_macs macs;
    PyObject *datagram = NULL;
    if (!PyArg_ParseTuple(args, "y*O&y#y#", &packet, convert_vni, &vni, &source, &source_size,
                          &destination, &destination_size))
        return NULL;
    if (parse_macs(source, source_size, destination, destination_size, &macs)) {
        datagram = PyBytes_FromStringAndSize(NULL, packet.len + VXLAN_OVERHEAD);
        if (datagram) {
            enum codec_fault fault = codec_encode((uint8_t *)PyBytes_AsString(datagram), packet.buf,
                                                  (size_t)packet.len, vni, &macs);
            if (fault != CODEC_OK) {
                Py_CLEAR(datagram);
                codec_failed(module, (struct codec_result){.fault = fault});
            }
        }
    }
    PyBuffer_Release(&packet);
    return datagram;
}

static PyObject *native_decode(PyObject *module, PyObject *args)
{
    Py_buffer datagram;
    PyObject *tuple = NULL;
    struct vxlan_frame frame;
    if (!PyArg_ParseTuple(args, "y*", &datagram))
        return NULL;
    const char *bytes = datagram.buf;
    enum codec_fault fault = codec_decode(datagram.buf, (size_t)datagram.len, &frame);
    if (fault == CODEC_OK)
        tuple = Py_BuildValue("ky#y#iy#", (unsigned long)frame.vni, frame.source,
                              (Py_ssize_t)MAC_SIZE, frame.destination, (Py_ssize_t)MAC_SIZE,
                              (int)frame.ethertype, bytes + VXLAN_OVERHEAD,
                              datagram.len - VXLAN_OVERHEAD);
    else
        codec_failed(module, (struct codec_result){.fault = fault});
    PyBuffer_Release(&datagram);
    return tuple;
}

static PyObject *native_encode_batch(PyObject *module, PyObject *args)
{
    Py_buffer packets, sizes, out;
    uint32_t vni;
    const char *source, *destination;
    Py_ssize_t source_size, destination_size;
    struct codec_macs macs;
    PyObject *written = NULL;
    if (!PyArg_ParseTuple(args, "y*y*w*O&y#y#", &packets, &sizes, &out, convert_vni, &vni, &source,
                          &source_size, &destination, &destination_size))
        return NULL;
    if (parse_macs(source, source_size, destination, destination_size, &macs)) {
        struct codec_result result;
        Py_BEGIN_ALLOW_THREADS
        result = codec_encode_batch(packets.buf, (size_t)packets.len, sizes.buf, (size_t)sizes.len,
                                    out.buf, (size_t)out.len, vni, &macs);
        Py_END_ALLOW_THREADS
        written = result.fault == CODEC_OK ? PyLong_FromSize_t(result.done)
                                           : codec_failed(module, result);
    }
    PyBuffer_Release(&packets);
    PyBuffer_Release(&sizes);
    PyBuffer_Release(&out);
    return written;
}

static PyObject *native_decode_batch(PyObject *module, PyObject *args)
{
    Py_buffer datagrams, sizes, out;
    if (!PyArg_ParseTuple(args, "y*y*w*", &datagrams, &sizes, &out))
        return NULL;
    struct codec_result result;
    Py_BEGIN_ALLOW_THREADS
    result = codec_decode_batch(datagrams.buf, (size_t)datagrams.len, sizes.buf, (size_t)sizes.len,
                                out.buf, (size_t)out.len);
    Py_END_ALLOW_THREADS
    PyObject *decoded = result.fault == CODEC_OK ? PyLong_FromSize_t(result.done)
                                                 : codec_failed(module, result);
    PyBuffer_Release(&datagrams);
    PyBuffer_Release(&sizes);
    PyBuffer_Release(&out);
    return decoded;
}

/* A copy is judged: what decap() changes is nobody's to see. */
static PyObject *native_decap(PyObject *Py_UNUSED(module), PyObject *args)
{
#define X(name, direction, meaning) #name,
    static const char *const reasons[] = {DROPS(X) NULL};
#undef X
    Py_buffer datagram;
    const char *mac;
    Py_ssize_t mac_size;
    int ecn;
    struct vtep vtep;
    struct ip_packet packet;
    PyObject *reason = NULL;
    if (!PyArg_ParseTuple(args, "y*O&y#i", &datagram, convert_vni, &vtep.vni, &mac, &mac_size,
                          &ecn))
        return NULL;
    if (parse_mac(mac, mac_size, vtep.mac)) {
        PyObject *copy = PyBytes_FromStringAndSize(datagram.buf, datagram.len);
        if (copy)
            reason = Py_BuildValue("z", reasons[decap(&vtep, (uint8_t *)PyBytes_AsString(copy),
                                                      (size_t)datagram.len, ecn & 3, &packet)]);
        Py_XDECREF(copy);
    }
    PyBuffer_Release(&datagram);
    return reason;
}

static PyObject *native_checksum_backend(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyUnicode_FromString(checksum_backend());
}

static PyMethodDef module_methods[] = {
    {"encode", native_encode, METH_VARARGS, NULL},
    {"decode", native_decode, METH_VARARGS, NULL},
    {"encode_batch", native_encode_batch, METH_VARARGS, NULL},
    {"decode_batch", native_decode_batch, METH_VARARGS, NULL},
    {"decap", native_decap, METH_VARARGS, NULL},
    {"checksum_backend", native_checksum_backend, METH_NOARGS, NULL},
    {0},
};

/* ---- module ---- */

static int add(PyObject *module, const char *name, PyObject *value)
{
    int failed = value ? PyModule_AddObjectRef(module, name, value) : -1;
    Py_XDECREF(value);
    return failed;
}

static PyObject *drop_reasons(void)
{
#define X(name, direction, meaning) "(sss)"
    static const char format[] = "(" DROPS(X) ")";
#undef X
#define X(name, direction, meaning) , #name, direction, meaning
    return Py_BuildValue(format DROPS(X));
#undef X
}

static PyObject *work_names(void)
{
#define X(name) "s"
    static const char format[] = "(" WORK(X) ")";
#undef X
#define X(name) , #name
    return Py_BuildValue(format WORK(X));
#undef X
}

static int module_exec(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);
    PyObject *errors = PyImport_ImportModule("tunnel.errors");
    state->codec_error = errors ? PyObject_GetAttrString(errors, "CodecError") : NULL;
    Py_XDECREF(errors);
    if (!state->codec_error)
        return -1;
    state->fdb_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &fdb_spec, NULL);
    if (!state->fdb_type || PyModule_AddType(module, state->fdb_type) < 0)
        return -1;
    if (add(module, "Forwarder", PyType_FromModuleAndSpec(module, &forwarder_spec, NULL)) ||
        add(module, "ANY_VTEP_MAC",
            PyBytes_FromStringAndSize((const char *)any_vtep_mac, MAC_SIZE)) ||
        add(module, "DROP_REASONS", drop_reasons()) || add(module, "WORK", work_names()))
        return -1;
    return 0;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    struct module_state *state = PyModule_GetState(module);
    Py_VISIT(state->codec_error);
    Py_VISIT(state->fdb_type);
    return 0;
}

static int module_clear(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);
    Py_CLEAR(state->codec_error);
    Py_CLEAR(state->fdb_type);
    return 0;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, module_exec}, {0}};

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "tunnel._native",
    .m_doc = "The C core: see _native.pyi.",
    .m_size = sizeof(struct module_state),
    .m_methods = module_methods,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&module_def);
}
