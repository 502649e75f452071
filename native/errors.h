// What the core throws; the binding turns these into rolltree's Python errors.
#pragma once

#include <stdexcept>
#include <string>

namespace rolltree {

/// An argument outside what is allowed; nothing was changed.
struct InputFault : std::runtime_error {
  InputFault(std::string argument, std::string got, std::string allowed_values)
      : std::runtime_error(argument + " = " + got + ": must be " + allowed_values),
        name(std::move(argument)), value(std::move(got)), allowed(std::move(allowed_values)) {}
  std::string name, value, allowed;
};

/// A handle that is closed or never existed.
struct ClosedFault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// A limit that no waiting removes.
struct CapacityFault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace rolltree
