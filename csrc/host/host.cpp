// host.cpp - pybind11 module `_host`: what works on numpy arrays and plain values.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

namespace py = pybind11;

PYBIND11_MODULE(_host, m) { m.doc() = "Host-side pieces: packing for the deploy model."; }
