/* read_counters(), and the type Counters of its results. */
#include "py.h"

#include "counter_table.h"
#include "forwarder.h"

/* ---- the type ---- */

PyTypeObject *counters_type_new(void)
{
#define X(name, member) {#name, NULL},
    static PyStructSequence_Field fields[] = {
        TRAFFIC(X){"drops", NULL},
        {"last_drop", NULL},
        {"trains", NULL},
        {NULL, NULL},
    };
#undef X
    static PyStructSequence_Desc desc = {
        .name = "tunnel._native.Counters",
        .doc = "The counters of one peer.",
        .fields = fields,
        .n_in_sequence = sizeof fields / sizeof *fields - 1,
    };
    return PyStructSequence_NewType(&desc);
}

/* Reasons that occurred, by name. */
static PyObject *drops_of(const struct module_state *state, const struct counters *counters)
{
    PyObject *drops = PyDict_New();
    for (int reason = 0; drops && reason < DROP_REASONS; reason++) {
        if (!counters->drops[reason])
            continue;
        PyObject *count = PyLong_FromUnsignedLongLong(counters->drops[reason]);
        if (!count || PyDict_SetItem(drops, state->drop_names[reason], count) < 0)
            Py_CLEAR(drops);
        Py_XDECREF(count);
    }
    return drops;
}

static PyObject *last_drop_of(const struct module_state *state, const struct counters *counters)
{
    return Py_NewRef(counters->last_drop ? state->drop_names[counters->last_drop - 1] : Py_None);
}

static PyObject *counters_new(const struct module_state *state, const struct counter_row *row)
{
    const struct counters *counters = &row->counters;
#define X(name, member) PyLong_FromUnsignedLongLong(counters->member),
    PyObject *fields[] = {
        TRAFFIC(X) drops_of(state, counters),
        last_drop_of(state, counters),
        PyBool_FromLong(row->trains),
    };
#undef X
    PyObject *made = PyStructSequence_New(state->counters_type);
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        if (made && fields[i])
            PyStructSequence_SetItem(made, (Py_ssize_t)i, fields[i]);
        else {
            Py_XDECREF(fields[i]);
            Py_CLEAR(made);
        }
    }
    return made;
}

/* ---- the function ---- */

static int add_row(const struct module_state *state, PyObject *rows, long index,
                   const struct counter_row *row)
{
    PyObject *key = PyLong_FromLong(index), *value = key ? counters_new(state, row) : NULL;
    int failed = value ? PyDict_SetItem(rows, key, value) : -1;
    Py_XDECREF(key);
    Py_XDECREF(value);
    return failed;
}

static PyObject *rows_of(const struct module_state *state, const struct counter_table *table)
{
    PyObject *rows = PyDict_New();
    if (!rows || add_row(state, rows, UNKNOWN_PEER, &table->unknown) ||
        add_row(state, rows, REMOVED_PEERS, &table->removed))
        Py_CLEAR(rows);
    for (size_t i = 0; rows && i < table->count; i++)
        if (table->peers[i].used && add_row(state, rows, (long)i, &table->peers[i]))
            Py_CLEAR(rows);
    return rows;
}

static bool add_worker(const struct module_state *state, struct counter_table *table,
                       PyObject *object)
{
    struct forwarder *forwarder = lock_forwarder(object, state->forwarder_type);
    if (!forwarder)
        return false;
    bool added = counter_table_add(table, &forwarder->peers, forwarder->trains.segments > 1);
    unlock_forwarder(forwarder);
    if (!added)
        PyErr_NoMemory();
    return added;
}

PyObject *read_counters(PyObject *module, PyObject *forwarders)
{
    const struct module_state *state = PyModule_GetState(module);
    struct counter_table table = {0};
    Py_ssize_t count = PySequence_Size(forwarders);
    bool read = count >= 0;
    for (Py_ssize_t i = 0; read && i < count; i++) {
        PyObject *forwarder = PySequence_GetItem(forwarders, i);
        read = forwarder && add_worker(state, &table, forwarder);
        Py_XDECREF(forwarder);
    }
    PyObject *rows = read ? rows_of(state, &table) : NULL;
    counter_table_free(&table);
    return rows;
}
