/* The module: constants, types and the codec. */
#include "py.h"

#include "checksum.h"
#include "codec.h"
#include "decap.h"
#include "stats.h"

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

static PyObject *native_encode(PyObject *module, PyObject *args)
{
    Py_buffer packet;
    uint32_t vni;
    struct codec_macs macs;
    if (!PyArg_ParseTuple(args, "y*O&O&O&", &packet, convert_vni, &vni, convert_mac, macs.source,
                          convert_mac, macs.destination))
        return NULL;
    PyObject *datagram = PyBytes_FromStringAndSize(NULL, packet.len + VXLAN_OVERHEAD);
    if (datagram) {
        enum codec_fault fault = codec_encode((uint8_t *)PyBytes_AsString(datagram), packet.buf,
                                              (size_t)packet.len, vni, &macs);
        if (fault != CODEC_OK) {
            Py_CLEAR(datagram);
            codec_failed(module, (struct codec_result){.fault = fault});
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

static PyObject *done_or_error(PyObject *module, struct codec_result result)
{
    return result.fault == CODEC_OK ? PyLong_FromSize_t(result.done) : codec_failed(module, result);
}

static PyObject *native_encode_batch(PyObject *module, PyObject *args)
{
    Py_buffer packets, sizes, out;
    uint32_t vni;
    struct codec_macs macs;
    if (!PyArg_ParseTuple(args, "y*y*w*O&O&O&", &packets, &sizes, &out, convert_vni, &vni,
                          convert_mac, macs.source, convert_mac, macs.destination))
        return NULL;
    struct codec_result result;
    Py_BEGIN_ALLOW_THREADS
    result = codec_encode_batch(packets.buf, (size_t)packets.len, sizes.buf, (size_t)sizes.len,
                                out.buf, (size_t)out.len, vni, &macs);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&packets);
    PyBuffer_Release(&sizes);
    PyBuffer_Release(&out);
    return done_or_error(module, result);
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
    PyBuffer_Release(&datagrams);
    PyBuffer_Release(&sizes);
    PyBuffer_Release(&out);
    return done_or_error(module, result);
}

static enum drop drop_of(const struct vtep *vtep, uint8_t *datagram, size_t length, uint8_t ecn,
                         bool bridged)
{
    struct ip_packet packet;
    struct inner_frame frame;
    return bridged ? decap_frame(vtep, datagram, length, ecn, &frame)
                   : decap(vtep, datagram, length, ecn, &packet);
}

/* Works on a copy, because decap() changes the datagram. */
static PyObject *native_decap(PyObject *Py_UNUSED(module), PyObject *args)
{
#define X(name, direction, meaning) #name,
    static const char *const reasons[] = {DROPS(X) NULL};
#undef X
    Py_buffer datagram;
    int ecn, bridged;
    struct vtep vtep;
    if (!PyArg_ParseTuple(args, "y*O&O&ip", &datagram, convert_vni, &vtep.vni, convert_mac,
                          vtep.mac, &ecn, &bridged))
        return NULL;
    PyObject *reason = NULL, *copy = PyBytes_FromStringAndSize(datagram.buf, datagram.len);
    if (copy)
        reason = Py_BuildValue("z", reasons[drop_of(&vtep, (uint8_t *)PyBytes_AsString(copy),
                                                    (size_t)datagram.len, ecn & 3, bridged)]);
    Py_XDECREF(copy);
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
    {"read_counters", read_counters, METH_O, NULL},
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

static bool make_drop_names(struct module_state *state)
{
#define X(name, direction, meaning) #name,
    static const char *const names[] = {DROPS(X)};
#undef X
    for (int reason = 0; reason < DROP_REASONS; reason++) {
        state->drop_names[reason] = PyUnicode_InternFromString(names[reason]);
        if (!state->drop_names[reason])
            return false;
    }
    return true;
}

static int add_types(PyObject *module, struct module_state *state)
{
    state->fdb_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &fdb_spec, NULL);
    state->forwarder_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &forwarder_spec, NULL);
    state->counters_type = counters_type_new();
    if (!state->fdb_type || !state->forwarder_type || !state->counters_type)
        return -1;
    return PyModule_AddType(module, state->fdb_type) ||
                   PyModule_AddType(module, state->forwarder_type) ||
                   PyModule_AddType(module, state->counters_type)
               ? -1
               : 0;
}

static int module_exec(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);
    PyObject *errors = PyImport_ImportModule("tunnel.errors");
    state->codec_error = errors ? PyObject_GetAttrString(errors, "CodecError") : NULL;
    Py_XDECREF(errors);
    if (!state->codec_error || !make_drop_names(state) || add_types(module, state))
        return -1;
    if (add(module, "UNKNOWN_PEER", PyLong_FromLong(UNKNOWN_PEER)) ||
        add(module, "REMOVED_PEERS", PyLong_FromLong(REMOVED_PEERS)) ||
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
    Py_VISIT(state->forwarder_type);
    Py_VISIT(state->counters_type);
    return 0;
}

static int module_clear(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);
    Py_CLEAR(state->codec_error);
    Py_CLEAR(state->fdb_type);
    Py_CLEAR(state->forwarder_type);
    Py_CLEAR(state->counters_type);
    for (int reason = 0; reason < DROP_REASONS; reason++)
        Py_CLEAR(state->drop_names[reason]);
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
