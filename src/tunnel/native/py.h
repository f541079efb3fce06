/*
 * Shared by the files of the binding: module.c (the module and the codec), py_counters.c, py_fdb.c
 * and py_forwarder.c.
 *
 * The binding parses arguments, drops the GIL, calls one C function and translates the error.
 */
#ifndef TUNNEL_PY_H
#define TUNNEL_PY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#include "fdb.h"
#include "stats.h"
#include "vxlan.h"

/* Keys of read_counters() beside the indices of peers. */
enum { UNKNOWN_PEER = -1, REMOVED_PEERS = -2 };

struct forwarder;

struct module_state {
    PyObject *codec_error;
    PyTypeObject *fdb_type;
    PyTypeObject *forwarder_type;
    PyTypeObject *counters_type;
    PyObject *drop_names[DROP_REASONS];
};

extern PyType_Spec fdb_spec, forwarder_spec;

/* A new type, or NULL and an exception. */
PyTypeObject *counters_type_new(void);

/* A method of the module. */
PyObject *read_counters(PyObject *module, PyObject *forwarders);

/* The table of an Fdb, which lives as long as that object. NULL for any other object, and for an
 * Fdb that was not initialised. */
struct fdb *fdb_of(PyObject *object, PyTypeObject *fdb_type);

/* The forwarder of a Forwarder, locked; other threads of Python run while this waits for the lock.
 * NULL and an exception for any other object, and for a Forwarder that was not initialised. */
struct forwarder *lock_forwarder(PyObject *object, PyTypeObject *forwarder_type);

void unlock_forwarder(struct forwarder *forwarder);

/* Converters for "O&". */
static inline int convert_mac(PyObject *object, void *mac)
{
    const char *bytes;
    Py_ssize_t size;
    if (!PyArg_Parse(object, "y#", &bytes, &size))
        return 0;
    if (size != MAC_SIZE) {
        PyErr_SetString(PyExc_ValueError, "a MAC has 6 bytes");
        return 0;
    }
    memcpy(mac, bytes, MAC_SIZE);
    return 1;
}

/* Not "k", which converts 2**64 to 0. */
static inline int convert_vni(PyObject *number, void *vni)
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

#endif
