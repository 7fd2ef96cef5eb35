// `import amct_pytorch._C_cuda` runs the static initialisers of ops_cuda.cu.
#include <Python.h>
extern "C" PyMODINIT_FUNC PyInit__C_cuda(void) {
  static PyModuleDef def = {
      PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&def);
}
