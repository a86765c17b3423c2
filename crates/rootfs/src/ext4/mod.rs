//! The native ext4 writer.
