"""Pure maths on arrays: NumPy in, NumPy out; no model, no file, no global state, no logging."""
