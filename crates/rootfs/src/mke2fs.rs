//! The reference backend: e2fsprogs as a subprocess over a staged tree.
