/* The type Fdb. */
#include "py.h"

#include <stdbool.h>
#include <stdlib.h>
#include <sys/random.h>
#include <time.h>

#include "ethernet.h"
#include "peers.h"

typedef struct {
    PyObject_HEAD
    struct fdb *fdb;
} FdbObject;

enum { VLAN_MAX = 4094 };

static uint32_t seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now); /* the clock of the forwarders */
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
        PyErr_Format(PyExc_ValueError, "limit must be at most %d, ageing at least 1 second",
                     FDB_LIMIT_MAX);
        return -1;
    }
    if (self->fdb) {
        PyErr_SetString(PyExc_RuntimeError, "an Fdb can be initialised only once");
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
    PyObject_Free(self);
    Py_DECREF(type);
}

struct fdb *fdb_of(PyObject *object, PyTypeObject *fdb_type)
{
    return PyObject_TypeCheck(object, fdb_type) ? ((FdbObject *)object)->fdb : NULL;
}

static struct fdb *table_of(FdbObject *self)
{
    if (!self->fdb)
        PyErr_SetString(PyExc_RuntimeError, "not initialised");
    return self->fdb;
}

/* Converter for "O&": None for no VLAN. */
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

/* Converter for "O&": None for every peer. */
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
    struct fdb *fdb = table_of(self);
    uint8_t mac[MAC_SIZE];
    uint16_t vlan, index;
    if (!fdb || !PyArg_ParseTuple(args, "O&O&O&", convert_mac, mac, convert_vlan, &vlan,
                                  convert_index, &index))
        return NULL;
    if (!mac_is_host(mac) || index == FDB_NONE) {
        PyErr_SetString(PyExc_ValueError,
                        "an entry needs the MAC of a host and the index of a peer");
        return NULL;
    }
    if (!fdb_put(fdb, fdb_key(mac, vlan), index))
        return PyErr_Format(PyExc_OverflowError, "at most %d static entries", FDB_STATIC_MAX);
    Py_RETURN_NONE;
}

static bool parse_key(PyObject *args, uint64_t *key)
{
    uint8_t mac[MAC_SIZE];
    uint16_t vlan;
    if (!PyArg_ParseTuple(args, "O&O&", convert_mac, mac, convert_vlan, &vlan))
        return false;
    *key = fdb_key(mac, vlan);
    return true;
}

static PyObject *Fdb_remove(FdbObject *self, PyObject *args)
{
    struct fdb *fdb = table_of(self);
    uint64_t key;
    if (!fdb || !parse_key(args, &key))
        return NULL;
    return PyBool_FromLong(fdb_remove(fdb, key));
}

static PyObject *Fdb_lookup(FdbObject *self, PyObject *args)
{
    struct fdb *fdb = table_of(self);
    uint64_t key;
    if (!fdb || !parse_key(args, &key))
        return NULL;
    uint16_t index = fdb_lookup(fdb, key, seconds_now());
    return PyLong_FromLong(index == FDB_NONE ? -1 : index);
}

static PyObject *Fdb_flush(FdbObject *self, PyObject *args)
{
    struct fdb *fdb = table_of(self);
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
    struct fdb *fdb = table_of(self);
    if (!fdb)
        return NULL;
    uint32_t now = seconds_now();
    size_t room = fdb_entries(fdb, NULL, 0, now);
    struct fdb_entry *entries = malloc((room + 1) * sizeof *entries);
    if (!entries)
        return PyErr_NoMemory();
    size_t count = fdb_entries(fdb, entries, room, now);
    if (count > room) /* entries were added in between */
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
    struct fdb *fdb = table_of(self);
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
    {Py_tp_doc, "Maps MACs to peers; shared by all workers."},
    {Py_tp_init, Fdb_init},
    {Py_tp_dealloc, Fdb_dealloc},
    {Py_tp_methods, fdb_methods},
    {0},
};

PyType_Spec fdb_spec = {
    .name = "tunnel._native.Fdb",
    .basicsize = sizeof(FdbObject),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = fdb_slots,
};
