//! Layers onto each other, bottom first.
