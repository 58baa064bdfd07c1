"""Image operations on arrays: geometry, masks."""
