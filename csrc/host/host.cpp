// host.cpp - pybind11 module `_host`: what works on numpy arrays and plain values.
//
// Arrays are taken in the dtype that is documented, of any strides; another dtype is a
// TypeError that names the argument.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "packing.h"

namespace py = pybind11;
using namespace py::literals;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

template <class T>
Array<T> array_argument(const char* name, const py::object& value) {
  if (!py::isinstance<py::array>(value))
    throw py::type_error(std::string(name) + ": expected a numpy.ndarray, got " +
                         py::type::of(value).attr("__name__").cast<std::string>());
  const auto dtype = py::reinterpret_borrow<py::array>(value).dtype();
  if (!dtype.equal(py::dtype::of<T>()))
    throw py::type_error(std::string(name) + ": expected dtype " +
                         py::str(py::dtype::of<T>()).cast<std::string>() + ", got " +
                         py::str(dtype).cast<std::string>());
  return Array<T>::ensure(value);
}

template <class T>
Array<T> vector_argument(const char* name, const py::object& value) {
  Array<T> array = array_argument<T>(name, value);
  if (array.ndim() != 1)
    throw std::invalid_argument(std::string(name) + " must have 1 dimension, got " +
                                std::to_string(array.ndim()));
  return array;
}

void check_length(const char* name, const py::array& array, const py::array& scale) {
  if (array.size() != scale.size())
    throw std::invalid_argument(std::string(name) + " must have the length of scale, " +
                                std::to_string(scale.size()) + ", got " +
                                std::to_string(array.size()));
}

Array<int8_t> pack_int4(const py::object& codes_, py::ssize_t axis) {
  const auto codes = array_argument<int8_t>("codes", codes_);
  std::vector<py::ssize_t> sizes(codes.shape(), codes.shape() + codes.ndim());
  if (axis < -codes.ndim() || axis >= codes.ndim())
    throw std::out_of_range("axis " + std::to_string(axis) + " is out of range for codes of " +
                            std::to_string(codes.ndim()) + " dimensions");
  const auto a = static_cast<size_t>(axis < 0 ? axis + codes.ndim() : axis);
  if (sizes[a] % 2 != 0)
    throw std::invalid_argument("codes must have an even size along axis " + std::to_string(axis) +
                                ", got " + std::to_string(sizes[a]));
  int64_t outer = 1, inner = 1;
  for (size_t d = 0; d < sizes.size(); ++d)
    if (d != a) (d < a ? outer : inner) *= sizes[d];
  sizes[a] /= 2;
  Array<int8_t> packed(sizes);
  amct::pack_int4(codes.data(), outer, sizes[a], inner, packed.mutable_data());
  return packed;
}

Array<uint64_t> dequant_words(const py::object& scale_, const py::object& offset_,
                              const py::object& shift_) {
  const auto scale = vector_argument<float>("scale", scale_);
  const auto offset = vector_argument<int8_t>("offset", offset_);
  const auto shift = vector_argument<uint8_t>("shift", shift_);
  check_length("offset", offset, scale);
  check_length("shift", shift, scale);
  Array<uint64_t> words(scale.size());
  for (py::ssize_t i = 0; i < scale.size(); ++i)
    words.mutable_data()[i] =
        amct::dequant_word({scale.data()[i], offset.data()[i], shift.data()[i]});
  return words;
}

py::tuple unpack_dequant_words(const py::object& words_) {
  const auto words = vector_argument<uint64_t>("words", words_);
  Array<float> scale(words.size());
  Array<int8_t> offset(words.size());
  Array<uint8_t> shift(words.size());
  for (py::ssize_t i = 0; i < words.size(); ++i) {
    const amct::Dequant d = amct::dequant_of_word(words.data()[i]);
    scale.mutable_data()[i] = d.scale;
    offset.mutable_data()[i] = d.offset;
    shift.mutable_data()[i] = d.shift;
  }
  return py::make_tuple(scale, offset, shift);
}

py::dict build_info() {
  constexpr uint64_t kTorch = TORCH_TARGET_VERSION;  // 0xMMmm...: major and minor of the floor
  return py::dict(
      "compiler"_a = __VERSION__,
      "cxx_standard"_a = "C++" + std::to_string(__cplusplus / 100 % 100),
      "torch_floor"_a = std::to_string(kTorch >> 56) + "." + std::to_string(kTorch >> 48 & 0xff));
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "Host-side pieces: packing for the deploy model.";
  m.def("pack_int4", &pack_int4, "codes"_a, "axis"_a);
  m.def("dequant_words", &dequant_words, "scale"_a, "offset"_a, "shift"_a);
  m.def("unpack_dequant_words", &unpack_dequant_words, "words"_a);
  m.def("build_info", &build_info);
}
